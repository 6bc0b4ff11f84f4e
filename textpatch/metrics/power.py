"""Number of pairs on which a difference would be clear, if further pairs differ as those seen do."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from textpatch.errors import PatchError
from textpatch.metrics.intervals import FEWEST, PERFECT, Statistic, statistic_of

POWER = 0.8  # how often so many pairs find the difference clear


def pairs_to_settle(
    more: np.ndarray,
    less: np.ndarray,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    power: float = POWER,
) -> int | None:
    """Number of pairs of which a share `power` of draws has an interval of the gain clear of zero.

        n = ((z_level + z_power) d / g)^2,   g = s(more) - s(less) on the n0 pairs seen
        d^2 = variance over pairs i of  n0 g - (n0 - 1) g_i,   g_i the gain without pair i

    The interval of a gain is about  g -+ z_level d / sqrt(n), and g itself moves by d / sqrt(n) from draw to
    draw.  (Cohen 1988, sec. 2.4; pseudo-values: Tukey 1958)  Of a mean the pseudo-values are the differences
    pair by pair.

    more, less  scores of the same distinct pairs, (n0,) or (n0, columns)
    level       of the two-sided interval
    Returns None where the pairs tell no number, as fewer than FEWEST of them, and where they show no gain.
    Raises PatchError for levels outside 0..1.
    """
    if not (0 < level < 1 and 0 < power < 1):
        raise PatchError(f"level is {level} and power {power}; both need to be within 0..1")
    if len(more) < FEWEST:
        return None
    found = statistic_of(more, statistic) - statistic_of(less, statistic)
    if found <= 1 - PERFECT:
        return None
    spread = float(np.std(_pseudo_values(more, less, statistic, found), ddof=1))
    quantiles = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return max(math.ceil((quantiles * spread / found) ** 2), FEWEST)


def _pseudo_values(
    more: np.ndarray, less: np.ndarray, statistic: Statistic, found: float
) -> np.ndarray:
    """What each pair makes of the gain, (n0,)."""
    n = len(more)
    others = np.array([np.delete(np.arange(n), place) for place in range(n)])  # (n0, n0 - 1)
    sides = [statistic(*np.atleast_2d(side.T)[:, others], axis=-1) for side in (more, less)]
    return n * found - (n - 1) * (sides[0] - sides[1])
