"""The table of moved names in CHANGELOG.md finds every name of 0.1.0, and all that it names is there."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHANGES = (ROOT / "CHANGELOG.md").read_text("utf-8")
# of 0.1.0: module -> its public functions and classes
NAMES = json.loads((ROOT / "tests" / "golden" / "names.json").read_text("utf-8"))
CELLS = re.findall(r"^\| (`.+?) \| (.+) \|$", CHANGES.split("### New\n")[0], re.MULTILINE)


def full_names(cell: str) -> tuple[list[str], list[str]]:
    """The dotted names of a cell, each after a dot made whole by the one before it, and its bare names."""
    dotted, bare = [], []
    for span in re.findall(r"`([^`]+)`", cell):
        if span.startswith("."):
            dotted.append(dotted[-1].rpartition(".")[0] + span)
        elif span.startswith("textpatch"):
            dotted.append(span)
        elif " " not in span:
            bare.append(span)
    return dotted, bare


def found(name: str):
    """The module, function or class of a dotted name; None where there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(found(module), last, None) if module else None


def destinations(module: str, name: str) -> list[str]:
    """Where the table sends a name of a module: to modules that may hold it, or to what it is called now."""
    to = [module]
    for old, new in CELLS:
        modules, names = full_names(old)
        if module in modules or not modules:
            to += full_names(new)[0] if not names or name in names else []
    return to


def is_told(module: str, name: str) -> bool:
    """Whether a name is at its old place, at a place that the table says, or under a name that it says."""
    renamed = {span for old, _ in CELLS for span in full_names(old)[1]}
    for place in destinations(module, name):
        there = found(place)
        is_module = hasattr(there, "__path__") or hasattr(there, "__file__")
        if is_module and hasattr(there, name):
            return True
        if there is not None and not is_module and name in renamed:
            return True
    return False


@pytest.mark.parametrize("cell", [new for _, new in CELLS])
def test_the_new_names_are_there(cell):
    """Every name on the right of the table can be imported, and a bare one from a module beside it."""
    dotted, bare = full_names(cell)
    assert dotted and [name for name in dotted if found(name) is None] == []
    for name in bare:
        assert any(hasattr(found(module), name) for module in dotted), name


@pytest.mark.parametrize("module", NAMES)
def test_the_old_names_are_where_the_table_says(module):
    """A public function or class of 0.1.0 that left its module is found by the table."""
    assert [name for name in NAMES[module].split() if not is_told(module, name)] == []


def test_a_gap_in_the_table_is_noticed(monkeypatch):
    """Fault: the table without its line on what became of `patch`, and one with a misspelt module."""
    assert is_told("textpatch.patch", "KVCache")
    monkeypatch.setattr(
        f"{__name__}.CELLS", [cells for cells in CELLS if "`textpatch.patch`" not in cells]
    )
    assert not is_told("textpatch.patch", "KVCache")
    assert found("textpatch.patching_") is None
