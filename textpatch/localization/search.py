"""The search for units that belong together, whoever scores them.

    gain(a, b) = s(values of a) - s(values of b),   s the statistic over pairs, the same pairs on both sides

Units, groups and scores are those of `racing`.  Scores are shares from 0 to 1, and their intervals are over
pairs, see `metrics.intervals.share_interval`.  A gain counts if its whole interval is above zero.  While a
group is judged on fewer than all pairs, the stricter level EARLY is used.  On fewer than FEWEST pairs no
gain counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textpatch.groups import Group
from textpatch.localization.racing import Score, doubling
from textpatch.metrics.intervals import PERFECT, Statistic, gain, ranking, share_interval

LEVEL = 0.95  # of an interval on all pairs
# Of 400 searches in pure noise (tests/localization/test_search.py, chance) 11 end with a site too many, and
# 9 if all pairs are looked at once.  With FEW = 4 they are 44, with EARLY = 0.95 they are 21, with both 81.
FEW = 32  # the fewest pairs on which a unit may join a group
EARLY = 0.997  # of an interval on fewer pairs than all


@dataclass(frozen=True)
class Step:
    """One step of a growth, by which units were added to a group.

    added   the units, one unless a growth begins with several
    group   the larger group
    pairs   how many of the first pairs decided the step.  The smaller group was scored on all of them
    looked  how many of these pairs the larger group was scored on.  The others count as perfect, so that with
            looked < pairs `score` and `gain` are upper bounds
    score   the larger group's score and its interval
    gain    the larger group's gain over the smaller one and its interval
    kept    whether the gain is clear
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
    """Put units together, the one that adds most next, for as long as each is a clear gain.

    (ICLR 2025, Algorithm 1)

    ranked  the units, best first by their scores alone.  The first one begins, and all others may join
    pairs   how many pairs there are
    first   how many pairs each choice of the next unit begins with, see `Growth.joining`
    least   how many pairs a gain is looked at first, all when None.  From the second unit on they are at
            least FEW
    Returns the steps in order.  The last one may be a step that was refused.

    The paper's algorithm is known from its results and from its author's talk alone.  Three things are ours.

    - A unit must gain more than its interval.
    - Units that do nothing alone may join.
    - Units that only work together begin where the first unit is no clear gain, see `inseparable`.

    The first unit and the group at the end are scored on all pairs.  A group on the way is scored on as
    many as its gain needs.
    """
    growth = Growth(score, pairs, statistic, first, least or pairs)
    score([(ranked[0],)], pairs)
    steps = [growth.step((), (ranked[0],))]
    known = pairs
    if not steps[0].kept:
        several = inseparable(score, ranked, min(FEW, pairs), statistic)
        if several:
            steps.append(growth.step((), several))
            known = steps[-1].pairs
    while steps[-1].kept:
        tried = growth.extensions(steps[-1].group, ranked, known)
        steps += tried
        if not tried:
            break
        known = steps[-1].pairs
    return steps


@dataclass(frozen=True)
class Growth:
    """One growth, with the facts that all its steps have in common, see `grow`."""

    score: Score
    pairs: int
    statistic: Statistic
    first: int
    least: int

    def extensions(self, group: Group, ranked: Sequence, known: int) -> list[Step]:
        """Try to extend a group by one unit, and return the steps tried (0 to 2).

        ranked  all units, best first
        known   on how many pairs the group is scored already
        The unit is proposed from the pairs already scored.  If it is refused, another is proposed from all
        pairs.
        """
        steps: list[Step] = []
        left = [unit for unit in ranked if unit not in group]
        for n in dict.fromkeys((known, self.pairs)):
            unit = self.joining(group, n, left)
            if unit is None or any(step.added == (unit,) for step in steps):
                continue
            steps.append(self.step(group, (unit,)))
            if steps[-1].kept:
                break
        return steps

    def step(self, group: Group, units: Group) -> Step:
        """Add units to a group, and judge the gain on few pairs, then on twice as many until it is clear."""
        larger = tuple(sorted((*group, *units)))
        fewest = self.least
        if group:
            fewest = max(self.least, FEW)
        for n in doubling(fewest, self.pairs):
            (before,) = self.score([group], n)
            level = EARLY
            if n == self.pairs:
                level = LEVEL
            values, looked = self._values(larger, group, before, level)
            clear = gain(values, before, self.statistic, level)["low"] > 0
            if clear:
                break
        score = share_interval(values, self.statistic)
        return Step(units, larger, n, looked, score, gain(values, before, self.statistic), clear)

    def _values(
        self, larger: Group, group: Group, before: np.ndarray, level: float
    ) -> tuple[np.ndarray, int]:
        """Values of the larger group on the pairs of `before`, and how many of these pairs were looked at."""
        if group:
            return self._while_hopeful(larger, before, level)
        (values,) = self.score([larger], len(before))
        return values, len(before)

    def _while_hopeful(
        self, larger: Group, before: np.ndarray, level: float
    ) -> tuple[np.ndarray, int]:
        """Values of the larger group on the pairs of `before`, and how many of these pairs were looked at.

        before  values of the smaller group
        Pairs on which the smaller group is not perfect come first, because only there can the larger one
        gain.  Then follow twice as many, as long as a clear gain is still possible.  The rest get the value
        of `_hoped`.
        """
        order, failed = _worst_first(before)
        for n in doubling(max(failed, 1), len(order)):
            (seen,) = self.score([larger], order[:n])
            if not self._within_reach(before, seen, level):
                break
        return _hoped(before, seen), n

    def joining(self, group: Group, pairs: int, units: Sequence):
        """Return the unit that adds most to a group, or None if no unit could be a clear gain.

        A value is at most 1, so that a unit can gain only on the pairs on which the group is not perfect.
        On these pairs, the worst first, each unit is scored together with the group.  The pairs double
        while several units are left.  A unit is out as soon as one of these holds.

        - It is clearly below the best unit.
        - It does not raise the score on the pairs looked at.
        - It could not be a clear gain even if it were perfect on all other pairs.
        """
        (values,) = self.score([group], pairs)
        order, number = _worst_first(values)
        failed = order[:number]
        left = list(units)
        if not left or not self._within_reach(values, values[:0]):
            return None
        for n in doubling(self.first, number):
            left = self._still_in(left, group, values, failed[:n])
            if len(left) <= 1:
                break
        return next(iter(left), None)

    def _still_in(self, units: list, group: Group, values: np.ndarray, places: list[int]) -> list:
        """Units that may still join a group by what they add on some pairs, the best first.

        values  of the group on all pairs
        places  of the pairs to look at
        """
        seen = self.score([tuple(sorted((*group, unit))) for unit in units], places)
        order = ranking(seen, self.statistic)
        best = seen[order[0]]
        return [
            units[i]
            for i in order
            if gain(best, seen[i], self.statistic)["low"] <= 0
            and gain(seen[i], values[places], self.statistic)["value"] > 0
            and self._within_reach(values, seen[i])
        ]

    def _within_reach(self, before: np.ndarray, seen: np.ndarray, level: float = LEVEL) -> bool:
        """True where the best that can be hoped for of a larger group would be a clear gain."""
        return gain(_hoped(before, seen), before, self.statistic, level)["low"] > 0


def inseparable(score: Score, units: Sequence, pairs: int, statistic: Statistic = np.mean) -> Group:
    """Return the units that only work together.

    They are the units whose removal from all units clearly lowers the score.
    Returns () if all units together are no clear gain over no swap, or if only one unit is needed.
    A loss counts at the level EARLY, because it is looked for in every unit.
    """
    every = tuple(sorted(units))
    whole, none = score([every, ()], pairs)
    if gain(whole, none, statistic)["low"] <= 0:
        return ()
    rest = score([tuple(unit for unit in every if unit != one) for one in every], pairs)
    needed = [
        unit
        for unit, values in zip(every, rest, strict=True)
        if gain(whole, values, statistic, EARLY)["low"] > 0
    ]
    if len(needed) > 1:
        return tuple(needed)
    return ()


def _hoped(before: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Upper bound of a larger group's values on the pairs of `before`, the values of the smaller group.

    seen  the larger group's values on the pairs on which the smaller group's are lowest, in that order
    On other pairs the larger group counts as perfect where the smaller one is not.
    """
    order, failed = _worst_first(before)
    hoped = before.copy()
    hoped[order[:failed]] = 1
    hoped[order[: len(seen)]] = seen
    return hoped


def _worst_first(values: np.ndarray) -> tuple[list[int], int]:
    """Places of the pairs, those of the lowest values first, and how many pairs are not perfect."""
    means = values.reshape(len(values), -1).mean(axis=1)
    order = [int(place) for place in np.argsort(means, kind="stable")]
    return order, int((means < PERFECT).sum())


def responsible(steps: Sequence[Step]) -> Group:
    """Group that a growth ended with, which is () if not even the best unit was a clear gain."""
    return next((step.group for step in reversed(steps) if step.kept), ())
