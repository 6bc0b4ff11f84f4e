"""Whole files or none on a disk that may be full, and what the system refuses as one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textpatch.errors import DiskError, StoreError

_HOUR = 3600

try:
    import fcntl
except ImportError:  # Windows has no flock; there each writer needs a worker name of its own
    fcntl = None

# safetensors and tokenizers raise exceptions of their own, which have the system's number in their text alone
IN_WORDS = re.compile(r"\(os error (\d+)\)")


def write(path: Path, data: bytes, worker: str, *, exclusive: bool = False) -> bool:
    """Temporary file, fsync, rename, fsync of the folder: at any moment `path` is the old file or the new."""
    temporary = path.parent / f".tmp.{worker}.{os.getpid()}.{secrets.token_hex(8)}"
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            placed = _place(temporary, path, exclusive)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
        return placed


def _place(temporary: Path, path: Path, exclusive: bool) -> bool:
    if exclusive:
        try:
            os.link(
                temporary, path
            )  # unlike a rename, a link never replaces what another worker wrote
            return True
        except OSError:  # it is there, or this disk has no hard links and a rename is all it offers
            if path.exists():
                return False
    os.replace(temporary, path)
    return True


def sync_folder(folder: Path) -> None:
    """Let new and renamed files of a folder outlive a power loss."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path, worker: str) -> None:
    """Remove temporary files of killed writers: this worker's own, and anybody's after an hour."""
    for path in [path for path in folder.rglob(".tmp.*") if path.is_file()]:
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            ours = path.name.startswith(f".tmp.{worker}.") and not _is_being_written(path)
            if ours or time.time() - path.stat().st_mtime > _HOUR:
                path.unlink()


def _is_being_written(path: Path) -> bool:
    """Whether the process in a temporary file's name runs: the same command may have been started twice."""
    writer = path.name.split(".")[3]
    if (
        os.name != "posix" or not writer.isdecimal()
    ):  # elsewhere this question would end the process
        return False
    try:
        os.kill(int(writer), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def explained(path, verb: str):
    """Say what the system refused as one line of StoreError, or of DiskError if asking again may help."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        kind = DiskError if getattr(error, "errno", None) in DiskError.numbers else StoreError
        what_to_do = f"check path, permissions and free space ({_free(path)} there)"
        raise kind(f"cannot {verb} {path}: {reason}; {what_to_do}") from error


def _free(path) -> str:
    """How much the disk of a path has left, or of the nearest folder above it that exists."""
    for folder in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError, ValueError):
            return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    return "unknown"


def read_json(path):
    """Read one JSON file; raises StoreError naming the file if it is missing or damaged."""
    with explained(path, "read"):
        try:
            return json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is not JSON ({error}): damaged, or not ours") from error


def lock(descriptor: int) -> None:
    if fcntl:
        with contextlib.suppress(
            OSError
        ):  # a network disk without locks: worker names keep writers apart
            fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def alone_in(folder: Path):
    """One worker at a time, where folders can be locked."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def as_json(value, indent: int | None = None) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, indent=indent).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"this cannot be stored as JSON: {error}") from error


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
