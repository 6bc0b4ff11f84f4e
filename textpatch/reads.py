"""What a run read of other rows, and the ledger that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor

from textpatch.ledger import ITSELF, NO_EFFECT, OVERRIDDEN, SAME_TEXT, Entry, Ledger, Silence
from textpatch.plan import Plan, Row, Swap
from textpatch.sites import Site, select_sites


class Key(NamedTuple):
    """Place of a swap's reads in the ledger."""

    step: int
    site: int
    reader: str
    donor: str
    swap: int


@dataclass
class Found:
    """Hits and largest changes of one swap in an entry that is being made."""

    branches: set[str] = field(default_factory=set)
    hits: dict[str, int] = field(default_factory=lambda: {"k": 0, "v": 0})
    changes: dict[str, float] = field(default_factory=lambda: {"k": 0.0, "v": 0.0})

    def changed(self, part: str, by: float) -> None:
        """Take in a change of the keys or values.  Where one is not a number, neither is the largest."""
        if by > self.changes[part] or isnan(by):
            self.changes[part] = by

    def add(self, other: Found) -> None:
        """Add the hits and changes of another swap to the same entry."""
        self.branches |= other.branches
        for part in "kv":
            self.hits[part] += other.hits[part]
            self.changed(part, other.changes[part])


class Measured(NamedTuple):
    """Changes of keys or values as they were measured, one for each of some entries.

    They stay a tensor until the run is over, for to read a number of a GPU is to wait for it.
    """

    entries: list[Found]
    part: str
    changes: Tensor


class Reads:
    """Reads of a run, by which its ledger is made.

    sites     those that the plan's swaps name
    watched   False where a compiled model could not be watched, so that hits alone are known
    found     what was found, by place in the ledger
    measured  changes that are not in `found` yet
    """

    def __init__(self, plan: Plan, rows: Sequence[Row], sites: tuple[Site, ...]) -> None:
        self.plan = plan
        self.prompts = {row.name: row.prompt for row in rows}
        self.sites = sites
        self.watched = True
        self.found: dict[Key, Found] = {}
        self.measured: list[Measured] = []

    def ledger(
        self,
        noise: Callable[[int], tuple[float | None, float | None]],
        dtype: torch.dtype,
        backend: Callable[[Site], str],
    ) -> Ledger:
        """Ledger of all that was read, in the order of steps and sites.

        noise    step -> its timestep and sigma, None where they are not known
        backend  site -> what carried out its swaps
        """
        if not self.sites:
            return Ledger()
        self._take_in_measured()
        merged: dict[tuple[int, int, str, str], Found] = {}
        for key, found in self.found.items():
            merged.setdefault(key[:4], Found()).add(found)
        sites = {site.index: site for site in self.sites}
        backends = {site.index: backend(site) for site in self.sites}
        entries = []
        for (step, site, reader, donor), found in sorted(merged.items()):
            timestep, sigma = noise(step)
            entries.append(
                Entry(
                    site=site,
                    name=sites[site].name,
                    step=step,
                    timestep=timestep,
                    sigma=sigma,
                    reader=reader,
                    donor=donor,
                    branches=tuple(sorted(found.branches)),
                    hits_k=found.hits["k"],
                    hits_v=found.hits["v"],
                    change_k=self._change(found, "k"),
                    change_v=self._change(found, "v"),
                    dtype=str(dtype).removeprefix("torch."),
                    backend=backends[site],
                )
            )
        return Ledger(tuple(entries), tuple(self._silent()))

    def _take_in_measured(self) -> None:
        for entries, part, changes in self.measured:
            for found, change in zip(entries, changes.tolist(), strict=True):
                found.changed(part, change)
        self.measured.clear()

    def _change(self, found: Found, part: str) -> float | None:
        """Largest change of keys or values, None where nobody could watch."""
        if not self.watched:
            return None
        return found.changes[part]

    def _silent(self) -> Iterator[Silence]:
        for i, swap in enumerate(self.plan.swaps):
            why = self._why_silent(i, swap)
            if why is not None:
                sites = ", ".join(str(site.index) for site in select_sites(self.sites, swap.sites))
                yield Silence(i, f"{', '.join(swap.readers)} <- {swap.donor} at site {sites}", why)

    def _why_silent(self, i: int, swap: Swap) -> str | None:
        """Reason why the i-th swap changed nothing.

        None if it changed something, or if nobody could watch.
        """
        if swap.readers == (swap.donor,):
            return ITSELF
        own = [(key, found) for key, found in self.found.items() if key.swap == i]
        if not own:
            return OVERRIDDEN
        apart = [found for key, found in own if self._texts_differ(key)]
        counted = apart or [found for _, found in own]
        if any(self._change(found, part) != 0 for found in counted for part in swap.part):
            return None
        if apart:
            return NO_EFFECT
        return SAME_TEXT

    def _texts_differ(self, key: Key) -> bool:
        return self.prompts[key.reader] != self.prompts[key.donor]
