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
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from functools import lru_cache

from textpatch.errors import OCRError

LANGUAGE = "eng"
INSTALL = (
    "install it: apt-get install tesseract-ocr (Debian, Ubuntu), brew install tesseract (macOS)"
)
# Bytes that the program may print, some thousand times what 64 pictures of text take.
MOST_PRINTED = 2**24
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

    The same file is asked once in a process.
    Raises OCRError as `tesseract` does, or if the program names no version.
    """
    return _version_of(_file_of(shutil.which(program())))


def _file_of(path: str | None) -> tuple | None:
    """Path, size, time and number of a file, by which another one in its place is noticed."""
    if path is None:
        return None
    told = os.stat(path)
    return path, told.st_size, told.st_mtime_ns, told.st_ino


@lru_cache(maxsize=8)
def _version_of(file: tuple | None) -> str:
    """The version that the program names, which `file` tells from others.   Errors are not kept."""
    # pytesseract shortens 5.3.0-46-g1569 to 5.3.0, and two builds would bear one name in a run's manifest.
    # It also ends Python with SystemExit where there is no number, and waits without a limit.
    first = tesseract(["--version"], timeout=20, asked="naming its version").split("\n")[0].split()
    if len(first) < 2:
        raise OCRError(f"asked tesseract for its version; found {' '.join(first)!r}; {INSTALL}")
    return first[1]


def tesseract(
    arguments: Sequence[str],
    given: bytes = b"",
    *,
    timeout: float,
    asked: str,
    language: str = LANGUAGE,
) -> str:
    """Run the program on one thread and return what it prints.

    arguments  of the program, which no shell sees
    given      bytes that the program reads from its standard input
    timeout    seconds that it may take
    asked      what the call is for, with which an error message begins
    language   data that the program needs, which an error message names where it is missing
    Raises OCRError if there is no such program, if it fails, takes longer, or prints more than MOST_PRINTED
    bytes or what is no UTF-8.  Raises Crash if it dies.
    """
    process = _started(arguments, asked)
    with process, contextlib.ExitStack() as unless_it_ends:
        unless_it_ends.callback(_kill, process)
        try:
            printed, told = _Exchange(process, given).carried_out(timeout)
        except subprocess.TimeoutExpired:
            raise OCRError(
                f"{asked} took longer than {timeout=} s; raise it, or read fewer a call"
            ) from None
        unless_it_ends.pop_all()
    if process.returncode:
        raise _failure(asked, process.returncode, told, language)
    try:
        return printed.decode()
    except UnicodeDecodeError as error:
        raise OCRError(f"{asked} failed; tesseract printed no UTF-8 ({error}); {INSTALL}") from None


class _Exchange:
    """What a program is given and what it prints, by a thread for each of its pipes.

    The threads end with the pipes, or with `over`.  A pipe is read without Python's buffer, whose lock would
    be held for as long as a child that has left the program's group keeps the pipe open.
    """

    def __init__(self, process: subprocess.Popen, given: bytes) -> None:
        self.process = process
        self.printed = {process.stdout: bytearray(), process.stderr: bytearray()}
        self.over = threading.Event()
        self.workers = [threading.Thread(target=self._give, args=(given,), daemon=True)]
        for pipe in self.printed:
            self.workers.append(threading.Thread(target=self._take, args=(pipe,), daemon=True))

    def carried_out(self, timeout: float) -> tuple[bytes, bytes]:
        """Return what came on both outputs.

        Raises subprocess.TimeoutExpired where a pipe is open when the time is over, and OCRError for more
        than MOST_PRINTED bytes.
        """
        end = time.monotonic() + timeout
        for worker in self.workers:
            worker.start()
        try:
            for worker in self.workers:
                worker.join(max(0.0, end - time.monotonic()))
                if worker.is_alive() and not self._too_much():
                    raise subprocess.TimeoutExpired(self.process.args, timeout)
        finally:
            self.over.set()
        if self._too_much():
            raise OCRError(
                f"{self.process.args[0]!r} printed more than {MOST_PRINTED:,} bytes, which no reading takes; "
                f"{INSTALL}"
            )
        self.process.wait(max(0.0, end - time.monotonic()))
        return tuple(bytes(part) for part in self.printed.values())

    def _too_much(self) -> bool:
        return any(len(part) > MOST_PRINTED for part in self.printed.values())

    def _give(self, given: bytes) -> None:
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(given)

    def _take(self, pipe) -> None:
        with contextlib.suppress(OSError, ValueError):  # the pipe is closed when all is over
            while not self.over.is_set() and not self._too_much():
                part = os.read(pipe.fileno(), 2**16)
                if not part:
                    return
                self.printed[pipe] += part


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


def _failure(asked: str, status: int, told: bytes, language: str) -> OCRError:
    """The error to raise for a program that ended with a status other than 0."""
    reason = " ".join(told.decode(errors="replace").split())
    message = f"{asked} failed; tesseract ended with {status}: {reason}"
    if status in CRASHES:
        return Crash(message)
    known = languages()
    if language not in known:
        install = (
            f"install its data: apt-get install tesseract-ocr-{language}, or mend TESSDATA_PREFIX"
        )
        message += f"; it has the languages {known} and needs {language!r}; {install}"
    return OCRError(message)


def _kill(process: subprocess.Popen) -> None:
    """Kill a program with all processes that it started, also those that it left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended by itself
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
