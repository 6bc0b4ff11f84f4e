"""A pipeline that encodes every prompt of a long piece of work once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace

import torch

from textpatch.pipelines import draws_by_itself


def remembering(pipeline):
    """Return the same pipeline, weights and hooks shared, with an `encode` that remembers.

    One that draws by itself encodes nothing here, and is returned as it is.
    """
    if draws_by_itself(pipeline):
        return pipeline
    other = copy.copy(pipeline)
    other.encode = Remembered(pipeline)
    return other


class Remembered:
    """A pipeline's `encode` with a memory.

    Every prompt is encoded alone.  So the last bits of its text do not depend on the other prompts of a
    batch, which are others when a run goes on.
    Texts are kept on the CPU, because a thousand prompts of a large T5 take gigabytes.
    """

    def __init__(self, pipeline) -> None:
        self._pipeline = pipeline
        self._kept: dict[str | None, object] = {}

    def __call__(self, prompts: Sequence[str | None]):
        """Encode prompts as `Pipeline.encode` does, which also refuses anything but a list of prompts."""
        if isinstance(prompts, str) or not len(prompts) or not all(map(_is_prompt, prompts)):
            return self._pipeline.encode(prompts)
        texts = [self._text(prompt) for prompt in prompts]
        if len({text.tokens.shape for text in texts}) > 1:
            # this encoder pads to the longest prompt of a batch, so the batch must be encoded as a whole
            return self._pipeline.encode(prompts)
        return _joined(texts).to(self._pipeline.device)

    def _text(self, prompt: str | None):
        if prompt not in self._kept:
            self._kept[prompt] = self._pipeline.encode([prompt]).to("cpu")
        return self._kept[prompt]


def _is_prompt(prompt) -> bool:
    return prompt is None or isinstance(prompt, str)


def _joined(texts: list):
    """Join conditions of one row each into one condition of all rows."""
    joined = {}
    for field in fields(texts[0]):
        tensors = [getattr(text, field.name) for text in texts]
        if tensors[0] is not None:
            joined[field.name] = torch.cat(tensors)
    return replace(texts[0], **joined)
