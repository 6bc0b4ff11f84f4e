"""One call of the tesseract program, in a process group of its own that never outlives the call.

A group of its own, because a terminal's Ctrl-C goes to the whole group: the reading that is begun can be finished.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Sequence

from textpatch.errors import OCRError

PROGRAM = "tesseract"
INSTALL = "install it: apt-get install tesseract-ocr (Debian, Ubuntu), brew install tesseract (macOS)"
# SIGABRT, SIGFPE, SIGSEGV: 5.3.0 divided by zero on 1 of 20 pictures of noise stretched to full contrast
CRASHES = (-6, -8, -11)


class Crash(OCRError):
    """Tesseract died on one of the pictures it was given."""


def tesseract(arguments: Sequence[str], given: bytes = b"", *, timeout: float, asked: str) -> str:
    """What the program prints, run on one thread.

    arguments  as a list, seen by no shell; given: what it reads from its standard input
    timeout    in seconds; asked: what for, as an error begins
    Raises OCRError if there is no such program, if it fails or takes longer, and Crash if it dies.
    """
    try:
        process = subprocess.Popen(
            [PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise OCRError(f"{asked} needs tesseract; found no program {PROGRAM!r} ({error.strerror}); {INSTALL}") from None
    with process:
        try:
            printed, told = process.communicate(given, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise OCRError(f"{asked} took longer than {timeout=} s; raise it, or read fewer a call") from None
        finally:
            _end(process)
    if process.returncode:
        kind = Crash if process.returncode in CRASHES else OCRError
        reason = " ".join(told.decode(errors="replace").split())
        raise kind(f"{asked} failed; tesseract ended with {process.returncode}: {reason}")
    return printed.decode()


def version() -> str:
    """The program's version, such as 5.3.0; raises OCRError as `tesseract` does, or if it names none."""
    first = tesseract(["--version"], timeout=20, asked="naming its version").split("\n")[0].split()
    if len(first) < 2:
        raise OCRError(f"asked tesseract for its version; found {' '.join(first)!r}; {INSTALL}")
    return first[1]


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended by itself
            os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
