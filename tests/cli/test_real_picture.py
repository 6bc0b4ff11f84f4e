"""`textpatch edit --picture` edits a file, keeps four pictures side by side, and refuses what is none."""

import contextlib
import io

import pytest
from PIL import Image

from textpatch import cli
from textpatch.cli import real_picture
from textpatch.disk import read_json
from textpatch.editing import inverting
from textpatch.pictures import open_picture
from textpatch.weights.signs.drawing import Sign, SignFormat
from textpatch.weights.signs.evaluation import clean_pictures
from textpatch.weights.signs.two_lines import TWO_LINES

SIGN = Sign("ACTOR", "white", "badge", "red")
PROMPTS = ["--source", SIGN.prompt(), "--target", SIGN.prompt().replace("ACTOR", "TIGER")]
EDIT = ["edit", "planted-mmdit", *PROMPTS]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the picture sign.png in it."""
    monkeypatch.chdir(tmp_path)
    clean_pictures([SIGN], SignFormat())[0].save("sign.png")
    return tmp_path


def told(*words: str) -> tuple[int, str]:
    """Exit code of a command, and what it says on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main([*words])
    return code, said.getvalue()


def test_a_file_is_edited(folder, capsys):
    """The sheet shows source, inversion, edit and target, and an audit says why it cannot replay them."""
    command = [*EDIT, "--picture", "sign.png", "--inversion", "euler", "--steps", "4"]
    assert cli.main([*command, "--out", "run"]) == 0
    assert capsys.readouterr().out.strip().endswith("sheet.png")
    found = read_json(folder / "run" / "results.json")
    assert list(found["pictures"]) == ["source", "inversion", "edited", "target"]
    assert found["inversion"] == {"name": "euler"}
    assert found["errors"]["inverted"] < found["errors"]["guided"]
    kept = open_picture(folder / "run" / found["pictures"]["source"])
    assert kept.tobytes() == open_picture("sign.png").tobytes()
    sheet = Image.open(folder / "run" / "sheet.png")
    assert sheet.width > 4 * 96
    code, said = told("audit", "run")
    assert code == 2 and "edits a real picture" in said


def test_a_picture_of_two_lines_is_read_line_by_line(folder):
    """Both words of a drawn sign are read in the places where the model writes."""
    sign = Sign("OPEN\nDAILY")
    clean_pictures([sign], TWO_LINES)[0].save("two.png")
    command = ["edit", "tiny-words", "--picture", "two.png", "--source", sign.prompt()]
    short = ["--inversion", "euler", "--steps", "2", "--out", "run"]
    assert cli.main([*command, "--target", Sign("OPEN\nTIGER").prompt(), *short]) == 0
    read = read_json(folder / "run" / "results.json")["read"]
    assert read["source"] == "OPEN DAILY" and len(read["edited"].split()) == 2


@pytest.mark.parametrize(
    "words, says",
    [
        (["--inversion", "euler"], "--inversion euler was given without --picture"),
        (
            ["--picture", "sign.png", "--upscale", "tiny-if-ii"],
            "--upscale draws generated pictures",
        ),
        (
            ["--picture", "sign.png", "--method", "prompt_swap"],
            "edits generated pictures, and --pic",
        ),
        (
            ["--picture", "sign.png", "--method", "localized", "prompt_swap"],
            "was given with several pairs or methods",
        ),
        (["--picture", "other.png"], "cannot read picture other.png"),
        (["--picture", "sign.png", "--inversion", "ddim"], "ddim is a method of a noise model"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(folder, words, says):
    """Exit code 2 for options without effect, files that are none, and methods of other models."""
    code, said = told(*EDIT, *words)
    assert code == 2 and says in said and said.count("\n") == 1


def test_the_names_are_those_of_the_library():
    """They are written out, because the command line answers without torch."""
    assert tuple(inverting.INVERSIONS) == real_picture.INVERSIONS
    assert inverting.DEFAULT == real_picture.DEFAULT
