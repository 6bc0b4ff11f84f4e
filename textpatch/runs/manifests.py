"""The manifest of a run folder: claimed once, read with its key held to its request, and added to."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from textpatch.disk import alone_in, as_json, read_json, write
from textpatch.errors import StoreError
from textpatch.runs.requests import request_key
from textpatch.stored import JSONObject

SCHEMA_VERSION = 1
# entries of a manifest that are no facts of a session
_OURS = ("request", "key", "resumed", "sessions", "schema_version")


def stamped(manifest: Mapping[str, object]) -> JSONObject:
    """Return a manifest as it will be read back, with its key and schema version."""
    if not isinstance(manifest, dict) or "request" not in manifest:
        raise StoreError(
            'a manifest is a dict with a "request": everything that decides the results'
        )
    # through JSON, for tuples are lists there and keys are strings
    plain = json.loads(as_json(manifest))
    return {**plain, "schema_version": SCHEMA_VERSION, "key": request_key(plain["request"])}


def facts(manifest: JSONObject) -> JSONObject:
    """Return what a manifest says beside its request, such as versions and the command."""
    return {name: value for name, value in manifest.items() if name not in _OURS}


def created(folder: Path, manifest: JSONObject, worker: str) -> JSONObject | None:
    """Claim a new or empty folder and return None, or return the manifest there.

    A failure leaves no folder that was not there before.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _claim(folder, manifest, worker)
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # not there, or another worker is in it
                path.rmdir()
        raise


def _claim(folder: Path, manifest: JSONObject, worker: str) -> JSONObject | None:
    path = folder / "manifest.json"
    # listed before looking for the manifest, the first file that a worker starting beside us would write
    strangers = sorted(name for name in os.listdir(folder) if not name.startswith(".tmp."))
    if path.exists():
        return read_manifest(path)
    if strangers:
        shown = ", ".join(strangers[:3])
        if len(strangers) > 3:
            shown += ", ..."
        raise StoreError(
            f"{folder} holds {shown} but no manifest.json, so it is no run; give another --out"
        )
    if write(path, as_json(manifest, indent=1), worker, exclusive=True):
        return None
    return read_manifest(path)


def read_manifest(path: Path) -> JSONObject:
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        manifest = {}
    version = manifest.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {version}, known is {SCHEMA_VERSION}; upgrade textpatch"
        )
    if version != SCHEMA_VERSION or manifest.get("key") != request_key(manifest.get("request")):
        raise StoreError(
            f"{path} is no manifest of textpatch, or was edited: its key and request disagree; "
            "give another --out"
        )
    return manifest


def note_changes(folder: Path, changed: dict[str, tuple], worker: str) -> dict:
    """Add what changed to the manifest's `resumed`, unless it is there, and return the manifest."""
    entry = {name: {"stored": old, "now": now} for name, (old, now) in changed.items()}
    return add_to_manifest(folder, "resumed", entry, worker)


def add_to_manifest(folder: Path, name: str, entry, worker: str) -> dict:
    """Add an entry to a list of the manifest, unless it is there, and return the manifest."""

    def added(entries: list) -> list:
        return entries if entry in entries else [*entries, entry]

    return change_manifest(folder, name, added, worker)


def change_manifest(folder: Path, name: str, change: Callable[[list], list], worker: str) -> dict:
    """Change a list of the manifest, which is left out while it is empty, and return the manifest."""
    path = folder / "manifest.json"
    with alone_in(folder):
        manifest = read_manifest(path)  # another worker may have changed it meanwhile
        entries = manifest.pop(name, [])
        changed = change(entries)
        if changed:
            manifest[name] = changed
        if changed != entries:
            write(path, as_json(manifest, indent=1), worker)
    return manifest
