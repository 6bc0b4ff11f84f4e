"""Prompts to token ids, as many as the encoders read, and what of a prompt is not read."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from textpatch.errors import PatchError, PromptError, closest
from textpatch.quotes import STRAIGHT, STRAIGHTENED, quotations

if TYPE_CHECKING:  # importing transformers takes 3 s, and a denoiser does without
    from transformers import BatchEncoding, PreTrainedTokenizerBase

# Characters of a prompt, 16 for each of T5's tokens.  Tokenizers may take quadratic time: tiny-if's takes
# .06 s for 4,000 letters without a blank and an hour for a million.
LONGEST = 4096
# of a CLIP, in which a prompt of LONGEST characters has room, a token each
MOST_WINDOWS = 64
# A fast tokenizer keeps between calls whether it pads.  Of 120 prompts read by three threads, two came back
# without padding.
ONE_AT_A_TIME = threading.Lock()


def tokenize(
    prompts: Sequence[str | None],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    limits: Sequence[int],
) -> list[BatchEncoding]:
    """Tokenize prompts for each encoder, to ids and attention mask (B, T), padded or cut to its length.

    prompts  texts; None reads as ""
    limits   the most tokens of each encoder, where its tokenizer would take more

    A prompt that some encoder cuts off is told as a warning.
    Raises PromptError for

    - a word that no tokenizer knows,
    - a prompt whose end every encoder would cut off, that of its last quoted text where it has one,
    - half a character (a lone surrogate),
    - more than LONGEST characters,
    - anything but a text.

    Raises PatchError unless there is a tokenizer per encoder.
    """
    if len(tokenizers) != len(limits):
        raise PatchError(
            f"{len(tokenizers)} tokenizers for {len(limits)} text encoders; give one each"
        )
    prompts = as_texts(prompts)
    lengths = lengths_read(tokenizers, limits)
    with ONE_AT_A_TIME:
        for prompt in prompts:
            require_text(prompt)
            _require_readable(prompt, tokenizers, lengths)
        return [
            tokenizer(
                prompts,
                padding="max_length",
                truncation=True,
                max_length=length,
                return_attention_mask=True,
                return_tensors="pt",
            )
            for tokenizer, length in zip(tokenizers, lengths, strict=True)
        ]


class Windows(NamedTuple):
    """Token ids (B * windows, T) of prompts, each read in several windows."""

    input_ids: Tensor


def in_windows(
    prompts: Sequence[str | None],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    limits: Sequence[int],
    windows: int,
) -> list[Windows]:
    """Tokenize prompts for each encoder into so many windows, each of the encoder's length.

    A window has the next T - 2 tokens of the prompt between a begin and an end of its own, and then padding.
    Prompts that end sooner have empty windows, so that none is read otherwise beside a longer one.
    Raises PromptError as `tokenize` does, for a prompt that does not fit into the windows.
    """
    prompts = as_texts(prompts)
    made = []
    lengths = lengths_read(tokenizers, limits)
    with ONE_AT_A_TIME:
        for prompt in prompts:
            require_text(prompt)
            # as long as all windows together, with one begin and one end
            _require_readable(prompt, tokenizers, [(n - 2) * windows + 2 for n in lengths])
        for tokenizer, length in zip(tokenizers, lengths, strict=True):
            rows = [
                row for prompt in prompts for row in _windows(prompt, tokenizer, length, windows)
            ]
            made.append(Windows(torch.tensor(rows)))  # (B * windows, T)
    return made


def _windows(
    prompt: str, tokenizer: PreTrainedTokenizerBase, length: int, windows: int
) -> list[list[int]]:
    """Ids of the windows of one prompt."""
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    rows = []
    for start in range(0, (length - 2) * windows, length - 2):
        row = [tokenizer.bos_token_id, *ids[start : start + length - 2], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return rows


def lengths_read(tokenizers: Sequence[PreTrainedTokenizerBase], limits: Sequence[int]) -> list[int]:
    """Tokens that each encoder reads, the lower of its tokenizer's limit and its own."""
    return [
        min(tokenizer.model_max_length, limit)
        for tokenizer, limit in zip(tokenizers, limits, strict=False)
    ]


def as_texts(prompts: Sequence[str | None]) -> list[str]:
    """Prompts with "" for None.   Raises PromptError for a list among them, which a tokenizer would join."""
    for prompt in prompts:
        if prompt is not None and not isinstance(prompt, str):
            raise PromptError(
                f"a prompt is {prompt!r}, no text; give one text, or None, for each picture"
            )
    return [prompt or "" for prompt in prompts]


def require_text(prompt: str) -> None:
    """Raise PromptError for more than LONGEST characters, and for half a character."""
    if len(prompt) > LONGEST:
        found = f"{prompt[:40]!r}... is {len(prompt):,} characters long"
        raise PromptError(f"{found}, and the model reads at most {LONGEST:,}; shorten it")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise PromptError(f"{prompt!r} holds half a character (a lone surrogate); give it as UTF-8")


def _require_readable(
    prompt: str, tokenizers: Sequence[PreTrainedTokenizerBase], lengths: list[int]
) -> None:
    """Raise PromptError for what no encoder reads.   What some do not read is told as a warning."""
    whole = [tokenizer(prompt, verbose=False).input_ids for tokenizer in tokenizers]
    if all(_unknown(tokenizers[i], ids) for i, ids in enumerate(whole)):
        raise _unknown_word(tokenizers[0], prompt)
    cut = [i for i, ids in enumerate(whole) if len(ids) > lengths[i]]
    if not cut:
        return
    needed = _needed(prompt)
    reading = [
        i
        for i, tokenizer in enumerate(tokenizers)
        if len(tokenizer(needed, verbose=False).input_ids) <= lengths[i]
    ]
    if not reading:
        lost = "" if needed == prompt else ", so that no encoder reads its quoted text"
        raise PromptError(
            f"{prompt!r} is {min(map(len, whole))} tokens long, "
            f"and the model reads at most {max(lengths)}{lost}; shorten it"
        )
    first = cut[0]
    what = "the whole" if needed == prompt else "what it quotes"
    warnings.warn(
        f"a prompt of {len(whole[first])} tokens is read to its first {lengths[first]} by "
        f"{_encoders(cut)} of {len(whole)}; {what} is read by {_encoders(reading)}",
        stacklevel=2,
    )


def _needed(prompt: str) -> str:
    """Beginning of a prompt that some encoder must read, which ends with its last quoted text.

    It is the whole prompt where nothing is quoted.
    """
    with suppress(PromptError):  # quotes of two kinds
        found = quotations(prompt)
        if found:
            return prompt[: found[-1].end + 1]
    return prompt


def _encoders(places: Sequence[int]) -> str:
    """Text encoders in words, counted from 1."""
    numbers = ", ".join(str(place + 1) for place in places)
    return f"text encoder {numbers}" if len(places) == 1 else f"text encoders {numbers}"


def _unknown(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    # CLIP's byte-level vocabulary knows every word, and names its end token as the unknown one
    return (
        tokenizer.unk_token_id not in (None, tokenizer.eos_token_id)
        and tokenizer.unk_token_id in ids
    )


def _other_spellings(word: str) -> list[str]:
    """A word with straight double quotes for all others, and with capitals too where it is quoted."""
    straight = word.translate(STRAIGHTENED)
    spellings = [straight]
    if STRAIGHT in straight:
        spellings.append(straight.upper())
    return [written for written in spellings if written != word]


def _unknown_word(tokenizer: PreTrainedTokenizerBase, prompt: str) -> PromptError:
    word = next((w for w in prompt.split() if _unknown(tokenizer, tokenizer(w).input_ids)), prompt)
    for written in _other_spellings(word):
        if not _unknown(tokenizer, tokenizer(written).input_ids):
            return PromptError(f"the model does not know {word!r} in {prompt!r}; write {written}")
    vocabulary = tokenizer.get_vocab()
    known = [
        w for w in sorted(vocabulary, key=vocabulary.get) if w not in tokenizer.all_special_tokens
    ]
    return PromptError(f"the model does not know {word!r} in {prompt!r}{closest(word, known)}")
