"""The built wheel carries everything, and runs where its own files are the only textpatch there is."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from textpatch.weights.loading import SHIPPED, shipped_models

ROOT = SHIPPED.parent
OUTER = {"": "textpatch", "reference_models/": "reference_models", "weights/": "weights"}
LEAVE_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
GENERATE = """
import textpatch
prompt = 'a red sign that says "HELLO" on a blue wall'
picture, = textpatch.load("tiny-mmdit").generate(prompt, seeds=0, steps=1)
print(picture.size, textpatch.__file__)
"""


def isolated(folder: Path, code: str, *arguments: str) -> list[str]:
    """The command that runs code with `folder` first in its path, then the environment's packages."""
    start = "import sys; sys.path = [p for p in sys.path if p and 'packages' not in p]; sys.path[:0] = {!r}\n"
    paths = [str(folder), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # -S: no .pth file of the environment is read, so that no editable install can answer for the wheel
    return [sys.executable, "-I", "-S", "-c", start.format(paths) + code, *arguments]


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def belongs_in_it() -> set[str]:
    """Paths in the wheel of all files of the sources, Python or not, but for the pages."""
    paths = set()
    for package, folder in OUTER.items():
        for parent, folders, files in os.walk(ROOT / folder):
            left_out = LEAVE_OUT(parent, [*folders, *files]) | {"README.md"}
            folders[:] = sorted({*folders} - left_out)
            within = Path(parent).relative_to(ROOT / folder)
            paths |= {
                f"textpatch/{package}{(within / name).as_posix()}" for name in {*files} - left_out
            }
    return paths


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a clean copy of the sources, so that no earlier build's leftovers get in."""
    work = tmp_path_factory.mktemp("wheel")
    for name in OUTER.values():
        shutil.copytree(ROOT / name, work / "source" / name, ignore=LEAVE_OUT)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work)]
    run([*PIP, *build, str(work / "source")], work)
    return next(work.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """The wheel in a folder of its own, unpacked as an installer does."""
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    return site


def test_the_wheel_holds_every_source_and_every_model(wheel):
    """All sources, models, manifests and what else lies there, the licence and the command are in it."""
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if name.startswith("textpatch/")} == belongs_in_it()
    models = {f"textpatch/weights/{name}/model_index.json" for name in shipped_models()}
    assert len(models) >= 7 and models <= held
    others = {name for name in held if not name.startswith("textpatch/")}
    assert any(name.endswith("/LICENSE") for name in others) and any(
        name.endswith("entry_points.txt") for name in others
    )
    assert all(name.startswith("textpatch-") for name in others)


@pytest.mark.long
def test_the_wheel_generates(installed, tmp_path):
    """A shipped model makes a picture from another folder, with the wheel's files alone.

    By default its command line answers from the wheel alone.
    """
    size, path = run(isolated(installed, GENERATE), tmp_path).rsplit(" ", 1)
    assert size == "(96, 32)" and Path(path.strip()).is_relative_to(installed)


def test_the_wheels_command_line_answers(installed, tmp_path):
    """The command that installers make lists the sites of a shipped model."""
    (told,) = installed.glob("*.dist-info/entry_points.txt")
    assert "textpatch = textpatch.cli:main" in told.read_text("utf-8")
    start = "from textpatch.cli import main; sys.exit(main())"
    assert "transformer_blocks.5.attn" in run(
        isolated(installed, start, "sites", "tiny-mmdit"), tmp_path
    )
