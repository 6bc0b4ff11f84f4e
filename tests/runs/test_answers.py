"""A finished command is answered from its run folder, without a model, as long as nothing has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.planting import plant
from support.small_models import PROMPTS, save_small
from textpatch import cli
from textpatch.cli import outcome
from textpatch.runs import answers

SOURCE = PROMPTS[0]
LIGHT = """
import sys
from textpatch.cli import main
code = main(sys.argv[1:])
sys.stderr.write(" ".join({*sys.modules} & {"torch", "transformers", "numpy", "PIL"}))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A working folder with a model of its own and a finished run of `generate`."""
    here = tmp_path_factory.mktemp("answers")
    save_small(here / "small")
    (here / "prompts.txt").write_text(f"# mine\n{SOURCE}\n", "utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        assert cli.main(COMMAND) == 0
    return here


@pytest.fixture
def finished(made, monkeypatch):
    """The same folder, which is as it was when the test ends, times of writing included."""
    monkeypatch.chdir(made)
    before = {path: (path.read_bytes(), path.stat()) for path in files_of(made)}
    yield made
    for path in files_of(made) - before.keys():
        path.unlink()
    for path, (data, told) in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


COMMAND = ["generate", "small", "--prompts", "prompts.txt", "--steps", "1", "--out", "run"]


def remembered(*more: str) -> bool:
    """True if the command is answered without its verb."""
    options = cli.command_parser().parse_args([*COMMAND, *more])
    return outcome._remembered(options, outcome._asked(options)) is not None


def test_the_answer_is_the_same_and_light(finished, capfd):
    """A second process says the same words and has imported nothing heavy."""
    capfd.readouterr()
    assert cli.main(COMMAND) == 0
    said = capfd.readouterr().out
    told = subprocess.run(
        [sys.executable, "-c", LIGHT, *COMMAND], capture_output=True, text=True, cwd=finished
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, said, "")
    assert said.splitlines() == ["1 picture is in run/pictures", "run/sheet.png"]


def test_a_plan_with_nothing_left_says_so(finished, capfd):
    """--plan says that everything is there, by the kept answer and also where this counts no more."""
    assert cli.main([*COMMAND, "--plan"]) == 0
    assert capfd.readouterr().out == "everything is there, in run; nothing is left to make\n"
    (finished / "run" / "answer.json").unlink()
    assert cli.main([*COMMAND, "--plan"]) == 0
    told = "1 prompt x 1 seed - 1 that are there = 0 generations; everything is there\n"
    assert capfd.readouterr().out == told


def test_one_object_for_a_program(finished, capfd):
    """With --json stdout is one object with the folder, what was made and the content of results.json."""
    capfd.readouterr()
    assert cli.main([*COMMAND, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (
        told["verb"] == "generate" and told["folder"] == "run" and told["made"] == "run/sheet.png"
    )
    assert told["result"] == json.loads(Path("run/results.json").read_text("utf-8"))
    assert cli.main([*COMMAND, "-q"]) == 0 and capfd.readouterr().out == "run/sheet.png\n"


def touch(path: str) -> None:
    """Give a file another time of writing."""
    told = os.stat(path)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns + 10**9))


CHANGES = {
    "other prompts": lambda: Path("prompts.txt").write_text(PROMPTS[1], "utf-8"),
    "other weights": lambda: touch("small/transformer/config.json"),
    "one file more in the model": lambda: Path("small/new").write_text("x"),
    "a picture that is gone": lambda: next(Path("run/images").iterdir()).unlink(),
    "a result that was edited": lambda: touch("run/results.json"),
    "an answer that is no JSON": lambda: Path("run/answer.json").write_text("{"),
    "no folder": lambda: shutil.rmtree("run"),
}


def test_another_option_is_another_request(finished):
    """The same options have an answer, others have none."""
    assert remembered() and remembered("-v") and not remembered("--guidance", "2")


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_noticed(change, finished):
    """Then the command is carried out, and no old answer is given."""
    assert remembered()
    CHANGES[change]()
    assert not remembered()


def test_another_version_makes_its_own_answer(finished, monkeypatch):
    """An answer of another version of textpatch is none."""
    assert remembered()
    monkeypatch.setattr(outcome.metadata, "version", lambda name: "0.0.0")
    assert not remembered()


def test_a_link_to_a_folder_above_ends(tmp_path):
    """A folder that links to itself has an end."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/again").symlink_to(tmp_path / "model")
    assert list(answers._files(str(tmp_path / "model"))) == []


def test_planted_changes_unseen_are_noticed(finished, monkeypatch):
    """Fault: times of writing do not count."""
    plant(monkeypatch, answers, "_stamp", ", told.st_mtime_ns]", "]")
    shutil.rmtree("run")
    assert cli.main(COMMAND) == 0
    with pytest.raises(AssertionError):
        test_whatever_changes_is_noticed("other weights", finished)
