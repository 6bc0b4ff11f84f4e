"""Reading that is given up after a while, since a reader may hang, and Python cannot end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics.readers.reading import Boxes, Read, Reader

# Seconds before the first picture is read, in which a network may be loaded, and seconds for each picture.
# Tesseract and PP-OCR together take .02 s for a picture of 96 x 32 (`benchmarks/readers.py --speed`), and
# tesseract ends its own process after 120 s.  A reader that needs longer says so by `seconds_a_picture`.
START = 300.0
EACH = 60.0
TESTED = 30  # known and broken words of a self-test


class InTime:
    """A reader whose readings come in time, or are an error.

    The reader reads in a thread of its own.  One that hangs is left behind, and the program can end all the
    same.

    kept  sentence at the end of the error, which says what was made before and where it is
    """

    def __init__(self, reader: Reader, kept: str = "") -> None:
        self.reader = reader
        self.kept = kept
        self._thread: threading.Thread | None = None

    def read(self, images: Sequence[Image.Image], boxes: Boxes | None = None) -> Sequence[Read]:
        """What the reader reads.   Raises what it raises, and OCRError where it is not back in time."""
        asked = f"reading {len(images)} picture{'s' * (len(images) != 1)}"
        return self._done(lambda: self.reader.read(images, boxes), len(images), asked)

    def self_test(self) -> None:
        """Test the reader.   Raises as `read` does."""
        self._done(self.reader.self_test, TESTED, "the self-test")

    def _done(self, work: Callable[[], Any], pictures: int, asked: str) -> Any:
        """Result of some work of the reader."""
        if self._thread is not None and self._thread.is_alive():
            raise OCRError(self._told(asked, "an earlier reading has not come back"))
        seconds = START + getattr(self.reader, "seconds_a_picture", EACH) * pictures
        done: Future = Future()
        self._thread = threading.Thread(target=_carry_out, args=(work, done), daemon=True)
        self._thread.start()
        wait([done], timeout=seconds)
        if not done.done():
            raise OCRError(self._told(asked, f"it has not come back after {seconds:g} s"))
        self._thread.join()
        return done.result()

    def _told(self, asked: str, found: str) -> str:
        return (
            f"{asked} was asked of {type(self.reader).__name__}, and {found}; see what the reader waits for, "
            f"or give it more seconds_a_picture{self.kept}"
        )


def _carry_out(work: Callable[[], Any], done: Future) -> None:
    """Do some work, and tell its result or the error that ended it."""
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
