"""One tensor in a file: where its bytes are, and plain reads of them.

Nothing is mapped into memory, so that a file which shrinks while it is read is an error and not the end of the
process, and one that changes is no mixture of two.
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
CHUNK = 1 << 16  # elements of a scan at a time, few enough for the processor's cache


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its bytes from start to end, counted from the beginning of the file.

    identity is what `identity_of` said of the file when its header was read.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    name: str
    path: Path
    identity: tuple[int, ...]


def read_tensor(entry: TensorEntry) -> Tensor:
    """A fresh tensor of an entry's bytes.

    Raises WeightsError if the file is no longer the one whose header was read, if there is no memory for the
    tensor, and for a BOOL that is neither 0 nor 1.
    """
    place, count = f"{entry.path}: tensor {entry.name!r}", entry.end - entry.start
    try:
        buffer = torch.empty(count, dtype=torch.uint8)
    except RuntimeError:
        raise WeightsError(
            f"{place} takes {count} bytes, for which there is no memory", "no-memory"
        ) from None
    with opened(entry.path) as file:
        file.seek(entry.start)
        complete, identity = _filled(memoryview(buffer.numpy()), file), identity_of(file)
    if not complete or identity != entry.identity:
        was = f"size, time, inode and device were {entry.identity} and are {identity}"
        raise WeightsError(
            f"{place}: the file changed while it was read ({was}); load it again", "changed"
        )
    if entry.dtype == "BOOL" and count and (most := int(buffer.max())) > 1:
        raise WeightsError(
            f"{place} is BOOL and holds a {most}; expected 0 or 1; fetch it again", "bad-bool"
        )
    return buffer.view(DTYPES[entry.dtype]).reshape(entry.shape)


def scan(entry: TensorEntry, tensor: Tensor) -> None:
    """Raises WeightsError if a tensor holds NaN or infinity: how many, and the first with its index."""
    if not tensor.is_floating_point():
        return
    count, first, values = 0, None, tensor.flatten()
    for at, chunk in enumerate(values.split(CHUNK)):
        # a finite sum has finite terms alone; another may just have overflowed, so then the terms are looked at
        if not chunk.float().sum().isfinite():
            bad = (~chunk.double().isfinite()).nonzero().flatten()  # (bad values of the chunk,)
            if first is None and len(bad):
                first = at * CHUNK + bad[0]
            count += len(bad)
    if count:
        index = tuple(int(i) for i in torch.unravel_index(first, tensor.shape))
        found = f"{count} of {len(values)} values are not finite, the first is {float(values[first])} at {index}"
        raise WeightsError(
            f"{entry.path}: tensor {entry.name!r}: {found}; fetch it again", "not-finite"
        )


@contextmanager
def opened(path: Path) -> Iterator[io.FileIO]:
    """A regular file, open for plain reads.  Never waits; raises WeightsError for what cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=_regular) as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise WeightsError(f"{path} cannot be read: {error}", "unreadable") from None


def _regular(path: str, flags: int) -> int:
    """A descriptor of a regular file: a FIFO must not make us wait for its writer, nor a device be read."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise WeightsError(
        f"{path} is no regular file; give the file of the weights itself", "not-a-file"
    )


def identity_of(file: io.FileIO) -> tuple[int, ...]:
    """What tells whether a file is still the same: its size, modification time in ns, inode and device."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _filled(buffer: memoryview, file: io.FileIO) -> bool:
    """Whether the file fills the buffer; one read gives at most 2 GiB."""
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    return done == len(buffer)
