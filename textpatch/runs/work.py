"""A piece of work done once, or found in the run folder.

    work = Work(run)
    record = work.once("0-1", (0, 1), made_by(rows, plan), make)

A record carries what it was made of, so that a run folder never answers for other prompts, seeds or swaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from textpatch.changes import changes_of
from textpatch.errors import StoreError
from textpatch.plan import Plan, Row
from textpatch.runs.folder import Run
from textpatch.runs.interrupts import finishing

ADAPTERS = "adapters"


class Work:
    """The finished pieces of work of one run, by id.

    run  the folder that keeps the records; None, and nothing is kept or found
    """

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self._found: dict[str, dict] = {}
        self._seen: dict = {}
        self.look_again()

    def look_again(self) -> None:
        """Read the run folder anew where other workers may have finished pieces meanwhile."""
        if self.run is None:
            return
        seen = self.run.sizes()
        if seen != self._seen:
            self._found = {record["id"]: record for record in self.run.finished(self._found)}
            self._seen = seen

    def __contains__(self, id: str) -> bool:
        """True if a record of that id lay in the folder when it was last read."""
        return id in self._found

    def once(
        self, id: str, task: tuple[int, int], maker: dict[str, str], make: Callable[[], dict]
    ) -> dict:
        """Return the record of that id, made now unless the run folder has it.

        task   (pair, seed) of the piece
        maker  what the piece is made of, see `made_by`
        make   () -> the record's other entries; a first Ctrl-C waits until they are kept
        Raises StoreError for a record that was made of something else.
        """
        record = self._found.get(id)
        if record is None:
            with finishing():
                record = {"id": id, "pair": task[0], "seed": task[1], **maker, **make()}
                if self.run is not None:
                    self.run.append(record)
        else:
            _require_made_by(self.run.folder, maker, record)
        return record


def made_by(rows: Sequence[Row], plan: Plan) -> dict[str, str]:
    """Hashes that tell what a piece of work is made of.

    plan_sha256  of the plan
    rows_sha256  of the rows' names, prompts, seeds and whatever else makes a row
    """
    said = json.dumps([row.data for row in rows])
    return {"plan_sha256": plan.sha256, "rows_sha256": hashlib.sha256(said.encode()).hexdigest()}


def adapters_of(denoiser: nn.Module) -> dict[str, str]:
    """Adapters that a piece of work is made under, {} for none."""
    adapters = changes_of(denoiser)
    if not adapters:
        return {}
    return {ADAPTERS: ", ".join(adapters)}


def _require_made_by(folder: Path, maker: dict[str, str], record: dict) -> None:
    """Raise StoreError for a record of another plan, of other rows, or under other adapters.

    --allow does not help here: it lets a request differ, and a record of something else answers no request.
    """
    for name in {**maker, ADAPTERS: None}:
        asked = maker.get(name)
        if record.get(name) != asked:
            raise StoreError(
                f"record {record['id']} of {folder} was made by {name.partition('_')[0]} "
                f"{_shown(name, record.get(name))}, this request comes to {_shown(name, asked)}; other "
                "prompts or another version made the run: give another --out"
            )


def _shown(name: str, entry: str | None) -> str:
    """An entry of a maker as a message shows it, a hash by its first characters."""
    if entry is None:
        return "(not told)"
    if name.endswith("_sha256"):
        return f"{entry[:16]}..."
    return repr(entry)


class Pending:
    """One piece of work that is put off until the next piece comes.

    So the pictures of one pair and seed are read by a thread while those of the next are generated.
    """

    def __init__(self) -> None:
        self._work: Callable[[], None] | None = None

    def put(self, work: Callable[[], None]) -> None:
        """Finish the work that was put off, and put off `work` in its place."""
        self.flush()
        self._work = work

    def flush(self) -> None:
        """Finish the work that was put off, if any."""
        work = self._work
        self._work = None
        if work is not None:
            work()
