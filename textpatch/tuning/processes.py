"""Training divided among processes, such as torchrun starts.

    gradient = mean over processes of the mean over a process's rows of a batch

All processes draw the same batch, and each takes every n-th row.  So the gradient is that of one process with
the whole batch, whatever their number, but for the order of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from textpatch.errors import PatchError


@dataclass(frozen=True)
class Processes:
    """This process among all of a training.

    rank   its number, of which 0 keeps the state
    count  how many there are
    """

    rank: int = 0
    count: int = 1

    def rows(self, batch: int) -> list[int]:
        """Rows of a batch that this process takes.   Raises PatchError for a batch that cannot be divided."""
        if batch % self.count:
            raise PatchError(
                f"a batch of {batch} is no multiple of {self.count} processes; give a multiple"
            )
        return list(range(self.rank, batch, self.count))

    def averaged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over the processes, of tensors of one dtype and device."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.count).split([math.prod(tensor.shape) for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def any_of(self, said: bool, device: torch.device) -> bool:
        """True if any process says so."""
        return bool(self.averaged([torch.tensor([float(said)], device=device)])[0] > 0)


def current_processes() -> Processes:
    """Processes of torch's default group, this one alone where there is no group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())
