"""Searches over parts of a model, whoever scores them: which are worth a closer look, which belong together.

A unit is what can be swapped alone, a site or a head; a group is a tuple of units swapped together, () is no swap.

    score(groups, n) -> values of each group on the first n prompt pairs, (n,) or (n, columns)
    gain(a, b) = s(values of a) - s(values of b),   s the statistic over pairs, the same pairs on both sides

Intervals are 95 %, bootstrapped over pairs; a gain counts where its interval lies above zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np

from textpatch.metrics import bootstrap

Group = tuple
Score = Callable[[Sequence[Group], int], list[np.ndarray]]
Statistic = Callable[..., np.ndarray]


def interval(values: np.ndarray, statistic: Statistic = np.mean) -> dict[str, float]:
    """{"value", "low", "high"}: the statistic over pairs and its interval.   values (n,) or (n, columns)"""
    low, high = bootstrap(values, statistic)
    return {"value": float(statistic(*np.atleast_2d(values.T), axis=-1)), "low": low, "high": high}


def gain(more: np.ndarray, less: np.ndarray, statistic: Statistic = np.mean) -> dict[str, float]:
    """s(more) - s(less) and its interval, each draw of pairs taken on both sides."""
    columns = np.atleast_2d(more.T)
    both = np.concatenate([columns, np.atleast_2d(less.T)]).T  # (n, 2 columns)
    half = len(columns)

    def difference(*drawn, axis):
        return statistic(*drawn[:half], axis=axis) - statistic(*drawn[half:], axis=axis)

    return interval(both, difference)


def ranking(values: Sequence[np.ndarray], statistic: Statistic = np.mean) -> list[int]:
    """Places of the values, best first; of equals the earlier."""
    return sorted(range(len(values)), key=lambda i: (-_of(values[i], statistic), i))


def _of(values: np.ndarray, statistic: Statistic) -> float:
    return float(statistic(*np.atleast_2d(values.T), axis=-1))


# --- screening


@dataclass(frozen=True)
class Screening:
    """What a screening kept, all groups best first, each with its score on so many pairs, and the gaps it saw.

    A gap is {"pairs", "kept", "next", "value", "low", "high"}: by how much, on so many pairs, the worst group kept
    was better than the best one not kept.
    """

    kept: tuple[Group, ...]
    ranked: tuple[Group, ...]
    scores: dict[Group, dict[str, float]]
    pairs: int
    gaps: tuple[dict, ...] = ()


def screen(score: Score, groups: Sequence[Group], pairs: int, *, first: int,
           keep: Callable[[Sequence[np.ndarray], int], int], statistic: Statistic = np.mean) -> Screening:  # fmt: skip
    """Score all groups on the first few pairs and keep the best; twice the pairs while it is unclear which.

    first  pairs to begin with; keep(values best first, n) says how many groups to keep, at least one is
    Ends as soon as the gap between the last group kept and the next lies above zero.  If it does not on all pairs,
    those that cannot be told apart from the last group kept are kept, too.
    """
    n, gaps = min(first, pairs), []
    while True:
        values = score(groups, n)
        order = ranking(values, statistic)
        k = max(1, keep([values[i] for i in order], n))
        while k < len(groups):
            gap = gain(values[order[k - 1]], values[order[k]], statistic)
            gaps.append({"pairs": n, "kept": groups[order[k - 1]], "next": groups[order[k]], **gap})
            if gap["low"] > 0 or n < pairs:
                break
            k += 1
        if n == pairs or (k < len(groups) and gap["low"] > 0):
            break
        n = min(2 * n, pairs)
    ranked = tuple(groups[i] for i in order)
    scores = {group: interval(value, statistic) for group, value in zip(groups, values)}
    return Screening(ranked[:k], ranked, scores, n, tuple(gaps))


def better_than(least: np.ndarray, values: Sequence[np.ndarray], statistic: Statistic = np.mean) -> int:
    """How many of the values are a clear gain over `least`."""
    return sum(gain(value, least, statistic)["low"] > 0 for value in values)


# --- the responsible set


@dataclass(frozen=True)
class Step:
    """One unit more in a group: its score, what it gained over the group without it, and whether it was kept."""

    added: object
    group: Group
    score: dict[str, float]
    gain: dict[str, float]
    kept: bool


def grow(score: Score, ranked: Sequence, pairs: int, statistic: Statistic = np.mean) -> list[Step]:
    """Put the units together, best first, for as long as each is a clear gain.   (ICLR 2025, Algorithm 1)

    The paper's algorithm is known from its results and its author's talk alone; that a unit must gain more than
    its interval is ours.  The first unit has to gain over no swap.  The last step may be the one that was refused.
    """
    group, steps = (), []
    (before,) = score([()], pairs)
    for unit in ranked:
        larger = tuple(sorted((*group, unit)))
        (values,) = score([larger], pairs)
        gained = gain(values, before, statistic)
        steps.append(Step(unit, larger, interval(values, statistic), gained, gained["low"] > 0))
        if not steps[-1].kept:
            break
        group, before = larger, values
    return steps


def responsible(steps: Sequence[Step]) -> Group:
    """The group that growing ended with; () if not even the best unit was a gain."""
    return next((step.group for step in reversed(steps) if step.kept), ())


# --- heads


@dataclass(frozen=True)
class Taken:
    """One unit taken away: the score of all that are left, and of all taken so far, swapped alone."""

    unit: object
    left: dict[str, float]
    group: Group
    alone: dict[str, float]
    missing: dict[str, float]  # gain of all units over those taken


def take_away(score: Score, units: Sequence, pairs: int, statistic: Statistic = np.mean) -> list[Taken]:
    """The greedy head search of the official code: the units that together do what all of them do.

    From all units swapped, the one without which the score falls lowest is taken away, again and again, until
    those taken, swapped alone, reach the score of all; at the latest that is all of them.
    """
    left, taken = list(units), []
    (whole,) = score([tuple(units)], pairs)
    while left:
        values = score([tuple(unit for unit in left if unit != one) for one in left], pairs)
        worst = min(range(len(left)), key=lambda i: (_of(values[i], statistic), i))
        unit = left.pop(worst)
        group = tuple(sorted([unit, *(step.unit for step in taken)]))
        (alone,) = score([group], pairs)
        missing = gain(whole, alone, statistic)
        taken.append(
            Taken(unit, interval(values[worst], statistic), group, interval(alone, statistic), missing)
        )
        if missing["value"] <= 0:
            break
    return taken


# --- the start step


def latest_start(values: Sequence[np.ndarray], statistic: Statistic = np.mean) -> int:
    """The last start step whose score is not clearly below the best one's.   values of each start, in order"""
    best = values[ranking(values, statistic)[0]]
    return max(s for s, value in enumerate(values) if gain(best, value, statistic)["low"] <= 0)
