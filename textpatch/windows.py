"""Windows of timesteps or noise levels, which become steps in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from torch import Tensor

from textpatch.errors import PatchError
from textpatch.finite import is_finite

UNITS = ("timestep", "sigma")


class NoiseSchedule(Protocol):
    """Noise levels of a run."""

    def timesteps(self, steps: int) -> Tensor:
        """Times (steps,) that the denoiser is told."""

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,), from the first to the one that the last step lands on."""


@dataclass(frozen=True)
class Window:
    """Steps whose timestep or noise level lies between two ends.

    unit  "timestep", the time that the denoiser is told (0..1000), or "sigma", the noise level of
          the latents entering the step.  A run's ledger prints both
    low   lower end, included.  None is an open end
    high  higher end, included.  None is an open end
    Raises PatchError for another unit, and for ends that are no finite numbers, out of order, or
    both open.
    """

    unit: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        numbers = all(is_finite(end) for end in ends)
        if self.unit not in UNITS or not ends or not numbers or ends[0] > ends[-1]:
            raise PatchError(
                f"window of {self.unit!r} from {self.low!r} to {self.high!r}; give 'timestep' or 'sigma', "
                "the lower end and the higher, None for one that is open; for all steps leave the window out"
            )
        for name, end in (("low", self.low), ("high", self.high)):
            if end is not None:
                # adding 0.0 turns -0.0 into 0.0, so that equal windows are written alike
                object.__setattr__(self, name, float(end) + 0.0)

    def among(self, values: Sequence[float]) -> tuple[int, ...]:
        """Indices of the values inside the window.

        values  one for each step of a run
        Raises PatchError if no value lies inside.
        """
        low = -inf if self.low is None else self.low
        high = inf if self.high is None else self.high
        inside = tuple(i for i, value in enumerate(values) if low <= value <= high)
        if not inside:
            shown = ", ".join(f"{value:.6g}" for value in values)
            raise PatchError(
                f"no step of this run lies in {self}: its {len(values)} are at {shown}; widen the window"
            )
        return inside

    def in_run(self, schedule: NoiseSchedule, steps: int) -> tuple[int, ...]:
        """Loop indices of the window in a run of so many steps.

        Raises PatchError for a window that holds no step.
        """
        levels = {"timestep": schedule.timesteps, "sigma": schedule.sigmas}[self.unit]
        values = levels(steps)  # one more of the sigmas, which the last step lands on
        return self.among(values[:steps].tolist())

    def __str__(self) -> str:
        words = [self.unit]
        if self.low is not None:
            words.append(f"from {self.low}")
        if self.high is not None:
            words.append(f"to {self.high}")
        return " ".join(words)
