"""`generate` keeps pictures as they are made: what Ctrl-C says of them is true, and the same
command makes the rest.
"""

import os
import signal
from pathlib import Path

import pytest

from support.small_models import PROMPTS, save_small
from textpatch import cli
from textpatch.disk import read_json
from textpatch.reference_models.pipeline import Pipeline
from textpatch.runs import album
from textpatch.runs.folder import Run

SEEDS = ["0", "1", "2"]
COUNT = len(PROMPTS) * len(SEEDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("album") / "small"))


@pytest.fixture(autouse=True)
def batches(tmp_path, monkeypatch):
    """An empty working folder, and batches of four: six pictures are two of them, the second not full."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(album, "AT_ONCE", 4)


def command(model: str, out: str) -> list[str]:
    return ["generate", model, *PROMPTS, "--seed", *SEEDS, "--out", out]


def pictures(folder: str) -> dict[str, bytes]:
    """Everything in the folder but what tells the command and the order of writing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "answer.json")
    }


def drawn(monkeypatch, before=lambda call: None) -> list[int]:
    """How many pictures each call of `Pipeline.generate` makes from now on; before(call) comes first."""
    real, made = Pipeline.generate, []

    def generate(pipeline, prompts, **options):
        before(len(made))
        made.append(len(prompts))
        return real(pipeline, prompts, **options)

    monkeypatch.setattr(Pipeline, "generate", generate)
    return made


def stop(call: int) -> None:
    """SIGINT while the first batch is made."""
    if call == 0:
        os.kill(os.getpid(), signal.SIGINT)


def fail(call: int) -> None:
    if call == 1:
        raise RuntimeError("the second batch")


@pytest.mark.parametrize(
    "before, code, says",
    [
        (
            stop,
            130,
            f"interrupted; 4 of {COUNT} pictures are made and in run; the same command goes on with the rest",
        ),
        (fail, 1, "unexpected RuntimeError: the second batch"),
    ],
    ids=["Ctrl-C", "failure"],
)
def test_what_is_made_is_kept_and_not_made_again(before, code, says, model, monkeypatch, capfd):
    """Stopped after the first batch: its pictures are there; the same command makes the others
    alone, to the same bytes.
    """
    assert cli.main(command(model, "whole")) == 0
    with monkeypatch.context() as patched:
        drawn(patched, before)
        assert cli.main(command(model, "run")) == code
    assert capfd.readouterr().err.startswith(f"textpatch: {says}")
    assert len(list(Path("run/images").iterdir())) == 4 and not Path("run/results.json").exists()
    with monkeypatch.context() as patched:
        made = drawn(patched)
        assert cli.main(command(model, "run")) == 0 and made == [2]
    assert pictures("run") == pictures("whole")
    assert len(read_json("run/results.json")["pictures"]) == COUNT


def test_a_finished_run_makes_nothing(model, monkeypatch, capfd):
    """The same command again writes the same files and draws no picture; another for that folder is
    refused before drawing.
    """
    assert cli.main(command(model, "run")) == 0
    before, made = pictures("run"), drawn(monkeypatch)
    assert cli.main(command(model, "run")) == 0 and made == []
    assert pictures("run") == before
    assert cli.main([*command(model, "run"), "--steps", "1"]) == 2 and made == []
    assert "run holds another run" in capfd.readouterr().err


def test_a_picture_that_is_gone_is_made_again(model, monkeypatch):
    """A folder from which the last picture was deleted is filled again, by its batch alone, to the same
    bytes.
    """
    assert cli.main(command(model, "run")) == 0
    before = pictures("run")
    Path("run", read_json("run/results.json")["pictures"][-1]["image"]).unlink()
    made = drawn(monkeypatch)
    assert cli.main(command(model, "run")) == 0 and made == [2]
    assert pictures("run") == before


def test_ctrl_c_before_the_first_batch_promises_nothing(model, monkeypatch, capfd):
    """No picture and no folder: it says so, and no word of going on."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "generate", interrupt)
    assert cli.main(command(model, "run")) == 130
    assert capfd.readouterr().err == f"textpatch: interrupted; 0 of {COUNT} pictures are made\n"
    assert not Path("run").exists()


def test_an_edit_promises_nothing(model, monkeypatch, capfd):
    """Of an edit nothing is kept before its end, and Ctrl-C says nothing of going on."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "denoise", interrupt)
    asked = [
        "--source",
        PROMPTS[0],
        "--target",
        PROMPTS[0].replace("HELLO", "WORLD"),
        "--sites",
        "0",
    ]
    assert cli.main(["edit", model, *asked, "--out", "run"]) == 130
    assert capfd.readouterr().err == "textpatch: interrupted\n" and not Path("run").exists()


@pytest.mark.parametrize("prompt, says", [("a mauve sign", "does not know 'mauve'")])
def test_a_bad_prompt_of_a_later_batch_leaves_nothing(prompt, says, model, monkeypatch, capfd):
    """Every prompt is read before the first picture is made."""
    made = drawn(monkeypatch)
    assert (
        cli.main(["generate", model, *PROMPTS, *PROMPTS, PROMPTS[0], prompt, "--out", "run"]) == 2
    )
    assert says in capfd.readouterr().err and made == [] and not Path("run").exists()


def test_planted_records_not_written_are_noticed(model, monkeypatch, capfd):
    """Fault: pictures are written and not recorded.  Then the same command makes them again."""
    monkeypatch.setattr(Run, "append", lambda run, record: None)
    with pytest.raises(AssertionError):
        test_what_is_made_is_kept_and_not_made_again(
            stop, 130, "interrupted; 4 of 6", model, monkeypatch, capfd
        )
