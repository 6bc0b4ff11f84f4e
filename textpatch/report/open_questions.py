"""Sentences on what the pairs leave open, and how many more of them would settle it."""

from __future__ import annotations

from collections.abc import Sequence

from textpatch.report.result import HALF, RIVAL, left_open, listed
from textpatch.text import number_of

_NAMED_RIVALS = 5
_MOST = 10_000  # pairs that somebody might give


def half_way(result: dict, site: dict) -> str:
    """A sentence where it is open whether a site comes half of the way, "" elsewhere."""
    asked = left_open(result, HALF, site["site"])
    if not asked:
        return ""
    return f" Whether that is half of the way to the whole target run is not clear yet. {settled_by(asked)}"


def rivals(result: dict, best: dict) -> str:
    """A sentence on the sites that cannot be told from the best one, "" where there are none."""
    asked = left_open(result, RIVAL, best["site"])
    if not asked:
        return ""
    near = [told["against"] for told in asked]
    shown = listed(near[:_NAMED_RIVALS])
    if len(near) > _NAMED_RIVALS:
        shown += ", ..."
    own = listed([best["site"]])
    return f" Exact matches do not tell {own} from {shown} yet. {settled_by(asked)}"


def settled_by(asked: Sequence[dict]) -> str:
    """A sentence on how many more pairs would settle open comparisons, as far as the pairs tell."""
    known = [told["more"] for told in asked if told["more"] is not None]
    if not known:
        return (
            "These pairs show no difference, so they tell no number of pairs that would settle it."
        )
    seen = asked[0]["pairs"]
    more = number_of(max(known), "more pair")
    said = f"About {more} would settle it, if they differ as these {seen} do."
    if max(known) > _MOST:
        said = f"More than {_MOST:,} more pairs would, if they differ as these {seen} do."
    same = [told["against"] for told in asked if told["more"] is None]
    if same:
        said += f" From {listed(same)} there is no difference on these pairs, and no such number."
    return said
