"""Lock-step loop, which denoises the rows of a run group by group.

A row starts from its seed's noise, from latents of its own, or later from the latents of another row.  Where
a row joins, one part of the run ends and the next begins with one row more.  A row with a path is put back
on it before every step, so that every step is a part then.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from textpatch.bank import Texts, spelled_out
from textpatch.bookkeeping import Recorder
from textpatch.checks import starts_by_itself
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, State, branch_rows
from textpatch.hooks import compiled
from textpatch.pipelines import OnStep, Slots, SupportsPartialRuns, SupportsSampling
from textpatch.plan import Plan, Row, SiteSlots
from textpatch.ports.shipped import pipeline_sites


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
        """Denoise a group of rows, and keep the rows of `fresh`, which are new in it.

        Raises PatchError for a bank that was made under other adapters.
        """
        self.texts.require_current(self.pipeline.denoiser)
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
        bounds = self._bounds(drawn)
        for _ in range(bounds[0]):  # a row's noise of step i is the same wherever the run begins
            next(draws)
        for first, stop in pairwise(bounds):
            _put_on_paths(drawn, now, first)
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
        _put_on_paths(drawn, now, self.steps)
        keeping = self._keeping(drawn, fresh)
        if keeping is not None:
            keeping(self.steps, torch.stack([now[row.name] for row in drawn]))
        return now

    def _bounds(self, drawn: Sequence[Row]) -> list[int]:
        """Steps at which parts of a run begin, and the number of steps."""
        if any(row.path is not None for row in drawn):
            return list(range(min(row.joins for row in drawn), self.steps + 1))
        return sorted({row.joins for row in drawn} | {self.steps})

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
            given = row.latents if row.path is None else row.path[0]
            if given is None:
                continue
            if given.shape != noise.shape[1:]:
                raise PatchError(
                    f"row {row.name!r} starts from latents of shape {tuple(given.shape)}; "
                    f"this model's are {tuple(noise.shape[1:])}: give channels, height and width of one row"
                )
            now[row.name] = given.to(noise)
        return now

    def _first_state(self, x: Tensor) -> State:
        """Memory of one row x (C, H, W) before its first step."""
        begun = self._partial_runs.begin(x[None], self.guidance)
        return {key: value[0] for key, value in begun.items()}

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
        sites = pipeline_sites(self.pipeline)
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


def _put_on_paths(rows: Sequence[Row], now: dict[str, Tensor], step: int) -> None:
    """Put the latents of rows that are held to a path back on it, where they enter a step."""
    for row in rows:
        if row.path is not None:
            now[row.name] = row.path[step].to(now[row.name])


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
