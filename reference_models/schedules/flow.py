"""Euler steps along a rectified flow with shifted noise levels (Stable Diffusion 3, FLUX).

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import (
    Schedule,
    require_one_of,
    require_steps,
    required_noise,
    widened,
)
from textpatch.reference_models.schedules.levels import LEVELS


@dataclass(frozen=True, repr=False)
class FlowMatchEuler(Schedule):
    """Euler steps along a rectified flow (Stable Diffusion 3, arXiv 2403.03206).

    sigma' = shift sigma / (1 + (shift - 1) sigma);  x <- x + (sigma_next - sigma) velocity.

    use_dynamic_shifting  shifts by the number of image tokens L in place of `shift`, by
        e^mu sigma / (1 + (e^mu - 1) sigma), or with mu for e^mu where time_shift_type is "linear".  mu rises
        linearly with L from base_shift at base_image_seq_len to max_shift at max_image_seq_len
    image_seq_len         L, which `for_image` gives
    shift_terminal        level of the last step, to which the levels are stretched
    use_*_sigmas          at most one of them, noise levels of another form between the ends
    stochastic_sampling   True guesses the picture and noises it again
    spacing               "trained" levels lie evenly between the shifted ends of the trained table (Stable
                          Diffusion 3), and "steps" are 1, 1 - 1 / n, ... , 1 / n (FLUX)
    prediction            what the denoiser's output is, the `velocity` e - x or the `sample` x itself

    Raises PatchError for a setting of another kind, and for numbers of no schedule.
    """

    num_train_timesteps: int = 1000
    shift: float = 3.0
    prediction: str = "velocity"
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False
    spacing: str = "trained"
    image_seq_len: int | None = None

    flows: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "prediction": ("velocity", "sample"),
        "time_shift_type": ("exponential", "linear"),
        "spacing": ("trained", "steps"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, *LEVELS)
        if self.shift <= 0:
            raise PatchError(f"shift is {self.shift!r}; give a positive number")
        if self.shift_terminal is not None and not 0 < self.shift_terminal < 1:
            raise PatchError(f"shift_terminal is {self.shift_terminal}; give a level within 0..1")
        if self.use_dynamic_shifting and self.base_image_seq_len >= self.max_image_seq_len:
            raise PatchError(
                f"base_image_seq_len {self.base_image_seq_len} and max_image_seq_len "
                f"{self.max_image_seq_len}; the first must be the smaller"
            )

    @property
    def stochastic(self) -> bool:
        return self.stochastic_sampling

    def deterministic(self) -> FlowMatchEuler:
        return replace(self, stochastic_sampling=False)

    def for_image(self, tokens: int) -> FlowMatchEuler:
        """Schedule for pictures of so many image tokens, another one where shifting is dynamic."""
        if self.use_dynamic_shifting:
            return replace(self, image_seq_len=tokens)
        return self

    def timesteps(self, steps: int) -> Tensor:
        """Timesteps N sigma.   Raises PatchError for less than one step or more than N."""
        return self.sigmas(steps)[:-1] * self.num_train_timesteps

    def sigmas(self, steps: int) -> Tensor:
        """Shares of noise, falling to a final 0.  Raises PatchError as `timesteps` does.

        "trained" levels are shifted twice, the ends first and then all, as in the published pipeline: 28
        steps at shift 3 end on 0.00893, not on 0.00299.
        """
        require_steps(steps, self.num_train_timesteps)
        levels = self._shifted(self._even(steps))
        if self.shift_terminal is not None:
            levels = self._stretched(levels)
        for name, form in LEVELS.items():
            if getattr(self, name):
                levels = form(levels[0].item(), levels[-1].item(), steps)
        return F.pad(torch.from_numpy(levels).float(), (0, 1))

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        noise  standard normal, of x's shape, where sampling is stochastic; the last step adds none
        Raises PatchError if it is missing.
        """
        now, after = self.sigmas(steps)[step : step + 2]
        wide, output = widened(x, output)
        if self.prediction == "sample":
            output = (wide - output) / now
        if not self.stochastic:
            return (wide + (after - now) * output).to(x.dtype)
        wide = (1.0 - after) * (wide - now * output)
        if self.adds_noise(step, steps):
            wide = wide + after * required_noise(noise, step, steps)
        return wide.to(x.dtype)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same velocity.

        Raises PatchError for a schedule that is not deterministic, and for a denoiser that predicts the
        sample, whose velocity is that of latents not known yet.
        """
        if self.stochastic:
            raise PatchError(f"steps of {self!r} cannot be undone; those of deterministic() can")
        if self.prediction != "velocity":
            raise PatchError(
                f"steps of a flow whose prediction is {self.prediction!r} cannot be undone; "
                "a prediction of 'velocity' can"
            )
        now, after = self.sigmas(steps)[step : step + 2]
        wide, output = widened(x, output)
        return (wide - (after - now) * output).to(x.dtype)

    def noise_units(self, step: int, steps: int) -> float:
        """Noise units of the prediction at noise level s.

        A velocity has 1 - s, as e = x_s + (1 - s) v.
        The sample has (s - 1) / s, as e = (x_s - (1 - s) x) / s.
        """
        sigma = float(self.sigmas(steps)[step])
        if self.prediction == "velocity":
            return 1 - sigma
        return (sigma - 1) / sigma

    def noised(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training's input (1 - s) x + s e, timesteps N s and target, of shares of noise s (B,) in 0..1."""
        s = share[:, None, None, None].to(x)
        mixed = (1 - s) * x + s * noise
        target = x if self.prediction == "sample" else noise - x
        return mixed, self.num_train_timesteps * share, target

    def _even(self, steps: int) -> np.ndarray:
        """Levels (steps,) before they are shifted."""
        if self.spacing == "steps":
            return np.linspace(1.0, 1 / steps, steps).astype(np.float32)
        n = self.num_train_timesteps
        ends = torch.tensor([1.0, 1.0 / n], dtype=torch.float32, device="cpu")
        if not self.use_dynamic_shifting:
            ends = self._shifted(ends)
        first, last = ends.tolist()
        return np.linspace(first * n, last * n, steps) / n

    def _shifted(self, sigma):
        """Levels with more noise, of an array or tensor of them."""
        if not self.use_dynamic_shifting:
            return self.shift * sigma / (1 + (self.shift - 1) * sigma)
        factor = self._mu()
        if self.time_shift_type == "exponential":
            factor = math.exp(factor)
        return factor / (factor + (1 / sigma - 1))

    def _mu(self) -> float:
        """Exponent of the dynamic shift.   Raises PatchError without a number of image tokens."""
        if self.image_seq_len is None:
            raise PatchError(
                "use_dynamic_shifting needs the number of image tokens; ask schedule.for_image(tokens)"
            )
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        return self.image_seq_len * slope + (self.base_shift - slope * self.base_image_seq_len)

    def _stretched(self, levels: np.ndarray) -> np.ndarray:
        """Levels of which the last is `shift_terminal`.   Raises PatchError for one that is noise alone."""
        if levels[-1] == 1:
            raise PatchError(
                "one step begins in noise alone, and shift_terminal asks for another last level; "
                "take two steps or more"
            )
        signal = 1 - levels
        return 1 - signal / (signal[-1] / (1 - self.shift_terminal))
