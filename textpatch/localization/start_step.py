"""The start curve tells from which step on the swap is needed.

    x_s(t) = x_source(t) for t <= s,   the latents that enter step t of the row whose swap starts at step s

There is one run for each start step, and all share with the source what comes before.  The row of start s
joins the lock-step batch at step s as a copy of the source's latents.  So S starts cost S (S + 1) / 2
row-steps and not S^2.  (ICLR 2025, app. A.2)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from textpatch.bank import prompt_settles_text
from textpatch.errors import PatchError
from textpatch.groups import Group
from textpatch.localization.scores import all_scores, values
from textpatch.localization.trials import Task, Trials
from textpatch.metrics import FEWEST, f1_of_means
from textpatch.metrics.intervals import Statistic, gain, ranking
from textpatch.pipelines import SupportsPartialRuns, draws_by_itself, require_parts
from textpatch.plan import Plan, Row, Swap
from textpatch.ports.shipped import site_indices
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET
from textpatch.runs.work import made_by
from textpatch.sampling import sample
from textpatch.sites import Selectors
from textpatch.stored import StartCurve
from textpatch.swaps import integers


def start_curve(
    trials: Trials, sites: Selectors, starts: Sequence[int] | None = None
) -> StartCurve:
    """Score one set of sites for every start step, on all pairs and seeds of the trials.

    sites   a selector as for `select_sites`.  All these sites are swapped together
    starts  the start steps to try, all when None
    Returns {"sites", "curve", "chosen", "generations"}.

    - "curve" is a list of {"start", "timestep", "sigma", scores}.
    - "chosen" is the last start whose F1 towards the target is not clearly below the best one's.
    - "generations" counts rows.  One generation is a row through all steps.

    Raises PatchError for unknown sites and for starts outside the run.
    """
    require_startable(trials.pipeline)
    group = site_indices(trials.pipeline, sites)
    starts = _checked_starts(starts, trials.steps)
    tasks = trials.tasks(len(trials.pairs))
    found = {}
    with phase("start steps"):
        for portion in trials.portions(tasks, [_id(task) for task in tasks]):
            found |= {task: _record(trials, task, group, starts) for task in counted(portion)}
    records = [found[task] for task in tasks]
    scored = [values(records, _name(start)) for start in starts]
    return {
        "sites": list(group),
        "curve": _curve(trials, records, starts),
        "chosen": starts[latest_start(scored, f1_of_means)],
        "generations": sum(record["generations"] for record in records),
    }


def _checked_starts(starts: Sequence[int] | None, steps: int) -> list[int]:
    if starts is None:
        return list(range(steps))
    asked = integers("starts", starts)
    if not asked or not 0 <= asked[0] <= asked[-1] < steps:
        raise PatchError(
            f"start steps {list(asked)} were asked for; this run has steps 0..{steps - 1}, so give some of "
            "these"
        )
    return list(asked)


def require_startable(pipeline: object) -> None:
    """Raise PatchError for a pipeline that can make no start curve."""
    if not draws_by_itself(pipeline):
        require_parts(pipeline, "a start curve", SupportsPartialRuns)


def _curve(trials: Trials, records: list[dict], starts: list[int]) -> list[dict]:
    """Scores of each start step, with its timestep and sigma."""
    times = trials.pipeline.schedule.timesteps(trials.steps)
    sigmas = trials.pipeline.schedule.sigmas(trials.steps)
    return [
        {
            "start": start,
            "timestep": _known(times[start]),
            "sigma": _known(sigmas[start]),
            **all_scores(records, _name(start)),
        }
        for start in starts
    ]


def _known(level: Tensor) -> float | None:
    """A time or noise level, None where nobody tells it."""
    return None if level.isnan() else float(level)


def _name(start: int) -> str:
    return f"start-{start}"


def _record(trials: Trials, task: Task, group: Group, starts: list[int]) -> dict:
    """Record of one pair and seed, with a picture for every start step."""
    index, seed = task
    pair = trials.pairs[index]
    steps = trials.steps
    rows = [_row(trials, pair.source, seed, start) for start in starts]
    plan = Plan(
        Swap(group, row.name, TARGET, steps=range(start, steps), branch=trials.branch)
        for start, row in zip(starts, rows, strict=True)
    )
    target_runs = not prompt_settles_text(trials.pipeline.denoiser)
    target = Row(TARGET, pair.target, seed, sampled=target_runs)
    rows = [Row(SOURCE, pair.source, seed), target, *rows]
    row_steps = sum(steps - row.joins for row in rows if row.sampled)

    def make() -> dict:
        made = sample(
            trials.pipeline,
            rows,
            plan,
            steps=steps,
            guidance=trials.guidance,
            micro_batch=trials.micro_batch,
        )
        return {"generations": row_steps / steps, "pictures": trials.scored(made.images, index)}

    return trials.once(_id(task), task, made_by(rows, plan), make)


def _id(task: Task) -> str:
    """Id of the record of a pair and seed."""
    pair, seed = task
    return f"starts-{pair}-{seed}"


def _row(trials: Trials, prompt: str, seed: int, start: int) -> Row:
    """Row of a start step, which joins there, or runs from the noise on where a pipeline draws by itself."""
    if draws_by_itself(trials.pipeline):
        return Row(_name(start), prompt, seed)
    return Row(_name(start), prompt, seed, joins=start, copies=SOURCE)


def latest_start(scores: Sequence[np.ndarray], statistic: Statistic = np.mean) -> int:
    """Place of the last start step whose score is not clearly below the best one's.

    scores  values over pairs of each start, in order
    With fewer than FEWEST pairs no loss is clear.  Then it is the last start whose score is not below at all.
    """
    best = scores[ranking(scores, statistic)[0]]
    lost = [gain(best, one, statistic) for one in scores]
    end = "value"
    if len(best) >= FEWEST:
        end = "low"
    return max(s for s, loss in enumerate(lost) if loss[end] <= 0)
