"""Records of a run, each one sealed line of JSON that is appended whole or not at all."""

import errno
import json
import os
import zlib
from pathlib import Path

from textpatch.disk import as_json, explained, lock, sync_folder

_SEAL = b', "crc32": "%08x"}'
_SEAL_LENGTH = len(_SEAL % 0)


def sealed(record: dict) -> bytes:
    """Return a record as one line, with the crc32 of its JSON as last entry.

    The checksum lets no flipped bit go unseen.
    """
    body = as_json(record)
    return body[:-1] + _SEAL % zlib.crc32(body) + b"\n"


def _unsealed(line: bytes) -> dict:
    body = line[:-_SEAL_LENGTH] + b"}"
    if line[-_SEAL_LENGTH:] != _SEAL % zlib.crc32(body):
        raise ValueError("its checksum does not fit")
    return json.loads(body)


def read_records(path: Path) -> tuple[list[dict], list[int], int]:
    """Return the records of a file, the numbers of its damaged lines, and how many lines it has.

    An unfinished last line is no line.
    """
    with explained(path, "read"):
        *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_unsealed(line))
        except (ValueError, RecursionError):
            damaged.append(number)
    return records, damaged, len(lines)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, which is on the disk when this returns.

    A torn last line of a killed writer is cut off first.  A failure leaves the file as it was.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        lock(descriptor)
        start = _cut_torn_line(descriptor)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, "only part of the line fitted")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, start)
            raise
        if start == 0:
            sync_folder(path.parent)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int, block: int = 1 << 16) -> int:
    """Cut a file after its last newline and return its length."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    keep = _end_of_last_line(descriptor, size, block)
    if keep < size:
        os.ftruncate(descriptor, keep)
    return keep


def _end_of_last_line(descriptor: int, size: int, block: int) -> int:
    """Return the place behind the last newline, 0 if there is none, reading backwards block by block."""
    end = size
    while end:
        start = max(0, end - block)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
