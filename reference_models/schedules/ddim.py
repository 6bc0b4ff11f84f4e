"""Steps between noise levels, deterministic or stochastic, and back (arXiv 2010.02502).

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import required_noise, widened
from textpatch.reference_models.schedules.diffusion import (
    Diffusion,
    back,
    between,
    limited,
    require_threshold,
    trained_abars,
)


@dataclass(frozen=True, repr=False)
class DDIM(Diffusion):
    """Steps of arXiv 2010.02502, eq. 12, deterministic at eta 0.

        x <- a' x_0 + sqrt(1 - abar' - d^2) e + d noise,
        d^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar')

    A step from timestep t lands on t - N // steps, as published, which is the next one's timestep only where
    the spacing is "leading".

    eta               share of the noise of a DDPM that a step draws
    set_alpha_to_one  True lands on the clean picture, False on the level of timestep 0
    use_clipped_model_output  True takes the noise from the picture after clipping

    Raises PatchError as Diffusion does, and for numbers that are no threshold, range or share.
    """

    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    eta: float = 0.0
    use_clipped_model_output: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self)
        if not 0 <= self.eta <= 1:
            raise PatchError(f"eta is {self.eta}; give a share of 0 to 1")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def deterministic(self) -> DDIM:
        return replace(self, eta=0.0, clip_sample=False, thresholding=False)

    def abars(self, steps: int) -> Tensor:
        """Values abar at each step's timestep, then where the last one lands, (steps + 1,) float32."""
        return torch.cat([trained_abars(self)[self._whole(steps)], self._last()[None]])

    def landings(self, steps: int) -> Tensor:
        """Values abar that each step lands on, (steps,) float32."""
        apart = self.num_train_timesteps // steps
        after = torch.tensor(self._whole(steps)) - apart
        return torch.where(after < 0, self._last(), trained_abars(self)[after.clamp(min=0)])

    def adds_noise(self, step: int, steps: int) -> bool:
        return self.stochastic and bool(self.landings(steps)[step] < 1)

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        noise  standard normal, of x's shape, where eta is above 0
        Raises PatchError if it is missing, and for a prediction of the noise where there is nothing else.
        """
        now = self.abars(steps)[step]
        after = self.landings(steps)[step]
        if not self.stochastic and not self._limits:
            return between(self, x, output, now, after)
        wide, output = widened(x, output)
        clean = limited(self, self.clean(wide, output, now))
        epsilon = self.noise_of(wide, output, now)
        if self.use_clipped_model_output:
            epsilon = (wide - now.sqrt() * clean) / (1 - now).sqrt()
        variance = (1 - after) / (1 - now) * (1 - now / after)
        deviation = self.eta * variance.sqrt()
        wide = after.sqrt() * clean + (1 - after - deviation**2).sqrt() * epsilon
        if self.adds_noise(step, steps):
            wide = wide + deviation * required_noise(noise, step, steps)
        return wide.to(x.dtype)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output.

        A picture is inverted from step steps - 1 up to 0.  The output is the denoiser's for x at the timestep
        of the step undone, which is the noisier end.
        Raises PatchError for a schedule that is not deterministic, and where several latents lead to x.
        """
        if self.stochastic or self._limits:
            raise PatchError(f"steps of {self!r} cannot be undone; those of deterministic() can")
        levels = self.abars(steps)[step], self.landings(steps)[step]
        return back(self, x, output, step, steps, levels)

    @property
    def _limits(self) -> bool:
        """True where pictures are clipped, or their noise is taken anew."""
        return self.clip_sample or self.thresholding or self.use_clipped_model_output

    def _last(self) -> Tensor:
        """Value abar that the last step lands on."""
        if self.set_alpha_to_one:
            return torch.tensor(1.0)
        return trained_abars(self)[0]
