"""Difference of two methods on the same pairs, by an interval of their difference and by a test of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from textpatch.errors import PatchError
from textpatch.metrics.intervals import CHUNK, FEWEST, Statistic, gain, statistic_of

FLIPS = 9999  # random exchanges of sides, with which p is at least 1/10,000
# Pairs up to which every way to exchange sides is tried, 4096 of them.
ALL_FLIPS = 12
ROUNDING = 1e-9  # differences that are this close are the same but for the order of additions
_SHOWN = 5

# in one order of pairs, or by pair
PairScores: TypeAlias = ArrayLike | Mapping[Hashable, ArrayLike]


class Difference(NamedTuple):
    """Difference of a statistic between two methods.

    value      s(more) - s(less)
    low, high  interval of the difference, by drawing pairs again, None on fewer than FEWEST pairs
    p          two-sided, the share of exchanges of sides after which the difference is as large or larger
    n          pairs
    differ     pairs in which the two methods differ at all.  Where it is 0 the methods are the same here
    """

    value: float
    low: float | None
    high: float | None
    p: float
    n: int
    differ: int


def compared(
    more: PairScores,
    less: PairScores,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two methods by a statistic of their scores on the same pairs.

    more, less  scores (n,) or (n, columns), in the same order of pairs.  Or dicts from a pair to its score,
                which are put in one order.  A pair with several seeds has the mean over them as its score
    statistic   over pairs, called as `intervals.bootstrap` does: np.mean, np.median, `f1_of_means`

    The interval is `intervals.gain`'s.  The test supposes that both methods are alike, so that in every pair
    the two scores could as well stand exchanged.  (Fisher 1935)

        p = share of the ways to exchange them with  |s(more') - s(less')| >= |s(more) - s(less)|

    All 2^n ways are tried for ALL_FLIPS pairs or less.  For more, FLIPS ways are drawn, and the one that was
    found is counted with them.  On n pairs p is at least 2 / 2^n, so that five pairs never come below .05.
    Raises PatchError for scores of other pairs on one side than on the other, not finite, or of none.
    """
    first, second = _sides(more, less)
    found = gain(first, second, statistic, level)
    if len(first) < FEWEST:
        found |= {"low": None, "high": None}
    p = _share_as_large(first, second, statistic, seed)
    differ = int((first != second).any(axis=1).sum())
    return Difference(**found, p=p, n=len(first), differ=differ)


def _sides(more: PairScores, less: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both sides as finite float64 numbers (n, columns), pair by pair."""
    if isinstance(more, Mapping) != isinstance(less, Mapping):
        raise PatchError(
            "one side is a dict from pairs to scores and the other is not; give both alike"
        )
    if isinstance(more, Mapping):
        _require_same_pairs(more, less)
        less = [less[pair] for pair in more]
        more = list(more.values())
    first, second = (np.asarray(side, np.float64) for side in (more, less))
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.size:
        raise PatchError(
            f"the sides have scores {first.shape} and {second.shape}; both need (n,) or (n, columns) of the "
            "same n pairs, one or more"
        )
    for side in (first, second):
        wrong = int((~np.isfinite(side)).sum())
        if wrong:
            raise PatchError(
                f"{wrong} of {side.size} scores are not finite; leave these pairs out on both sides"
            )
    return first.reshape(len(first), -1), second.reshape(len(second), -1)


def _require_same_pairs(more: Mapping[Hashable, Any], less: Mapping[Hashable, Any]) -> None:
    alone = [pair for pair in [*more, *less] if pair not in more or pair not in less]
    if alone:
        named = ", ".join(repr(pair) for pair in alone[:_SHOWN])
        raise PatchError(
            f"{len(alone)} pairs are on one side alone, first {named}; compare the pairs that both have"
        )


def _share_as_large(
    first: np.ndarray, second: np.ndarray, statistic: Statistic, seed: int
) -> float:
    """Share of exchanges of sides after which the difference is as large as the one found, or larger."""
    found = abs(statistic_of(first, statistic) - statistic_of(second, statistic))
    large = 0
    tried = 0
    for swapped in _exchanges(len(first), seed):
        one, other = (
            [np.where(swapped, b, a) for a, b in zip(left.T, right.T, strict=True)]  # (draws, n)
            for left, right in ((first, second), (second, first))
        )
        differences = np.abs(statistic(*one, axis=-1) - statistic(*other, axis=-1))
        large += int((differences >= found - ROUNDING * max(found, 1)).sum())
        tried += len(swapped)
    if len(first) > ALL_FLIPS:
        return (large + 1) / (tried + 1)
    return large / tried


def _exchanges(n: int, seed: int) -> Iterator[np.ndarray]:
    """Yield which of n pairs are exchanged, bool (draws, n), in arrays of at most CHUNK entries."""
    if n <= ALL_FLIPS:
        yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)
        return
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    for start in range(0, FLIPS, step):
        yield rng.random((min(step, FLIPS - start), n)) < 0.5
