"""Gradient checkpointing of a denoiser's blocks.

A block keeps its inputs alone, and runs again in the backward pass.  This saves memory and costs a second
forward pass (arXiv 1604.06174).  Hooks inside a block are then called twice in a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from textpatch.errors import PatchError

BLOCK = re.compile(r"(down|up|transformer|single_transformer)_blocks\.[0-9]+|mid_block")


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Let every block of a model run again in the backward pass, which must be over before this block ends.

    Raises PatchError for a model without blocks whose names are known.
    """
    blocks = [part for name, part in model.named_modules() if BLOCK.fullmatch(name)]
    if not blocks:
        raise PatchError(
            f"{type(model).__name__} has no down_blocks, up_blocks or transformer_blocks, and checkpointing "
            "acts on these; train without it"
        )
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _recomputing(block.forward)  # type: ignore[method-assign]
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward


def _recomputing(forward: Any) -> Any:
    """Forward of a block that keeps nothing but its arguments.

    The reentrant form would give wrong gradients, silently, where no argument wants one.
    """

    def run(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run
