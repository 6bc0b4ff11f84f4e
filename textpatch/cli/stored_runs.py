"""Run folders that commands look at: what was asked for in each, and what it came to."""

from __future__ import annotations

import time
from pathlib import Path

from textpatch.disk import read_json
from textpatch.errors import PatchError, StoreError

RESULTS = "results.json"


def run_folders(where: Path) -> list[Path]:
    """Return the run folders in a folder and below it, the newest first.

    Raises PatchError for a folder that is not there.
    """
    if not where.is_dir():
        raise PatchError(
            f"no folder {where}; run folders are made by generate, localize, edit and sanitize, "
            "in runs/ unless --out says where"
        )
    found = [path.parent for path in where.glob("**/manifest.json")]
    return sorted(found, key=_written, reverse=True)


def _written(folder: Path) -> float:
    return (folder / "manifest.json").stat().st_mtime


def told_run(folder: Path) -> dict:
    """Return what a run folder is: verb, model, day, and how far it got.

    Raises StoreError for a folder that holds no run.
    """
    from textpatch.runs.folder import Run

    run = Run.load(folder)
    request = run.manifest["request"]
    state = "finished" if (folder / RESULTS).is_file() else "not finished"
    return {
        "folder": str(folder),
        "verb": request.get("command", "-"),
        "model": request.get("model", "-"),
        "day": time.strftime("%Y-%m-%d %H:%M", time.localtime(_written(folder))),
        "state": state,
        "records": len(run.records()),
    }


def result_of(folder: Path) -> dict:
    """Return the content of a run's results.json.

    Raises StoreError for a run that is not finished.
    """
    if not (folder / RESULTS).is_file():
        raise StoreError(
            f"{folder} has no {RESULTS}, so it is not finished; give the command again that began it"
        )
    return read_json(folder / RESULTS)
