"""Packing of a run's rows into groups that fit a micro-batch, each with all rows that it needs."""

from __future__ import annotations

from collections.abc import Sequence

from textpatch.plan import Plan, Row

Packed = list[tuple[list[Row], list[Row]]]


def pack(rows: Sequence[Row], plan: Plan, limit: int) -> Packed:
    """Pack rows into groups of at most `limit` sampled rows, each with all donors of its rows.

    A row whose own donors exceed the limit makes a larger group of its own.  Within a group rows keep
    their order, because the place in the batch moves the last bits of a row, and a plan must not.

    Returns (group, rows that no group before it held) for each group.
    """
    packed = []
    done: set[str] = set()
    for names in _names_of_groups(rows, plan, limit):
        group = [row for row in rows if row.name in names]
        fresh = [row for row in group if row.sampled and row.name not in done]
        done.update(names)
        if fresh:
            packed.append((group, fresh))
    return packed


def _names_of_groups(rows: Sequence[Row], plan: Plan, limit: int) -> list[list[str]]:
    """Names of the rows of each group, filled one sampled row after the other."""
    needs = _needs(rows, plan)
    sampled = {row.name for row in rows if row.sampled}
    groups: list[list[str]] = [[]]
    for row in rows:
        if not row.sampled:
            continue
        names = [*sorted(_needed(row.name, needs)), row.name]
        if groups[-1] and len(sampled.intersection(groups[-1] + names)) > limit:
            groups.append([])
        groups[-1] += [name for name in names if name not in groups[-1]]
    return groups


def _needs(rows: Sequence[Row], plan: Plan) -> dict[str, set[str]]:
    """Names of the rows that each row reads or copies."""
    needs: dict[str, set[str]] = {row.name: set() for row in rows}
    for row in rows:
        if row.copies is not None:
            needs[row.name].add(row.copies)
    for swap in plan.swaps:
        for reader in swap.readers:
            needs[reader].add(swap.donor)
    return needs


def _needed(name: str, needs: dict[str, set[str]]) -> set[str]:
    """Names of all rows that a row needs, directly or through another row."""
    found: set[str] = set()
    todo = [name]
    while todo:
        new = needs[todo.pop()] - found - {name}
        found |= new
        todo += new
    return found
