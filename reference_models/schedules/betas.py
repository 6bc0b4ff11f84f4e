"""Betas that a diffusion was trained on, one for each of its N timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LEAST_LEFT = 0.999  # the largest beta of a schedule given by its abar
CPU_FLOAT32 = dict(dtype=torch.float32, device="cpu")


def linear(n: int, start: float, end: float) -> Tensor:
    """Betas that rise linearly (arXiv 2006.11239, section 4)."""
    return torch.linspace(start, end, n, **CPU_FLOAT32)


def scaled_linear(n: int, start: float, end: float) -> Tensor:
    """Betas whose root rises linearly (Stable Diffusion)."""
    return torch.linspace(start**0.5, end**0.5, n, **CPU_FLOAT32) ** 2


def squared_cosine(n: int, start: float, end: float) -> Tensor:
    """Betas of an abar that falls as a squared cosine (arXiv 2102.09672, eq. 17), without ends."""
    return _of_abar(n, lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2)


def laplace(n: int, start: float, end: float) -> Tensor:
    """Betas whose logarithm of signal over noise is Laplace distributed (arXiv 2407.03297), without ends."""

    def level(t: float) -> float:
        side = math.copysign(1, 0.5 - t)
        ratio = math.exp(-0.5 * side * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6))
        return math.sqrt(ratio / (1 + ratio))

    return _of_abar(n, level)


def sigmoid(n: int, start: float, end: float) -> Tensor:
    """Betas that rise as a sigmoid of -6 to 6 (arXiv 2203.02923)."""
    return torch.sigmoid(torch.linspace(-6, 6, n, **CPU_FLOAT32)) * (end - start) + start


def _of_abar(n: int, level: Callable[[float], float]) -> Tensor:
    betas = [min(1 - level((i + 1) / n) / level(i / n), LEAST_LEFT) for i in range(n)]
    return torch.tensor(betas, **CPU_FLOAT32)


def with_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas after which nothing of the picture is left at the last timestep (arXiv 2305.08891, alg. 1)."""
    roots = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first = roots[0].clone()
    last = roots[-1].clone()
    roots = (roots - last) * (first / (first - last))
    abars = roots**2
    alphas = torch.cat([abars[0:1], abars[1:] / abars[:-1]])
    return 1 - alphas


BETAS = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": squared_cosine,
    "laplace": laplace,
    "sigmoid": sigmoid,
}
