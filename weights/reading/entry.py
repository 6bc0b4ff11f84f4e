"""Entries, each the place of one tensor in a file, and plain reads of its bytes.

Nothing is mapped into memory, but by `mapping` where the caller asks for it.  A file that shrinks while it
is read is therefore an error and does not end the process, and of a file that changes no mixture of old and
new is read.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from textpatch.errors import WeightsError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
}
# elements that a scan looks at together, few enough for the processor's cache
CHUNK = 1 << 16


@dataclass(frozen=True)
class TensorEntry:
    """Place of one tensor in a file.

    dtype     as safetensors spells it
    start, end  its bytes, counted from the beginning of the file
    identity  `identity_of` the file when its header was read
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    name: str
    path: Path
    identity: tuple[int, ...]


def read_tensor(entry: TensorEntry, room: Tensor | None = None) -> Tensor:
    """Read the bytes of an entry into a fresh tensor.

    room  bytes (n,) of at least that many, which are read over instead of fresh ones

    Raises WeightsError if the file is no longer the one whose header was read, if there is no memory for the
    tensor, and for a BOOL that is neither 0 nor 1.
    """
    place = f"{entry.path}: tensor {entry.name!r}"
    count = entry.end - entry.start
    buffer = empty(count, place) if room is None else room[:count]
    with opened(entry.path) as file:
        file.seek(entry.start)
        complete = _filled(memoryview(buffer.numpy()), file)
        identity = identity_of(file)
    if not complete or identity != entry.identity:
        raise changed(entry, identity)
    if entry.dtype == "BOOL" and count:
        most = int(buffer.max())
        if most > 1:
            raise WeightsError(
                f"{place} is BOOL and holds a {most}; expected 0 or 1; fetch it again", "bad-bool"
            )
    return buffer.view(DTYPES[entry.dtype]).reshape(entry.shape)


def changed(entry: TensorEntry, identity: tuple[int, ...]) -> WeightsError:
    """Error of a file that has another identity than when its header was read."""
    was = f"size, time, inode and device were {entry.identity} and are {identity}"
    return WeightsError(
        f"{entry.path}: tensor {entry.name!r}: the file changed while it was read ({was}); load it again",
        "changed",
    )


def empty(count: int, what: str) -> Tensor:
    """Fresh bytes (count,).   Raises WeightsError if there is no memory for them."""
    try:
        return torch.empty(count, dtype=torch.uint8)
    except RuntimeError:
        raise WeightsError(
            f"{what} takes {count} bytes, for which there is no memory", "no-memory"
        ) from None


def scan(entry: TensorEntry, tensor: Tensor) -> None:
    """Raise WeightsError if a tensor holds NaN or infinity, with their number and the first one's index."""
    if not tensor.is_floating_point():
        return
    values = tensor.flatten()
    count = 0
    first = None
    for i, chunk in enumerate(values.split(CHUNK)):
        # A finite sum has finite terms alone.  Another sum may have overflowed, so its terms are looked at.
        if not chunk.float().sum().isfinite():
            bad = (~chunk.double().isfinite()).nonzero().flatten()  # (bad values of the chunk,)
            if first is None and len(bad):
                first = i * CHUNK + bad[0]
            count += len(bad)
    if count:
        index = tuple(int(i) for i in torch.unravel_index(first, tensor.shape))
        raise WeightsError(
            f"{entry.path}: tensor {entry.name!r}: {count} of {len(values)} values are not finite, "
            f"the first is {float(values[first])} at {index}; fetch it again",
            "not-finite",
        )


@contextmanager
def opened(path: Path) -> Iterator[io.FileIO]:
    """Open a regular file for plain reads, without ever waiting.

    Raises WeightsError for anything else and for a file that cannot be read.
    """
    try:
        with open(path, "rb", buffering=0, opener=_regular) as file:
            yield file
    # a NUL in the path is a ValueError
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "unreadable") from None


def _regular(path: str, flags: int) -> int:
    """Descriptor of a regular file.

    A FIFO would make us wait for its writer, and a device must not be read.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise WeightsError(
        f"{path} is no regular file; give the file of the weights itself", "not-a-file"
    )


def identity_of(file: io.FileIO) -> tuple[int, ...]:
    """Size, modification time in ns, inode and device, by which a changed file is noticed."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _filled(buffer: memoryview, file: io.FileIO) -> bool:
    """Fill the buffer from the file.   Returns False if the file ends before that."""
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # at most 2 GiB
        if not count:
            return False
        done += count
    return True
