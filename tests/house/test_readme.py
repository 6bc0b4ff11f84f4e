"""The README is true: its Python runs from top to bottom and prints what stands there; its targets and pictures exist.

Its commands are carried out in cli/test_documented.py.
"""

import re
from pathlib import Path

import pytest

from support.documents import BLOCKS, README, ROOT, starting

PYTHON = [body for language, body in BLOCKS if language == "python"]


def test_there_is_something_to_run():
    """At least one block of Python, and the two commands everybody starts with."""
    assert PYTHON and {("make", "demo"), ("make", "test")} <= {
        tuple(words[:2]) for words in starting("make")
    }


def words(text: str) -> list[str]:
    """What stands in an output, with `#` for every decimal number: the last digits are the machine's."""
    return re.sub(r"\d+\.\d+(e[+-]\d+)?", "#", text).split()


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    """All Python blocks in one session, as a reader would paste them; what is printed is the text block after it."""
    monkeypatch.chdir(tmp_path)
    session, compared = {}, 0
    for (language, body), (after, shown) in zip(BLOCKS, [*BLOCKS[1:], ("", "")]):
        if language == "python":
            exec(compile(body, "a Python block of README.md", "exec"), session)
            printed = capsys.readouterr().out
            if printed and after == "text":
                assert words(printed) == words(shown)
                compared += 1
    assert compared == 1  # the audit


@pytest.mark.parametrize("words", starting("make"), ids=" ".join)
def test_the_targets_exist(words):
    """Every `make` target of the README is in the Makefile."""
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_pictures_are_there():
    """Every local picture or file the README links to is in the repository."""
    linked = [path for path in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in path]
    assert [path for path in linked if not Path(ROOT, path).exists()] == []
