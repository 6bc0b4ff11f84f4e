"""A run folder that survives kills.

Files are whole or not there, and every finished piece of work is one line.

manifest.json            what was asked (`request`, its `key`), and under which versions
records/<worker>.jsonl   one line per finished piece of work, with a checksum; the only truth
images/<hash>.png        pictures, named by their pixels, never by a prompt
results.json ...         whatever follows from the records
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from PIL import Image

from textpatch.disk import AnyPath, as_json, explained, sweep, write
from textpatch.errors import StoreError
from textpatch.pictures import MODES, as_rgb
from textpatch.runs.kept_pictures import holds_pictures, kept_picture, name_of
from textpatch.runs.manifests import (
    add_to_manifest,
    change_manifest,
    created,
    facts,
    note_changes,
    read_manifest,
    stamped,
)
from textpatch.runs.records import append_line, read_records, sealed
from textpatch.runs.requests import (
    Differences,
    another_run,
    asked_otherwise,
    covered,
    differences,
    require_entries,
)
from textpatch.runs.tables import csv_of
from textpatch.stored import JSONObject

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_WORKER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RESERVED = ("manifest.json", "records", "images")


class Run:
    """One run folder as one process sees it.

    folder    its path
    manifest  what is stored in manifest.json
    worker    this process's name; several processes may write one folder, each with a record file of its own
    resumed   whether the folder held the run before
    changed   manifest entries that differ now, as {name: (stored, now)}
    """

    def __init__(
        self,
        folder: AnyPath,
        manifest: JSONObject,
        worker: str = "0",
        *,
        resumed: bool = True,
        changed: Differences | None = None,
    ) -> None:
        if not _WORKER.fullmatch(worker):
            raise StoreError(f"worker name {worker!r}: use 1 to 64 of A-Z a-z 0-9 _ -")
        self.folder = Path(folder)
        self.manifest = manifest
        self.worker = worker
        self.resumed = resumed
        self.changed = changed or {}

    @classmethod
    def open(
        cls,
        folder: AnyPath,
        manifest: Mapping[str, object],
        *,
        worker: str = "0",
        allow: Sequence[str] | None = (),
    ) -> Run:
        """Create a run folder, or open it again to go on with the same request.

        The key is the sha256 of `manifest["request"]`.
        Other entries (versions, command) may differ when a run goes on.  `changed` lists them, and the stored
        manifest keeps them under `resumed`.

        allow  entries of the request that may differ, such as "weights"; "ocr" covers everything below it.
               None says that the command has no such option.
        Raises StoreError for another request, an `allow` without effect, a folder with other things in it,
        a damaged manifest, or a folder that cannot be written.
        """
        new = stamped(manifest)
        run = cls(folder, new, worker, resumed=False)
        with explained(run.folder, "open"):
            if allow and not (run.folder / "manifest.json").exists():
                raise StoreError(
                    f"{', '.join(allow)} may differ, but {run.folder} holds no run yet; "
                    "leave out --allow, or give the --out of the run to go on with"
                )
            stored = created(run.folder, new, worker)
            sweep(run.folder, worker)
            if stored is None:
                return run
            return cls._resume(run.folder, stored, new, worker, allow)

    @classmethod
    def load(cls, folder: AnyPath, *, worker: str = "0") -> Run:
        """Open a run folder that exists, whatever its request.

        Raises StoreError for a folder that holds no run.
        """
        with explained(folder, "open"):
            return cls(folder, read_manifest(Path(folder) / "manifest.json"), worker)

    @classmethod
    def _resume(
        cls,
        folder: Path,
        stored: JSONObject,
        new: JSONObject,
        worker: str,
        allow: Sequence[str] | None,
    ) -> Run:
        require_entries(allow or (), stored["request"], new["request"])
        asked = asked_otherwise(stored, new)
        if not all(covered(name, allow or ()) for name in asked):
            raise StoreError(another_run(folder, asked, may_allow=allow is not None))
        changed = differences(facts(stored), facts(new)) | asked
        if changed:
            stored = note_changes(folder, changed, worker)
        return cls(folder, stored, worker, changed=changed)

    def append(self, record: Mapping[str, object]) -> None:
        """Add one record, a dict with a string "id".

        On return the record is on the disk: one os.write on an O_APPEND descriptor, then fsync.
        A torn line of a killed writer is cut off first.
        Raises StoreError for values JSON cannot hold and for a full disk; the file is then as before.
        """
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            raise StoreError(f'a record is a dict with a string "id"; got {repr(record)[:80]}')
        self._require_there()
        path = self.folder / "records" / f"{self.worker}.jsonl"
        line = sealed(record)
        with explained(path, "append to"):
            path.parent.mkdir(exist_ok=True)
            append_line(path, line)

    def records(self) -> list[JSONObject]:
        """Return all records, in the order of files, then of lines.

        - Of several records with one id the first counts.
        - An unfinished last line is left out.
        - Any other damaged line is left out, too, with a warning that names file and line.  Its piece of work
          is not finished.
        """
        return list(self._first(lambda record: True).values())

    def finished(self, known: Container[str] = ()) -> list[JSONObject]:
        """Return the records whose pictures are all in the folder, else as `records` does.

        A record is not finished if a picture of it is gone, damaged or another's.

        known  ids of records of which that was seen before
        """

        def counts(record: JSONObject) -> bool:
            return record["id"] in known or holds_pictures(self.folder, record)

        return list(self._first(counts).values())

    def sizes(self) -> dict[str, int]:
        """Return the size of each worker's file of records, by which one sees that something was added."""
        paths = (self.folder / "records").glob("*.jsonl")
        return {path.name: path.stat().st_size for path in paths}

    def _first(self, counts: Callable[[JSONObject], bool]) -> dict[str, JSONObject]:
        """Return the first record of each id that counts, by id."""
        first: dict[str, JSONObject] = {}
        for path in sorted((self.folder / "records").glob("*.jsonl")):
            records, damaged, lines = read_records(path)
            if damaged:
                warnings.warn(
                    f"{path}: {len(damaged)} of {lines} lines are damaged and left out, the first is line "
                    f"{damaged[0]}; resuming makes again what they held",
                    stacklevel=2,
                )
            for record in records:
                if record["id"] not in first and counts(record):
                    first[record["id"]] = record
        return first

    def _require_there(self) -> None:
        """Raise StoreError if the folder was deleted, which a write would begin anew without a manifest."""
        if not (self.folder / "manifest.json").exists():
            raise StoreError(
                f"{self.folder} was deleted while the run went on; the same command begins it anew"
            )

    def done(self) -> set[str]:
        """Return the ids of all finished records.

        Warns of damaged lines as `records` does.
        """
        return {record["id"] for record in self.records()}

    def note(self, name: str, entry: object) -> None:
        """Add an entry to a list of the manifest that decides no result."""
        with explained(self.folder, "write"):
            self.manifest = add_to_manifest(self.folder, name, entry, self.worker)

    def note_instead(self, name: str, old: object, new: object | None) -> None:
        """Put another entry in the place of one that was noted, or none for None."""

        def changed(entries: list) -> list:
            kept = [new if entry == old else entry for entry in entries]
            return [entry for entry in kept if entry is not None]

        with explained(self.folder, "write"):
            self.manifest = change_manifest(self.folder, name, changed, self.worker)

    def image(self, picture: Image.Image) -> str:
        """Store a PIL picture as PNG and return its path in the folder.

        Pictures of equal pixels are one file.
        """
        if not isinstance(picture, Image.Image) or 0 in picture.size:
            raise StoreError(
                f"image() stores a PIL picture of at least one pixel; got {repr(picture)[:80]}"
            )
        if picture.mode not in MODES:
            picture = as_rgb(picture, "a picture of the run")
        self._require_there()
        name = name_of(picture)
        if not holds_pictures(self.folder, {"pictures": [name]}):
            data = io.BytesIO()
            # from bare pixels: a profile or comment riding on the picture would get into the file
            Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(data, "PNG")
            write(self.folder / name, data.getvalue(), self.worker)
        return name

    def picture(self, name: str) -> Image.Image:
        """Return a stored picture as RGB, from its path in the folder.

        Raises StoreError as `kept_picture` does.
        """
        return kept_picture(self.folder, name)

    def also_named(self, image: str, name: str) -> None:
        """Give a stored picture a second name, which people can use.

        It is another link to the same file, or a copy on a disk without links.
        """
        path = _inside(self.folder, name)
        self._require_there()
        with explained(path, "write"):
            path.parent.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # a file is there already, or this disk has no links
                os.link(self.folder / image, path)
            data = (self.folder / image).read_bytes()
            if not path.exists() or path.read_bytes() != data:
                write(path, data, self.worker)

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file whole or not at all, and return its path.

        Raises StoreError for a name that leads out of the folder or to a file of the run's own.
        """
        path = _inside(self.folder, name)
        self._require_there()
        write(path, data, self.worker)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write UTF-8 text whole or not at all, and return its path.

        A lone surrogate becomes an escape.
        """
        return self.write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def write_json(self, name: str, value: object) -> Path:
        """Write JSON whole or not at all, and return its path.

        Raises StoreError for NaN, Infinity and anything else that is no JSON.
        """
        return self.write_bytes(name, as_json(value, indent=1) + b"\n")

    def write_csv(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write rows as CSV whole or not at all, see `tables.csv_of`, and return its path."""
        return self.write_text(name, csv_of(rows))


# --- what is written


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file name in a run folder.

    Raises StoreError for a name that leads out of the folder or to a file of the run's own.
    """
    parts = [""]
    if isinstance(name, str):
        parts = name.split("/")
    if not all(_PART.fullmatch(part) for part in parts) or parts[0].lower() in _RESERVED:
        raise StoreError(
            f"{name!r} cannot be a file name here: use A-Z a-z 0-9 . _ - (and / for a folder "
            f"inside), and leave {', '.join(_RESERVED)} alone"
        )
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{name!r} leads out of {folder} through a link; remove the link")
    return path
