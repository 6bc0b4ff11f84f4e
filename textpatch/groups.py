"""Groups of sites or heads that are swapped together: their names, their rows, their plan.

A unit is what can be swapped alone, a site or a head; a group is a tuple of units, () is no swap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textpatch.prompts.pairs import SOURCE, TARGET, Pair

if TYPE_CHECKING:
    from textpatch.plan import Plan, Row

Group = tuple


def rows_and_plan(
    pair: Pair, seed: int, groups: Sequence[Group], steps: int, start: int, branch: str
) -> tuple[list[Row], Plan]:
    """Source, target and one patched row per group, all from the same noise; and who reads whom.

    A group holds site indices, or (site, head) for single heads.  The patched rows keep the source's pooled
    vector, as the official code does.
    """
    from textpatch.plan import (
        Plan,
        Row,
        Swap,
    )  # torch, which a report that needs names alone does without

    patched = [Row(row_name(group), pair.source, seed) for group in groups]
    window = tuple(range(start, steps))
    swaps = [
        Swap(sites, row.name, TARGET, steps=window, heads=heads, branch=branch)
        for group, row in zip(groups, patched)
        for sites, heads in _parts(group)
    ]
    return [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed), *patched], Plan(swaps)


def _parts(group: Group) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """(sites, heads) of each swap that carries a group out: whole sites together, heads site by site."""
    whole = tuple(unit for unit in group if not isinstance(unit, tuple))
    heads: dict[int, list[int]] = {}
    for site, head in (unit for unit in group if isinstance(unit, tuple)):
        heads.setdefault(site, []).append(head)
    return ([(whole, None)] if whole else []) + [
        ((site,), tuple(some)) for site, some in heads.items()
    ]


def row_name(group: Group) -> str:
    """site-1+2 of sites 1 and 2 together, site-1.0 of the first head of site 1, source of no swap."""
    return "site-" + group_name(group) if group else SOURCE


def group_name(group: Group) -> str:
    return "+".join(
        ".".join(map(str, unit)) if isinstance(unit, tuple) else str(unit) for unit in group
    )
