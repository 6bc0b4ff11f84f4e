"""The end of a command, as an exit code and, unless all went well, one line on stderr."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from textpatch.errors import DiskError, PatchError

FAULT = 1  # of textpatch itself
REFUSED = 2  # a request that cannot be carried out
DISK = 74  # a disk that is full or fails: EX_IOERR
INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT
UNHEARD = 141  # nobody reads the output: 128 + SIGPIPE

LONGEST = 2000  # characters of a line, into which a prompt or a file may put a million

# packages that transformers imports where they are installed
PACKAGES = ("matplotlib", "triton", "torchvision", "peft", "accelerate", "diffusers")


def guarded(work: Callable[..., object], *arguments: Any, debug: bool = False) -> int:
    """Run the work and return its exit code, 0 if it was done.

    An error becomes one line on stderr, behind its traceback with debug.  Nothing is said when nobody reads
    the output any more, as behind `| head`.
    """
    try:
        work(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or Python complains when it ends
        return UNHEARD
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = _end(error)
        sys.stderr.write(f"textpatch: {printable(_shortened(line))}\n")
        return code
    return 0


def warn(message: str) -> None:
    """Write one line to stderr, while the work goes on."""
    tell(f"warning: {message}")


def tell(message: str) -> None:
    """Write one line to stderr that is no warning."""
    sys.stderr.write(f"textpatch: {printable(_shortened(message))}\n")


def printable(text: str) -> str:
    """The text with every character that cannot be printed as an escape.

    Such characters move a terminal's cursor, end a line or turn the direction of writing.
    """
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def _shortened(line: str) -> str:
    """The line, or its beginning and its end, which say what was asked and what to do."""
    if len(line) <= LONGEST:
        return line
    half = LONGEST // 2
    return f"{line[:half]} [...] {line[-half:]}"


def _end(error: BaseException) -> tuple[int, str]:
    """Exit code and line of an error."""
    if isinstance(error, KeyboardInterrupt):
        # whoever keeps finished work says in the interrupt's arguments what is there
        return INTERRUPTED, "; ".join(["interrupted", *map(str, error.args)])
    if isinstance(error, DiskError):
        return DISK, str(error)
    if isinstance(error, PatchError):
        return REFUSED, str(error)
    return FAULT, f"unexpected {type(error).__name__}: {error}; {_reason()}"


def _reason() -> str:
    """Name installed but broken packages, since transformers hides that cause.  Else ask for a bug report."""
    faults = [
        f"{name} is installed and broken ({fault}), install it anew or remove it"
        for name, fault in broken().items()
    ]
    return "; ".join(faults) or "a fault of textpatch, --debug shows where: please report it"


def broken() -> dict[str, str]:
    """Errors that the imports of installed packages raise, by package.

    Any exception counts, because each package has its own; torchvision, for one, beside another torch.
    """
    found = {}
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
