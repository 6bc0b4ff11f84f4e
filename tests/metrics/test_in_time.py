"""Readers that hang."""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.localizing import PAIR, Parrot
from support.planting import plant
from support.small_models import small_pipeline
from textpatch import cli, localize, sanitize
from textpatch.cli import compared_edits, doctor_command, edit_command, localize_command
from textpatch.errors import OCRError
from textpatch.metrics import Tesseract, calibration
from textpatch.metrics.readers import in_time
from textpatch.metrics.readers.in_time import InTime
from textpatch.runs.folder import Run
from textpatch.safety import reading, sanitizing
from textpatch.safety.word_lists import WordList

PAIRS = [PAIR, PAIR[::-1]]
REQUEST = {"request": "two pairs"}


class Hanging(Parrot):
    """A reader that hangs from some reading on, until it is let go.

    after    readings that come back
    seconds  that it hangs at most
    """

    seconds_a_picture = 0.01

    def __init__(self, after: int, seconds: float = 20) -> None:
        self.after = after
        self.seconds = seconds
        self.go = threading.Event()

    def read(self, images, boxes=None):
        self.after -= 1
        if self.after < 0:
            self.go.wait(self.seconds)
        return super().read(images, boxes)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(in_time, "START", 0.3)


def a_run_ends(folder):
    """Require that a run whose reader hangs ends, and that the same request goes on with another reader."""
    reader = Hanging(1)
    try:
        with pytest.raises(
            OCRError, match="pictures was asked of Hanging, and .* goes on from there"
        ):
            localize(small_pipeline(), PAIRS, ocr=reader, run=Run.open(folder, REQUEST))
    finally:
        reader.go.set()
    run = Run.open(folder, REQUEST)
    assert [record["id"] for record in run.records()] == ["0-0"]
    assert len(localize(small_pipeline(), PAIRS, ocr=Parrot(), run=run).records) == 2


def test_a_reader_that_hangs_ends_the_run(soon, tmp_path):
    """In an error that says what to do.  Pairs read before are kept, and the same request goes on."""
    a_run_ends(tmp_path / "run")


def test_a_hanging_self_test_is_an_error(soon, monkeypatch):
    reader = Hanging(0)
    reader.self_test = reader.go.wait
    try:
        with pytest.raises(OCRError, match="the self-test was asked of Hanging"):
            localize(small_pipeline(), PAIRS, ocr=reader)
    finally:
        reader.go.set()


def is_not_asked_again(seconds: float = 20):
    """Require that a reader that hangs so long is not asked again, and is when it has come back."""
    reader = Hanging(0, seconds)
    timed = InTime(reader)
    try:
        with pytest.raises(OCRError, match=r"reading 1 picture was .* not come back after 0\.31 s"):
            timed.read([None])
        with pytest.raises(OCRError, match="an earlier reading has not come back"):
            timed.read([None])
        assert timed._thread.daemon
    finally:
        reader.go.set()
    timed._thread.join(20)
    reader.after = 1
    assert timed.read([None]) == ["HOUSE"]


def test_a_reader_that_hangs_is_not_asked_again(soon):
    """The second reading fails at once, and the thread that is left keeps no program from ending."""
    is_not_asked_again()


FAULTS = {
    "there is no limit": ("timeout=seconds", "timeout=None"),
    "the thread is waited for at the end": ("daemon=True", "daemon=False"),
    "it is asked again": ("self._thread is not None and self._thread.is_alive()", "False"),
    "pictures take no time": ("EACH) * pictures", "EACH) * 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_limit_is_noticed(fault, soon, monkeypatch):
    """Planted faults: one of the laws above no longer holds."""
    plant(monkeypatch, InTime, "_done", *FAULTS[fault])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        is_not_asked_again(seconds=1)


def test_what_a_reader_raises_is_raised():
    """An error of the reader, a timeout of its own among them, is not taken for hanging."""
    reader = Parrot()
    for error in (TimeoutError("mine"), OCRError("no engine")):
        reader.read = taken(error)
        with pytest.raises(type(error), match=str(error)):
            InTime(reader).read([None])


def taken(error):
    def read(images, boxes):
        raise error

    return read


# --- where one picture is read, or a reader is tested, without a run


def an_edit_is_shown_unread(monkeypatch, seconds: float = 20):
    """Require that pictures of an edit whose reader hangs are shown, and that the reason stands beside."""
    reader = Hanging(0, seconds)
    monkeypatch.setattr(edit_command, "reader_of_edits", lambda options, pairs: reader)
    options = SimpleNamespace(source=PAIR[0], target=PAIR[1])
    try:
        read, told = edit_command._read(options, {"source": None, "edited": None}, None)
    finally:
        reader.go.set()
    assert read == {}
    assert told.startswith("nothing was read: reading 2 pictures was asked of Hanging")
    assert told.endswith("or give it more seconds_a_picture")


def test_an_edit_is_shown_unread(soon, monkeypatch):
    an_edit_is_shown_unread(monkeypatch)


def test_an_edit_that_waits_is_noticed(soon, monkeypatch):
    """Planted fault: the reader of one edit has no limit."""
    plant(monkeypatch, edit_command, "_read", "InTime(reader).read", "reader.read")
    with pytest.raises(AssertionError):
        an_edit_is_shown_unread(monkeypatch, seconds=1)


def sanitizing_refuses(verify: object, reader: Hanging, asked: int):
    """Require that two prompts whose reader hangs are refused.

    asked  how often the reader is asked
    """
    try:
        made = sanitize(
            small_pipeline(), [PAIR[0]] * 2, detector=WordList(["house"]), sites=0, verify=verify
        )
    finally:
        reader.go.set()
    assert [one.reason for one in made] == ["the reader failed (OCRError)"] * 2
    assert reader.after == -asked


def test_sanitizing_refuses_what_nobody_reads_in_time(soon):
    """A reader that was given and hangs is asked once."""
    reader = Hanging(0)
    sanitizing_refuses(reader, reader, 1)


def test_sanitizing_refuses_where_a_named_reader_hangs(soon, monkeypatch):
    """Each prompt has a reader of its own then, which knows its letters."""
    reader = Hanging(0)
    monkeypatch.setattr(reading, "reader_named", lambda name, words: reader)
    sanitizing_refuses("reader", reader, 2)


SANITIZING_FAULTS = {
    "there is no limit": (reading, "read", "reader.read(", "reader.reader.read("),
    "each prompt asks anew": (
        sanitizing.Sanitizer,
        "_legible",
        "reader_for(self.verify, screened)",
        "type(self.verify)(self.verify.reader)",
    ),
}


@pytest.mark.parametrize("fault", SANITIZING_FAULTS)
def test_a_fault_of_sanitizing_is_noticed(fault, soon, monkeypatch):
    """Planted faults: sanitizing waits for the reader, or asks one that hangs again."""
    plant(monkeypatch, *SANITIZING_FAULTS[fault])
    reader = Hanging(0, seconds=1)
    with pytest.raises(AssertionError):
        sanitizing_refuses(reader, reader, 1)


EDITS = ["--source", PAIR[0], "--target", PAIR[1], "--method", "localized", "prompt_swap"]
COMMANDS = {
    "localize": ["localize", "planted-mmdit", "--pairs", "1"],
    "several edits": ["edit", "planted-mmdit", *EDITS],
    "doctor": ["doctor"],
}


@pytest.fixture
def hanging_tesseract(soon, monkeypatch, tmp_path):
    """How often tesseract's self-test was begun, which hangs, a second at most.   In an empty folder."""
    go = threading.Event()
    begun = []

    def hang(self):
        begun.append(self)
        go.wait(1)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(in_time, "EACH", 0.0)
    monkeypatch.setattr(Tesseract, "self_test", hang)
    monkeypatch.setattr(calibration, "KINDS", calibration.KINDS[:1])
    yield begun
    go.set()


def a_command_ends(command: str, begun: list, capfd):
    """Require that a command whose self-test hangs ends in an error that says so, and begins no other."""
    assert cli.main(COMMANDS[command]) == 2
    told = capfd.readouterr().err
    assert "the self-test was asked of Tesseract, and it has not come back after 0.3 s" in told
    assert len(begun) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_self_test_hangs_ends(command, hanging_tesseract, capfd):
    """Before anything is made."""
    a_command_ends(command, hanging_tesseract, capfd)
    assert not Path("runs").exists()


def the_calibration_ends():
    """Require that the calibration of a reader whose self-test hangs ends in an error."""
    with pytest.raises(OCRError, match="the self-test was asked of Tesseract"):
        calibration.calibrated("tesseract", 1)


def test_a_calibration_whose_self_test_hangs_ends(hanging_tesseract):
    the_calibration_ends()


UNLIMITED = "InTime(reader).self_test()", "reader.self_test()"
WAITING = {
    "several edits": (compared_edits, "_tested_reader", *UNLIMITED),
    "doctor": (doctor_command, "doctor", *UNLIMITED),
    "localize": (localize_command, "localize", *UNLIMITED),
}


@pytest.mark.parametrize("command", WAITING)
def test_a_command_that_waits_is_noticed(command, hanging_tesseract, monkeypatch, capfd):
    """Planted faults: a command waits for the self-test, however long it takes."""
    plant(monkeypatch, *WAITING[command])
    with pytest.raises(AssertionError):
        a_command_ends(command, hanging_tesseract, capfd)


def test_a_calibration_that_waits_is_noticed(hanging_tesseract, monkeypatch):
    """Planted fault: the reader that is calibrated has no limit."""
    named = "reader_named(name, alphabet)"
    plant(monkeypatch, calibration, "calibrated", f"InTime({named})", named)
    with pytest.raises(pytest.fail.Exception):
        the_calibration_ends()


SCRIPT = """
import threading
from textpatch.errors import OCRError
from textpatch.metrics.readers import in_time
in_time.START = in_time.EACH = 0.05

class Hanging:
    def read(self, images, boxes=None):
        threading.Event().wait()

try:
    in_time.InTime(Hanging()).read([None])
except OCRError as error:
    print(type(error).__name__)
"""


def test_a_program_ends_beside_a_reader_that_hangs():
    """Python waits at its end for threads that are no daemons."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "OCRError"), done.stderr
