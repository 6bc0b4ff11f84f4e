"""Reading in a process of its own, which ends with whoever began it, gives what each picture gives alone."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytesseract
import pytest
from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics import Tesseract
from textpatch.metrics.readers import tesseract, tesseract_call
from textpatch.metrics.readers.known_words import draw

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="looks for processes in /proc"
)
GONE = 5  # seconds
# 1000 pictures in one process, which would take ten seconds or more
READS = """
from textpatch.metrics.readers import known_words, tesseract
tesseract.A_CALL = 1000
engine = tesseract.Tesseract(timeout=60)
engine._read([engine._sheet(known_words.draw("COFFEE", 24), None, 0)] * 1000)
"""


def readers(folder: Path) -> list[str]:
    """The running programs, but no Python, that have the folder in their command or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            told = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:  # it has just ended
            continue
        if os.fsencode(folder) in b"".join(told) and b"python" not in told[0]:
            found.append(entry.name)
    return found


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return met


def reading(folder: Path, **options) -> subprocess.Popen:
    """A Python that reads 1000 pictures, and would have its temporary files in the folder."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", READS], env=environment, **options)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_no_program_outlives_its_reader(tmp_path, how):
    """SIGKILL amid a reading: soon no tesseract is left, and no file at any time.

    The long form sends SIGINT and SIGTERM, too, in which Python has its say.
    """
    python = reading(tmp_path, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: readers(tmp_path), 60)
    time.sleep(0.5)
    python.send_signal(how)
    assert python.wait(20) != 0
    assert wait_until(lambda: not readers(tmp_path), GONE)
    assert not list(tmp_path.iterdir())


def test_a_timeout_ends_the_program(tmp_path, monkeypatch):
    """A reading that takes too long is an OCRError; its program is gone, its files too."""
    monkeypatch.setattr(tesseract, "A_CALL", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    engine = Tesseract(timeout=0.05)
    sheet = engine._sheet(draw("COFFEE", 24), None, 0)
    with pytest.raises(OCRError, match=r"reading 1000 pictures took longer than timeout=0\.05 s"):
        engine._read([sheet] * 1000)
    assert not readers(tmp_path) and not list(tmp_path.iterdir())


def test_a_program_with_children_is_ended_with_them(tmp_path, monkeypatch):
    """Whatever stands in for tesseract, a shell script say, ends with its whole group at the timeout."""
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\nsh -c 'sleep 600; true {tmp_path}' &\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", str(script))
    with pytest.raises(OCRError, match="took longer"):
        tesseract_call.tesseract([], timeout=0.5, asked="waiting")
    assert wait_until(lambda: not readers(tmp_path), GONE)


def test_a_reading_begun_survives_the_terminals_interrupt(monkeypatch):
    """Ctrl-C goes to the terminal's process group, and tesseract, in another, can finish what it reads."""
    groups = []
    start = subprocess.Popen

    def spy(*arguments, **options):
        process = start(*arguments, **options)
        groups.append(os.getpgid(process.pid))
        return process

    monkeypatch.setattr(tesseract_call.subprocess, "Popen", spy)
    assert Tesseract().read([draw("COFFEE", 24)])[0].text == "COFFEE"
    assert groups
    assert os.getpgrp() not in groups


def test_each_picture_reads_as_it_would_alone():
    """16 pictures of words and of noise read the same alone, together and backwards."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ABCDEFGHIJKLMNOPRSTUVWXYZ"), 5)) for _ in range(14)]
    noise = [Image.fromarray(rng.integers(0, 256, (24, 90), dtype=np.uint8)) for _ in range(2)]
    pictures = [draw(word, 16 + i % 20) for i, word in enumerate(words)] + noise
    engine = Tesseract()
    together = engine.read(pictures)
    assert together == engine.read(pictures[::-1])[::-1]
    assert together[::5] == [engine.read([picture])[0] for picture in pictures[::5]]
    assert len({reading.text for reading in together}) > 10


HOSTILE = [
    "A;touch x",
    "$(touch x)",
    "`touch x`",
    "A|cat",
    "A&",
    "-l",
    "--psm",
    "A\\",
    "'\"",
    "../../x",
    "A>x",
    "*",
    "~",
    "stdin",
    "--tessdata-dir",
    "-c",
    "tessedit_write_params_to_file=x",
    "A=B",
    "%s",
    "@x",
    "é",
]


# every third by default, as a process is begun for each
@pytest.mark.parametrize(
    "alphabet",
    [
        pytest.param(text.replace(" ", ""), marks=[pytest.mark.long] * (place % 3 > 0))
        for place, text in enumerate(HOSTILE)
    ],
)
def test_no_shell_sees_the_alphabet(alphabet, tmp_path, monkeypatch):
    """Whatever the alphabet, tesseract alone is started, with the alphabet as one argument of a list."""
    monkeypatch.chdir(tmp_path)
    commands = []
    start = subprocess.Popen

    def spy(command, **options):
        commands.append((command, options.get("shell")))
        return start(command, **options)

    monkeypatch.setattr(tesseract_call.subprocess, "Popen", spy)
    engine = Tesseract(alphabet=alphabet)
    engine._tested = True
    engine.read([draw("COFFEE", 24)])
    ((command, shell),) = commands
    assert command[0] == "tesseract"
    assert not shell
    assert f"tessedit_char_whitelist={alphabet}" in command
    assert not list(tmp_path.iterdir())
