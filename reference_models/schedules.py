"""Noise levels and the steps between them.

sigma is the share of noise, 1 at the start and 0 at the end of a rectified flow  x_s = (1 - s) x + s e.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from textpatch.errors import PatchError


@dataclass(frozen=True)
class FlowMatchEuler:
    """Euler steps along a rectified flow with shifted noise levels (Stable Diffusion 3, arXiv 2403.03206).

    sigma' = shift sigma / (1 + (shift - 1) sigma);  x <- x + (sigma_next - sigma) velocity.
    `prediction` says what the denoiser's output is: the `velocity` e - x, or the `sample` x itself.
    """

    num_train_timesteps: int = 1000
    shift: float = 3.0
    prediction: str = "velocity"

    def __post_init__(self):
        if self.prediction not in ("velocity", "sample"):
            raise PatchError(
                f"prediction is {self.prediction!r}; a flow's denoiser predicts 'velocity' or 'sample'"
            )

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,), float32, falling to a final 0.  Raises PatchError for less than one step.

        The ends of the shifted training table are spaced evenly and shifted once more, as the published
        pipeline does: 28 steps at shift 3 end on 0.00893, not on 0.00299.
        """
        if steps < 1:
            raise PatchError(f"asked for {steps} steps; a run has at least 1")
        n = self.num_train_timesteps
        first, last = self._shift(torch.tensor(1.0)), self._shift(torch.tensor(1.0 / n))
        even = torch.linspace(first.item() * n, last.item() * n, steps, dtype=torch.float64) / n
        return torch.cat([self._shift(even), torch.zeros(1)]).float()

    def timestep(self, sigma: Tensor) -> Tensor:
        """A noise level in the denoiser's unit, 0..1000."""
        return sigma * self.num_train_timesteps

    def step(self, x: Tensor, output: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """x one noise level further down; x and output (B, C, H, W), levels scalar, arithmetic in x's dtype."""
        velocity = output if self.prediction == "velocity" else (x - output) / sigma.to(x.dtype)
        return x + (sigma_next - sigma).to(x.dtype) * velocity

    def _shift(self, sigma: Tensor) -> Tensor:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)
