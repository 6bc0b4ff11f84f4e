"""Words of a prompt as tokens, found by the characters that each token stands for.

Character offsets hold for every tokenizer, whether it opens a prompt with a token of its own, as CLIP's does,
or marks words by the blank before them, as T5's does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from textpatch.errors import PatchError, PromptError, closest
from textpatch.pipelines import SupportsSampling, SupportsWordTokens, require_parts
from textpatch.prompts.alignment import token_blocks
from textpatch.prompts.pairs import Pair
from textpatch.quotes import quoted_words

Places = tuple[int, ...]  # of tokens in a prompt


@dataclass(frozen=True)
class TokenizedPrompt:
    """Tokens of a prompt with the characters that each stands for.

    text   as the tokenizer is given it
    ids    tokens without padding, those that begin and end a prompt included
    spans  first and last (exclusive) character of each token, None for one that stands for no character
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What blanks separate."""
        return tuple(self.text.split())

    @property
    def word_places(self) -> tuple[Places, ...]:
        """Tokens of each word, none for a word behind the last token that is read."""
        return tuple(self.between(*match.span()) for match in re.finditer(r"\S+", self.text))

    def between(self, first: int, last: int) -> Places:
        """Tokens that stand for some of the characters first to last (exclusive)."""
        return tuple(
            place
            for place, span in enumerate(self.spans)
            if span is not None and span[0] < last and span[1] > first
        )

    def places(self, phrase: str) -> Places:
        """Tokens of a word or phrase wherever it stands in the prompt, in any case, none where it does not.

        The phrase is no part of a longer word.  What it stands between, such as quotes, is not its own.
        """
        whole = rf"(?<!\w){re.escape(phrase)}(?!\w)"
        found: set[int] = set()
        for match in re.finditer(whole, self.text, re.IGNORECASE):
            found.update(self.between(*match.span()))
        return tuple(sorted(found))


def tokenized(tokenizer, text: str, length: int) -> TokenizedPrompt:
    """Tokens of a prompt by a tokenizer that reads at most `length` of them.

    Raises PatchError for a tokenizer that does not tell the characters of its tokens.
    """
    try:
        made = tokenizer(
            text,
            truncation=True,
            max_length=length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
    except NotImplementedError as error:
        raise PatchError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for, so no word is "
            "found; load the pipeline with fast tokenizers"
        ) from error
    marks = zip(made.offset_mapping, made.special_tokens_mask, strict=True)
    spans = [None if special else _without_blanks(text, *span) for span, special in marks]
    return TokenizedPrompt(text, tuple(made.input_ids), tuple(spans))


def _without_blanks(text: str, first: int, last: int) -> tuple[int, int]:
    """Characters first to last (exclusive) of a text without blanks before them.

    A token of a blank alone stands with the word after it.
    """
    while first < len(text) and text[first].isspace():
        first += 1
    return first, max(first + 1, last)


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as a model reads it, by one tokenizer or by several one after the other.

    prompt   as it was given
    parts    its tokens by each tokenizer
    offsets  place of the first token of each part among all text tokens
    lengths  tokens of each part, padding included
    total    number of all text tokens
    """

    prompt: str
    parts: tuple[TokenizedPrompt, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    total: int

    def places(self, phrase: str) -> Places:
        """Text tokens of a word or phrase wherever it stands.

        Raises PromptError for one that is not in the prompt, or stands behind the last token that is read.
        """
        found = [
            offset + place
            for part, offset in zip(self.parts, self.offsets, strict=True)
            for place in part.places(phrase)
        ]
        if not phrase.strip() or not found:
            raise self._not_found(phrase)
        return tuple(found)

    def of_words(self) -> list[Places]:
        """Text tokens of each word of the quoted texts, in the order of the prompt.

        Raises PromptError for a word that stands behind the last token that is read.
        """
        found: list[list[int]] = [[] for _ in quoted_words(self.prompt)]
        for part, offset in zip(self.parts, self.offsets, strict=True):
            for places, word in zip(found, quoted_words(part.text), strict=True):
                places += [offset + place for place in part.between(word.start, word.end)]
        for places, word in zip(found, quoted_words(self.prompt), strict=True):
            if not places:
                raise self._not_found(word.word)
        return [tuple(places) for places in found]

    def _not_found(self, phrase: str) -> PromptError:
        words = dict.fromkeys(re.findall(r"\w+", self.prompt))
        return PromptError(
            f"no token of {self.prompt!r} is that of {phrase!r}, which is no word of it or stands behind "
            f"what the model reads{closest(phrase, words)}"
        )


def prompt_tokens(pipeline, prompt: str, total: int) -> PromptTokens:
    """Tokens of a prompt in all `total` text tokens of a pipeline's model.

    Two CLIPs read the same tokens side by side, of which the first's are taken.
    Raises PatchError as `token_blocks` and `tokenized` do.
    """
    read = getattr(pipeline.encoders, "as_read", str)
    blocks = {block.offset: block for block in reversed(token_blocks(pipeline, total))}
    offsets = sorted(blocks)
    parts = [
        tokenized(blocks[offset].tokenizer, read(prompt), blocks[offset].length)
        for offset in offsets
    ]
    lengths = [blocks[offset].length for offset in offsets]
    return PromptTokens(prompt, tuple(parts), tuple(offsets), tuple(lengths), total)


def tokens_of_words(pipeline, prompt: str) -> list[Places]:
    """Text tokens of each word of a prompt's quoted texts, along all text tokens of a pipeline's model.

    A `Swap` of these `tokens` lets the readers read the donor's word in the place of this one alone.
    Raises PatchError as `prompt_tokens` and for a pipeline that does not tell its tokens, PromptError for a
    word behind the last token that is read.
    """
    require_parts(pipeline, "a swap of a word's tokens", SupportsWordTokens, SupportsSampling)
    total = pipeline.encode([prompt]).tokens.shape[1]
    return prompt_tokens(pipeline, prompt, total).of_words()


def shared_places(pipeline, pair: Pair) -> dict[int, Places]:
    """Text tokens of each quoted word in which two prompts differ, by the word's number, counted from 1.

    A swap exchanges tokens place by place.  So the words of a number must stand at the same tokens in both
    prompts.
    Raises PromptError where they do not, for another number of words, and for words that are all alike.
    """
    words = [[one.word for one in quoted_words(prompt)] for prompt in (pair.source, pair.target)]
    if len(words[0]) != len(words[1]):
        raise PromptError(
            f"{pair.source!r} quotes {len(words[0])} words and {pair.target!r} {len(words[1])}, and the "
            "tokens of one word are swapped with those of its counterpart; give prompts of as many words"
        )
    places = [tokens_of_words(pipeline, prompt) for prompt in (pair.source, pair.target)]
    found = {}
    for number, (old, new, own, other) in enumerate(zip(*words, *places, strict=True), 1):
        if old == new:
            continue
        if own != other:
            raise PromptError(
                f"word {number} stands at tokens {list(own)} as {old} and at {list(other)} as {new}, and "
                "tokens are swapped place by place; give words of as many tokens each in prompts that are "
                "otherwise alike, or swap all tokens"
            )
        found[number] = own
    if not found:
        raise PromptError(
            f"the quoted words of {pair.source!r} and {pair.target!r} are alike, so none of their tokens is "
            "to be swapped; give prompts that differ in one"
        )
    return found
