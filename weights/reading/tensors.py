"""Entries of one file or of several shards by name, whose values are read one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from textpatch.errors import WeightsError, closest
from textpatch.weights.reading.entry import TensorEntry, read_tensor


class Tensors(Mapping[str, TensorEntry]):
    """Entries by name of a file, or of the shards under an index, whose values are read one at a time."""

    def __init__(self, entries: dict[str, TensorEntry], files: Iterable[Path]) -> None:
        self._entries = entries
        self.files = tuple(files)

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors together."""
        return sum(entry.end - entry.start for entry in self.values())

    def read(self, name: str, room: Tensor | None = None) -> Tensor:
        """Read one tensor, into given bytes if there are some.

        Raises WeightsError as `read_tensor` does, and for an unknown name.
        """
        if name not in self:
            raise WeightsError(
                f"no tensor {name!r} in {self.files[0]}{closest(name, self)}", "no-tensor"
            )
        return read_tensor(self[name], room)
