"""What each command writes, held to a golden file: whoever reads a run folder by a script finds
what was there before.

tests/golden/written.json holds, by command and file, every key path and the types seen under it:
`[]` is any place of a list, `#` any number in a name. A path more or less is a change of the format
and wants a line in golden/written.json:

    PYTHONPATH=tests python tests/cli/test_written.py
"""

import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from support.localizing import by_pixels, without_drawing
from support.planting import plant
from support.typed import unlike
from textpatch import cli
from textpatch.cli import edit_command, models_command
from textpatch.cli.parser import VERBS
from textpatch.cli.report_command import joined
from textpatch.disk import read_json
from textpatch.runs.folder import Run
from textpatch.stored import (
    ComparisonResult,
    Generations,
    JSONObject,
    LocalizationResult,
    Record,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "written.json"
SOURCE = 'a red sign that says "HELLO" on a blue wall'
SHORT = ["planted-mmdit", "--steps", "1"]
PAIR = ["--source", SOURCE, "--target", SOURCE.replace("HELLO", "WORLD")]
EDIT = ["--old", SOURCE, "--new", SOURCE.replace("HELLO", "WORLD")]
COMMANDS = {
    "generate": ["generate", *SHORT, SOURCE, "--negative", "a blue wall", "--guidance", "2"],
    "edit": ["edit", *SHORT, *PAIR],
    "edit --picture": ["edit", *SHORT, *PAIR, "--picture", "sign.png", "--inversion", "flowedit"],
    "sanitize": ["sanitize", *SHORT, "--prompts", "prompts", "--words", "words", "--before"],
    "finetune": ["finetune", *SHORT, "--data", "signs", "--examples", "2", "--batch", "2"],
    "rewrite": ["rewrite", "planted-sdxl", *EDIT],
    "edit --method": ["edit", *SHORT, *PAIR, "--method", "localized", "prompt_swap"],
    "localize": ["localize", *SHORT, "--pairs", "3", "--sites", "0", "1", "--starts", "--heads"],
    "localize --mode contribution": [
        "localize",
        *SHORT,
        "--pairs",
        "3",
        "--mode",
        "contribution",
        "--first",
        "2",
    ],
    "audit": ["audit", "edit"],
    "sites": ["sites", "planted-mmdit"],
    "export": ["export", "finetune", "--for", "peft"],
}
# verbs that leave no files behind, or those of another
TELLING = [
    ["models"],
    ["runs", "."],
    ["report", "localize"],
    ["compare", "localize", "localize --mode contribution"],
    ["doctor", "planted-mmdit"],
]


def schema(value, path: str = "", found: dict | None = None) -> dict[str, set[str]]:
    """The types of all leaves by path; what is empty is a leaf."""
    found = {} if found is None else found
    inner = (
        value.items()
        if isinstance(value, dict)
        else (("[]", v) for v in value)
        if isinstance(value, list)
        else ()
    )
    empty = True
    for key, part in inner:
        schema(part, f"{path}.{re.sub('[0-9][0-9.+]*', '#', key)}", found)
        empty = False
    if empty:
        found.setdefault(path, set()).add(type(value).__name__)
    return found


def shape(text: str) -> list[str]:
    """The lines of an output, one of each kind: words stay, numbers are `#`, blanks one."""
    lines = (
        re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", " ".join(line.split()))
        for line in text.splitlines()
    )
    return list(dict.fromkeys(filter(None, lines)))


def told_to_programs(command: list[str]) -> dict:
    """The one object that a command prints under --json, and it holds data."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*command, "--json"]) == 0
    (line,) = said.getvalue().splitlines()
    told = json.loads(line)
    assert told["verb"] == command[0]
    assert isinstance(told["result"], dict) and told["result"]
    return told


def written(name: str) -> dict:
    """What a command leaves behind, in the working folder: its files' schemas and its output's shape."""
    command = COMMANDS[name]
    if "--picture" in command:
        Image.new("RGB", (96, 32), "red").save("sign.png")
    Path("prompts").write_text(SOURCE, "utf-8")
    Path("words").write_text("hello", "utf-8")
    out = [] if name in ("audit", "sites", "export") else ["--out", name]
    told = told_to_programs([*command, *out])
    Path(f"{name}.json").write_text(json.dumps(told), "utf-8")
    if not out:
        return {"output": shape(told["text"])}
    run = Run.load(name)
    files = {
        re.sub("[0-9a-f]{16}", "HASH", path.relative_to(name).as_posix())
        for path in Path(name).rglob("*")
        if path.is_file()
    }
    made = {path.name: schema(read_json(path)) for path in Path(name).glob("*.json")}
    made |= {"records": schema(run.records())} if run.records() else {}
    return {
        "files": sorted(files),
        **{
            file: {p: "|".join(sorted(t)) for p, t in s.items()} for file, s in sorted(made.items())
        },
    }


def all_written() -> dict:
    return {name: written(name) for name in COMMANDS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What all commands write today, and the folder in which they were given."""
    here, folder = os.getcwd(), tmp_path_factory.mktemp("written")
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            without_drawing(patch)
            return all_written(), folder
    finally:
        os.chdir(here)


def test_the_page_names_what_is_written():
    """The table of run folders in textpatch/localization/README.md has every file beside who leaves it."""
    page = (GOLDEN.parents[2] / "textpatch/localization/README.md").read_text("utf-8")
    told = {}
    for files, commands in re.findall(r"^\| (`[^|]+`) \| (`[^|]+`) \|", page, re.MULTILINE):
        for file in re.findall(r"`([^`]+)`", files):
            told[file] = set(re.findall(r"`([^`]+)`", commands))
    left: dict[str, set[str]] = {}
    for name, made in json.loads(GOLDEN.read_text("utf-8")).items():
        for file in made.get("files", []):
            place, inner, _ = file.partition("/")
            left.setdefault(place + inner, set()).add(name.split()[0])
    assert told == left


def hold(found: dict, golden: dict) -> None:
    """The same paths; of types none that was not there: whether a mean is infinite, None, is for
    the pictures to say.
    """
    assert found.keys() == golden.keys()
    for file, paths in found.items():
        if isinstance(paths, list):
            assert paths == golden[file]
        else:
            assert paths.keys() == golden[file].keys(), file
            more = {
                path: types
                for path, types in paths.items()
                if not {*types.split("|")} <= {*golden[file][path].split("|")}
            }
            assert not more, file


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_what_it_wrote(made, name):
    """Files, key paths, types and the words of the output are the golden file's."""
    hold(made[0][name], json.loads(GOLDEN.read_text())[name])


def test_every_verb_tells_programs_data(made, monkeypatch):
    """Under --json each prints one object, whose result is data and no text."""
    monkeypatch.chdir(made[1])
    for command in TELLING:
        told_to_programs(command)
    told = {command[0] for command in (*COMMANDS.values(), *TELLING)}
    assert told == VERBS.keys()


@pytest.mark.parametrize(
    "name, kind",
    [
        ("localize", LocalizationResult),
        ("localize --mode contribution", LocalizationResult),
        ("edit --method", ComparisonResult),
    ],
)
def test_what_is_stored_has_the_types_that_are_said(made, name, kind):
    """Results and records have the keys of their types, each with a value of its type."""
    run = Run.load(made[1] / name)
    assert unlike(read_json(run.folder / "results.json"), kind) == []
    assert [gap for record in joined(run.finished()) for gap in unlike(record, Record)] == []


def test_another_type_than_is_said_is_noticed():
    """Faults: a key of no type, one that is missing, a text for a number, and one deep inside."""
    assert unlike({"made": 1, "one_by_one": 2, "more": 3}, Generations) == [
        ".more: not in Generations"
    ]
    assert unlike({"made": 1}, Generations) == [".one_by_one: missing"]
    assert unlike({"made": 1, "one_by_one": "2"}, Generations) == [
        ".one_by_one: str for <class 'int'>"
    ]
    assert unlike({"a": [{"b": object()}]}, JSONObject) != []


def test_planted_an_answer_of_text_alone_is_noticed(monkeypatch):
    """Fault: a verb that has words for a person and none for a program."""
    plant(monkeypatch, models_command, "models", '{"models": found}', "None")
    with pytest.raises(AssertionError):
        told_to_programs(["models"])


def test_the_golden_file_is_of_these_commands():
    """None more, so that what is there is looked at."""
    assert list(json.loads(GOLDEN.read_text())) == list(COMMANDS)


@pytest.mark.parametrize(
    "function, old, new",
    [
        ("_edit_one", '"plan_sha256": made.plan.sha256, ', ""),
        ("_edit_one", '"schema_version": 1', '"schema_version": "1"'),
        ("shown", '"results.json"', '"result.json"'),
    ],
)
def test_planted_another_format_is_noticed(function, old, new, tmp_path, monkeypatch):
    """Fault: a key left out, a number as a string, another file's name."""
    monkeypatch.chdir(tmp_path)
    by_pixels(monkeypatch)
    plant(monkeypatch, edit_command, function, old, new)
    with pytest.raises(AssertionError):
        hold(written("edit"), json.loads(GOLDEN.read_text())["edit"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        GOLDEN.write_text(json.dumps(all_written(), indent=1) + "\n")
