"""A result that was made in Python, kept as a run folder or given to pandas."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from textpatch.errors import PatchError
from textpatch.pictures import opened
from textpatch.report.page import all_rows, publish
from textpatch.runs.folder import Run
from textpatch.runs.packages import versions
from textpatch.runs.requests import flatten

if TYPE_CHECKING:
    from pandas import DataFrame

_FACTS = ("model", "mode", "pairs_list", "seeds", "steps", "guidance", "start", "branch", "ocr")


def frame_of(result: dict) -> DataFrame:
    """Rows of results.csv as a table of pandas.  Raises PatchError without pandas."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise PatchError(
            "to_pandas needs pandas, which is not installed; pip install pandas, or take `.result`"
        ) from None
    return pandas.DataFrame([flatten(row) for row in all_rows(result)])


def manifest_of(result: dict, run: Run | None) -> dict:
    """Manifest of the run that made a result, or one of the result's own facts where there was none."""
    if run is not None:
        return run.manifest
    facts = {name: result[name] for name in _FACTS if name in result}
    sites = [entry["group"] for entry in result["sites"]]
    request = {"command": "localize", "called": "in Python", **facts, "sites": sites}
    return {"request": request, "versions": versions()}


def keep(result: dict, records: list[dict], run: Run | None, folder: str | os.PathLike[str]) -> Run:
    """Write a result, its records and their pictures into a run folder, and return that.

    run  where pictures lie that the records name by a path
    Raises StoreError for a folder that holds another run or other things.
    """
    kept = Run.open(folder, manifest_of(result, run))
    there = kept.done()
    copies = []
    for record in records:
        copy = {**record, "pictures": _copied(record["pictures"], run, kept)}
        copies.append(copy)
        if record["id"] not in there:
            kept.append(copy)
    publish(kept, result, copies)
    return kept


def _copied(pictures: dict[str, dict], run: Run | None, kept: Run) -> dict[str, dict]:
    """The pictures of a record, each with its path in the folder that keeps it."""
    return {
        name: {**picture, "image": kept.image(opened(picture["image"], run))}
        for name, picture in pictures.items()
    }
