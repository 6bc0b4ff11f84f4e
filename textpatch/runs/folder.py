"""A run folder that survives kills: whole files or none, and one line per finished piece of work.

manifest.json            what was asked (`request`, its `key`), and under which versions
records/<worker>.jsonl   one line per finished piece of work, with a checksum; the only truth
images/<hash>.png        pictures, named by their pixels, never by a prompt
results.json ...         whatever follows from the records
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from textpatch.disk import alone_in, as_json, explained, read_json, sweep, write
from textpatch.errors import StoreError, closest
from textpatch.runs.records import append_line, read_records, sealed

SCHEMA_VERSION = 1
ABSENT = "absent"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_WORKER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RESERVED = ("manifest.json", "records", "images")


class Run:
    """One run folder: `folder`, the stored `manifest`, this process's `worker` name, `resumed` and `changed`.

    `changed` maps manifest entries that differ to (stored, now). Several processes may write one folder; each has
    its own worker name, hence its own record file.
    """

    def __init__(
        self, folder, manifest: dict, worker: str = "0", *, resumed: bool = True, changed=None
    ):
        if not _WORKER.fullmatch(worker):
            raise StoreError(f"worker name {worker!r}: use 1 to 64 of A-Z a-z 0-9 _ -")
        self.folder, self.manifest, self.worker = Path(folder), manifest, worker
        self.resumed, self.changed = resumed, changed or {}

    @classmethod
    def open(
        cls, folder, manifest: dict, *, worker: str = "0", allow: Sequence[str] | None = ()
    ) -> "Run":
        """Create a run folder, or re-open it to resume the same request.

        The key is the sha256 of `manifest["request"]`. Other entries (versions, command) may differ when
        resuming: `changed` lists them, and so does the stored manifest under `resumed`. Of the request only
        entries named in `allow` may: "weights", or "ocr" for all below it; None where nothing can. Raises StoreError for another request,
        an `allow` without effect, a folder with other things in it, a damaged manifest, or one that cannot be written.
        """
        new = _stamped(manifest)
        run = cls(folder, new, worker, resumed=False)
        with explained(run.folder, "open"):
            if allow and not (run.folder / "manifest.json").exists():
                raise StoreError(
                    f"{', '.join(allow)} may differ, but {run.folder} holds no run yet; leave out --allow, or "
                    "give the --out of the run to go on with"
                )
            stored = _create(run.folder, new, worker)
            sweep(run.folder, worker)
            return run if stored is None else cls._resume(run.folder, stored, new, worker, allow)

    @classmethod
    def load(cls, folder, *, worker: str = "0") -> "Run":
        """Open a run folder that exists, whatever its request; raises StoreError if it is none."""
        with explained(folder, "open"):
            return cls(folder, _read_manifest(Path(folder) / "manifest.json"), worker)

    @classmethod
    def _resume(
        cls, folder: Path, stored: dict, new: dict, worker: str, allow: Sequence[str] | None
    ) -> "Run":
        _require_entries(allow or (), stored["request"], new["request"])
        asked = _asked_otherwise(stored, new)
        if not all(_covered(name, allow or ()) for name in asked):
            raise StoreError(
                _other_request(
                    folder, asked, "" if allow is None else ", or name what may differ with --allow"
                )
            )
        changed = _differences(_rest(stored), _rest(new)) | asked
        entry = {name: {"stored": old, "now": now} for name, (old, now) in changed.items()}
        if entry:
            with alone_in(folder):
                stored = _read_manifest(
                    folder / "manifest.json"
                )  # where another worker may have told its own meanwhile
                if entry not in stored.setdefault("resumed", []):
                    stored["resumed"].append(entry)
                    write(folder / "manifest.json", as_json(stored, indent=1), worker)
        return cls(folder, stored, worker, changed=changed)

    def append(self, record: dict) -> None:
        """Add one record (a dict with a string "id"); on return it is on the disk.

        One os.write on an O_APPEND descriptor, then fsync; a torn line of a killed writer is cut off first.
        Raises StoreError for values JSON cannot hold and for a full disk; the file is then as before.
        """
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            raise StoreError(f'a record is a dict with a string "id"; got {repr(record)[:80]}')
        path, line = self.folder / "records" / f"{self.worker}.jsonl", sealed(record)
        with explained(path, "append to"):
            path.parent.mkdir(exist_ok=True)
            append_line(path, line)

    def records(self) -> list[dict]:
        """All finished records in file, then line order; of records with one id the first counts.

        An unfinished last line is left out. So is any other damaged one, with a warning that names file and lines:
        its piece of work is not finished.
        """
        first: dict[str, dict] = {}
        for path in sorted((self.folder / "records").glob("*.jsonl")):
            records, damaged, lines = read_records(path)
            if damaged:
                warnings.warn(
                    f"{path}: {len(damaged)} of {lines} lines are damaged and left out, the first is line "
                    f"{damaged[0]}; resuming makes again what they held",
                    stacklevel=2,
                )
            for record in records:
                first.setdefault(record["id"], record)
        return list(first.values())

    def done(self) -> set[str]:
        """The ids of all finished records; warns as `records` does."""
        return {record["id"] for record in self.records()}

    def image(self, picture: Image.Image) -> str:
        """Store a PIL picture as PNG and return its path in the folder; equal pixels make one file."""
        if not isinstance(picture, Image.Image) or 0 in picture.size:
            raise StoreError(
                f"image() stores a PIL picture of at least one pixel; got {repr(picture)[:80]}"
            )
        picture = picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB")
        pixels = picture.tobytes()
        digest = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + pixels).hexdigest()
        name = f"images/{digest[:16]}.png"
        if not (self.folder / name).exists():
            data = io.BytesIO()
            # from bare pixels: a profile or comment riding on the picture would get into the file
            Image.frombytes(picture.mode, picture.size, pixels).save(data, "PNG")
            write(self.folder / name, data.getvalue(), self.worker)
        return name

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file whole or not at all, and return its path; `name` must stay inside the folder."""
        path = _inside(self.folder, name)
        write(path, data, self.worker)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write UTF-8 text whole or not at all; a lone surrogate becomes an escape."""
        return self.write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def write_json(self, name: str, value) -> Path:
        """Write JSON whole or not at all; raises StoreError for NaN, Infinity and what is not JSON."""
        return self.write_bytes(name, as_json(value, indent=1) + b"\n")

    def write_csv(self, name: str, rows: list[dict]) -> Path:
        """Write rows as CSV; the columns are all keys in order of first appearance, None is an empty cell."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, *([row.get(key) for key in columns] for row in rows)] if columns else []
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [_cell(value) for value in line] for line in lines
        )
        return self.write_text(name, text.getvalue())


def flatten(tree, prefix: str = "") -> dict:
    """The leaves of a nested JSON value by dotted name: {"a": {"b": [1]}} gives {"a.b.0": 1}."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    leaves = {}
    for name, value in items:
        leaves.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return leaves or {prefix: tree}


# --- the manifest


def _stamped(manifest: dict) -> dict:
    if not isinstance(manifest, dict) or "request" not in manifest:
        raise StoreError(
            'a manifest is a dict with a "request": everything that decides the results'
        )
    plain = json.loads(
        as_json(manifest)
    )  # as it will be read back: tuples are lists, keys are strings
    return {**plain, "schema_version": SCHEMA_VERSION, "key": _key(plain["request"])}


def _canonical(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _key(request) -> str:
    return hashlib.sha256(_canonical(request).encode()).hexdigest()


def _rest(manifest: dict) -> dict:
    return {
        k: v
        for k, v in manifest.items()
        if k not in ("request", "key", "resumed", "schema_version")
    }


def _create(folder: Path, manifest: dict, worker: str) -> dict | None:
    """Claim a new or empty folder (None), or return the manifest there; a failure leaves no folder."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _claim(folder, manifest, worker)
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # not there, or another worker is in it
                path.rmdir()
        raise


def _claim(folder: Path, manifest: dict, worker: str) -> dict | None:
    path = folder / "manifest.json"
    # listed before looking for the manifest, which is the first file a worker starting beside us would write
    strangers = sorted(name for name in os.listdir(folder) if not name.startswith(".tmp."))
    if path.exists():
        return _read_manifest(path)
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise StoreError(
            f"{folder} holds {shown} but no manifest.json, so it is no run; give another --out"
        )
    claimed = write(path, as_json(manifest, indent=1), worker, exclusive=True)
    return None if claimed else _read_manifest(path)


def _read_manifest(path: Path) -> dict:
    manifest = read_json(path)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {version}, known is {SCHEMA_VERSION}; upgrade textpatch"
        )
    if version != SCHEMA_VERSION or manifest.get("key") != _key(manifest.get("request")):
        raise StoreError(
            f"{path} is no manifest of textpatch, or was edited: its key and request disagree"
        )
    return manifest


def _differences(old: dict, new: dict) -> dict[str, tuple]:
    old, new = flatten(old), flatten(new)
    pairs = {
        name: (old.get(name, ABSENT), new.get(name, ABSENT))
        for name in dict.fromkeys([*old, *new])
        if name
    }
    return {
        name: pair for name, pair in pairs.items() if _canonical(pair[0]) != _canonical(pair[1])
    }


def _asked_otherwise(stored: dict, new: dict) -> dict:
    if stored["key"] == new["key"]:
        return {}
    old, now = stored["request"], new["request"]
    return _differences({"request": old}, {"request": now}) or {"request": (old, now)}


def _covered(name: str, allow: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"request.{entry}.") for entry in allow)


def _require_entries(allow: Sequence[str], *requests: dict) -> None:
    """Raise StoreError for a name in `allow` that is no entry of either request."""
    names = {
        part
        for request in requests
        for name in flatten(request)
        for part in (name, name.partition(".")[0])
    }
    for entry in allow:
        if not any(_covered(f"request.{name}", [entry]) for name in names):
            raise StoreError(
                f"{entry!r} may not differ, for the request has no such entry{closest(entry, names)}"
            )


def _other_request(folder: Path, differences: dict, otherwise: str) -> str:
    first = list(differences.items())[:6]
    shown = [
        f"{name.removeprefix('request.')}: stored {_short(a)}, asked {_short(b)}"
        for name, (a, b) in first
    ]
    more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
    return f"{folder} holds another run ({'; '.join(shown)}{more}); give another --out, ask for the same{otherwise}"


def _short(value, limit: int = 60) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."


# --- what is written


def _inside(folder: Path, name: str) -> Path:
    parts = name.split("/") if isinstance(name, str) else [""]
    if not all(_PART.fullmatch(part) for part in parts) or parts[0].lower() in _RESERVED:
        raise StoreError(
            f"{name!r} cannot be a file name here: use A-Z a-z 0-9 . _ - (and / for a folder "
            f"inside), and leave {', '.join(_RESERVED)} alone"
        )
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{name!r} leads out of {folder} through a link; remove the link")
    return path


def _cell(value):
    if not isinstance(value, str):
        return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value
    text = value.replace(
        "\r", "\n"
    )  # which ends a line for some readers, and the writer does not quote
    return (
        "'" + text if text.startswith(tuple("=+-@\t\n")) else text
    )  # or a spreadsheet would run =cmd(...)
