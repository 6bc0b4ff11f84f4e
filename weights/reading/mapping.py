"""Tensors that stay in the mapping of their file, where `read_tensor` copies them.

A mapping is private: a page that is written to becomes memory of this process, and the file stays as it is.
A page that was never written to is the file's own.  If somebody cuts the file short, reading such a page
ends the process by SIGBUS, which no check beforehand prevents.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from textpatch.errors import WeightsError
from textpatch.weights.reading.entry import DTYPES, TensorEntry, changed, identity_of, opened


class Mappings:
    """Private mappings of files, each file's made once and kept as long as a tensor in it lives."""

    def __init__(self) -> None:
        self._made: dict[tuple[Path, tuple[int, ...]], mmap.mmap] = {}

    def tensor(self, entry: TensorEntry) -> Tensor:
        """Tensor of an entry for which `can_stay`, whose bytes are read when they are used.

        Raises WeightsError if the file is no longer the one whose header was read.
        """
        key = entry.path, entry.identity
        if key not in self._made:
            self._made[key] = _mapped(entry)
        dtype = DTYPES[entry.dtype]
        count = (entry.end - entry.start) // dtype.itemsize
        # each tensor has a storage of its own, so that copying one does not copy the file
        values = torch.frombuffer(self._made[key], dtype=dtype, count=count, offset=entry.start)
        return values.reshape(entry.shape)


def can_stay(entry: TensorEntry) -> bool:
    """True if a tensor can be used where it lies: some bytes, at a place for its dtype, and none to check."""
    begins_well = entry.start % DTYPES[entry.dtype].itemsize == 0
    return entry.end > entry.start and begins_well and entry.dtype != "BOOL"


def _mapped(entry: TensorEntry) -> mmap.mmap:
    """Private mapping of an entry's file.

    The descriptor that is compared with the header is the one that is mapped, so that no other file of the
    same name takes its place in between.
    """
    with opened(entry.path) as file:
        identity = identity_of(file)
        if identity != entry.identity:
            raise changed(entry, identity)
        try:
            return mmap.mmap(file.fileno(), entry.identity[0], access=mmap.ACCESS_COPY)
        except OSError as error:
            raise WeightsError(
                f"{entry.path} cannot be mapped: {error}; leave mapped=True out", "not-mapped"
            ) from None
