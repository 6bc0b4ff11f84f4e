"""From which step on the swap is needed: one run per start step, sharing with the source all that comes before.

    x_s(t) = x_source(t) for t <= s,   the latents entering step t of the row whose swap starts at step s

So the row of start s joins the lock-step batch at step s, as a copy of the source's latents: S starts cost
S (S + 1) / 2 row-steps and not S^2.  (ICLR 2025, app. A.2)
"""

from __future__ import annotations

from collections.abc import Sequence

from textpatch.bank import prompt_settles_text
from textpatch.errors import PatchError
from textpatch.localization.scores import all_scores, values
from textpatch.localization.search import latest_start
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means
from textpatch.pipelines import SupportsPartialRuns, require_parts
from textpatch.plan import Plan, Row, Swap
from textpatch.ports.shipped import find_sites
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET
from textpatch.runs.work import made_by
from textpatch.sampling import sample
from textpatch.sites import select_sites


def start_curve(trials: Trials, sites, starts: Sequence[int] | None = None) -> dict:
    """The scores of one set of sites for every start step, on all pairs and seeds of the trials.

    sites   what `select_sites` understands, swapped together; starts: which start steps, all when None
    Returns {"sites", "curve", "chosen", "generations"}: a list of {"start", "timestep", "sigma", scores}, and the
    last start whose F1 towards the target is not clearly below the best one's.  One generation is a row through all
    steps.  Raises PatchError for unknown sites and for starts outside the run.
    """
    require_parts(trials.pipeline, "a start curve", SupportsPartialRuns)
    known = find_sites(trials.pipeline.denoiser)
    steps = trials.steps
    group = tuple(site.index for site in select_sites(known, sites))
    starts = list(range(steps)) if starts is None else sorted(set(starts))
    if not starts or not 0 <= starts[0] <= starts[-1] < steps:
        raise PatchError(f"start steps {starts}; this run has steps 0..{steps - 1}")
    with phase("start steps"):
        units = counted(trials.units(len(trials.pairs)))
        records = [_record(trials, unit, group, starts) for unit in units]
    names = [_name(start) for start in starts]
    times, sigmas = (
        trials.pipeline.schedule.timesteps(steps),
        trials.pipeline.schedule.sigmas(steps),
    )
    curve = [
        {
            "start": start,
            "timestep": float(times[start]),
            "sigma": float(sigmas[start]),
            **all_scores(records, name),
        }
        for start, name in zip(starts, names)
    ]
    last = latest_start([values(records, name) for name in names], f1_of_means)
    generations = sum(record["generations"] for record in records)
    return {
        "sites": list(group),
        "curve": curve,
        "chosen": starts[last],
        "generations": generations,
    }


def _name(start: int) -> str:
    return f"start-{start}"


def _record(
    trials: Trials, unit: tuple[int, int], group: tuple[int, ...], starts: list[int]
) -> dict:
    (index, seed), steps = unit, trials.steps
    pair = trials.pairs[index]
    rows = [Row(_name(start), pair.source, seed, joins=start, copies=SOURCE) for start in starts]
    plan = Plan(
        Swap(group, row.name, TARGET, steps=range(start, steps), branch=trials.branch)
        for start, row in zip(starts, rows)
    )
    runs = not prompt_settles_text(trials.pipeline.denoiser)
    ends = [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed, sampled=runs)]
    row_steps = (1 + runs) * steps + sum(steps - start for start in starts)

    def make() -> dict:
        made = sample(
            trials.pipeline,
            [*ends, *rows],
            plan,
            steps=steps,
            guidance=trials.guidance,
            micro_batch=trials.micro_batch,
        )
        return {"generations": row_steps / steps, "pictures": trials.scored(made.images, index)}

    return trials.once(f"starts-{index}-{seed}", unit, made_by([*ends, *rows], plan), make)
