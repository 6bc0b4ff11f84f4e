"""Euler steps of a diffusion's probability flow in  x / sqrt(abar)  (arXiv 2206.00364), plain and ancestral.

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import (
    require_one_of,
    require_steps,
    required_noise,
    undone,
    widened,
)
from textpatch.reference_models.schedules.diffusion import Diffusion, trained_abars
from textpatch.reference_models.schedules.levels import LEVELS, timesteps_of
from textpatch.reference_models.schedules.spacing import exact_timesteps


class InSigma(Diffusion):
    """Base of schedules whose latents are x / sqrt(abar), so that their noise has the deviation sigma."""

    # of 0, sigma would be infinite; this one is float16's smallest
    LAST_ABAR: ClassVar[float | None] = 2**-24

    def timesteps(self, steps: int) -> Tensor:
        """Timesteps of a run.   Raises PatchError for less than one step, and for more than there are."""
        return _tables(self, steps)[0].clone()

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels, of which the last step lands on the last.   Raises PatchError as `timesteps` does."""
        return _tables(self, steps)[1].clone()

    def start(self, noise: Tensor, steps: int) -> Tensor:
        if self.timestep_spacing == "leading":
            return noise * (self.sigmas(steps).max() ** 2 + 1).sqrt()
        return noise * self.sigmas(steps).max()

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        return x / self._scale(step, steps)

    def tables(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps (steps,) and noise levels (steps + 1,), of timesteps in the asked spacing."""
        timesteps = self._exact(steps)
        levels = np.interp(timesteps, np.arange(self.num_train_timesteps), self._trained())
        return timesteps, np.append(levels, 0.0)

    def slope(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """Derivative (B, C, H, W) of the latents by sigma, which is the noise."""
        if self.prediction_type == "epsilon":
            return output
        clean = output
        if self.prediction_type == "v_prediction":
            clean = output * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        return (x - clean) / sigma

    def _exact(self, steps: int) -> np.ndarray:
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        require_steps(steps, max(self.num_train_timesteps - offset, 1))
        return exact_timesteps(self.timestep_spacing, self.num_train_timesteps, steps, offset)

    def _trained(self) -> np.ndarray:
        abars = trained_abars(self)
        return ((1 - abars) / abars).sqrt().numpy()

    def _scale(self, step: int, steps: int) -> Tensor:
        return (self.sigmas(steps)[step] ** 2 + 1).sqrt()


@dataclass(frozen=True, repr=False)
class Euler(InSigma):
    """Euler steps (arXiv 2206.00364, algorithm 1 without its second-order correction).

        x <- x + (sigma_next - sigma) e;   the denoiser receives  x / sqrt(sigma^2 + 1)

    use_*_sigmas        at most one of them, noise levels of another form between the two ends
    sigma_min, sigma_max  ends of such levels; those of the run's own when None
    interpolation_type  "log_linear" spaces levels in their logarithm between the trained ends
    timestep_type       "continuous" tells a denoiser of velocities log(sigma) / 4
    final_sigmas_type   "sigma_min" ends on the least trained level, and not on the clean picture

    Raises PatchError as Diffusion does, and for several forms at once.
    """

    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = Diffusion.CHOICES | {
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, *LEVELS)
        for name in ("sigma_min", "sigma_max"):
            end = getattr(self, name)
            if end is not None and end <= 0:
                raise PatchError(f"{name} is {end}; give a positive number")
        if self._continuous and self.interpolation_type == "log_linear" and not self._form:
            raise PatchError(
                "log_linear levels with continuous timesteps make one step more than is asked for; "
                "choose one of the two"
            )

    @property
    def _continuous(self) -> bool:
        return self.timestep_type == "continuous" and self.prediction_type == "v_prediction"

    @property
    def _form(self):
        """Function that gives levels of another form, None for the run's own."""
        return next((make for name, make in LEVELS.items() if getattr(self, name)), None)

    def tables(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps (steps,) and noise levels (steps + 1,)."""
        timesteps = self._exact(steps)
        trained = self._trained()
        logs = np.log(trained)
        if self.interpolation_type == "log_linear":
            levels = torch.linspace(logs[-1], logs[0], steps + 1, device="cpu").exp().numpy()
        else:
            levels = np.interp(timesteps, np.arange(len(trained)), trained)
        if self._form:
            most = levels[0].item() if self.sigma_max is None else self.sigma_max
            least = levels[-1].item() if self.sigma_min is None else self.sigma_min
            levels = self._form(most, least, steps)
            timesteps = timesteps_of(levels, logs)
        last = trained[0] if self.final_sigmas_type == "sigma_min" else 0.0
        levels = np.append(levels, last)[: steps + 1].astype(np.float32)
        if self._continuous:
            timesteps = 0.25 * torch.from_numpy(levels[:-1]).log().numpy()
        return timesteps, levels

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W)."""
        now, after = self.sigmas(steps)[step : step + 2]
        wide, output = widened(x, output)
        return (wide + (after - now) * self.slope(wide, output, now)).to(x.dtype)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output.

        Raises PatchError where several latents lead to x.
        """
        if self.prediction_type != "epsilon":
            return undone(self, x, output, step, steps)
        now, after = self.sigmas(steps)[step : step + 2]
        wide, output = widened(x, output)
        return (wide - (after - now) * output).to(x.dtype)


@dataclass(frozen=True, repr=False)
class EulerAncestral(InSigma):
    """Euler steps to a level below the next, and noise that leads up to it (SDXL-Turbo).

    x <- x + (down - sigma) e + up noise,   up^2 = next^2 (sigma^2 - next^2) / sigma^2,
    down^2 = next^2 - up^2
    """

    stochastic: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = Diffusion.CHOICES | {
        "prediction_type": ("epsilon", "v_prediction")
    }

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        noise  standard normal, of x's shape; the last step adds none
        Raises PatchError if it is missing.
        """
        now, after = self.sigmas(steps)[step : step + 2]
        up = (after**2 * (now**2 - after**2) / now**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        wide, output = widened(x, output)
        wide = wide + (down - now) * self.slope(wide, output, now)
        if self.adds_noise(step, steps):
            wide = wide + required_noise(noise, step, steps) * up
        return wide.to(x.dtype)

    def deterministic(self) -> Euler:
        return Euler(**vars(self))


@lru_cache(maxsize=256)
def _tables(schedule: InSigma, steps: int) -> tuple[Tensor, Tensor]:
    """Tables of a run in float32, which nobody may write to."""
    timesteps, levels = schedule.tables(steps)
    return (
        torch.from_numpy(np.asarray(timesteps, dtype=np.float32)),
        torch.from_numpy(np.asarray(levels, dtype=np.float32)),
    )
