"""Noisy pictures that training shows a denoiser, and the loss of its answer, for each kind of schedule.

A share s in 0..1 says on every schedule alike how noisy a picture is.  Its noise relative to the picture is
sigma = s / (1 - s).

B rows, C channels, H x W pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from textpatch.reference_models.schedules import (
    DDPM,
    Diffusion,
    Euler,
    FlowMatchEuler,
    Schedule,
    trained_abars,
)


@dataclass(frozen=True)
class Velocity:
    """Rectified flow x_s = (1 - s) x + s e, of which the velocity e - x is asked."""

    schedule: FlowMatchEuler
    steps: int

    def mix(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy pictures x_s and timesteps, of pictures x (B, C, H, W) and shares (B,)."""
        s = share[:, None, None, None]
        return (1 - s) * x + s * noise, self.schedule.num_train_timesteps * share

    def error(self, output: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Squared error (B, C, H, W)."""
        return (output - (noise - x)).square()


@dataclass(frozen=True)
class Noise:
    """Diffusion x_t = sqrt(abar) x + sqrt(1 - abar) e, of which e is asked, at the timestep nearest to s.

    The squared error of e weighs min(1 + sigma^2, MOST).  Up to the bound it is the error of the velocity
    sqrt(abar) e - sqrt(1 - abar) x (arXiv 2202.00512, app. D).  A plain error of e all but ignores the
    picture where there is much noise, and there the prompt decides it.
    """

    schedule: Diffusion
    steps: int
    MOST = 26.0  # sigma 5; SDXL's noisiest rows would weigh 214

    def mix(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy pictures x_t and timesteps, of pictures x (B, C, H, W) and shares (B,)."""
        abars = trained_abars(self.schedule)
        shares = 1 / (1 + (abars / (1 - abars)).sqrt())  # (N,), rising
        middles = (shares[1:] + shares[:-1]) / 2
        t = torch.bucketize(share, middles.to(share))
        abar = abars.to(share)[t][:, None, None, None]
        return abar.sqrt() * x + (1 - abar).sqrt() * noise, t

    def error(self, output: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Weighted squared error (B, C, H, W)."""
        abar = trained_abars(self.schedule).to(x)[t][:, None, None, None]
        return (1 / abar).clamp(max=self.MOST) * (output - noise).square()


@dataclass(frozen=True)
class NoiseAndVariance(Noise):
    """Diffusion whose denoiser also learns the variance of a step, in a generation of `steps` steps.

    The variance is learned from the bound on the likelihood alone, which does not move the noise
    (arXiv 2102.09672, section 3.1).  It is KL(q(x_prev | x_t, x) || p(x_prev | x_t)), a thousandth of it per
    step.
    """

    def error(self, output: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Weighted squared error plus a thousandth of the divergence (B, C, H, W)."""
        epsilon, share = output.chunk(2, dim=1)
        squared = super().error(epsilon, x, noise, t)
        return squared + 0.001 * self._divergence(epsilon.detach(), share, noise, t)

    def _divergence(self, epsilon: Tensor, share: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Divergence of a step (B, C, H, W), 0 for the last step, which has no variance."""
        abars = trained_abars(self.schedule).to(noise)
        spacing = self.schedule.num_train_timesteps // self.steps
        before = (t - spacing).clamp(min=0)
        now = abars[before + spacing][:, None, None, None]
        after = abars[before][:, None, None, None]
        most = 1 - now / after
        least = (1 - after) / (1 - now) * most  # the variance of q(x_prev | x_t, x)
        # squared distance of the two means
        moved = most**2 / ((1 - now) * now / after) * (epsilon - noise).square()
        share = (share + 1) / 2
        log = share * most.log() + (1 - share) * least.log()
        kl = 0.5 * (log - least.log() - 1 + (least + moved) / log.exp())
        return torch.where((t >= spacing)[:, None, None, None], kl, 0.0)


OBJECTIVES = {FlowMatchEuler: Velocity, Euler: Noise, DDPM: NoiseAndVariance}


def objective(schedule: Schedule, steps: int):
    """Objective of a denoiser for this schedule, to be run in `steps` steps."""
    return OBJECTIVES[type(schedule)](schedule, steps)
