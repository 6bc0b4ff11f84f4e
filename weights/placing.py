"""Files and folders that take their place whole or not at all, and what the system refuses as one line."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from textpatch.errors import DiskError, StoreError

# safetensors and tokenizers raise exceptions of their own, which have the system's number in their text alone
IN_WORDS = re.compile(r"\(os error (\d+)\)")


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A name beside a file or folder, whose place what is written there takes when the block ends; if it fails, none.

    A folder that is there is replaced with all that it holds.  Raises as `writing` does.
    """
    temporary = path.with_name(f".tmp.{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _put(temporary, path)
        finally:
            _remove(temporary)


def _put(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
        return
    old = temporary.with_suffix(".old")
    os.replace(path, old)  # no system puts a folder in the place of one that holds something
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise DiskError for a disk that is full or fails while `path` is written, StoreError for any other refusal."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        kind = DiskError if number in DiskError.numbers else StoreError
        reason = f"{os.strerror(number)}; check path, permissions and free space"
        raise kind(f"cannot write {path}: {reason}") from error


def _number(error: Exception) -> int | None:
    """The system's number of what it refused, None if that is not what happened."""
    if isinstance(error, OSError):
        return error.errno
    said = IN_WORDS.search(str(error))
    return int(said[1]) if said else None
