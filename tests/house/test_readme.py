"""The pages are true: their Python runs and prints what stands there; what they name and link to exists.

Its commands are carried out in cli/test_documented.py, its tables are held by house/test_tables.py.
"""

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterable
from configparser import ConfigParser
from pathlib import Path

import pytest

from support.documents import (
    FOLDERS,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    links,
    spans,
    starting,
    without_decimals,
)
from textpatch import cli

MAKEFILE = (ROOT / "Makefile").read_text()
WITH_PYTHON = [page for page in PAGES if any(language == "python" for language, _ in blocks(page))]


# --- the top page


def test_the_top_page_is_one_page():
    """At most 150 lines, in the order in which a newcomer asks."""
    assert len(README.splitlines()) <= 150
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == [
        "Install",
        "Thirty seconds",
        "Which door?",
        "The idea",
        "What comes out",
        "Embed",
        "Audit",
        "Commands",
        "Published models",
        "What is proved",
        "Limits",
        "Folders, citation, licence",
    ]


def test_the_first_screen_says_what_it_is_and_how_to_get_it():
    """Idea, paper, picture, pip, tesseract and the two commands stand in the first 35 lines."""
    screen = "\n".join(README.splitlines()[:35])
    for wanted in ("index into it", "2502.09935", ".png)", "pip install", "tesseract"):
        assert wanted in screen
    assert "make demo" in screen and "make test" in screen


def test_every_page_is_linked_from_another():
    """No page stands where nobody finds it."""
    linked = {path.resolve() for page in PAGES for path, _ in links(page)}
    hidden = [page for page in PAGES if page != "README.md" and (ROOT / page) not in linked]
    assert hidden == ["tests/golden/README.md"]  # about data, beside it


# --- what runs


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_runs(page, tmp_path, monkeypatch, capsys):
    """All Python blocks of a page in one session, as a reader pastes them; each prints the text after it."""
    monkeypatch.chdir(tmp_path)
    session, found = {}, blocks(page)
    if any("diffusers" in body for language, body in found if language == "python"):
        diffusers = pytest.importorskip("diffusers")
        monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", small_pipeline)
    for (language, body), (after, shown) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python":
            exec(compile(body, f"a Python block of {page}", "exec"), session)
            printed = capsys.readouterr().out
            expected = shown if after == "text" else ""
            assert without_decimals(printed) == without_decimals(expected)


@classmethod
def small_pipeline(kind, name, **settings):
    """A small random pipeline of the class, in the place of a published one."""
    from support import foreign_pipelines

    made = {"FLUX.1-dev": foreign_pipelines.flux, "Qwen-Image": foreign_pipelines.qwen_image}
    return made[name.rpartition("/")[2]]()


def test_each_door_has_something_to_run():
    """The pages for those who embed, audit, port, localise and load hold Python, and it prints something."""
    doors = ["README.md", "reference_models/README.md", "weights/README.md"]
    doors += [f"textpatch/{wing}README.md" for wing in ("", "localization/", "ports/")]
    for page in doors:
        kinds = [language for language, _ in blocks(page)]
        assert ("python", "text") in list(zip(kinds, kinds[1:], strict=False)), page


# --- what is named


@pytest.mark.parametrize("words", starting("make"), ids=" ".join)
def test_the_targets_exist(words):
    """Every `make` target of a page is in the Makefile."""
    assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE)


def test_a_newcomer_is_told_how_to_begin():
    """The two commands everybody starts with, and pip."""
    assert {("make", "demo"), ("make", "test")} <= {tuple(words) for words in starting("make")}
    assert starting("pip")


def test_the_extras_exist():
    """What pip is told to install beside the library is an extra of setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = {
        extra
        for words in starting("pip")
        for word in words
        for extra in re.findall(r"\[(\w+)\]", word)
    }
    named |= {span.strip("[]") for span in spans("README.md") if re.fullmatch(r"\[\w+\]", span)}
    assert named == {"ocr", "triton", "reference"}
    assert named <= set(setup["options.extras_require"])
    # without an extra `localize` comes to its page, whose drawing matplotlib makes
    assert "matplotlib" in setup["options"]["install_requires"]


def said(word: str) -> list[list[str]]:
    """Commands that start with a word, from the blocks of all pages and from between their lines."""
    inline = [span for page in PAGES for span in spans(page) if span.startswith(word + " ")]
    return [*starting(word), *(shlex.split(line) for line in dict.fromkeys(inline))]


@pytest.mark.parametrize("words", said("python"), ids=" ".join)
def test_the_modules_and_scripts_exist(words):
    """What a page runs by python is a module that can be run, or a file."""
    if words[1] == "-m":
        path = importlib.util.find_spec(words[2])
        assert path is not None
        return
    assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("words", said("textpatch"), ids=" ".join)
def test_the_options_exist(words):
    """Each command that a page mentions is one, and has the options that stand with it."""
    parser = cli.parser.command_parser()
    (verbs,) = [act for act in parser._actions if isinstance(act, argparse._SubParsersAction)]
    assert words[1] in verbs.choices
    options = verbs.choices[words[1]]._option_string_actions
    assert [word for word in words if word.startswith("--") and word not in options] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_files_exist(page):
    """Every link, heading and path that a page names is there."""
    for path, heading in links(page):
        assert path.exists(), path
        assert not heading or heading in anchors(path), heading
    for span in spans(page):
        assert is_there(span.split()[0], (ROOT / page).parent), span


# Not of the repository: what a run folder holds, and what a script makes when it runs
MADE = "records/", "images/", "pictures/", "checkpoints/", "benchmarks/results/gpu"


def is_there(span: str, folder: Path) -> bool:
    """Whether a path between backticks exists, from the root or beside the page; anything else is no path."""
    if span in MADE:
        return True
    if span.startswith(tuple(f"{name}/" for name in FOLDERS)) or re.fullmatch(r"[a-z_]+/", span):
        return any(True for near in (ROOT, folder) for _ in near.glob(span.rstrip("/")))
    if re.fullmatch(r"[a-z_]+\.py", span):
        return any(True for _ in folder.rglob(span))
    return True


READ_IN_ORDER = [
    "benchmarks/README.md",
    "reference_models/README.md",
    "textpatch/README.md",
    "textpatch/localization/README.md",
    "textpatch/ports/README.md",
    "weights/README.md",
]


def not_told(page: str, files: Iterable[str]) -> list[str]:
    """Files that a page names neither as `file.py` nor as `file`."""
    named = {word for span in spans(page) for word in re.split(r"[\s,/]+", span)}
    return [name for name in files if not {name, name.removesuffix(".py")} & named]


@pytest.mark.parametrize("page", READ_IN_ORDER)
def test_a_page_tells_in_which_order_its_files_are_read(page):
    """Every file of the page's folder stands on it, and one sentence says with which to begin."""
    files = [path.name for path in (ROOT / page).parent.glob("*.py") if path.stem != "__init__"]
    assert len(files) > 5 and not_told(page, files) == []
    assert re.search(r"^(Read |## In which order to read)", PAGES[page], re.MULTILINE)
    assert not_told(page, ["nothing_there.py"])


def test_the_make_targets_are_told():
    """The first lines of the Makefile say what each target for people does, and `make help` prints them."""
    told = re.findall(r"^# make (\w+)", MAKEFILE, re.MULTILINE)
    assert told == ["demo", "test", "lint", "clean", "help"]
    for target in told:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_a_fault_on_a_page_is_noticed(tmp_path):
    """Fault: a heading that is not there, a path that was moved, an output that is not printed."""
    page = tmp_path / "README.md"
    page.write_text("# Title\n\n## What a search costs\n")
    assert anchors(page) == {"title", "what-a-search-costs"}
    assert is_there("tests/support/laws.py", ROOT) and not is_there("tests/laws.py", ROOT)
    assert is_there("plan.py", ROOT / "textpatch") and not is_there("plan_.py", ROOT / "textpatch")
    told = without_decimals("a 2.75 b")
    assert without_decimals("a 1.5e-06 b\n") == told != without_decimals("a 2.75 c")
