"""Files written whole or not at all, on a disk that may be full.

Refusals of the system become one line of StoreError or DiskError.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from textpatch.errors import DiskError, StoreError

_HOUR = 3600

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no flock; there each writer needs a worker name of its own
    fcntl = None

AnyPath: TypeAlias = str | os.PathLike[str]
# safetensors and tokenizers raise exceptions of their own, with the system's number in their text alone
IN_WORDS = re.compile(r"\(os error (\d+)\)")


def write(path: Path, data: bytes, worker: str, *, exclusive: bool = False) -> bool:
    """Write a file so that at any moment `path` is the old file or the new.

    worker     names the writer in the temporary file's name
    exclusive  keep a file that is there already

    Returns whether the file was put in its place.
    Raises StoreError, or DiskError for a full or failing disk.
    """
    temporary = path.parent / f".tmp.{worker}.{os.getpid()}.{secrets.token_hex(8)}"
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if exclusive:
                put = _put_where_none_is(temporary, path)
            else:
                os.replace(temporary, path)
                put = True
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return put


def _put_where_none_is(temporary: Path, path: Path) -> bool:
    """Put a file in its place unless a file is there.

    Unlike a rename, a link never replaces a file that another worker wrote.
    """
    try:
        os.link(temporary, path)
    except OSError:
        if path.exists():
            return False
        os.replace(temporary, path)  # this disk has no hard links, and a rename is all it offers
    return True


def sync_folder(folder: Path) -> None:
    """Let new and renamed files of a folder outlive a power loss."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, worker: str) -> None:
    """Remove temporary files of killed writers.

    They are this worker's own if their process is gone, and anybody's after an hour.
    """
    for path in [path for path in folder.rglob(".tmp.*") if path.is_file()]:
        with suppress(FileNotFoundError):  # its writer has just finished
            ours = path.name.startswith(f".tmp.{worker}.") and not _is_being_written(path)
            if ours or time.time() - path.stat().st_mtime > _HOUR:
                path.unlink()


def _is_being_written(path: Path) -> bool:
    """True while the process in a temporary file's name runs.

    The same command may have been started twice, so that a worker's name alone does not tell.
    """
    writer = path.name.split(".")[3]
    # elsewhere than on POSIX the question below would end the process
    if os.name != "posix" or not writer.isdecimal():
        return False
    try:
        os.kill(int(writer), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, and is somebody else's
        return True
    return True


@contextmanager
def explained(path: AnyPath, verb: str) -> Iterator[None]:
    """Turn a refusal of the system into one line of StoreError, or of DiskError if asking again may help."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        what_to_do = f"check path, permissions and free space ({_free(path)} there)"
        message = f"cannot {verb} {path}: {reason}; {what_to_do}"
        raise _kind(getattr(error, "errno", None))(message) from error


def _kind(number: int | None) -> type[StoreError]:
    """The error for a refusal, by the system's number."""
    return DiskError if number in DiskError.numbers else StoreError


def _free(path: AnyPath) -> str:
    """Space left on the disk of a path, or of the nearest folder above it that exists."""
    for folder in (Path(path), *Path(path).parents):
        with suppress(OSError, ValueError):
            return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    return "unknown"


def read_json(path: AnyPath) -> Any:
    """Read one JSON file.  Raises StoreError naming the file if it is missing or damaged."""
    with explained(path, "read"):
        try:
            return json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is not JSON ({error}): damaged, or not ours") from error


def lock(descriptor: int) -> None:
    """Wait for the lock of an open file or folder, on systems and disks that have locks."""
    if fcntl is None:
        return
    with suppress(OSError):  # a network disk without locks: worker names keep writers apart
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let one worker at a time into the block, where folders can be locked."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file inside the block, so that others see that this process runs.

    The file is removed at the end.  A process that was killed leaves it behind and holds it no more.
    """
    if fcntl is None:
        yield
        return
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a disk without locks, or somebody who holds it already
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """True while a process is inside `held` of a file.  Never on systems and disks without locks."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # nobody began, or all have ended
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return False
    finally:
        os.close(descriptor)
    return False


def as_json(value: object, indent: int | None = None) -> bytes:
    """JSON in ASCII.  Raises StoreError for a value that has none, NaN and infinity included."""
    try:
        return json.dumps(value, allow_nan=False, indent=indent).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"this cannot be stored as JSON: {error}") from error


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`.

    On success it replaces `path`, a folder with all that it holds.  On failure it is removed, and `path`
    stays.  Raises as `writing` does.
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
    """Raise DiskError if the disk is full or fails while `path` is written, StoreError for other refusals."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        reason = f"{os.strerror(number)}; check path, permissions and free space"
        raise _kind(number)(f"cannot write {path}: {reason}") from error


def _number(error: Exception) -> int | None:
    """The system's number of a refusal.  None if the error is something else."""
    if isinstance(error, OSError):
        return error.errno
    said = IN_WORDS.search(str(error))
    return int(said[1]) if said else None
