"""Lock-step sampler, in which all rows advance together and a plan says who reads whom.

No cache and no second run are needed, because a donor's text K and V are in the same batch as their
readers at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from textpatch.bank import encode
from textpatch.bookkeeping import Recorder
from textpatch.checks import (
    require_memory,
    require_micro_batch,
    require_readable,
    require_rows,
    require_starts,
    starts_by_itself,
)
from textpatch.equality import equal
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger
from textpatch.lockstep import Loop
from textpatch.memory import with_less
from textpatch.packing import pack
from textpatch.pipelines import (
    DrawsByItself,
    SupportsPartialRuns,
    SupportsSampling,
    draws_by_itself,
    require_parts,
)
from textpatch.plan import Plan, Row
from textpatch.ports.shipped import pipeline_sites

if TYPE_CHECKING:
    from PIL import Image

SHOWN_ROWS = 5


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Results of a run by row name, with the request that made them.

    latents     final latents (C, H, W), {} of a pipeline that draws by itself
    images      pictures of them, or what else such a pipeline draws
    trajectory  latents entering each step from the row's first on, and the final ones
    ledger      ledger of who read whom
    """

    latents: dict[str, Tensor]
    images: dict[str, Image.Image]
    plan: Plan
    rows: tuple[Row, ...]
    steps: int
    guidance: float | Guidance
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    ledger: Ledger = field(default=Ledger(), repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and equal(vars(self), vars(other))

    def __repr__(self) -> str:
        """One line on the run, one for each of the first rows, and one for all swaps."""
        head = f"Samples of {len(self.rows)} rows, {self.steps} steps, guidance {self.guidance}"
        rows = [f"  {row.name}  seed {row.seed}  {row.prompt!r}" for row in self.rows[:SHOWN_ROWS]]
        if len(self.rows) > SHOWN_ROWS:
            rows.append(f"  ... and {len(self.rows) - SHOWN_ROWS} more rows")
        swaps = f"  swaps: {len(self.plan.swaps)}; reads in the ledger: {len(self.ledger.entries)}"
        return "\n".join([head, *rows, swaps])

    def _repr_html_(self) -> str:
        figures = []
        for row in self.rows:
            if row.name in self.images:
                caption = safe(f"{row.prompt or ''} (seed {row.seed})")
                figures.append(figure(self.images[row.name], row.name, caption))
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


def sample(
    pipeline: SupportsSampling | DrawsByItself,
    rows: Sequence[Row],
    plan: Plan = Plan(),
    *,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    negative: str | None = None,
    micro_batch: int = 64,
    keep_trajectory: bool = False,
) -> Samples:
    """Generate all rows together, each reading the text keys and values that the plan gives it.

    rows             conditional rows with different names.  The guidance adds their other branches.
                     A row that is not sampled costs no generation, since its readers find its text
                     in the bank
    plan             its windows of timesteps or sigmas are taken in the pipeline's schedule
    steps, guidance  the model's defaults when None.  A number is the scale of classifier-free
                     guidance, and 0 or 1 is none
    negative         prompt of the unconditional branch, one for all rows
    micro_batch      most batch rows of one forward pass, all branches counted.  Rows that a row reads
                     or copies travel with it into every micro-batch.  Where the memory does not hold
                     them, half as many are run, with a warning
    keep_trajectory  True keeps the latents entering each step and the final ones

    Projections of static text run once, on the distinct prompts, unless hooks may change them.  An
    observer of the projections sees that one call, while `capture` and `patch` see every step.

    Raises PatchError for
    - rows that are no list of Rows, repeated names, and rows of another branch than "cond"
    - a micro-batch that is no whole number, or below 1
    - a plan that names rows, sites, steps, heads or tokens which this run has not, or whose swaps
      never act
    - a row not sampled that reads, or that nobody reads
    - a row not sampled whose prompt does not settle its keys and values, because the text evolves
      with the picture or others hook its projections
    - a row that joins outside the run, from nothing, or after a swap that names it
    - a guidance that has no effect in the run, or whose memory of earlier steps a later row lacks
    """
    made = sample_latents(
        pipeline,
        rows,
        plan,
        steps=steps,
        guidance=guidance,
        negative=negative,
        micro_batch=micro_batch,
        keep_trajectory=keep_trajectory,
    )
    return replace(made, images=decoding(pipeline, made)())


def sample_latents(
    pipeline: SupportsSampling | DrawsByItself,
    rows: Sequence[Row],
    plan: Plan = Plan(),
    *,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    negative: str | None = None,
    micro_batch: int = 64,
    keep_trajectory: bool = False,
) -> Samples:
    """Generate as `sample` does, without the pictures.

    `decoding` makes them elsewhere, or later.  A pipeline that draws by itself has drawn them already.
    Raises PatchError as `sample` does.
    """
    if draws_by_itself(pipeline):
        return _drawn(pipeline, rows, plan, steps, guidance, negative, micro_batch, keep_trajectory)
    require_parts(pipeline, "sample", SupportsSampling)
    pipeline = cast("SupportsSampling", pipeline)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    _require_plan(plan)
    require_rows(rows)
    rows = tuple(rows)
    run = plan.at(pipeline.schedule, steps)
    require_starts(rows, run, steps)
    if any(starts_by_itself(row) for row in rows):
        require_parts(pipeline, "a row with latents, or that joins later,", SupportsPartialRuns)
    require_micro_batch(micro_batch)
    guiding = as_guidance(guidance, negative)
    guiding.check(rows, steps)
    # nothing is drawn yet, and seeds of all rows are refused before anything runs
    pipeline.noises([row.seed for row in rows if row.sampled])
    require_memory(rows, guiding, pipeline.schedule)
    texts = encode(pipeline, branch_rows(rows, guiding))
    run.check(rows, pipeline_sites(pipeline), steps, tokens=texts.tokens)
    require_readable(rows, plan, texts)

    def run_all(at_once: int) -> Samples:
        recorder = Recorder(pipeline, rows, run, steps, texts)
        loop = Loop(pipeline, run, texts, recorder, steps, guiding, keep_trajectory)
        for group, fresh in pack(rows, plan, max(at_once // len(guiding.branches), 1)):
            loop.run(group, fresh)
        return Samples(
            loop.latents, {}, plan, rows, steps, guidance, loop.trajectory, recorder.ledger()
        )

    return with_less(run_all, micro_batch, of=len(rows) * len(guiding.branches))


def _require_plan(plan: object) -> None:
    """Raise PatchError for anything but a plan."""
    if not isinstance(plan, Plan):
        raise PatchError(f"the plan of a run is {plan!r}; give Plan([Swap(...), ...])")


def _drawn(
    pipeline: DrawsByItself,
    rows: Sequence[Row],
    plan: Plan,
    steps: int | None,
    guidance: float | Guidance | None,
    negative: str | None,
    micro_batch: int,
    keep_trajectory: bool,
) -> Samples:
    """What a pipeline that draws by itself makes of rows and a plan.   Raises PatchError for a trajectory."""
    steps, guidance = pipeline.defaults.run(steps, guidance)
    _require_plan(plan)
    require_rows(rows)
    require_micro_batch(micro_batch)
    if keep_trajectory:
        raise PatchError(
            f"keep_trajectory was asked for, and {pipeline.name} draws by a call of its own, whose latents "
            "nobody sees; leave it out"
        )
    images, ledger = pipeline.draw_rows(
        rows,
        plan.at(pipeline.schedule, steps),
        steps=steps,
        guidance=guidance,
        negative=negative,
        micro_batch=micro_batch,
    )
    return Samples({}, images, plan, tuple(rows), steps, guidance, ledger=ledger)


# --- pictures


def decoded(pipeline: SupportsSampling, latents: dict[str, Tensor]) -> dict[str, Image.Image]:
    """Decode latents (C, H, W) to pictures by the same names, one at a time.

    Raises PatchError for NaN and infinity.
    """
    return {name: pipeline.decode(one[None])[0] for name, one in latents.items()}


def decoding(
    pipeline: SupportsSampling | DrawsByItself, made: Samples, names: Collection[str] | None = None
) -> Callable[[], dict[str, Any]]:
    """Prepare `decoded` for another thread, with this thread's autocast, inference mode and context.

    made   samples of `sample_latents`
    names  rows whose pictures are wanted, all when None
    What a pipeline that draws by itself has drawn is given as it is.
    If the decoder has hooks, or a forward that somebody replaced as offloading does, decode now
    instead.  Hooks act only in the thread that set them, and weights must not move while the denoiser
    runs.
    """
    wanted: dict[str, Any] = made.images or made.latents
    if names is not None:
        wanted = {name: one for name, one in wanted.items() if name in names}
    if draws_by_itself(pipeline):
        return partial(dict, wanted)
    pipeline = cast("SupportsSampling", pipeline)
    act = partial(decoded, pipeline, wanted)
    if _is_intervened(pipeline.decoder):
        return partial(dict, act())
    here = copy_context()
    kind = pipeline.device.type
    inference = torch.is_inference_mode_enabled()
    dtype = torch.get_autocast_dtype(kind)
    enabled = torch.is_autocast_enabled(kind)

    def elsewhere() -> dict[str, Image.Image]:
        with (
            torch.inference_mode(inference),
            torch.no_grad(),
            torch.autocast(kind, dtype=dtype, enabled=enabled),
        ):
            return act()

    return partial(here.run, elsewhere)


def _is_intervened(decoder: object) -> bool:
    """True if a decoder has hooks, or a forward that somebody replaced."""
    if not isinstance(decoder, nn.Module):
        return False
    return any(
        part._forward_pre_hooks or part._forward_hooks or "forward" in vars(part)
        for part in decoder.modules()
    )
