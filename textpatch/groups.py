"""Groups of sites or heads that are swapped together, with their names, rows and plan.

A unit is a site or a head, which can be swapped alone.  A group is a tuple of units, and () is no swap.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from textpatch.errors import PatchError
from textpatch.prompts.pairs import SOURCE, TARGET, Pair

if TYPE_CHECKING:
    from textpatch.pipelines import DrawsByItself, SupportsSampling
    from textpatch.plan import Plan, Row, Swap
    from textpatch.sites import Selectors

Unit = int | tuple[int, int]  # a site, or (site, head)
Group = tuple


def require_start(start: object, steps: int) -> None:
    """Raise PatchError unless the first patched step is a step of the run."""
    if not isinstance(start, Integral) or not 0 <= int(start) < steps:
        raise PatchError(
            f"start is {start!r} of {steps} steps; give a start within the run, a whole number from 0 on"
        )


def localized_group(pipeline: SupportsSampling | DrawsByItself, sites: Selectors | None) -> Group:
    """Indices of the sites that are swapped together, those localised for the model when None.

    sites  a selector as for `select_sites`
    Raises PatchError for unknown sites, and where none is named and none is known.
    """
    # imported here because it imports torch, and a report needs the names of groups alone
    from textpatch.ports.shipped import site_indices

    if sites is None:
        sites = pipeline.defaults.localized
    if not sites and sites != 0:
        raise PatchError(
            f"no sites are known to carry the word in {pipeline.name}; name some, or run localize first"
        )
    return site_indices(pipeline, sites)


def rows_and_plan(
    pair: Pair,
    seed: int,
    groups: Sequence[Group],
    steps: int,
    start: int,
    branch: str,
    tokens: Sequence[int] | None = None,
) -> tuple[list[Row], Plan]:
    """Rows and plan that swap each group in a row of its own.

    The rows are the source, the target and one patched row per group, all from the same noise.  The
    patched rows keep the source's pooled vector, as the official code does.

    groups  each holds site indices, or (site, head) for single heads
    start   first of the `steps` steps at which patched rows read the target
    tokens  places of the text tokens that are swapped, all when None
    """
    # imported here because it imports torch, and a report needs the names of groups alone
    from textpatch.plan import Plan, Row

    patched = [Row(row_name(group), pair.source, seed) for group in groups]
    window = {"steps": range(start, steps), "tokens": tokens, "branch": branch}
    swaps = [
        swap
        for group, row in zip(groups, patched, strict=True)
        for swap in swaps_of(group, row.name, TARGET, **window)
    ]
    return [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed), *patched], Plan(swaps)


def swaps_of(group: Group, reader: str, donor: str, **how: Any) -> list[Swap]:
    """Swaps that let a reader read the donor at all units of a group.

    how  steps, tokens and branch of each
    """
    # imported here because it imports torch, and a report needs the names of groups alone
    from textpatch.plan import Swap

    return [Swap(sites, reader, donor, heads=heads, **how) for sites, heads in _parts(group)]


def _parts(group: Group) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Sites and heads of each swap that carries a group out.

    Whole sites are swapped together, with heads None, and single heads site by site.
    """
    whole: list[int] = []
    heads: dict[int, list[int]] = {}
    for unit in group:
        if isinstance(unit, tuple):
            site, head = unit
            heads.setdefault(site, []).append(head)
        else:
            whole.append(unit)
    parts: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = []
    if whole:
        parts.append((tuple(whole), None))
    for site, some in heads.items():
        parts.append(((site,), tuple(some)))
    return parts


def row_name(group: Group) -> str:
    """Name of a group's row.

    It is "site-1+2" for sites 1 and 2 together, "site-1.0" for the first head of site 1, and "source"
    for no swap.
    """
    if not group:
        return SOURCE
    return "site-" + group_name(group)


def group_name(group: Group) -> str:
    """Name of a group, such as "1+2" for two sites and "1.0" for a head."""
    return "+".join(_unit_name(unit) for unit in group)


def _unit_name(unit: Unit) -> str:
    if isinstance(unit, tuple):
        return ".".join(map(str, unit))
    return str(unit)
