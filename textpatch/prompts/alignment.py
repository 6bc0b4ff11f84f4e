"""Places of the tokens of a prompt that spell its quoted word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from textpatch.errors import PatchError, PromptError
from textpatch.prompts.pairs import quoted_texts
from textpatch.quotes import quotations, with_texts


class TokenBlock(NamedTuple):
    """Neighbouring text tokens of a model, which one tokenizer makes.

    offset  place of the first among all text tokens
    length  number of them, padding included
    """

    tokenizer: Any
    offset: int
    length: int


def token_blocks(pipeline, total: int) -> list[TokenBlock]:
    """Blocks of the `total` text tokens of a model, one for each tokenizer.

    They lie as in the published models, those of two CLIPs in one place, side by side on channels, and those
    of a T5 after them.
    Raises PatchError for encoders without tokenizers, and for prompts in several windows.
    """
    encoders = pipeline.encoders
    tokenizers = getattr(encoders, "tokenizers", None)
    if not tokenizers:
        raise PatchError(
            f"the encoders of {pipeline.name} have no `tokenizers` to find a word with; "
            "give `tokens`, where a call takes these, or encoders with tokenizers"
        )
    if getattr(encoders, "windows", 1) > 1:
        raise PatchError(
            f"{pipeline.name} reads prompts in several windows, between which the places of a word are not "
            "told; give `tokens`, where a call takes these, or a pipeline without long prompts"
        )
    limits = getattr(encoders, "limits", [total] * len(tokenizers))
    lengths = [
        min(tokenizer.model_max_length, limit)
        for tokenizer, limit in zip(tokenizers, limits, strict=True)
    ]
    offsets = [0, 0, lengths[0]]
    return [
        TokenBlock(tokenizer, offset, min(length, total - offset))
        for tokenizer, offset, length in zip(tokenizers, offsets, lengths, strict=False)
        if offset < total
    ]


def word_tokens(pipeline, prompt: str) -> tuple[int, ...]:
    """Places of the text tokens that change with the quoted texts of a prompt.

    They are the tokens that each tokenizer puts between the quotes of each text, counted along all text
    tokens of the model, as `token_blocks` lays them out.
    Raises PatchError as `token_blocks`, PromptError for a word no encoder reads.
    """
    total = pipeline.encode([prompt]).tokens.shape[1]
    read = getattr(pipeline.encoders, "as_read", str)
    places: set[int] = set()
    for tokenizer, offset, length in token_blocks(pipeline, total):
        for number in range(len(quoted_texts(prompt))):
            own = _between(tokenizer, prompt, number, read)
            places.update(offset + place for place in own if place < length)
    if not places:
        raise PromptError(
            f"no token of {prompt!r} is the word's; the prompt is too long, or the word unknown"
        )
    return tuple(sorted(places))


def _between(tokenizer, prompt: str, number: int, read: Callable[[str], str]) -> range:
    """Places of the tokens that a tokenizer adds for what stands between the quotes of a text of a number."""
    texts = [quotation.text for quotation in quotations(prompt)]
    texts[number] = ""
    whole = tokenizer(read(prompt)).input_ids
    empty = tokenizer(read(with_texts(prompt, texts))).input_ids
    return range(_alike(whole, empty), len(whole) - _alike(whole[::-1], empty[::-1]))


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both sequences begin."""
    for place, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return place
    return min(len(a), len(b))
