"""How a command ends: an exit code, and one line on stderr unless all went well."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback

from textpatch.errors import DiskError, PatchError

FAULT, REFUSED, DISK, INTERRUPTED, UNHEARD = (
    1,
    2,
    74,
    130,
    141,
)  # 74: EX_IOERR; 128 + SIGINT; 128 + SIGPIPE
LONGEST = 2000  # characters of a line, of which a prompt or a file may put in a million

PACKAGES = ("matplotlib", "triton", "torchvision", "peft", "accelerate", "diffusers")


def guarded(work, *arguments, debug: bool = False) -> int:
    """Do the work and return its exit code; what stopped it becomes one line on stderr, behind its traceback with debug.

    0 done; 1 a fault of ours; 2 a request that cannot be carried out; 74 a disk that is full or fails; 130 Ctrl-C;
    141 nobody reads what is printed, as behind `| head`, and nothing is said.
    """
    try:
        work(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains when it ends
        return UNHEARD
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = _end(error)
        sys.stderr.write(f"textpatch: {printable(_shortened(line))}\n")
        return code
    return 0


def warn(message: str) -> None:
    """One line on stderr, and the work goes on."""
    sys.stderr.write(f"textpatch: warning: {printable(_shortened(message))}\n")


def printable(text: str) -> str:
    """The text with escapes for what moves a terminal's cursor, ends a line or turns the direction of writing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(line: str) -> str:
    """The line, or its beginning and its end: what was asked, and what to do."""
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} [...] {line[-half:]}"


def _end(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "; ".join(
            ["interrupted", *map(str, error.args)]
        )  # whoever keeps work says what is there
    if isinstance(error, PatchError):
        return DISK if isinstance(error, DiskError) else REFUSED, str(error)
    return FAULT, f"unexpected {type(error).__name__}: {error}; {_reason()}"


def _reason() -> str:
    """What transformers imports, too, and cannot: its own error would not tell; or else that it is our fault."""
    faults = [
        f"{name} is installed and broken ({fault}), install it anew or remove it"
        for name, fault in broken().items()
    ]
    return "; ".join(faults) or "a fault of textpatch, --debug shows where: please report it"


def broken() -> dict[str, str]:
    """Package -> the error its import raises, of those installed; any exception: torchvision of another torch has its own."""
    found = {}
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            try:
                importlib.import_module(name)
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found
