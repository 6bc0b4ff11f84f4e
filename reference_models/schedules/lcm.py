"""Steps of latent consistency models, which guess the picture and noise it again (arXiv 2310.04378).

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import require_steps, required_noise, widened
from textpatch.reference_models.schedules.ddim import DDIM
from textpatch.reference_models.schedules.diffusion import Diffusion, limited, require_threshold

DATA = 0.5  # deviation of the pictures, in the factors of the boundary condition


@dataclass(frozen=True, repr=False)
class LCM(Diffusion):
    """Steps of arXiv 2310.04378, algorithm 3.

        x <- a' f + s' noise,   f = c_skip x + c_out x_0,
        c_skip = .25 / (u^2 + .25),   c_out = u / sqrt(u^2 + .25),   u = timestep_scaling t

    original_inference_steps  timesteps that the model was distilled on, of which a run takes some

    Raises PatchError as Diffusion does, and for numbers that are no threshold, range or steps.
    """

    steps_offset: int = 0
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_scaling: float = 10.0

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self)
        n = self.num_train_timesteps
        if not 1 <= self.original_inference_steps <= n:
            raise PatchError(
                f"original_inference_steps is {self.original_inference_steps}; "
                f"of {n} trained timesteps give 1 to {n}"
            )

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        noise  standard normal, of x's shape; the last step adds none
        Raises PatchError if it is missing, and for a prediction of the noise where there is nothing else.
        """
        now, after = self.abars(steps)[step : step + 2]
        wide, output = widened(x, output)
        clean = limited(self, self.clean(wide, output, now))
        scaled = self.timesteps(steps)[step] * self.timestep_scaling
        skip = DATA**2 / (scaled**2 + DATA**2)
        out = scaled / (scaled**2 + DATA**2) ** 0.5
        wide = out * clean + skip * wide
        if self.adds_noise(step, steps):
            noise = required_noise(noise, step, steps)
            wide = after.sqrt() * wide + (1 - after).sqrt() * noise
        return wide.to(x.dtype)

    def deterministic(self) -> DDIM:
        shared = {field.name: getattr(self, field.name) for field in fields(Diffusion)}
        return DDIM(**shared, set_alpha_to_one=True)

    def _whole(self, steps: int) -> list[int]:
        most = self.original_inference_steps
        require_steps(steps, most)
        apart = self.num_train_timesteps // most
        distilled = np.arange(most, 0, -1) * apart - 1
        chosen = np.floor(np.linspace(0, most, num=steps, endpoint=False)).astype(np.int64)
        return distilled[chosen].tolist()
