"""Readers that hang."""

import subprocess
import sys
import threading

import pytest

from support.localizing import PAIR, Parrot
from support.planting import plant
from support.small_models import small_pipeline
from textpatch import localize
from textpatch.errors import OCRError
from textpatch.metrics.readers import in_time
from textpatch.metrics.readers.in_time import InTime
from textpatch.runs.folder import Run

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
