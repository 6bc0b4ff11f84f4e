"""Memory of a device, how much is free, how much a call of a model takes, and what to do without it."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textpatch.errors import PatchError

GIGA = 1e9
_SAYS = ("out of memory", "can't allocate memory", "not enough memory")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a device can still give to this process, None where nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    told = [_of_the_system(), _of_the_group()]
    return min((number for number in told if number is not None), default=None)


def _of_the_system() -> int | None:
    """Free memory of a Linux system."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            name, _, number = line.partition(":")
            if name == "MemAvailable":
                return int(number.split()[0]) * 1024
    return None


def _of_the_group() -> int | None:
    """Memory that the control group of a container has left."""
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = int((folder / "memory.max").read_text("ascii"))
        return limit - int((folder / "memory.current").read_text("ascii"))
    return None


class _Counting(TorchDispatchMode):
    """Mode that counts the bytes of all tensors made inside it that are alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size


def bytes_of_call(call: Callable[[], object]) -> int | None:
    """Most bytes that a call of a model holds at one time beside its weights.

    The call runs on tensors without data, so that it costs neither the memory nor the time.
    Returns None for a call that fails so, as one does that needs the numbers themselves.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    counting = _Counting()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counting:
            call()
    except PatchError:
        raise
    except Exception:  # whatever is wrong with it, the call on real tensors says it better
        return None
    return counting.peak


def require_room(needed: int | None, device: torch.device, what: str) -> None:
    """Raise PatchError where a device has less memory than is needed.

    needed  in bytes, None where nobody knows
    what    asked for, as the message begins
    """
    free = free_bytes(device)
    if needed is None or free is None or needed <= free:
        return
    raise PatchError(
        f"{what} need about {needed / GIGA:,.1f} GB of memory on {device}, and {free / GIGA:,.1f} GB are "
        "free; ask for a smaller --height and --width, or for another --device"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch and Python say that no memory is left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAYS)


def with_less(work: Callable[[int], Any], at_once: int, of: int) -> Any:
    """Return work(at_once), or the work with half as many at once for as long as the memory is too small.

    of  how many there are in all
    Raises the error itself where a single one is too much.
    """
    while True:
        try:
            return work(at_once)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or min(at_once, of) == 1:
                raise
        # here the error is gone, and with it the tensors that its frames hold
        at_once = min(at_once, of) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory; going on with {at_once} at once", stacklevel=2)
