"""Noise levels of Karras, exponential and beta form, and the timesteps that belong to noise levels.

sigma is the noise over the signal, sqrt((1 - abar) / abar).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

RHO = 7.0  # arXiv 2206.00364, eq. 5
SHAPE = 0.6  # both parameters of the beta distribution (arXiv 2407.12173)
TERMS = 64  # of a series in numbers of at most one half


def karras(most: float, least: float, steps: int) -> np.ndarray:
    """Levels whose 7th root falls linearly (arXiv 2206.00364, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    first = most ** (1 / RHO)
    last = least ** (1 / RHO)
    return (first + ramp * (last - first)) ** RHO


def exponential(most: float, least: float, steps: int) -> np.ndarray:
    """Levels whose logarithm falls linearly."""
    return np.exp(np.linspace(math.log(most), math.log(least), steps))


def beta(most: float, least: float, steps: int) -> np.ndarray:
    """Levels at quantiles of a beta distribution, dense at both ends (arXiv 2407.12173)."""
    shares = 1 - np.linspace(0, 1, steps)
    return np.array([least + beta_quantile(float(share)) * (most - least) for share in shares])


LEVELS = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}


@lru_cache(maxsize=4096)
def beta_quantile(share: float) -> float:
    """Number below which a share of the beta distribution of parameters 0.6 and 0.6 lies."""
    if share in (0.0, 0.5, 1.0):
        return share
    if share > 0.5:  # the distribution is symmetric
        return 1 - beta_quantile(1 - share)
    whole = math.gamma(SHAPE) ** 2 / math.gamma(2 * SHAPE)
    x = (share * SHAPE * whole) ** (1 / SHAPE)  # the first term of the series, inverted
    for _ in range(50):
        density = x ** (SHAPE - 1) * (1 - x) ** (SHAPE - 1)
        moved = (_incomplete(x) - share * whole) / density
        x -= moved
        if abs(moved) <= 2e-16 * x:
            break
    return x


def _incomplete(x: float) -> float:
    """Integral of t^(a - 1) (1 - t)^(a - 1) from 0 to x of at most one half, by its power series."""
    factor = 1.0
    terms = []
    for i in range(TERMS):
        terms.append(factor / (SHAPE + i))
        factor *= (i + 1 - SHAPE) / (i + 1) * x
    return x**SHAPE * math.fsum(terms)


def timesteps_of(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Timesteps at which a diffusion has noise levels, between whole ones in the logarithm.

    sigmas   (n,) float64
    trained  (N,) float32, logarithms of the trained levels, rising
    """
    return np.array([_timestep_of(sigma, trained) for sigma in sigmas])


def _timestep_of(sigma: float, trained: np.ndarray) -> np.ndarray:
    log = np.log(np.maximum(sigma, 1e-10))
    below = np.cumsum(log - trained >= 0).argmax().clip(max=len(trained) - 2)
    low = trained[below]
    high = trained[below + 1]
    share = np.clip((low - log) / (low - high), 0, 1)
    return (1 - share) * below + share * (below + 1)
