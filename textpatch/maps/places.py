"""Places of words among the text tokens of a pipeline's model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textpatch.errors import PatchError
from textpatch.pipelines import SupportsWordTokens, draws_by_itself, require_parts
from textpatch.prompts.tokens import PromptTokens, prompt_tokens, tokenized

# class of one of diffusers' pipelines -> for each part of its text the attribute of a tokenizer, and the
# place of the first token or the attribute that holds it
TOKENIZERS: dict[str, tuple[tuple[str, int | str], ...]] = {
    "AuraFlowPipeline": (("tokenizer", 8),),
    "ChromaPipeline": (("tokenizer", 0),),
    "FluxPipeline": (("tokenizer_2", 0),),
    "IFPipeline": (("tokenizer", 0),),
    "PixArtAlphaPipeline": (("tokenizer", 0),),
    "PixArtSigmaPipeline": (("tokenizer", 0),),
    "StableDiffusion3Pipeline": (("tokenizer", 0), ("tokenizer_3", "tokenizer_max_length")),
    "StableDiffusionPipeline": (("tokenizer", 0),),
    "StableDiffusionXLPipeline": (("tokenizer", 0),),
}


def word_places(pipeline: Any, prompt: str, words: Sequence[str]) -> tuple[int, ...]:
    """Places of the tokens of words among the text tokens that a pipeline's model reads.

    Raises PatchError for a pipeline of which it is not known where its tokens lie, and PromptError for words
    that are not in the prompt or not read.
    """
    if draws_by_itself(pipeline):
        read = _wrapped_tokens(pipeline, prompt)
    else:
        require_parts(pipeline, "attention_map", SupportsWordTokens)
        total = pipeline.encode([prompt]).tokens.shape[1]
        read = prompt_tokens(pipeline, prompt, total)
    return tuple(sorted({place for word in words for place in read.places(word)}))


def _wrapped_tokens(pipeline: Any, prompt: str) -> PromptTokens:
    """Tokens of a prompt in the model of a wrapped pipeline of diffusers."""
    pipe = getattr(pipeline.draw, "pipe", None)
    kinds = [kind.__name__ for kind in type(pipe).__mro__]
    known = next((TOKENIZERS[kind] for kind in kinds if kind in TOKENIZERS), None)
    if known is None:
        raise PatchError(
            f"where the words of a prompt lie among the text tokens of {pipeline.name} is not known; give "
            "their places as `tokens`"
        )
    there = [(getattr(pipe, name), offset) for name, offset in known]
    parts = [tokenized(one, prompt, one.model_max_length) for one, _ in there if one is not None]
    offsets = [
        getattr(pipe, offset) if isinstance(offset, str) else offset
        for one, offset in there
        if one is not None
    ]
    lengths = [len(part.ids) for part in parts]
    return PromptTokens(
        prompt, tuple(parts), tuple(offsets), tuple(lengths), offsets[-1] + lengths[-1]
    )
