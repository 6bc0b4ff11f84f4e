"""Times and noise levels of a foreign pipeline's runs, as its model is told them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.errors import PatchError


class HeardSchedule:
    """Schedule of runs that were heard, or are heard when somebody asks.

    run        run(steps) makes a plain run, and gives the time told at each step, None for one not told
    scheduler  somebody's scheduler with `sigmas` or `alphas_cumprod`, None where there is none
    """

    def __init__(self, run: Callable[[int], list[float | None]], scheduler: Any = None) -> None:
        self._run = run
        self._scheduler = scheduler
        self._heard: dict[int, tuple[Tensor, Tensor]] = {}

    def timesteps(self, steps: int) -> Tensor:
        """Times (steps,) that the denoiser is told, NaN where no argument tells one."""
        return self._of(steps)[0]

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,), NaN where nobody tells them."""
        return self._of(steps)[1]

    def knows(self, steps: int) -> bool:
        """True where a run of so many steps was heard."""
        return steps in self._heard

    def hear(self, steps: int, told: list[float | None]) -> None:
        """Keep the times that a run of so many steps was told.

        Raises PatchError for another number of them.
        """
        if len(told) != steps:
            raise PatchError(
                f"a run of {steps} steps was asked for, and the model's calls make {len(told)}; give a "
                "scheduler that makes as many as it is asked for"
            )
        times = torch.tensor([float("nan") if one is None else one for one in told])
        self._heard[steps] = times, self._sigmas(times)

    def _of(self, steps: int) -> tuple[Tensor, Tensor]:
        if not self.knows(steps):
            self.hear(steps, self._run(steps))
        return self._heard[steps]

    def _sigmas(self, times: Tensor) -> Tensor:
        """Noise levels that the scheduler says, or sqrt((1 - abar) / abar) by its table of abar."""
        told = getattr(self._scheduler, "sigmas", None)
        if isinstance(told, Tensor) and len(told) == len(times) + 1:
            return told.detach().float().cpu().clone()
        abars = getattr(self._scheduler, "alphas_cumprod", None)
        if isinstance(abars, Tensor) and not times.isnan().any() and times.max() < len(abars):
            abar = abars.float().cpu()[times.long()]
            return F.pad(((1 - abar) / abar).sqrt(), (0, 1))
        return torch.full((len(times) + 1,), float("nan"))
