"""Devices that are there, and where a module computes and has its weights, as its owner has placed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch

from textpatch.errors import PatchError


def first_device() -> str:
    """Return the first of cuda, mps and cpu that is there."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def usable_device(device: torch.device | str | int | None) -> torch.device:
    """Return the device that is meant, the CPU by None.

    A number is put on the device and read back, which fails on one that is not there or has no memory (meta).
    Raises PatchError for such a device.
    """
    try:
        number = torch.zeros(1, device="cpu" if device is None else device)
        number.tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise PatchError(
            f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return number.device


def device_of(module: Any) -> torch.device:
    """Return the device that the inputs of a module go to.

    It is that of the module's first parameter.  Where offloading brings weights in for each call, as
    accelerate's hooks do (cpu_offload, device_map), these hooks name the device.

    Raises PatchError for weights that are nowhere, without a hook that brings them in.
    """
    first = next(module.parameters())
    if not (first.is_meta or hasattr(module, "_hf_hook")):
        device: torch.device = first.device
        return device
    for part in module.modules():
        told = _told_by(getattr(part, "_hf_hook", None))
        if told is not None:
            return told
    for tensor in chain(module.parameters(), module.buffers()):
        if not tensor.is_meta:
            return torch.device(tensor.device)
    raise PatchError(
        f"the weights of this {type(module).__name__} are on the meta device, and no hook tells "
        "where it computes; load them, or offload it with accelerate.cpu_offload"
    )


def _told_by(hook: Any) -> torch.device | None:
    """Device that a hook of accelerate, or one of several, brings weights and inputs to."""
    for one in (hook, *getattr(hook, "hooks", ())):
        told = getattr(one, "execution_device", None)
        if isinstance(told, int):
            return torch.device("cuda", told)
        if told is not None:
            return torch.device(told)
    return None


@contextmanager
def gathered(model: Any, name: str) -> Iterator[None]:
    """Let the weights of a module of a model be whole inside the block, where FSDP has sharded them.

    FSDP (`fully_shard`) gathers the weights of a unit for its forward, and a module that is called outside
    of one finds its part of them alone.  All processes of the group must come by here.
    """
    parts = [model]
    for word in name.split("."):
        parts.append(parts[-1].get_submodule(word))
    with ExitStack() as stack:
        for part in parts:
            if hasattr(part, "unshard"):
                part.unshard()
                stack.callback(part.reshard)
        yield
