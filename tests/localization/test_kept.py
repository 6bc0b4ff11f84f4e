"""A localisation made in Python is asked for its numbers, and kept as a run folder with its page."""

import sys
from types import SimpleNamespace

import pytest

from support.localizing import PAIRS, PixelReader
from support.small_models import small_pipeline
from textpatch import PatchError, Run, localize
from textpatch.errors import StoreError


@pytest.fixture(scope="module")
def found():
    return localize(small_pipeline(), PAIRS[:1], sites=[0, 1], steps=1, ocr=PixelReader())


def test_a_localisation_is_asked_for_its_numbers(found):
    """For the set, the headline, a site's scores and the table."""
    assert found.set == () and found.headline in repr(found) and found.table() in repr(found)
    by_index = found.scores(1)
    assert by_index == found.scores(by_index["name"]) and by_index["n"] == 1
    with pytest.raises(PatchError, match="site 9 were asked for; tried were 0, 1"):
        found.scores(9)


def test_a_localisation_is_a_run_folder_when_saved(found, tmp_path):
    """Saved, and saved again from there, it is one result, and its page stands alone."""
    run = found.save(tmp_path / "run")
    names = {path.name for path in run.folder.iterdir()}
    assert {"report.html", "results.json", "contact_sheet.png", "manifest.json"} <= names
    page = (run.folder / "report.html").read_text("utf-8")
    stored = type(found)(found.result, Run.load(run.folder).finished(), run)
    assert stored.report() == page and "<script" not in page
    stored.save(run.folder)
    assert run.records() == stored.records and len(stored.records) == len(found.records) == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(StoreError, match=r"holds notes\.txt"):
        found.save(tmp_path / "full")


def test_pandas_gets_the_rows_of_the_results(found, monkeypatch):
    """Where it is installed, and else a sentence says so."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert [row["name"] for row in found.to_pandas()][:2] == ["source", "target"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PatchError, match="to_pandas needs pandas"):
        found.to_pandas()
