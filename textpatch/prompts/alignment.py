"""Which tokens of a prompt spell its quoted word."""

from __future__ import annotations

from collections.abc import Callable

from textpatch.errors import PatchError, PromptError
from textpatch.prompts.pairs import quoted


def word_tokens(pipeline, prompt: str) -> tuple[int, ...]:
    """The text tokens that change with the quoted word of a prompt: what all tokenizers put between its quotes.

    Tokens stand as the encoders of the published models lay them: two CLIPs side by side, a T5 after them.
    Raises PatchError for encoders without tokenizers, PromptError for a word no encoder reads.
    """
    tokenizers = getattr(pipeline.encoders, "tokenizers", None)
    if not tokenizers:
        raise PatchError(
            f"the encoders of {pipeline.name} have no `tokenizers` to find the word with; give `tokens` instead"
        )
    total, read = (
        pipeline.encode([prompt]).tokens.shape[1],
        getattr(pipeline.encoders, "as_read", str),
    )
    limits = getattr(pipeline.encoders, "limits", [total] * len(tokenizers))
    lengths = [
        min(tokenizer.model_max_length, limit) for tokenizer, limit in zip(tokenizers, limits)
    ]
    offsets = [0, 0, lengths[0]]
    places = {
        offset + i
        for offset, tokenizer, length in zip(offsets, tokenizers, lengths)
        for i in _between(tokenizer, prompt, read)
        if i < length and offset + i < total
    }
    if not places:
        raise PromptError(
            f"no token of {prompt!r} is the word's; the prompt is too long, or the word unknown"
        )
    return tuple(sorted(places))


def _between(tokenizer, prompt: str, read: Callable[[str], str]) -> range:
    """Places of the tokens that are not there without the word."""
    quoted(prompt)
    before, _, after = prompt.split('"')
    whole, empty = (tokenizer(read(text)).input_ids for text in (prompt, f'{before}""{after}'))
    alike = lambda a, b: next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(b))  # noqa: E731
    return range(alike(whole, empty), len(whole) - alike(whole[::-1], empty[::-1]))
