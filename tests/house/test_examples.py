"""The examples and the notebook run, and print what is stored beside them.

`python tests/support/examples.py` stores anew what they print and show.
"""

import base64
import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from support.documents import without_decimals
from support.examples import (
    FOLDER,
    NOTEBOOK,
    code_cells,
    printed,
    run_cell,
    run_example,
    shown,
    told,
)
from textpatch.examples import summaries

STORED = NOTEBOOK.read_text("utf-8")
CODE = code_cells(json.loads(STORED))
LONGEST = 60  # lines of code, without the docstring
MOST_BYTES = 400_000


# the longest; tests/metrics hangs signs in scenes, too
LONG = {"signs_in_scenes"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in summaries()],
)
def test_an_example_prints_what_it_says(name, tmp_path, monkeypatch):
    """Run as `python -m` runs it, an example prints the block of its docstring and writes no file."""
    monkeypatch.chdir(tmp_path)
    assert told(name)
    assert without_decimals(run_example(name)) == without_decimals(told(name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", summaries())
def test_an_example_is_short(name):
    """Below its docstring an example has at most 60 lines that are not blank."""
    source = (FOLDER / f"{name}.py").read_text("utf-8")
    body = source.split('"""', 2)[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= LONGEST


def test_the_examples_are_listed_without_importing_torch():
    """`python -m textpatch.examples` names every example and the notebook at once."""
    code = (
        "import runpy, sys; runpy.run_module('textpatch.examples'); print('torch' in sys.modules)"
    )
    listed = subprocess.check_output([sys.executable, "-m", "textpatch.examples"], text=True)
    for name, summary in summaries().items():
        assert f"python -m textpatch.examples.{name}\n    {summary}\n" in listed
    assert "first_hour.ipynb" in listed and len(summaries()) >= 3
    assert subprocess.check_output([sys.executable, "-c", code], text=True).endswith("False\n")


@pytest.mark.long
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells, run in order in one session, print what is stored beside them.

    By default the examples run, and so do the pages' code blocks.
    """
    monkeypatch.chdir(tmp_path)
    session: dict = {}
    for number, cell in enumerate(CODE, 1):
        text, value = run_cell("".join(cell["source"]), session)
        assert without_decimals(text) == without_decimals(printed(cell)), number
        assert (value is None) == (not shown(cell, "text/plain")), number
    assert session["found"].ranked[0] == (1,)
    assert not list(tmp_path.iterdir())


def test_the_notebook_was_run_from_top_to_bottom():
    """Every code cell was run in its turn and shows something, none an error and none a warning."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    for cell in CODE:
        assert cell["outputs"]
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"


def test_the_notebook_holds_its_pictures():
    """At least three cells show a picture, stored as PNG that opens."""
    stored = [picture for cell in CODE for picture in shown(cell, "image/png")]
    assert len(stored) >= 3
    for picture in stored:
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()


def test_the_notebook_is_small_and_tells_nothing_of_a_machine():
    """At most 400 kB, no path of a machine and no name of a kernel but the common one."""
    assert len(STORED.encode()) <= MOST_BYTES
    assert not re.search(r"/(home|root|tmp|work|Users|mnt)/|\\\\Users|site-packages", STORED)
    assert json.loads(STORED)["metadata"]["kernelspec"]["name"] == "python3"
