"""Base of the schedules, with what the denoising loop asks of each, and the check of their settings.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.finite import is_finite

# A table of all trained timesteps is made.  The published models have 1,000.
MOST_TRAINED = 100_000
# a factor below this is one that rounding has left of 0
ROUNDING = 1e-12
Memory = dict[str, Tensor]  # what a schedule remembers of earlier steps, (B, ...) each


class Schedule:
    """Base of the schedules, with what the denoising loop asks of each.

    timesteps(steps)  float32 in 0..N
    sigmas(steps)     float32
    step(x, output, step, steps, noise)  x one step further; step 0 is the noisiest, and only stochastic
                      schedules read `noise`
    invert_step(x, output, step, steps)  latents that `step` takes to x, given the same output
    noised(x, noise, share)  what training shows the denoiser: (its input, timesteps, what it is to predict)

    Fields are named as in the published configurations, and CHOICES has the texts that each may be.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}
    stochastic: ClassVar[bool] = False
    flows: ClassVar[bool] = False  # True for a rectified flow, whose denoiser predicts a velocity
    remembers: ClassVar[bool] = False  # True where a step reads the outputs of earlier ones
    reads_variance: ClassVar[bool] = (
        False  # True where the output has a variance after the prediction
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_setting(self, field)

    def __repr__(self) -> str:
        changed = [field for field in fields(self) if getattr(self, field.name) != field.default]
        settings = [f"{field.name}={getattr(self, field.name)!r}" for field in changed]
        return f"{type(self).__name__}({', '.join(settings)})"

    def timesteps(self, steps: int) -> Tensor:
        """Timesteps (steps,) that the denoiser is told."""
        raise NotImplementedError

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,), from the first step to where the last one lands."""
        raise NotImplementedError

    def deterministic(self) -> Schedule:
        """Schedule of the same noise levels whose steps draw nothing, and can be undone by `invert_step`."""
        return self

    def for_image(self, tokens: int) -> Schedule:
        """Schedule for pictures of so many image tokens, another one where noise levels depend on them."""
        return self

    def start(self, noise: Tensor, steps: int) -> Tensor:
        """Latents entering step 0, from standard normal noise (B, C, H, W)."""
        return noise

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        """Input of the denoiser, from latents (B, C, H, W)."""
        return x

    def noise_units(self, step: int, steps: int) -> float:
        """Change of the implied noise when the denoiser's output at a step changes by one."""
        return 1.0

    def adds_noise(self, step: int, steps: int) -> bool:
        """True for a step that adds noise."""
        return self.stochastic and step < steps - 1

    def begin(self, x: Tensor) -> Memory:
        """Memory of rows x (B, C, H, W) before their first step, {} where nothing is remembered."""
        return {}

    def advance(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Latents one step further, and the memory of the rows after it."""
        return self.step(x, output, step, steps, noise), memory

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        Raises PatchError for a schedule that remembers.
        """
        raise PatchError(
            f"a step of {type(self).__name__} reads the outputs of earlier ones; "
            "use advance with its begin(x), or deterministic()"
        )


def undone(schedule: Schedule, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
    """Latents (B, C, H, W) that a deterministic step takes to x, given the same output.

        x_next = f x + g output;   f and g are what the step makes of 1 and 0, and of 0 and 1

    Raises PatchError where f is 0, so that several latents lead to x.
    """
    unit = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1, 1)
    of_x, of_output = schedule.step(unit, unit.flip(0), step, steps).flatten().tolist()
    if abs(of_x) < ROUNDING:
        raise PatchError(
            f"step {step} of {steps} of {schedule!r} ends on the output, whatever it began with; "
            "it cannot be undone"
        )
    wide, output = widened(x, output)
    return ((wide - of_output * output) / of_x).to(x.dtype)


def widened(*tensors: Tensor) -> Iterator[Tensor]:
    """Tensors in float32, or in float64 where they are."""
    return (x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def required_noise(noise: Tensor | None, step: int, steps: int) -> Tensor:
    """Noise of a step that adds some.   Raises PatchError if there is none."""
    if noise is None:
        raise PatchError(
            f"step {step} of {steps} adds noise and was given none; draw it per row and step"
        )
    return noise


def require_steps(steps: int, most: int) -> None:
    """Raise PatchError unless a number of steps is a whole one of 1 to `most`."""
    if not isinstance(steps, Integral) or not 1 <= steps <= most:
        raise PatchError(f"asked for {steps} steps; this schedule has 1 to {most}")


def require_one_of(schedule: Schedule, *names: str) -> None:
    """Raise PatchError if several of some flags are set that exclude each other."""
    chosen = [name for name in names if getattr(schedule, name)]
    if len(chosen) > 1:
        raise PatchError(f"{' and '.join(chosen)} were asked for; choose one of them")


def _require_setting(schedule: Schedule, field) -> None:
    """Raise PatchError for a setting that is not of its field's kind."""
    value = getattr(schedule, field.name)
    kind = field.type
    if kind.endswith(" | None"):
        if value is None:
            return
        kind = kind.removesuffix(" | None")
    if field.name == "num_train_timesteps":
        fits = _is_whole(value) and 1 <= value <= MOST_TRAINED
        wanted = f"a whole number of 1 to {MOST_TRAINED:,}"
    elif kind == "str":
        choices = schedule.CHOICES[field.name]
        fits = value in choices
        wanted = f"one of {', '.join(map(repr, choices))}"
    else:
        fits = KINDS[kind](value) or value == field.default
        wanted = WANTED[kind]
    if not fits:
        raise PatchError(f"{field.name} is {value!r}; give {wanted}")


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_flag(value) -> bool:
    return isinstance(value, bool)


def _are_numbers(value) -> bool:
    return isinstance(value, tuple) and all(map(is_finite, value))


KINDS = {"int": _is_whole, "float": is_finite, "bool": _is_flag, "tuple[float, ...]": _are_numbers}
WANTED = {
    "int": "a whole number of 0 or more",
    "float": "a finite number",
    "bool": "true or false",
    "tuple[float, ...]": "finite numbers",
}
