"""Encoding every prompt of a long piece of work once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace

import torch


def remembering(pipeline):
    """The same pipeline, weights and hooks shared, which encodes each distinct prompt once."""
    other = copy.copy(pipeline)
    other.encode = Remembered(pipeline)
    return other


class Remembered:
    """A pipeline's `encode` with a memory.

    A prompt is encoded alone, so that the last bits of its text do not depend on what else is asked for: a run that
    goes on has other batches.  It is kept on the CPU, for a thousand prompts of a large T5 take gigabytes.
    """

    def __init__(self, pipeline):
        self._pipeline = pipeline
        self._kept: dict[str | None, object] = {}

    def __call__(self, prompts: Sequence[str | None]):
        """As `Pipeline.encode`, which refuses what is no list of prompts."""
        if isinstance(prompts, str) or not len(prompts) or not all(map(_is_prompt, prompts)):
            return self._pipeline.encode(prompts)
        texts = [self._text(prompt) for prompt in prompts]
        if (
            len({text.tokens.shape for text in texts}) > 1
        ):  # encoders that pad to the longest of a batch
            return self._pipeline.encode(prompts)
        return _joined(texts).to(self._pipeline.device)

    def _text(self, prompt: str | None):
        if prompt not in self._kept:
            self._kept[prompt] = self._pipeline.encode([prompt]).to("cpu")
        return self._kept[prompt]


def _is_prompt(prompt) -> bool:
    return prompt is None or isinstance(prompt, str)


def _joined(texts: list):
    """Conditions of one row each as one of all rows."""
    parts = {
        field.name: [getattr(text, field.name) for text in texts] for field in fields(texts[0])
    }
    joined = {name: torch.cat(tensors) for name, tensors in parts.items() if tensors[0] is not None}
    return replace(texts[0], **joined)
