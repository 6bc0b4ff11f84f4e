"""Weights of the loss by how noisy a row is.

    none           1
    min_snr        min(snr, 5) / snr, of a diffusion that predicts noise     (arXiv 2303.09556)
    sigma_squared  sigma^2, the error of the clean picture that a velocity implies
    cosmap         2 / (pi (1 - 2 sigma + 2 sigma^2))                        (arXiv 2403.03206)

snr = (signal / noise)^2 of x_t = signal x + noise e, sigma the share of noise of a flow.  How times are drawn
is another choice: SD3 draws them logit-normal and weighs by 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest

WEIGHTINGS = "none", "min_snr", "sigma_squared", "cosmap"
GAMMA = 5.0


def weights(schedule: Any, weighting: str, share: Tensor) -> Tensor:
    """Weights (B,) of rows with some shares of time (B,) in 0..1.

    A row without any signal has snr 0, and weight 1 under min_snr.
    """
    if weighting == "none":
        return torch.ones_like(share)
    if weighting == "sigma_squared":
        return share.square()
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * share + 2 * share.square()))
    return (GAMMA / signal_to_noise(schedule, share)).clamp(max=1)


def signal_to_noise(schedule: Any, share: Tensor) -> Tensor:
    """Ratio (B,) of the variances of picture and noise, of pictures with variance 1."""
    one = torch.ones(len(share), 1, 1, 1, dtype=torch.float64, device=share.device)
    none = torch.zeros_like(one)
    signal, _, _ = schedule.noised(one, none, share)
    noise, _, _ = schedule.noised(none, one, share)
    return (signal / noise).square().flatten().to(share)


def require_weighting(schedule: Any, weighting: Any) -> None:
    """Raise PatchError for an unknown weighting, and for one of the other kind of schedule."""
    if weighting not in WEIGHTINGS:
        raise PatchError(f"weighting is {weighting!r}{closest(weighting, WEIGHTINGS)}")
    if weighting == "min_snr" and schedule.flows:
        raise PatchError(
            "min_snr weighs the error of a diffusion's noise, and this schedule is a flow's; give "
            "sigma_squared or cosmap"
        )
    if weighting in ("sigma_squared", "cosmap") and not schedule.flows:
        raise PatchError(
            f"{weighting} weighs the error of a flow, and this schedule is a diffusion's; give min_snr"
        )
