"""Screening finds out on few prompt pairs which groups are worth a closer look, whoever scores them.

    gap(a, b) = s(values of a) - s(values of b),   s the statistic over pairs, the same pairs on both sides

Intervals are 95 % over pairs, see `metrics.intervals.interval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from textpatch.groups import Group
from textpatch.localization.racing import Score, doubling
from textpatch.metrics.intervals import Statistic, gain, interval, ranking


@dataclass(frozen=True)
class Screening:
    """Result of a screening.

    kept    the groups that stay
    ranked  all groups, best first
    seen    group -> {"by", "pairs", "value", "low", "high"}, the group's score when it was last looked at
    pairs   how many pairs the screening looked at
    gaps    {"by", "pairs", "kept", "next", "value", "low", "high"} for each round.  The value is by how
            much the worst group to keep was better than the next one
    barred  groups that were left out and may not join a responsible set either
    """

    kept: tuple[Group, ...]
    ranked: tuple[Group, ...]
    seen: dict[Group, dict]
    pairs: int
    gaps: tuple[dict, ...] = ()
    barred: tuple[Group, ...] = ()


def screen(
    score: Score,
    groups: Sequence[Group],
    pairs: int,
    *,
    first: int,
    by: str,
    keep: Callable[[Sequence[np.ndarray], int], int],
    statistic: Statistic = np.mean,
    spread: Callable[[np.ndarray, Statistic], dict] = interval,
) -> Screening:
    """Race all groups on a few pairs, then those left on twice as many, until it is clear which groups stay.

    score   see `racing.Score`
    pairs   how many pairs there are
    first   how many pairs the race begins with
    by      name of the score
    keep    keep(values best first, n) says how many groups to keep.  At least one is kept
    spread  gives the score of a group's values and its interval, `share_interval` for shares
    A group is out as soon as the gap from the last group to keep down to it lies above zero.
    Groups that all pairs cannot tell apart from the last group to keep are kept as well.
    """
    running = list(groups)
    out: list[Group] = []
    seen: dict[Group, dict] = {}
    gaps: list[dict] = []
    for n in doubling(first, pairs):
        running, values = _best_first(running, score(running, n), statistic)
        k = max(1, keep(values, n))
        for group, value in zip(running, values, strict=True):
            seen[group] = {"by": by, "pairs": n, **spread(value, statistic)}
        below = [gain(values[k - 1], value, statistic) for value in values[k:]]
        if below:
            names = {"by": by, "pairs": n, "kept": running[k - 1], "next": running[k]}
            gaps.append({**names, **below[0]})
        lost = [group for group, gap in zip(running[k:], below, strict=True) if gap["low"] > 0]
        running = [group for group in running if group not in lost]
        out = lost + out
        if len(running) == k:
            break
    return Screening(tuple(running), (*running, *out), seen, n, tuple(gaps))


def _best_first(
    groups: list[Group], values: list[np.ndarray], statistic: Statistic
) -> tuple[list[Group], list[np.ndarray]]:
    """Groups and their values, the best first."""
    order = ranking(values, statistic)
    return [groups[i] for i in order], [values[i] for i in order]


def better_than(
    least: np.ndarray, values: Sequence[np.ndarray], statistic: Statistic = np.mean
) -> int:
    """Number of the values that are a clear gain over `least`."""
    return sum(gain(value, least, statistic)["low"] > 0 for value in values)
