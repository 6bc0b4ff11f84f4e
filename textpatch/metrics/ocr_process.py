"""One call of the tesseract program, in a process group of its own that never outlives the call.

pytesseract says which program that is and which languages it has.  The call is our own, because a reading by
pytesseract (0.3.13, measured) keeps none of what this one does:

- The program starts in our process group, so a terminal's Ctrl-C kills the reading that is to be finished.
- Its `timeout` ends the program alone.  Children of a script that stands in for it run on.
- Pictures travel through files.  A reader that is killed leaves them in the temporary folder.
- It sets no environment for the program.  With the threads it starts by itself, a page takes twice as long.
- It starts a process a picture, which takes about ten times as long as 64 pictures in one process.
- It leaves its PNG settings on the caller's picture, which then fails to save as a page of a TIFF.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from textpatch.errors import OCRError

LANGUAGE = "eng"
INSTALL = (
    "install it: apt-get install tesseract-ocr (Debian, Ubuntu), brew install tesseract (macOS)"
)
INSTALL_LANGUAGE = (
    f"install its data: apt-get install tesseract-ocr-{LANGUAGE}, or mend TESSDATA_PREFIX"
)
# SIGABRT, SIGFPE and SIGSEGV.  5.3.0 divided by zero on 1 of 20 pictures of noise stretched to full contrast.
CRASHES = (-6, -8, -11)


class Crash(OCRError):
    """Tesseract died on one of the pictures it was given."""


def program() -> str:
    """The program to start, `tesseract` unless `pytesseract.pytesseract.tesseract_cmd` names another."""
    # imported here because it imports pandas where there is one
    from pytesseract import pytesseract

    return pytesseract.tesseract_cmd


def languages() -> list[str]:
    """Names of the languages that the program has data of, such as eng.

    There are none if the program cannot say which.
    This call has no time limit.  Ask a program that has answered before.
    """
    from pytesseract import pytesseract

    try:
        return pytesseract.get_languages()
    except (OSError, ValueError):  # no such program, a status of its own, or names in no UTF-8
        return []


def version() -> str:
    """The program's version, such as 5.3.0.

    Raises OCRError as `tesseract` does, or if the program names no version.
    """
    # pytesseract shortens 5.3.0-46-g1569 to 5.3.0, and two builds would bear one name in a run's manifest.
    # It also ends Python with SystemExit where there is no number, and waits without a limit.
    first = tesseract(["--version"], timeout=20, asked="naming its version").split("\n")[0].split()
    if len(first) < 2:
        raise OCRError(f"asked tesseract for its version; found {' '.join(first)!r}; {INSTALL}")
    return first[1]


def tesseract(arguments: Sequence[str], given: bytes = b"", *, timeout: float, asked: str) -> str:
    """Run the program on one thread and return what it prints.

    arguments  of the program, which no shell sees
    given      bytes that the program reads from its standard input
    timeout    seconds that it may take
    asked      what the call is for, with which an error message begins
    Raises OCRError if there is no such program, if it fails, or if it takes longer.  Raises Crash if it dies.
    """
    process = _started(arguments, asked)
    with process:
        try:
            printed, told = process.communicate(given, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise OCRError(
                f"{asked} took longer than {timeout=} s; raise it, or read fewer a call"
            ) from None
        finally:
            _end(process)
    if process.returncode:
        raise _failure(asked, process.returncode, told)
    return printed.decode()


def _started(arguments: Sequence[str], asked: str) -> subprocess.Popen:
    """The running program, leader of a session of its own."""
    command = [program(), *arguments]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
            # a terminal's Ctrl-C goes to our whole process group, and the reading can then be finished
            start_new_session=True,
        )
    except OSError as error:
        found = f"found no program {command[0]!r} ({error.strerror})"
        raise OCRError(f"{asked} needs tesseract; {found}; {INSTALL}") from None


def _failure(asked: str, status: int, told: bytes) -> OCRError:
    """The error to raise for a program that ended with a status other than 0."""
    reason = " ".join(told.decode(errors="replace").split())
    message = f"{asked} failed; tesseract ended with {status}: {reason}"
    if status in CRASHES:
        return Crash(message)
    known = languages()
    if LANGUAGE not in known:
        message += f"; it has the languages {known} and needs {LANGUAGE!r}; {INSTALL_LANGUAGE}"
    return OCRError(message)


def _end(process: subprocess.Popen) -> None:
    """Kill a program that still runs, with all processes that it started."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended by itself
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
