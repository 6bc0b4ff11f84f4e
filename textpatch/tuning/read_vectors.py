"""Vectors that projections read of some prompts.

Static text alone settles them.  A text that evolves with the picture is read otherwise at every step and for
every seed, and is captured in runs.

R prompts, T text tokens, M readings of a token, C width
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from textpatch.hooks import HookRegistry, outside_blocks
from textpatch.pipelines import SupportsSampling
from textpatch.rows import Row
from textpatch.sampling import sample_latents


def of_static_text(denoiser: Any, names: Sequence[str], condition: Any) -> dict[str, Tensor]:
    """Vectors (R, T, 1, C) that each projection reads of a condition of R texts, by its name."""
    read: dict[str, Tensor] = {}

    def keep(name: str, inputs: Any) -> None:
        read[name] = _first(inputs)[:, :, None]

    with outside_blocks(), HookRegistry(denoiser, names).observe_inputs(keep):
        denoiser.text_kv(condition)
    return read


def of_runs(
    pipeline: SupportsSampling,
    names: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
) -> dict[str, Tensor]:
    """Vectors (R, T, M, C) that each projection reads while each prompt is drawn alone, by its name.

    seeds  of the pictures.  M counts the steps of one after those of another
    steps  of each picture

    There is no guidance, so that every call reads the prompt.
    """
    read: dict[str, list[Tensor]] = defaultdict(list)

    def keep(name: str, inputs: Any) -> None:
        read[name].append(_first(inputs)[0].clone())

    with outside_blocks(), HookRegistry(pipeline.denoiser, names).observe_inputs(keep):
        for prompt in prompts:
            for seed in seeds:
                sample_latents(pipeline, [Row("drawn", prompt, seed)], steps=steps, guidance=1)
    return {name: _by_prompt(vectors, len(prompts)) for name, vectors in read.items()}


def _first(inputs: Any) -> Tensor:
    """First argument of a call (B, T, C)."""
    vectors: Tensor = next(iter(inputs.arguments.values()))
    return vectors


def _by_prompt(vectors: list[Tensor], prompts: int) -> Tensor:
    """Vectors (R, T, M, C) of R * M calls, each of (T, C)."""
    calls = torch.stack(vectors)  # (R * M, T, C)
    return calls.unflatten(0, (prompts, -1)).transpose(1, 2)
