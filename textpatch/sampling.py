"""Lock-step sampler, in which all rows advance together and a plan says who reads whom.

No cache and no second run are needed, because a donor's text K and V are in the same batch as their
readers at every step.  A row starts from its seed's noise, from latents of its own, or later from the
latents of another row.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from textpatch.bank import Texts, encode, spelled_out
from textpatch.bookkeeping import Recorder, compiled
from textpatch.checks import (
    require_memory,
    require_readable,
    require_rows,
    require_starts,
    starts_by_itself,
)
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, State, as_guidance, branch_rows
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger
from textpatch.packing import pack
from textpatch.pipelines import OnStep, Slots, SupportsPartialRuns, SupportsSampling, require_parts
from textpatch.plan import Plan, Row, SiteSlots
from textpatch.ports.shipped import find_sites

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Samples:
    """Results of a run by row name, with the request that made them.

    latents     final latents (C, H, W)
    images      pictures of them
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

    def _repr_html_(self) -> str:
        figures = []
        for row in self.rows:
            if row.name in self.images:
                caption = safe(f"{row.prompt or ''} (seed {row.seed})")
                figures.append(figure(self.images[row.name], row.name, caption))
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


def sample(
    pipeline: SupportsSampling,
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
                     guidance, and 1 is none
    negative         prompt of the unconditional branch, one for all rows
    micro_batch      most batch rows of one forward pass, all branches counted.  Rows that a row reads
                     or copies travel with it into every micro-batch
    keep_trajectory  True keeps the latents entering each step and the final ones

    Projections of static text run once, on the distinct prompts, unless hooks may change them.  An
    observer of the projections sees that one call, while `capture` and `patch` see every step.

    Raises PatchError for
    - repeated names, and rows of another branch than "cond"
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
    return replace(made, images=decoded(pipeline, made.latents))


def sample_latents(
    pipeline: SupportsSampling,
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

    `decoded` or `decoding` makes them elsewhere, or later.  Raises PatchError as `sample` does.
    """
    rows = tuple(rows)
    require_parts(pipeline, "sample", SupportsSampling)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if not isinstance(plan, Plan):
        raise PatchError(f"the plan of a run is {plan!r}; give Plan([Swap(...), ...])")
    require_rows(rows)
    run = plan.at(pipeline.schedule, steps)
    require_starts(rows, run, steps)
    if any(starts_by_itself(row) for row in rows):
        require_parts(pipeline, "a row with latents, or that joins later,", SupportsPartialRuns)
    if micro_batch < 1:
        raise PatchError(f"micro_batch is {micro_batch}; give one row at least")
    guiding = as_guidance(guidance, negative)
    guiding.check(rows, steps)
    require_memory(rows, guiding)
    texts = encode(pipeline, branch_rows(rows, guiding))
    run.check(rows, find_sites(pipeline.denoiser), steps, tokens=texts.tokens)
    require_readable(rows, plan, texts)
    recorder = Recorder(pipeline, rows, run, steps, texts)
    loop = Loop(pipeline, run, texts, recorder, steps, guiding, keep_trajectory)
    for group, fresh in pack(rows, plan, max(micro_batch // len(guiding.branches), 1)):
        loop.run(group, fresh)
    return Samples(
        loop.latents, {}, plan, rows, steps, guidance, loop.trajectory, recorder.ledger()
    )


# --- pictures


def decoded(pipeline: SupportsSampling, latents: dict[str, Tensor]) -> dict[str, Image.Image]:
    """Decode latents (C, H, W) to pictures by the same names, one at a time.

    Raises PatchError for NaN and infinity.
    """
    return {name: pipeline.decode(one[None])[0] for name, one in latents.items()}


def decoding(
    pipeline: SupportsSampling, latents: dict[str, Tensor]
) -> Callable[[], dict[str, Image.Image]]:
    """Prepare `decoded` for another thread, with this thread's autocast, inference mode and context.

    If the decoder has hooks, or a forward that somebody replaced as offloading does, decode now
    instead.  Hooks act only in the thread that set them, and weights must not move while the denoiser
    runs.
    """
    act = partial(decoded, pipeline, latents)
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


# --- the loop


@dataclass
class Loop:
    """Denoising of a run, group by group, with its results by row name.

    plan  with loop indices, without a window
    keep  True if trajectories are kept
    """

    pipeline: SupportsSampling
    plan: Plan
    texts: Texts
    recorder: Recorder
    steps: int
    guidance: Guidance
    keep: bool
    latents: dict[str, Tensor] = field(default_factory=dict)
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict)

    def run(self, group: Sequence[Row], fresh: Sequence[Row]) -> None:
        """Denoise a group of rows, and keep the rows of `fresh`, which are new in it."""
        drawn = [row for row in group if row.sampled]
        draws = self.pipeline.noises([row.seed for row in drawn])
        if any(starts_by_itself(row) for row in drawn):
            final = self._in_parts(group, fresh, draws)
        else:
            # a single call, so that a pipeline that can only run as a whole serves too
            final = self._whole(group, fresh, draws)
        for row in fresh:
            self.latents[row.name] = final[row.name]

    def _whole(
        self, group: Sequence[Row], fresh: Sequence[Row], draws: Iterator[Tensor]
    ) -> dict[str, Tensor]:
        """Final latents by row name, from one call of the pipeline."""
        drawn = [row for row in group if row.sampled]
        batch = branch_rows(group, self.guidance)
        with self.recorder.watching(batch, fresh) as enter:
            x = self.pipeline.denoise(
                next(draws),
                self.texts.of(batch),
                steps=self.steps,
                guidance=self.guidance,
                noises=draws,
                slots=self._slots(batch, enter),
                on_step=self._keeping(drawn, fresh),
            )
        return _by_name(drawn, x)

    def _in_parts(
        self, group: Sequence[Row], fresh: Sequence[Row], draws: Iterator[Tensor]
    ) -> dict[str, Tensor]:
        """Final latents by row name, from a run whose parts end where rows join."""
        drawn = [row for row in group if row.sampled]
        now = self._entering(drawn, next(draws))
        states = {name: self._first_state(x) for name, x in now.items()}
        bounds = sorted({row.joins for row in drawn} | {self.steps})
        for _ in range(bounds[0]):  # a row's noise of step i is the same wherever the run begins
            next(draws)
        for first, stop in pairwise(bounds):
            for row in drawn:
                if row.joins == first and row.copies is not None:
                    now[row.name] = now[row.copies]
                    states[row.name] = states[row.copies]
            active = [row for row in group if row.joins <= first]
            places = [i for i, row in enumerate(drawn) if row.joins <= first]
            noises = (draw[places] for draw in draws)
            x, state = self._part(active, fresh, now, states, range(first, stop), noises)
            names = [row.name for row in active if row.sampled]
            now |= dict(zip(names, x, strict=True))
            for b, name in enumerate(names):
                states[name] = {key: value[b] for key, value in state.items()}
        keeping = self._keeping(drawn, fresh)
        if keeping is not None:
            keeping(self.steps, torch.stack([now[row.name] for row in drawn]))
        return now

    def _part(
        self,
        active: Sequence[Row],
        fresh: Sequence[Row],
        now: dict[str, Tensor],
        states: dict[str, State],
        only: range,
        noises: Iterator[Tensor],
    ) -> tuple[Tensor, State]:
        """Latents and state of the sampled rows after steps in which the same rows are there."""
        drawn = [row for row in active if row.sampled]
        batch = branch_rows(active, self.guidance)
        x = torch.stack([now[row.name] for row in drawn])  # (B, C, H, W)
        first = states[drawn[0].name]
        state = {key: torch.stack([states[row.name][key] for row in drawn]) for key in first}
        with self.recorder.watching(batch, fresh) as enter:
            return self._partial_runs.advance(
                x,
                self.texts.of(batch),
                state,
                only=only,
                steps=self.steps,
                guidance=self.guidance,
                noises=noises,
                slots=self._slots(batch, enter),
                on_step=self._keeping(drawn, fresh),
            )

    @property
    def _partial_runs(self) -> SupportsPartialRuns:
        """Pipeline, which `sample_latents` required to support partial runs where they are needed."""
        return cast("SupportsPartialRuns", self.pipeline)

    def _entering(self, drawn: Sequence[Row], noise: Tensor) -> dict[str, Tensor]:
        """Latents that each row starts from by its seed, or its own ones.

        Raises PatchError for latents of another shape.
        """
        now = _by_name(drawn, self._partial_runs.enter(noise, self.steps))
        for row in drawn:
            if row.latents is None:
                continue
            if row.latents.shape != noise.shape[1:]:
                raise PatchError(
                    f"row {row.name!r} starts from latents of shape {tuple(row.latents.shape)}; "
                    f"this model's are {tuple(noise.shape[1:])}: give channels, height and width of one row"
                )
            now[row.name] = row.latents.to(noise)
        return now

    def _first_state(self, x: Tensor) -> State:
        """State of the guidance of one row x (C, H, W) before its first step."""
        return {key: value[0] for key, value in self.guidance.begin(x[None]).items()}

    def _keeping(self, drawn: Sequence[Row], fresh: Sequence[Row]) -> OnStep | None:
        """Function on_step that keeps the latents of fresh rows.  None if no latents are kept."""
        if not self.keep:
            return None

        def on_step(step: int, x: Tensor) -> None:
            for b, row in enumerate(drawn):
                if row in fresh:
                    self.trajectory.setdefault(row.name, []).append(x[b])

        return on_step

    def _slots(
        self, batch: Sequence[Row], enter: Callable[[int, Sequence[SiteSlots] | None], None]
    ) -> Slots:
        """Function slots(step) of a batch, which enters the plan's tables in the ledger.

        Tables of seventy sites take a quarter of a second, so that they are made once for all steps
        with the same swaps.
        """
        sites = find_sites(self.pipeline.denoiser)
        graph = compiled(self.pipeline.denoiser)
        tokens = self.texts.tokens

        def make(step: int) -> tuple[Sequence[SiteSlots] | None, Sequence[SiteSlots] | None]:
            tables = self.plan.slots(step, batch, sites, tokens=tokens)
            whole = spelled_out(tables, len(batch), tokens, sites) if graph else tables
            return tables, self._on_device(self.texts.slots(whole, batch, len(sites)))

        made = self.plan.kept(make)

        def slots(step: int) -> Sequence[SiteSlots] | None:
            tables, on_device = made(step)
            enter(step, tables)
            return on_device

        return slots

    def _on_device(self, slots: Sequence[SiteSlots] | None) -> list[SiteSlots] | None:
        if slots is None:
            return None
        return [to_device(entry, self.pipeline.device) for entry in slots]


def _by_name(rows: Sequence[Row], x: Tensor) -> dict[str, Tensor]:
    return {row.name: one for row, one in zip(rows, x, strict=True)}


def to_device(slots: SiteSlots, device: torch.device) -> SiteSlots:
    """Slots of one site on a device."""
    if slots is None:
        return None
    if isinstance(slots, Tensor):
        return slots.to(device)
    k, v = slots
    return k.to(device), v.to(device)
