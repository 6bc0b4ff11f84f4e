"""Parts of a run that are drawn one after the other, and one ledger of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from textpatch.ledger import Ledger, Silence
from textpatch.packing import pack
from textpatch.plan import Plan, Row


@dataclass(frozen=True)
class Batch:
    """Rows that are drawn together.

    rows   all rows of one call
    fresh  names of those that no part before had
    plan   what the run's plan does to them
    swaps  places in the run's plan of the swaps of `plan`
    """

    rows: tuple[Row, ...]
    fresh: frozenset[str]
    plan: Plan
    swaps: tuple[int, ...]


def parts_of(rows: Sequence[Row], plan: Plan, limit: int) -> Iterator[Batch]:
    """Parts of at most `limit` rows, each with all donors of its rows."""
    sampled = [replace(row, sampled=True) for row in rows]
    for group, fresh in pack(sampled, plan, limit):
        names = {row.name for row in group}
        acting = [i for i, swap in enumerate(plan.swaps) if names.intersection(swap.readers)]
        swaps = [
            replace(plan.swaps[i], readers=sorted(names.intersection(plan.swaps[i].readers)))
            for i in acting
        ]
        yield Batch(tuple(group), frozenset(row.name for row in fresh), Plan(swaps), tuple(acting))


def joined(parts: Sequence[tuple[Batch, Ledger]]) -> Ledger:
    """Ledger of a run, from those of its parts, each row entered once.

    A swap is silent if it is so in every part that has it.
    """
    entries = [
        entry for part, ledger in parts for entry in ledger.entries if entry.reader in part.fresh
    ]
    silent: dict[int, list[Silence]] = {}
    having: dict[int, int] = {}
    for part, ledger in parts:
        for place in part.swaps:
            having[place] = having.get(place, 0) + 1
        for one in ledger.silent:
            place = part.swaps[one.swap]
            silent.setdefault(place, []).append(replace(one, swap=place))
    return Ledger(
        tuple(
            sorted(entries, key=lambda entry: (entry.step, entry.site, entry.reader, entry.donor))
        ),
        tuple(told[0] for place, told in sorted(silent.items()) if len(told) == having[place]),
    )
