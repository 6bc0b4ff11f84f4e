"""Intervals of scores, which say how far a score would move on another draw of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from textpatch.errors import PatchError

PERFECT = 1 - 1e-6  # the official precision of a perfect reading is n / (n + 1e-8)
# Items that an interval needs.  Drawing one or two of them again tells nothing of how they spread.
FEWEST = 3
CHUNK = 2**21  # resampled values held at once: 16 MB a column, whatever `n` and the number of items

Statistic = Callable[..., np.ndarray]


class Interval(NamedTuple):
    """Ends of an interval, both included."""

    low: float
    high: float


def bootstrap(
    values: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic over items drawn with replacement.   (Efron 1979)

        low, high = quantiles (1 - level)/2 and (1 + level)/2 of statistic(values[draw]) over n draws

    values     finite numbers (items,), or (items, columns) where the columns of an item stay together,
               such as its precision and recall
    statistic  called as statistic(column, ..., axis=-1) on arrays (draws, items), one for each column, and
               returns (draws,): np.mean, np.median, `f1_of_means`
    Raises PatchError for no items, items that are not finite, or a statistic of another shape.
    """
    columns = _columns(values)
    if n < 1 or not 0 < level < 1:
        raise PatchError(f"bootstrap got n={n} and level={level}; needs n >= 1 and 0 < level < 1")
    draws = _draws(columns.shape[1], n, seed)
    drawn = np.concatenate([_replicates(columns, statistic, draw) for draw in draws])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def wilson(share: float, n: int, *, level: float = 0.95) -> Interval:
    """Score interval of a share of yes among n independent answers.   (Wilson 1927)

        low, high = (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    z      the normal quantile of (1 + level) / 2
    share  p, from 0 to 1.  It may also be the mean of n values from 0 to 1, as these spread less than
           answers of yes and no with the same mean
    The interval has a width even where all answers are alike.  For n times yes it is n / (n + z^2) to 1.
    Raises PatchError for no answers, a share outside 0..1, or a level outside 0..1.
    """
    if n < 1 or not 0 <= share <= 1 or not 0 < level < 1:
        raise PatchError(
            f"wilson got share={share}, n={n} and level={level}; "
            "needs 0 <= share <= 1, n >= 1 and 0 < level < 1"
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    whole = 1 + z**2 / n
    low = max(0.0, (middle - half) / whole)
    high = min(1.0, (middle + half) / whole)
    # rounding alone could leave the share outside
    return Interval(min(low, share), max(high, share))


def _columns(values: ArrayLike) -> np.ndarray:
    """Values as finite float64 numbers (columns, items)."""
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2) or not array.size:
        raise PatchError(
            f"bootstrap got values {array.shape}; needs (items,) or (items, columns), not empty"
        )
    wrong = int((~np.isfinite(array)).sum())
    if wrong:
        raise PatchError(
            f"bootstrap got {wrong} of {array.size} values not finite; leave those items out"
        )
    return np.ascontiguousarray(np.atleast_2d(array.T))  # (columns, items)


def _draws(items: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """Yield n draws of item numbers in arrays (draws, items) of at most CHUNK entries."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // items)
    for start in range(0, n, step):
        yield rng.integers(items, size=(min(step, n - start), items))


def _replicates(columns: np.ndarray, statistic: Statistic, draw: np.ndarray) -> np.ndarray:
    """Values of the statistic on draws (draws, items), one for each draw."""
    result = np.asarray(statistic(*(column[draw] for column in columns), axis=-1))
    if result.shape != draw.shape[:1]:
        raise PatchError(
            f"bootstrap's statistic gave shape {result.shape} for samples of shape {draw.shape}; "
            f"it must reduce the given axis, to {draw.shape[:1]}"
        )
    return result


def interval(
    values: np.ndarray, statistic: Statistic = np.mean, level: float = 0.95
) -> dict[str, float | None]:
    """Statistic over pairs and its interval, {"value", "low", "high"}.

    values  scores of n pairs, (n,) or (n, columns)
    The interval is bootstrapped where that can tell how the pairs spread (see `tells_spread`).  Elsewhere
    there is none, and low and high are None, because nothing bounds what other pairs would give.
    """
    value = statistic_of(values, statistic)
    if not tells_spread(values):
        return {"value": value, "low": None, "high": None}
    return {"value": value, **bootstrap(values, statistic, level=level)._asdict()}


def share_interval(
    values: np.ndarray, statistic: Statistic = np.mean, level: float = 0.95
) -> dict[str, float]:
    """Statistic of shares over pairs and its interval, {"value", "low", "high"}.

    values  shares from 0 to 1 of n pairs, (n,) or (n, columns), such as precision and recall
    The interval is that of `interval`, and `wilson`'s where that gives none.
    Raises PatchError where it is `wilson`'s, and the statistic lies outside 0..1.
    """
    found = interval(values, statistic, level)
    if found["low"] is None:
        found |= wilson(found["value"], len(values), level=level)._asdict()
    return found


def tells_spread(values: np.ndarray) -> bool:
    """True if drawing the pairs again tells how far their mean would move.

    That takes FEWEST pairs or more, and pairs that differ.
    """
    return len(values) >= FEWEST and bool((np.ptp(values, axis=0) > 1 - PERFECT).any())


def gain(
    more: np.ndarray, less: np.ndarray, statistic: Statistic = np.mean, level: float = 0.95
) -> dict[str, float]:
    """Difference s(more) - s(less) of a statistic and its interval, {"value", "low", "high"}.

    more, less  scores of the same pairs, (n,) or (n, columns)
    Each draw of the bootstrap takes the same pairs from both sides.
    On fewer than FEWEST pairs the interval is -1 to 1, so that no gain is clear.  Scores from 0 to 1 cannot
    differ by more.
    Where all pairs gain alike the interval has no width.
    """
    columns = np.atleast_2d(more.T)
    both = np.concatenate([columns, np.atleast_2d(less.T)]).T  # (n, 2 columns)
    half = len(columns)

    def difference(*drawn, axis):
        return statistic(*drawn[:half], axis=axis) - statistic(*drawn[half:], axis=axis)

    value = statistic_of(both, difference)
    if len(both) < FEWEST:
        return {"value": value, "low": min(-1.0, value), "high": max(1.0, value)}
    return {"value": value, **bootstrap(both, difference, level=level)._asdict()}


def ranking(values: Sequence[np.ndarray], statistic: Statistic = np.mean) -> list[int]:
    """Positions of the values, best first, equal ones in the order given."""
    return sorted(range(len(values)), key=lambda i: (-statistic_of(values[i], statistic), i))


def statistic_of(values: np.ndarray, statistic: Statistic) -> float:
    """Statistic over pairs whose scores are (n,) or (n, columns)."""
    return float(statistic(*np.atleast_2d(values.T), axis=-1))
