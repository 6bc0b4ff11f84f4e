"""The modes of a search: what is scored exactly, and what else is known of the groups."""

from __future__ import annotations

from functools import partial

from textpatch.groups import Group
from textpatch.localization.indicators import READINGS, Readings
from textpatch.localization.search import Screening, better_than, screen
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means
from textpatch.metrics.intervals import interval

FIRST = 4  # pairs that a screening begins with
# Of the largest share that is read; a site below it may not join the set.  Of the sites that join those of tiny-if by the
# exhaustive search (five sets of 141 pairs) the least share was 0.09 by contribution, 0.04 by attribution; of tiny-sdxl's
# twelve sites that never do the largest was 0.01.
NOTHING = 1 / 50


def _exhaustive(trials: Trials, groups: list[Group], keep, first):
    trials.measure(groups, own=True)
    return Screening(tuple(groups), tuple(groups), {}, len(trials.pairs)), {}


def _staged(trials: Trials, groups: list[Group], keep: int | None, first: int):
    def beating(values, pairs: int) -> int:
        return better_than(*trials.score([()], pairs), values, f1_of_means)

    score, rule = (
        partial(trials.score, own=True),
        beating if keep is None else lambda values, pairs: keep,
    )
    pairs = len(trials.pairs)
    return screen(score, groups, pairs, first=first, by=SWAP, keep=rule, statistic=f1_of_means), {}


def _read(trials: Trials, groups: list[Group], keep: int | None, first: int, *, by: str):
    reading = READINGS[by]

    def standing_out(values, pairs: int) -> int:
        return sum(value.mean() >= values[0].mean() * reading.least for value in values)

    rule, read = (
        standing_out if keep is None else lambda values, pairs: keep,
        Readings(trials, reading),
    )
    screening = screen(read.score, groups, len(trials.pairs), first=first, by=by, keep=rule)
    raced, _ = _staged(trials, list(screening.kept), keep, first)
    out, parts = (
        screening.ranked[len(screening.kept) :],
        (read.score(groups, screening.pairs, x) for x in reading.shown),
    )
    beside = {
        group: {by: {**dict(zip(reading.shown, map(interval, found))), "pairs": screening.pairs}}
        for group, *found in zip(groups, *parts)
    }
    share = lambda group: beside[group][by][reading.shown[0]]["value"]  # noqa: E731
    barred = tuple(group for group in out if share(group) < NOTHING * max(map(share, groups)))
    seen, gaps = screening.seen | raced.seen, screening.gaps + raced.gaps
    return Screening(raced.kept, raced.ranked + out, seen, raced.pairs, gaps, barred), beside


SWAP = "swap"  # what is called a score by swapping
MODES = {"exhaustive": _exhaustive, "staged": _staged} | {
    name: partial(_read, by=name) for name in READINGS
}
