"""A pipeline that draws by somebody else's call, in which its model carries the plan out.

with swap(denoiser, plan, rows):
    pictures = draw(prompts, seeds=..., steps=..., guidance=..., negative=...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from textpatch.branches import layout_of, probe_calls
from textpatch.checks import starts_by_itself
from textpatch.devices import device_of
from textpatch.errors import PatchError
from textpatch.finite import is_finite
from textpatch.foreign.hearing import Heard
from textpatch.foreign.joining import Batch, joined, parts_of
from textpatch.foreign.times import HeardSchedule
from textpatch.foreign.trying import PROMPT, PROMPTS, STEPS, Tried, as_drawn, try_draw
from textpatch.guidance import ClassifierFree, Guidance
from textpatch.hooks import compiled, outside_blocks
from textpatch.ledger import Ledger
from textpatch.pipelines import TextBox
from textpatch.plan import Plan, Row
from textpatch.sites import Site, is_count
from textpatch.swapping import swap

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Draw(Protocol):
    """A call that draws, one picture or one array of a sound for each prompt, in their order."""

    def __call__(
        self,
        prompts: list[str],
        *,
        seeds: list[int],
        steps: int,
        guidance: float,
        negative: str | None,
    ) -> Sequence[Image.Image] | Sequence[np.ndarray]: ...


Calls = Sequence[Sequence[str]]


class WrappedDefaults:
    """Settings of a wrapped pipeline where nothing else is asked for.

    tried  tried() gives what the tries of the pipeline's call have told
    """

    def __init__(
        self,
        steps: int,
        guidance: float,
        text_box: TextBox | None,
        localized: tuple[int, ...],
        tried: Callable[[], Tried],
    ) -> None:
        self.steps = steps
        self.guidance = guidance
        self.text_box = text_box
        self.localized = localized
        self._tried = tried

    @property
    def height(self) -> int | None:
        """Height of the pictures in pixels, None for sounds."""
        size = self._tried().size
        return None if size is None else size[0]

    @property
    def width(self) -> int | None:
        """Width of the pictures in pixels, None for sounds."""
        size = self._tried().size
        return None if size is None else size[1]

    def run(
        self, steps: int | None, guidance: float | Guidance | None
    ) -> tuple[int, float | Guidance]:
        """Steps and guidance asked for, with the pipeline's own in the place of None."""
        return (
            self.steps if steps is None else steps,
            self.guidance if guidance is None else guidance,
        )


class Wrapped:
    """Somebody else's pipeline, drawn by its own call.

    denoiser  the model whose calls carry a plan out
    draw      as `wrap` takes it
    sites     all sites of the denoiser, in execution order
    beyond_audit  what the audit does not replay of a site, by its name
    calls     layout of the calls of a step, found out when None
    """

    upscales = False
    decoder = None

    def __init__(
        self,
        denoiser: nn.Module,
        draw: Draw,
        sites: tuple[Site, ...],
        beyond_audit: dict[str, str],
        *,
        steps: int,
        guidance: float,
        calls: Sequence[Sequence[str]] | None,
        name: str,
        text_box: TextBox | None,
        localized: tuple[int, ...],
    ) -> None:
        self.denoiser = denoiser
        self.draw = draw
        self.sites = sites
        self.beyond_audit = beyond_audit
        self.calls = None if calls is None else layout_of(calls).calls
        self.name = name
        self.notes = (
            f"{name}, a {type(denoiser).__name__} of {len(sites)} sites in a call of its own",
        )
        self.defaults = WrappedDefaults(steps, guidance, text_box, localized, lambda: self.tried)
        scheduler = getattr(getattr(draw, "pipe", None), "scheduler", None)
        self.schedule = HeardSchedule(self._times, scheduler)
        self._layouts: dict[tuple[float, bool], Any] = {}

    @property
    def device(self) -> torch.device:
        """Device that the denoiser computes on."""
        return device_of(self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the denoiser's weights."""
        return next(self.parameters()).dtype

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the denoiser, as a module gives them."""
        return self.denoiser.parameters()

    # --- what applications ask

    def draw_rows(
        self,
        rows: Sequence[Row],
        plan: Plan,
        *,
        steps: int,
        guidance: float | Guidance,
        negative: str | None = None,
        micro_batch: int = 64,
    ) -> tuple[dict[str, Image.Image | np.ndarray], Ledger]:
        """What is drawn of each row by its name, and the ledger of the plan.

        Raises PatchError for rows that start from anything but a seed's noise, that are pooled of another
        prompt, or that have no prompt, and as `swap`.
        """
        for row in rows:
            self._require_plain(row)
        self.tried  # noqa: B018  refuses a call that does not keep to its word, before it is believed
        scale, negative = _as_numbers(guidance, negative)
        layout = self._layout(scale, negative)
        drawn: dict[str, Any] = {}
        parts: list[tuple[Batch, Ledger]] = []
        for part in parts_of(rows, plan, _rows_at_once(layout, micro_batch)):
            made, ledger = self._part(part, steps, scale, negative, layout)
            parts.append((part, ledger))
            for row, one in zip(part.rows, made, strict=True):
                if row.name in part.fresh:
                    drawn[row.name] = one
        return drawn, joined(parts)

    def check(self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int) -> None:
        """Raise PatchError for a prompt that is cut, a seed that is none, and less than one step."""
        if not is_count(steps):
            raise PatchError(f"{steps!r} steps asked for; give a whole number, one at least")
        for seed in seeds:
            if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
                raise PatchError(
                    f"seed {seed!r} asked for; give a whole number of 0 to {2**32 - 1}"
                )
        whole = getattr(self.draw, "require_whole", None)
        if whole is not None:
            whole(list(dict.fromkeys(prompts)))

    def cost(
        self, rows: int, steps: int, guidance: float | Guidance, micro_batch: int
    ) -> tuple[int, float]:
        """Calls of the denoiser and seconds that a run of so many rows takes, by what the tries took."""
        layout = self._layout(*_as_numbers(guidance, None))
        groups = math.ceil(rows / _rows_at_once(layout, micro_batch))
        return groups * steps * len(layout), rows * steps * self.tried.seconds

    def calls_of_step(
        self, guidance: float | Guidance, negative: str | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """Calls of the denoiser that make a step, with the branches of each one's rows."""
        return self._layout(*_as_numbers(guidance, negative))

    def audited_batch(
        self, rows: Sequence[Row], guidance: float | Guidance, negative: str | None
    ) -> list[Row]:
        """Rows of the one call of a step that an audit records.

        Raises PatchError for a step of several calls, and for sites that the audit cannot replay.
        """
        layout = self._layout(*_as_numbers(guidance, negative))
        if len(layout) > 1:
            raise PatchError(
                f"a step of {self.name} is {len(layout)} calls, and an audit records one that holds all "
                "branches; audit a pipeline that makes one, or another guidance"
            )
        for site in self.sites:
            if site.name in self.beyond_audit:
                raise PatchError(
                    f"site {site.name!r} {self.beyond_audit[site.name]}, which the audit does not replay; "
                    "hold the port to check_port instead"
                )
        return [replace(row, branch=branch) for branch in layout[0] for row in rows]

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        micro_batch: int = 64,
    ) -> list[Image.Image] | list[np.ndarray]:
        """What is drawn of each prompt and seed.   Raises PatchError if their numbers differ."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(prompts) or not prompts:
            raise PatchError(
                f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed, or one per prompt"
            )
        asked_steps, asked_guidance = self.defaults.run(steps, guidance)
        rows = [
            Row(str(i), one, seed) for i, (one, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        drawn, _ = self.draw_rows(
            rows,
            Plan(),
            steps=asked_steps,
            guidance=asked_guidance,
            negative=negative,
            micro_batch=micro_batch,
        )
        made: list[Any] = [drawn[row.name] for row in rows]
        return made

    # --- its own call

    @cached_property
    def tried(self) -> Tried:
        """What the tries of the call have told.   Raises PatchError as `try_draw`."""

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            return self._call(prompts, seeds, STEPS, self.defaults.guidance, None)

        with outside_blocks():
            return try_draw(self.denoiser, draw, self.name)

    def _call(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        negative: str | None,
    ) -> list[Any]:
        """What `draw` makes of prompts and seeds.   Raises PatchError as `as_drawn`."""
        require_not_compiled(self.denoiser)
        with torch.no_grad():
            # lists of its own, since a call may write into them
            made = self.draw(
                list(prompts), seeds=list(seeds), steps=steps, guidance=guidance, negative=negative
            )
        return as_drawn(made, len(prompts), f"the draw of {self.name}")

    def _part(
        self, part: Batch, steps: int, guidance: float, negative: str | None, layout: Any
    ) -> tuple[list[Any], Ledger]:
        prompts = [str(row.prompt) for row in part.rows]
        seeds = [row.seed for row in part.rows]
        if not part.plan.swaps:
            return self._call(prompts, seeds, steps, guidance, negative), Ledger()
        rows = [Row(row.name, row.prompt, row.seed) for row in part.rows]
        heard = Heard()
        with ExitStack() as blocks:
            if not self.schedule.knows(steps):
                blocks.enter_context(heard.on(self.denoiser))
            ledger = blocks.enter_context(
                swap(self.denoiser, part.plan, rows, calls=layout, sites=self.sites, steps=steps)
            )
            made = self._call(prompts, seeds, steps, guidance, negative)
        if heard.times:
            self.schedule.hear(steps, heard.times[:: len(layout)])
        return made, self._with_times(ledger, steps)

    def _with_times(self, ledger: Ledger, steps: int) -> Ledger:
        """Ledger with the times and noise levels of a run of so many steps."""
        times = self.schedule.timesteps(steps).tolist()
        sigmas = self.schedule.sigmas(steps).tolist()
        entries = [
            replace(entry, timestep=_known(times[entry.step]), sigma=_known(sigmas[entry.step]))
            for entry in ledger.entries
        ]
        return replace(ledger, entries=tuple(entries))

    def _layout(self, guidance: float, negative: str | None) -> Any:
        """Layout of the calls of a step, found out once for each guidance."""
        if self.calls is not None:
            return self.calls
        key = guidance, negative is None
        if key not in self._layouts:

            def run(prompts: list[str]) -> None:
                self._call(prompts, [0] * len(prompts), STEPS, guidance, negative)

            with outside_blocks():
                self._layouts[key] = probe_calls(
                    self.denoiser, run, prompts=PROMPTS, sites=self.sites
                )
        return self._layouts[key]

    def _times(self, steps: int) -> list[float | None]:
        """Time told at each step of a plain run."""
        layout = self._layout(self.defaults.guidance, None)
        heard = Heard()
        with outside_blocks(), heard.on(self.denoiser):
            self._call([PROMPT], [0], steps, self.defaults.guidance, None)
        return heard.times[:: len(layout)]

    def _require_plain(self, row: Row) -> None:
        """Raise PatchError for a row that a whole run of somebody else's cannot draw."""
        if starts_by_itself(row):
            raise PatchError(
                f"row {row.name!r} joins later, or starts from latents of its own, and {self.name} draws "
                "whole runs from noise; leave joins, latents, copies and path out"
            )
        if row.prompt is None:
            raise PatchError(
                f"row {row.name!r} has no prompt, and {self.name} draws prompts; give a text, '' for none"
            )
        if row.pooled_prompt != row.prompt:
            raise PatchError(
                f"row {row.name!r} is pooled of {row.pooled!r}, and {self.name} pools each row of its own "
                "prompt; leave pooled out"
            )


def _known(number: float) -> float | None:
    """A number, None for NaN."""
    return None if math.isnan(number) else number


def require_not_compiled(model: nn.Module) -> None:
    """Raise PatchError for a model of which some code is compiled."""
    if compiled(model):
        raise PatchError(
            f"the {type(model).__name__} is compiled, or some of its blocks are, and compiled code passes by "
            "what a swap does; wrap the pipeline before it is compiled, or load it anew"
        )


def _rows_at_once(layout: Any, micro_batch: int) -> int:
    """Rows of a run that are drawn together, where no call of the denoiser holds more than a micro-batch."""
    return max(micro_batch // max(map(len, layout)), 1)


def _as_numbers(guidance: float | Guidance, negative: str | None) -> tuple[float, str | None]:
    """Scale and negative prompt of a run.   Raises PatchError for a guidance of another kind."""
    if isinstance(guidance, ClassifierFree) and negative is None:
        own = guidance.negative
        if own is None or isinstance(own, str):
            return guidance.scale, own
    if is_finite(guidance):
        return float(guidance), negative
    raise PatchError(
        f"guidance is {guidance!r}, and a wrapped pipeline guides by itself; give a number, and a negative "
        "prompt beside it"
    )
