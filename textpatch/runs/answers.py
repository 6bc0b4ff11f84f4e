"""What a finished command answered, kept in its run folder.

The same command finds it there again and needs no model, no torch and no second of waiting.  An answer holds
as long as nothing has changed: the options, the model's files and the others that were read, and the folder.
Files count as unchanged while their sizes and times of writing are the same, as for make.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from textpatch.disk import as_json, write

FILE = "answer.json"
SCHEMA_VERSION = 1


class Answer(NamedTuple):
    """What a finished command said.

    folder  the run folder, whose results.json says the same to a program
    text    lines for a person
    made    name of the file in the folder that a person looks at, "" for none
    """

    folder: Path
    text: str
    made: str


def keep(answer: Answer, asked: dict, read: Iterable[Path]) -> None:
    """Keep an answer in its run folder.

    asked  what the command asked for, JSON
    read   files and folders that decided the answer
    """
    roots = sorted({os.path.abspath(path) for path in read})
    kept = {
        "schema_version": SCHEMA_VERSION,
        "asked": _digest(asked),
        "read": roots,
        "read_sha256": _state(roots),
        "folder_sha256": _state([str(answer.folder)]),
        "text": answer.text,
        "made": answer.made,
    }
    write(answer.folder / FILE, as_json(kept), "answer")


def recalled(folder: Path, asked: dict) -> Answer | None:
    """Return the answer that a run folder keeps of the same request, None if something has changed."""
    kept = _read(folder / FILE)
    if kept.get("asked") != _digest(asked) or kept.get("schema_version") != SCHEMA_VERSION:
        return None
    if kept["read_sha256"] != _state(kept["read"]):
        return None
    if kept["folder_sha256"] != _state([str(folder)]):
        return None
    return Answer(folder, kept["text"], kept["made"])


def _read(path: Path) -> dict:
    """The content of an answer's file, {} where there is none that can be read."""
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(kept, dict):
        return kept
    return {}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _state(roots: Iterable[str]) -> str:
    """Sha256 of names, sizes and times of writing of all files below some places."""
    found = []
    for root in roots:
        found.append(_stamp(root, root))
        for path in _files(root):
            found.append(_stamp(path, os.path.relpath(path, root)))
    return _digest(found)


def _files(root: str) -> Iterator[str]:
    """Paths of all files below a folder and its linked folders, none of a file.

    A folder that was walked is not walked again, so that a link to a folder above it ends.
    """
    walked = set()
    for where, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(where)
        if real in walked:
            folders.clear()
            continue
        walked.add(real)
        folders.sort()
        for name in sorted(names):
            if name != FILE and not name.startswith(".tmp."):
                yield os.path.join(where, name)


def _stamp(path: str, name: str) -> list:
    """Name, size and time of writing of a file, the name alone of a folder or of what is gone."""
    try:
        told = os.stat(path)
    except OSError:
        return [name, "gone"]
    if os.path.isdir(path):
        return [name]
    return [name, told.st_size, told.st_mtime_ns]
