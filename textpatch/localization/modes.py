"""The modes of a search, and what may be asked of them.

A mode decides which groups are scored exactly.  It gives a Screening, and what else is known of the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np

from textpatch.errors import PatchError, closest
from textpatch.groups import Group, row_name
from textpatch.localization.indicators import INDICATORS, Indications
from textpatch.localization.screening import Screening, better_than, screen
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means
from textpatch.metrics.intervals import interval, share_interval

FIRST = 4  # pairs that a screening begins with
SWAP = "swap"  # name of a score that comes from swapping
EXHAUSTIVE = "exhaustive"
# A site whose share is below this fraction of the largest share cannot join the set.  Among the sites that
# join those of tiny-if by the exhaustive search (five sets of 141 pairs) the least share was 0.09 by
# contribution and 0.04 by attribution.  Among the twelve sites of tiny-sdxl that never join the largest was
# 0.01.
LEAST_SHARE = 1 / 50

Values = Sequence[np.ndarray]
Beside = dict[Group, dict]  # entries that a mode adds to those of the groups


@dataclass(frozen=True)
class Request:
    """Request to search in one of the modes, see `layers.localize`.

    groups  sets of site indices
    pairs   how many prompt pairs there are
    Raises PatchError for a request that cannot be carried out.
    """

    mode: str
    groups: list[Group]
    pairs: int
    keep: int | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if not self.groups:
            raise PatchError("no set of sites was given to try; give at least one")
        _require_once(self.groups)
        _require_whole(keep=self.keep, first=self.first)
        if self.mode not in MODES:
            raise PatchError(f"no mode {self.mode!r}{closest(self.mode, MODES)}")
        if self.mode == EXHAUSTIVE:
            self._require_no_screening()
        else:
            self._require_screening()

    @property
    def begins_with(self) -> int:
        """Number of pairs that a screening begins with."""
        return self.first or FIRST

    def _require_no_screening(self) -> None:
        if (self.keep, self.first) != (None, None):
            raise PatchError(
                f"keep is {self.keep} and first {self.first}, and an exhaustive search screens nothing; "
                "leave them out, or give a mode that screens"
            )

    def _require_screening(self) -> None:
        if self.pairs < 2:
            raise PatchError(
                f"prompt pairs given to mode {self.mode!r}: {self.pairs}; an interval over pairs needs two"
            )
        if self.first is not None and self.first < 2:
            raise PatchError(
                f"first is {self.first}, so screening would begin with that many; "
                "an interval over pairs needs two"
            )
        if self.mode in INDICATORS and not all_alone(self.groups):
            raise PatchError(
                f"{self.mode} scores single sites, and sets of them were asked for; use another mode"
            )
        if len(self.groups) < 2:
            raise PatchError(
                f"a screening of {len(self.groups)} sites was asked for; give two or more, "
                f"or mode {EXHAUSTIVE!r}"
            )
        if self.keep is not None and not 1 <= self.keep < len(self.groups):
            raise PatchError(
                f"keep is {self.keep} of {len(self.groups)} sites; "
                "keep at least one and fewer than there are"
            )


def _require_whole(**numbers: int | None) -> None:
    """Raise PatchError for a number that is neither whole nor None."""
    for name, number in numbers.items():
        if not isinstance(number, Integral | None):
            raise PatchError(f"{name} is {number!r}; give a whole number, or None")


def _require_once(groups: list[Group]) -> None:
    if len(set(groups)) != len(groups):
        names = ", ".join(map(row_name, groups))
        raise PatchError(f"the same set of sites is asked for twice among {names}; name it once")


def all_alone(groups: Sequence[Group]) -> bool:
    """True where every group is a single site."""
    return all(len(group) == 1 for group in groups)


# --- the modes


def _exhaustive(trials: Trials, asked: Request) -> tuple[Screening, Beside]:
    trials.measure(asked.groups, own=True, strict=True)
    every = tuple(asked.groups)
    return Screening(every, every, {}, asked.pairs), {}


def _staged(trials: Trials, asked: Request) -> tuple[Screening, Beside]:
    return _raced(trials, asked.groups, asked), {}


def _raced(trials: Trials, groups: Sequence[Group], asked: Request) -> Screening:
    """Screen groups by their scores, and keep those that clearly beat no swap or the number asked for."""

    def beating(values: Values, pairs: int) -> int:
        (no_swap,) = trials.score([()], pairs)
        return better_than(no_swap, values, f1_of_means)

    return screen(
        partial(trials.score, own=True),
        groups,
        asked.pairs,
        first=asked.begins_with,
        by=SWAP,
        keep=_number_or(asked.keep, beating),
        statistic=f1_of_means,
        spread=share_interval,
    )


def _number_or(
    keep: int | None, rule: Callable[[Values, int], int]
) -> Callable[[Values, int], int]:
    """Rule that keeps the number asked for, or `rule` where none is."""
    if keep is None:
        return rule

    def as_asked(values: Values, pairs: int) -> int:
        return keep

    return as_asked


def _indicated(trials: Trials, asked: Request, *, by: str) -> tuple[Screening, Beside]:
    """Screen sites by an indicator, then those kept by their scores."""
    indicator = INDICATORS[by]

    def standing_out(values: Values, pairs: int) -> int:
        return sum(value.mean() >= values[0].mean() * indicator.least for value in values)

    indications = Indications(trials, indicator)
    screening = screen(
        indications.score,
        asked.groups,
        asked.pairs,
        first=asked.begins_with,
        by=by,
        keep=_number_or(asked.keep, standing_out),
    )
    raced = _raced(trials, screening.kept, asked)
    out = screening.ranked[len(screening.kept) :]
    found = _intervals(indications, indicator.shown, asked.groups, screening.pairs)
    shares = {group: entry[indicator.shown[0]]["value"] for group, entry in found.items()}
    largest = max(shares.values())
    both = Screening(
        kept=raced.kept,
        ranked=raced.ranked + out,
        seen=screening.seen | raced.seen,
        pairs=raced.pairs,
        gaps=screening.gaps + raced.gaps,
        barred=tuple(group for group in out if shares[group] < LEAST_SHARE * largest),
    )
    return both, {group: {by: entry} for group, entry in found.items()}


def _intervals(
    indications: Indications, names: Sequence[str], groups: Sequence[Group], pairs: int
) -> dict[Group, dict]:
    """Values and intervals of each group on the first pairs, by the names of what an indicator shows."""
    entries: dict[Group, dict] = {group: {} for group in groups}
    for name in names:
        for group, values in zip(groups, indications.score(groups, pairs, name), strict=True):
            entries[group][name] = interval(values)
    return {group: {**entry, "pairs": pairs} for group, entry in entries.items()}


MODES = {EXHAUSTIVE: _exhaustive, "staged": _staged} | {
    name: partial(_indicated, by=name) for name in INDICATORS
}
