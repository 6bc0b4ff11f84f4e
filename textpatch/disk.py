"""Whole files or none on a disk that may be full, and what the system refuses as one line."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

from textpatch.errors import DiskError, StoreError

_HOUR = 3600


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
            os.link(temporary, path)  # unlike a rename, a link never replaces what another worker wrote
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
    if os.name != "posix" or not writer.isdecimal():  # elsewhere this question would end the process
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
