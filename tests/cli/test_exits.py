"""How commands end: exit codes, one line on stderr, a full disk, a reader that went away, imports
that break.
"""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.disks import files
from support.localizing import by_pixels
from support.small_models import PROMPTS, save_small
from support.sweeps import fork, waited
from textpatch import cli
from textpatch.errors import DiskError, PatchError, StoreError, WeightsError
from textpatch.exits import guarded, printable
from textpatch.runs.folder import Run

COMMAND = [sys.executable, "-m", "textpatch.cli"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("exits") / "small"))


def raising(error):
    def work():
        raise error

    return work


ENDS = {
    PatchError("a"): (2, "a"),
    WeightsError("b", "c"): (2, "b"),
    StoreError("d"): (2, "d"),
    DiskError("e"): (74, "e"),
    KeyboardInterrupt(): (130, "interrupted"),
    KeyboardInterrupt("some is there"): (130, "interrupted; some is there"),
    TypeError("f"): (
        1,
        "unexpected TypeError: f; a fault of textpatch, --debug shows where: please report it",
    ),
    MemoryError(): (1, "unexpected MemoryError: ; a fault"),
    PatchError("a\nb\x1b[2J\u202e\x00\x9b"): (2, r"a\nb\x1b[2J\u202e\x00\x9b"),
    OSError(28, "No space left"): (1, "unexpected OSError: [Errno 28] No space left"),
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_every_end_has_a_code_and_a_line(error, debug, capfd):
    """Whatever is raised: its code and one line, with the traceback before it if and only if debug
    was asked for.
    """
    code, says = ENDS[error]
    assert guarded(raising(error), debug=debug) == code
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1].startswith(f"textpatch: {says}")
    assert err.startswith("Traceback (most recent") if debug else err.count("\n") == 1
    assert guarded(lambda: None) == 0 and capfd.readouterr() == ("", "")


@given(st.text(st.characters()))
def test_a_line_is_a_line(text):
    """No text moves the cursor, ends the line or turns the direction of writing; printable ones are
    as they were.
    """
    assert printable(text).isprintable() and (printable(text) == text or not text.isprintable())


def test_planted_raw_text_is_noticed(monkeypatch, capfd):
    """Fault: what a message quotes is written as it is. Then an escape sequence of a file's name
    reaches the terminal.
    """
    monkeypatch.setattr("textpatch.exits.printable", str)
    error = next(error for error in ENDS if "\x1b" in str(error))
    with pytest.raises(AssertionError):
        test_every_end_has_a_code_and_a_line(error, False, capfd)


def test_a_reader_that_goes_away(tmp_path):
    """`textpatch runs ... | head -1`: nothing on stderr, 141 as a shell's own programs."""
    Run.open(tmp_path / "runs" / "generate-x", {"request": {"command": "generate", "model": "x"}})
    script = "import sys; from textpatch.cli import main; sys.exit(main(['runs']))"
    reading, writing = os.pipe()
    os.close(reading)
    told = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path
    )
    os.close(writing)
    assert (told.returncode, told.stderr) == (141, b"")


def limited(size: int, command: list[str]) -> tuple[int, str]:
    """The command in a process in which no file may grow beyond a size: its exit code, and what it said."""
    import resource  # not there on Windows

    reading, writing = os.pipe()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        with open(writing, "w") as sys.stderr:
            code = cli.main(command)
        os._exit(code)

    child = fork(work)
    os.close(writing)
    with open(reading) as said:
        told = said.read()
    return waited(child), told


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_disk_that_is_full_at_any_point(model, tmp_path, monkeypatch):
    """No file may grow beyond some size: code 74, the file, the reason and the space left; then it
    goes on to the same files.
    """
    monkeypatch.chdir(tmp_path)
    by_pixels(monkeypatch)
    command = ["localize", model, "--pairs", "1", "--steps", "1", "--sites", "0"]
    assert cli.main([*command, "--out", "whole"]) == 0
    for size in (200, 3000, 8000):
        code, told = limited(size, [*command, "--out", "run"])
        assert code == 74 and told.count("\n") == 1, told
        assert " run" in told and "File too large; check path, permissions and free space (" in told
        assert not list(tmp_path.rglob("run/**/.tmp*"))
    assert cli.main([*command, "--out", "run"]) == 0
    found, wanted = files(tmp_path / "run"), files(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    telling = {"manifest.json", "report.html", "answer.json"}  # tell the command or the time
    assert {n for n in wanted if found[n] != wanted[n]} <= telling


# --- optional packages that are there and broken

STUBS = {
    "torchvision": 'raise RuntimeError("operator torchvision::nms does not exist")',
    "peft": 'raise RuntimeError("peft is broken")',
    "matplotlib": 'raise RuntimeError("matplotlib is broken")',
    "diffusers": 'raise ValueError("diffusers is broken")',
    "accelerate": 'raise AttributeError("accelerate is broken")',
    "triton": 'raise OSError("libtriton is broken")',
}
WORKS = """
import sys
import torch
from textpatch import Plan, Swap, capture, find_sites, patch, segment_attention
x = torch.ones(1, 2, 3, 8)
assert torch.allclose(segment_attention((x, None), (x, x), (x, x))[0], x)
from textpatch.cli import main
examined = main(["doctor", sys.argv[1]])
drawn = main(["generate", sys.argv[1], sys.argv[2], "--steps", "1", "--out", "run"])
sys.exit(10 * examined + drawn)
"""
# transformers 5 imports them where they are, and breaks with them
TRANSFORMERS = ["torchvision", "accelerate", "triton"]


@pytest.mark.long
def test_broken_packages_are_explained(model, tmp_path):
    """With packages that raise on import the core works and doctor names them; so does everything
    that needs no transformers.

    Where transformers breaks with them, the one line on stderr names them, too.  By default kernels and
    readers are without their packages.
    """
    whole = [name for name in STUBS if name not in TRANSFORMERS]
    groups = [TRANSFORMERS, whole, *([name] for name in STUBS)]
    for packages in groups:
        folder = tmp_path / "-".join(packages)
        for package in packages:
            (folder / package).mkdir(parents=True)
            (folder / package / "__init__.py").write_text(STUBS[package])
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        told = subprocess.run(
            [sys.executable, "-c", WORKS, model, PROMPTS[0]],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        )
        needed = packages[0] in TRANSFORMERS
        assert (
            told.returncode == (11 if needed else 0)
            and (folder / "run/sheet.png").is_file() != needed
        ), told.stderr
        lines = {line.split()[0]: line for line in told.stdout.splitlines()}
        for package in packages:
            assert (
                "installed and broken" in lines[package]
                and STUBS[package].split('"')[1] in lines[package]
            )
            assert (
                not needed or f"{package} is installed and broken" in told.stderr.splitlines()[-1]
            )


LIGHT = """
import sys
import {}
heavy = {{"torch", "transformers", "numpy", "matplotlib", "diffusers", "PIL"}}
sys.stdout.write(" ".join(sorted({{*sys.modules}} & heavy)))
"""


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("textpatch", ""),
        ("textpatch.cli", ""),
        ("textpatch.errors", ""),
        ("textpatch.runs.folder", "PIL"),
        ("textpatch.runs.interrupts", ""),
    ],
)
def test_what_is_light_stays_light(module, heavy):
    """Importing the package, its command line and the run folder imports nothing that takes a second."""
    assert (
        subprocess.run(
            [sys.executable, "-c", LIGHT.format(module)], capture_output=True, text=True
        ).stdout
        == heavy
    )


@pytest.mark.long
def test_ctrl_c_at_any_time(model, tmp_path):
    """SIGINT at 20 random times, importing included: 130 and one line, or done before it; what is left
    can be resumed.

    By default test_cli.py interrupts runs, and tests/runs every call of the system.
    """
    command = [
        *COMMAND,
        "localize",
        model,
        "--pairs",
        "2",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    for n in range(20):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        try:
            process.wait(0.4 * (n + 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
        # minus SIGINT, which a shell shows as 130, too, is CPython's end after a Ctrl-C in an import
        code = 130 if process.returncode == -signal.SIGINT else process.returncode
        there = f"; what is finished is in {tmp_path / 'run'}; the same command goes on where it stopped"
        assert (code, err) in [
            (130, "textpatch: interrupted\n"),
            (130, f"textpatch: interrupted{there}\n"),
            (0, ""),
        ]
    assert cli.main(command[len(COMMAND) :]) == 0
