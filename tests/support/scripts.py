"""The scripts of benchmarks/, imported as they import each other, and the tables they write."""

import csv
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from support.documents import ROOT

FOLDER = ROOT / "benchmarks"


def importer(monkeypatch) -> Callable[[str], ModuleType]:
    """Give the function that imports a script by its name, and finds its neighbours."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def rows_of(path: Path) -> list[dict]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
