"""The processes of a run, which divide its work among them.

    own pieces = every n-th piece of each round, from the i-th on

All workers meet in one run folder.  A worker makes its own pieces of a round and finds those of the others
there.  So all decide by the same records, which are those that one process would make.

    Worker  one process, which makes all of a run
    Shard   a process started by itself, as by a job array
    Rank    a process of a group that waits for each other, see `textpatch.runs.ranks`
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from textpatch.disk import held, is_held
from textpatch.errors import PatchError, StoreError, Unfinished
from textpatch.runs.folder import Run

PAUSE = 0.05  # seconds between two looks at a folder, at least
PATIENCE = 10  # times as long as a look took


class Found(Protocol):
    """What is known of the records in a run folder."""

    run: Any

    def look_again(self) -> None:
        """Read the folder anew."""

    def __contains__(self, id: str) -> bool:
        """True if a record of that id was there."""


class Round(NamedTuple):
    """Pieces that all workers know of, the ids of their records, and what `portions` says of them."""

    pieces: list
    ids: list[str]
    what: str
    strict: bool

    def others(self, own: range) -> list[int]:
        """Places of the pieces that other processes make."""
        return [place for place in range(len(self.pieces)) if place not in own]


class Worker:
    """A process that makes a run alone, and what all workers have in common.

    index, count  of `count` processes this is the one of that number, from 0 on
    """

    speaks = True  # whether this process says what was made

    def __init__(self, index: int = 0, count: int = 1):
        if not 0 <= index < count:
            raise PatchError(
                f"no shard {index}/{count}; of n shards the first is 0/n, the last n-1/n"
            )
        self.index = index
        self.count = count

    @property
    def name(self) -> str:
        """Name of this process in the run folder."""
        return str(self.index)

    def __str__(self) -> str:
        return f"shard {self.index}/{self.count}"

    def places(self, count: int) -> range:
        """Places of the pieces, of so many, that this process makes."""
        return range(self.index, count, self.count)

    def portions(
        self, pieces: Sequence, ids: Sequence[str], found: Found, what: str, *, strict: bool = False
    ) -> Iterator[Sequence]:
        """The pieces of a round: own ones, then those of others, each once its record is there.

        ids     of the records of the pieces
        what    name of several pieces
        strict  whether a piece is left to its process even if that is not at work.  Otherwise it comes
                without a record, and is to be made here

        A portion is finished when the next is asked for.  Raises Unfinished for pieces that are left.
        """
        yield [pieces[place] for place in self.places(len(pieces))]
        if self.count > 1:
            common = Round(list(pieces), list(ids), what, strict)
            yield from self._portions_of_others(common, found)

    def _portions_of_others(self, common: Round, found: Found) -> Iterator[Sequence]:
        """Portions of the pieces of others."""
        yield from ()

    def require_fitting(self, run: Run | None) -> None:
        """Raise PatchError for a shard of no run, StoreError for one whose versions are not the run's."""
        if self.count == 1:
            return
        if run is None:
            raise PatchError(
                f"{self} of no run was asked for; shards meet in a run folder, give `run`"
            )
        other = {name: pair for name, pair in run.changed.items() if name.startswith("versions.")}
        for name, (stored, now) in other.items():
            raise StoreError(
                f"{self} runs {name.removeprefix('versions.')} {now}, and {run.folder} was begun with "
                f"{stored}; give all shards one environment, or go on with one process"
            )

    @contextmanager
    def at_work(self, run: Run | None) -> Iterator[None]:
        """Let others see, inside the block, that this process is at work."""
        yield

    def writes(self, folder: Path) -> bool:
        """True if this process is the one to write what follows from all records."""
        return True


class Shard(Worker):
    """A process started by itself, which sees the others in the run folder alone.

    Pieces of a shard that is not at work, because it was killed or has not begun, are made by those that are.
    """

    @contextmanager
    def at_work(self, run: Run | None) -> Iterator[None]:
        if run is None or self.count == 1:
            yield
            return
        with held(self._lock(run.folder, self.index)):
            yield

    def writes(self, folder: Path) -> bool:
        """True unless a shard of a lower number is at work, which will be there later."""
        return not any(is_held(self._lock(folder, index)) for index in range(self.index))

    def _portions_of_others(self, common: Round, found: Found) -> Iterator[Sequence]:
        places = common.others(self.places(len(common.pieces)))
        while places:
            began = time.monotonic()
            found.look_again()
            ready = [place for place in places if common.ids[place] in found]
            if not ready:
                ready = self._abandoned(common, places, found.run.folder)
            if not ready:
                time.sleep(max(PAUSE, PATIENCE * (time.monotonic() - began)))
            yield [common.pieces[place] for place in ready]
            places = [place for place in places if place not in ready]

    def _abandoned(self, common: Round, places: list[int], folder: Path) -> list[int]:
        """Place of a piece whose shard is not at work, [] for none.

        Raises Unfinished in a strict round where all that are left are such.
        """
        working = self._working(folder)
        abandoned = [place for place in places if place % self.count not in working]
        if common.strict and len(abandoned) == len(places):
            raise Unfinished(
                f"{self} is done, {len(places)} of {len(common.pieces)} {common.what} are not: the shard "
                f"that ends last writes the results to {folder}"
            )
        if common.strict or not abandoned:
            return []
        # those at work begin at different places, or all would make the same piece
        turn = sum(index < self.index for index in working)
        return [abandoned[turn % len(abandoned)]]

    def _working(self, folder: Path) -> set[int]:
        """Numbers of the other shards that are at work."""
        others = [index for index in range(self.count) if index != self.index]
        return {index for index in others if is_held(self._lock(folder, index))}

    def _lock(self, folder: Path, index: int) -> Path:
        return folder / "records" / f"{index}.at-work"


def as_worker(told: tuple[int, int] | Worker | None) -> Worker:
    """A worker, of (i, n) a shard that sees the others in the run folder, of None one that is alone."""
    if told is None:
        return Worker()
    if isinstance(told, Worker):
        return told
    return Shard(*told)
