"""Linear multistep of Stable Diffusion 1, with or without Runge-Kutta steps before (arXiv 2202.09778).

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import Memory, require_steps, widened
from textpatch.reference_models.schedules.ddim import DDIM
from textpatch.reference_models.schedules.diffusion import Diffusion, trained_abars

OUTPUTS = ("output_1", "output_2", "output_3")  # the latest first
RUNGE_KUTTA = 12  # calls of the three steps between the first four timesteps
MORE_CALLS = 9  # that these make, beyond one for each timestep left


class Call(NamedTuple):
    """Call of the denoiser, with the timestep it is told and those that its step leads from and to."""

    told: int
    start: int
    stop: int


@dataclass(frozen=True, repr=False)
class PNDM(Diffusion):
    """Linear multistep of order four (arXiv 2202.09778, eq. 9 and 12).

    A step is a call of the denoiser.  The second call of a run is at the timestep that the first step led to,
    and the mean of both outputs leads there again.  So the published pipelines count one step less, and
    with Runge-Kutta steps nine less.

    skip_prk_steps    True begins with multistep at once
    set_alpha_to_one  True lands on the clean picture, False on the level of timestep 0

    Raises PatchError as Diffusion does, and for betas of zero terminal SNR.
    """

    skip_prk_steps: bool = True
    set_alpha_to_one: bool = False

    remembers: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = Diffusion.CHOICES | {
        "prediction_type": ("epsilon", "v_prediction")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale_betas_zero_snr:
            raise PatchError(
                "PNDM divides by what is left of the picture, and rescale_betas_zero_snr leaves nothing; "
                "give another schedule"
            )

    def deterministic(self) -> DDIM:
        shared = {field.name: getattr(self, field.name) for field in fields(Diffusion)}
        return DDIM(**shared, set_alpha_to_one=self.set_alpha_to_one)

    def abars(self, steps: int) -> Tensor:
        """Values abar at the timestep of each call, then where the last one lands, (steps + 1,) float32."""
        calls = _calls(self, steps)
        return torch.stack([self._abar(call.told) for call in calls] + [self._abar(calls[-1].stop)])

    def begin(self, x: Tensor) -> Memory:
        """Zeros in place of the outputs, the latents and the sum that no step has made yet."""
        (zeros,) = widened(torch.zeros_like(x))
        return {name: zeros for name in (*OUTPUTS, "start", "sum")}

    def advance(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Latents one call further, and the memory of the rows after it."""
        wide, output = widened(x, output)
        call = _calls(self, steps)[step]
        if step < RUNGE_KUTTA and not self.skip_prk_steps:
            mixed, memory = _runge_kutta(wide, output, step, memory)
            wide = memory["start"]
        else:
            mixed, memory, wide = self._multistep(wide, output, step, memory)
        return self._led(wide, mixed, call).to(x.dtype), memory

    def _multistep(
        self, x: Tensor, output: Tensor, step: int, memory: Memory
    ) -> tuple[Tensor, Memory, Tensor]:
        """Mixed output, memory, and the latents that the step leads from."""
        first, second, third = (memory[name] for name in OUTPUTS)
        if not self.skip_prk_steps:
            step = RUNGE_KUTTA  # three outputs are there
        if step == 1:
            return (output + first) / 2, memory, memory["start"]
        if step == 0:
            mixed = output
        elif step == 2:
            mixed = (3 * output - first) / 2
        elif step == 3:
            mixed = (23 * output - 16 * first + 5 * second) / 12
        else:
            mixed = (1 / 24) * (55 * output - 59 * first + 37 * second - 9 * third)
        return mixed, _remembered(memory, output, x), x

    def _led(self, x: Tensor, output: Tensor, call: Call) -> Tensor:
        """Latents (B, C, H, W) of eq. 9."""
        now = self._abar(call.start)
        after = self._abar(call.stop)
        noise = self.noise_of(x, output, now)
        of_x = (after / now) ** 0.5
        below = now * (1 - after) ** 0.5 + (now * (1 - now) * after) ** 0.5
        return of_x * x - (after - now) * noise / below

    def _abar(self, timestep: int) -> Tensor:
        if timestep >= 0:
            return trained_abars(self)[timestep]
        if self.set_alpha_to_one:
            return torch.tensor(1.0)
        return trained_abars(self)[0]

    def _whole(self, steps: int) -> list[int]:
        return [call.told for call in _calls(self, steps)]


def _runge_kutta(x: Tensor, output: Tensor, step: int, memory: Memory) -> tuple[Tensor, Memory]:
    """Output of one of four calls of a Runge-Kutta step, the last one's mixed of all."""
    if step % 4 == 0:
        memory = _remembered(memory, output, x)
    if step % 4 == 3:
        mixed = memory["sum"] + 1 / 6 * output
        return mixed, memory | {"sum": torch.zeros_like(mixed)}
    share = 1 / 6 if step % 4 == 0 else 1 / 3
    return output, memory | {"sum": memory["sum"] + share * output}


def _remembered(memory: Memory, output: Tensor, start: Tensor) -> Memory:
    """Memory with one output more, and the latents that a step leads from."""
    first, second, _ = OUTPUTS
    return memory | {
        "output_1": output,
        "output_2": memory[first],
        "output_3": memory[second],
        "start": start,
    }


@lru_cache(maxsize=256)
def _calls(schedule: PNDM, steps: int) -> tuple[Call, ...]:
    """Calls of a run.   Raises PatchError for a number of calls that no run has."""
    require_steps(steps, schedule.num_train_timesteps + MORE_CALLS)
    if schedule.skip_prk_steps:
        return tuple(_multistep_calls(schedule, steps))
    return tuple(_calls_after_runge_kutta(schedule, steps))


def _multistep_calls(schedule: PNDM, steps: int) -> list[Call]:
    """Calls of a run that begins with multistep.   Raises PatchError for two."""
    if steps == 2:
        raise PatchError("asked for 2 steps; PNDM calls the denoiser once, or three times or more")
    count = max(steps - 1, 1)
    timesteps = Diffusion._whole(schedule, count)
    apart = schedule.num_train_timesteps // count
    calls = [Call(t, t, t - apart) for t in timesteps]
    if steps > 1:
        calls.insert(1, Call(timesteps[1], timesteps[1] + apart, timesteps[1]))
    return calls


def _calls_after_runge_kutta(schedule: PNDM, steps: int) -> list[Call]:
    """Calls of a run that begins with Runge-Kutta steps.   Raises PatchError for fewer than 13."""
    count = steps - MORE_CALLS
    if count < 4:
        raise PatchError(
            f"asked for {steps} steps; PNDM with Runge-Kutta steps calls the denoiser 13 times or more"
        )
    timesteps = Diffusion._whole(schedule, count)
    apart = schedule.num_train_timesteps // count
    calls = _runge_kutta_calls(timesteps[:4], apart // 2)
    return calls + [Call(t, t, t - apart) for t in timesteps[3:]]


def _runge_kutta_calls(timesteps: list[int], half: int) -> list[Call]:
    """Calls of three steps down four timesteps, two in the middle of each."""
    calls = []
    for start, stop in zip(timesteps, timesteps[1:], strict=False):
        middle = stop + half
        calls.append(Call(start, start, start - half))
        calls.append(Call(middle, start, middle))
        calls.append(Call(middle, start, middle - half))
        calls.append(Call(stop, start, stop))
    return calls
