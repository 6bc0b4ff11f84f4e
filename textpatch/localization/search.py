"""Searches over parts of a model, whoever scores them: which are worth a closer look, which belong together.

A unit is what can be swapped alone, a site or a head; a group is a tuple of units swapped together, () is no swap.

    score(groups, n) -> values of each group on the first n prompt pairs, (n,) or (n, columns), at most 1; or on the
                        pairs of some places, in their order
    gain(a, b) = s(values of a) - s(values of b),   s the statistic over pairs, the same pairs on both sides

Intervals are 95 % over pairs, see `interval`.  A gain counts where its interval lies above zero, of a set that
grows with EARLY's interval as long as pairs are left.  On fewer than FEWEST pairs no gain counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from textpatch.groups import Group
from textpatch.metrics import FEWEST
from textpatch.metrics.intervals import PERFECT, Statistic, gain, interval, ranking, statistic_of

Score = Callable[[Sequence[Group], "int | Sequence[int]"], list[np.ndarray]]


# --- screening


@dataclass(frozen=True)
class Screening:
    """What a screening by some score kept, all groups best first, and the gaps it saw on up to so many pairs.

    seen    group -> {"by", "pairs", "value", "low", "high"}: its score when it was last looked at
    gaps    {"by", "pairs", "kept", "next", "value", "low", "high"}: by how much the worst group to keep was better
            than the next one
    barred  which of those left out may not join a set either
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
) -> Screening:
    """A race: all groups on the first few pairs, then those still in it on twice the pairs, until it is clear who stays.

    first  pairs to begin with; by: what the score is called; keep(values best first, n) says how many groups to
           keep, at least one is
    A group is out as soon as the gap from the last group to keep down to it lies above zero.  Those that cannot be
    told apart from the last group to keep on all pairs are kept, too.
    """
    n, running, out, seen, gaps = min(first, pairs), list(groups), [], {}, []
    while True:
        values = score(running, n)
        order = ranking(values, statistic)
        running, values = ([some[i] for i in order] for some in (running, values))
        k = max(1, keep(values, n))
        seen |= {
            group: {"by": by, "pairs": n, **interval(x, statistic)}
            for group, x in zip(running, values)
        }
        below = [gain(values[k - 1], value, statistic) for value in values[k:]]
        gaps += [
            {"by": by, "pairs": n, "kept": running[k - 1], "next": running[k], **gap}
            for gap in below[:1]
        ]
        out = [group for group, gap in zip(running[k:], below) if gap["low"] > 0] + out
        running = [group for group in running if group not in out]
        if n == pairs or len(running) == k:
            return Screening(tuple(running), (*running, *out), seen, n, tuple(gaps))
        n = min(2 * n, pairs)


def better_than(
    least: np.ndarray, values: Sequence[np.ndarray], statistic: Statistic = np.mean
) -> int:
    """How many of the values are a clear gain over `least`."""
    return sum(gain(value, least, statistic)["low"] > 0 for value in values)


# --- the responsible set

# Of 400 searches in pure noise (tests/test_search.py, chance) 11 end with a site too many, 9 if all pairs are looked at
# at once; 44 with FEW = 4, 21 with EARLY = 0.95, 81 with both.
FEW = 32  # the fewest pairs on which a unit may join a group
EARLY = 0.997  # the level on fewer pairs than all


@dataclass(frozen=True)
class Step:
    """Units more in a group, one but for a beginning of several: its score, and its gain over the group without them.

    pairs   how many of the first pairs decided it, on all of which the group without them was looked at
    looked  on how many the larger one was: as it counts as perfect on the others, which were not enough, score and gain
            are then at most these
    """

    added: Group
    group: Group
    pairs: int
    looked: int
    score: dict[str, float]
    gain: dict[str, float]
    kept: bool


def grow(
    score: Score,
    ranked: Sequence,
    pairs: int,
    statistic: Statistic = np.mean,
    *,
    first: int,
    least: int | None = None,
) -> list[Step]:
    """Put units together, the one that adds most next, for as long as each is a clear gain.   (ICLR 2025, Algorithm 1)

    ranked  the units, best first by their scores alone: the first begins, all others may join
    first   how many pairs each choice of the next unit begins with, see `joining`
    least   on how many pairs a gain is looked at first, of the second unit on at least FEW; all when None
    The paper's algorithm is known from its results and its author's talk alone; that a unit must gain more than
    its interval, that units that do nothing alone may join, and that `inseparable` ones begin where the first is no
    clear gain, is ours.  The first unit and the group grown are scored on all pairs, a group on the way as far as its
    gain is unclear.  The last step may be the one refused.
    """
    least = least or pairs
    score([(ranked[0],)], pairs)
    steps = [_step(score, (), (ranked[0],), pairs, statistic, least)]
    if not steps[0].kept and (several := inseparable(score, ranked, min(FEW, pairs), statistic)):
        steps.append(_step(score, (), several, pairs, statistic, least))
    known = pairs if len(steps) == 1 else steps[-1].pairs
    while steps[-1].kept:
        tried = _tried(score, steps[-1].group, ranked, known, pairs, statistic, first, least)
        steps += tried
        if not tried:
            break
        known = steps[-1].pairs
    return steps


def _tried(
    score: Score,
    group: Group,
    ranked: Sequence,
    known: int,
    pairs: int,
    statistic: Statistic,
    first: int,
    least: int,
) -> list[Step]:
    """The steps tried from a group: the unit that joins by the pairs it is known on, if that is refused by all pairs."""
    steps: list[Step] = []
    left = [unit for unit in ranked if unit not in group]
    for n in dict.fromkeys((known, pairs)):
        unit = joining(score, group, n, left, first=first, statistic=statistic)
        if unit is not None and not any(step.added == (unit,) for step in steps):
            steps.append(_step(score, group, (unit,), pairs, statistic, least))
            if steps[-1].kept:
                break
    return steps


def _step(
    score: Score, group: Group, units: Group, pairs: int, statistic: Statistic, least: int
) -> Step:
    """Units join a group: their gain on the first pairs, on twice as many until it is clear, at last on all."""
    larger, n = tuple(sorted((*group, *units))), min(max(least, FEW) if group else least, pairs)
    while True:
        (before,), level = score([group], n), 0.95 if n == pairs else EARLY
        values, looked = (
            _while_hopeful(score, larger, before, statistic, level)
            if group
            else (score([larger], n)[0], n)
        )
        clear = gain(values, before, statistic, level)["low"] > 0
        if clear or n == pairs:
            return Step(
                units,
                larger,
                n,
                looked,
                interval(values, statistic),
                gain(values, before, statistic),
                clear,
            )
        n = min(2 * n, pairs)


def _while_hopeful(
    score: Score, larger: Group, before: np.ndarray, statistic: Statistic, level: float
) -> tuple[np.ndarray, int]:
    """A larger group's values on the pairs of `before`, `_hoped` for where it was not looked at; and on how many it was.

    It is looked at where the smaller group fails, the only pairs on which it can gain, then on twice as many, for as long
    as it could be a clear gain: what the others hold would change nothing then.
    """
    order, failed = _worst_first(before)
    n = max(failed, 1)
    while True:
        (seen,) = score([larger], order[:n])
        if n == len(order) or not _within_reach(before, seen, statistic, level):
            return _hoped(before, seen), n
        n = min(2 * n, len(order))


def inseparable(score: Score, units: Sequence, pairs: int, statistic: Statistic = np.mean) -> Group:
    """The units that may do together what none does alone: those without which all others clearly lose.

    () where all together are no clear gain over no swap, or a single one is what all need.  A loss counts at the
    level EARLY, as it is looked for in every unit.
    """
    every = tuple(sorted(units))
    whole, none = score([every, ()], pairs)
    if gain(whole, none, statistic)["low"] <= 0:
        return ()
    rest = score([tuple(unit for unit in every if unit != one) for one in every], pairs)
    needed = [
        unit
        for unit, values in zip(every, rest)
        if gain(whole, values, statistic, EARLY)["low"] > 0
    ]
    return tuple(needed) if len(needed) > 1 else ()


def joining(
    score: Score,
    group: Group,
    pairs: int,
    units: Sequence,
    *,
    first: int,
    statistic: Statistic = np.mean,
):
    """The unit that adds most to a group, or None where nothing could be a clear gain: a race over what it fails.

    A value is 1 at most, so that a unit can only gain on the pairs on which the group's is less.  On those units join
    it, the worst first, on twice as many while several are left.  A unit is out as soon as it is clearly below the
    best, does not raise the score there, or could not be a clear gain on all pairs if it were perfect on those not
    looked at.
    """
    (values,) = score([group], pairs)
    order, n = _worst_first(values)
    failed = order[:n]
    units, n = (
        list(units) if _within_reach(values, values[:0], statistic) else [],
        min(first, len(failed)),
    )
    while units:
        seen = score([tuple(sorted((*group, unit))) for unit in units], failed[:n])
        order = ranking(seen, statistic)
        best, own = seen[order[0]], values[failed[:n]]
        units = [
            units[i]
            for i in order
            if gain(best, seen[i], statistic)["low"] <= 0 < gain(seen[i], own, statistic)["value"]
            and _within_reach(values, seen[i], statistic)
        ]
        if n == len(failed) or len(units) == 1:
            break
        n = min(2 * n, len(failed))
    return next(iter(units), None)


def _within_reach(
    before: np.ndarray, seen: np.ndarray, statistic: Statistic, level: float = 0.95
) -> bool:
    """Whether what can be hoped for were a clear gain."""
    return gain(_hoped(before, seen), before, statistic, level)["low"] > 0


def _hoped(before: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """A larger group's values at most: those seen where the smaller one's are lowest, perfect where else it fails."""
    order, failed = _worst_first(before)
    hoped = before.copy()
    hoped[order[:failed]] = 1
    hoped[order[: len(seen)]] = seen
    return hoped


def _worst_first(values: np.ndarray) -> tuple[list[int], int]:
    """Places of pairs, those of the lowest values first, and how many are not perfect."""
    means = values.reshape(len(values), -1).mean(axis=1)
    return [int(place) for place in np.argsort(means, kind="stable")], int((means < PERFECT).sum())


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


def take_away(
    score: Score, units: Sequence, pairs: int, statistic: Statistic = np.mean
) -> list[Taken]:
    """The greedy head search of the official code: the units that together do what all of them do.

    From all units swapped, the one without which the score falls lowest is taken away, again and again, until
    those taken, swapped alone, reach the score of all; at the latest that is all of them.
    """
    left, taken = list(units), []
    (whole,) = score([tuple(units)], pairs)
    while left:
        values = score([tuple(unit for unit in left if unit != one) for one in left], pairs)
        worst = min(range(len(left)), key=lambda i: (statistic_of(values[i], statistic), i))
        unit = left.pop(worst)
        group = tuple(sorted([unit, *(step.unit for step in taken)]))
        (alone,) = score([group], pairs)
        missing = gain(whole, alone, statistic)
        taken.append(
            Taken(
                unit, interval(values[worst], statistic), group, interval(alone, statistic), missing
            )
        )
        if missing["value"] <= 0:
            break
    return taken


# --- the start step


def latest_start(values: Sequence[np.ndarray], statistic: Statistic = np.mean) -> int:
    """The last start step whose score is not clearly below the best one's.

    values  of each start, in order
    On fewer than FEWEST pairs, where no loss is clear, it is the last whose score is not below at all.
    """
    best = values[ranking(values, statistic)[0]]
    lost = [gain(best, value, statistic) for value in values]
    end = "low" if len(best) >= FEWEST else "value"
    return max(s for s, loss in enumerate(lost) if loss[end] <= 0)
