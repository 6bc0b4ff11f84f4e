"""What the pairs of a localisation leave open, and about how many more of them would settle it.

    gain    F1 of the best site less that of no swap, where no gain was clear
    half    exact matches of the site in question less the middle of those of no swap and of the target run
    rival   exact matches of the site in question less those of another site

A comparison is open where the interval of its difference, over the same pairs, holds zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from textpatch.groups import Group, row_name
from textpatch.localization.scores import column, values
from textpatch.metrics import FEWEST, f1_of_means
from textpatch.metrics.intervals import Statistic, gain
from textpatch.metrics.power import pairs_to_settle
from textpatch.prompts.pairs import SOURCE, TARGET
from textpatch.report.result import GAIN, HALF, RIVAL, credited, ranked_sites


def open_comparisons(result: dict, records: Sequence[dict]) -> list[dict]:
    """Open comparisons of a result, see `report.result`, the sites in their ranking."""
    if result.get("set") and not result["set"]["sites"]:
        return _gains(result, records)
    named = credited(result)
    if len(named) > 1:  # a set, of which every step was judged
        return []
    groups = {site["site"]: tuple(site["group"]) for site in ranked_sites(result)}
    best = groups[named[0]]
    asked = [(HALF, None, (SOURCE, TARGET))]
    asked += [
        (RIVAL, site, (row_name(group),))
        for site, group in groups.items()
        if set(best).isdisjoint(group)
    ]
    found = []
    for question, against, names in asked:
        exact = _exact([row_name(best), *names], records)
        if exact is None:
            continue
        own, *others = exact
        told = _open(own, np.mean(others, axis=0), np.mean)
        if told:
            found.append({"question": question, "site": named[0], "against": against, **told})
    return found


def _gains(result: dict, records: Sequence[dict]) -> list[dict]:
    """The gain of the best site over no swap, which was not clear."""
    first: Group = tuple(result["set"]["steps"][0]["added"])
    names = row_name(first), SOURCE
    there = _with(names, records)
    more, less = (values(there, name) for name in names)
    told = _open(more, less, f1_of_means, either=False)
    if not told:
        return []
    return [{"question": GAIN, "site": first[0], "against": None, **told}]


def _exact(names: Sequence[str], records: Sequence[dict]) -> list[np.ndarray] | None:
    """Exact matches of several rows on the pairs that have all of them, None on fewer than FEWEST."""
    there = _with(names, records)
    if len({record["pair"] for record in there}) < FEWEST:
        return None
    return [column(there, name, "exact_target") for name in names]


def _with(names: Sequence[str], records: Sequence[dict]) -> list[dict]:
    """Records that have pictures of all these rows."""
    return [record for record in records if set(names) <= record["pictures"].keys()]


def _open(
    more: np.ndarray, less: np.ndarray, statistic: Statistic, *, either: bool = True
) -> dict | None:
    """Difference of an open comparison, its pairs and how many more would settle it, None for a clear one.

    either  whether a difference below zero would settle it, too
    """
    difference = gain(more, less, statistic)
    if difference["low"] > 0 or (either and difference["high"] < 0):
        return None
    sides = (more, less)
    if either and difference["value"] < 0:
        sides = (less, more)
    needed = pairs_to_settle(*sides, statistic)
    return {
        "pairs": len(more),
        "difference": difference,
        "more": None if needed is None else max(needed - len(more), 1),
    }
