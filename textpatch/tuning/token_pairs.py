"""Tokens of an old text, each with the token of a new text that it is to be read as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textpatch.errors import PatchError
from textpatch.prompts.alignment import token_blocks

TokenPairs = list[tuple[int, int]]
KINDS = "all", "aligned", "last"


def paired(kind: str, pipeline: Any, old: str, new: str, total: int) -> TokenPairs:
    """Pairs (token of old, token of new) of two texts with `total` tokens each.

    kind  "all"      each token with the one at its place (an injection)
          "aligned"  each token of old with its place in new, which must hold old's tokens in order (TIME)
          "last"     the last token of each before the end (UCE, LocoEdit), by each encoder whose tokens lie
                     behind the others'

    Raises PatchError as `token_blocks`, and where tokenizers that lie side by side pair in different ways.
    """
    if kind == "all":
        return [(token, token) for token in range(total)]
    pair = last if kind == "last" else aligned
    read = getattr(pipeline.encoders, "as_read", str)
    found: dict[int, TokenPairs] = {}
    for tokenizer, offset, length in token_blocks(pipeline, total):
        ids = [list(tokenizer(read(text)).input_ids) for text in (old, new)]
        pairs = [(offset + token, offset + place) for token, place in pair(*ids, length)]
        if found.setdefault(offset, pairs) != pairs:
            raise PatchError(
                f"the tokenizers of {pipeline.name} cut {old!r} or {new!r} in different ways, and their "
                "tokens lie side by side; give tokens='all'"
            )
    return [pair for pairs in found.values() for pair in pairs]


def last(old: Sequence[int], new: Sequence[int], total: int) -> TokenPairs:
    """Last token of each before the end token, or the first of an empty text."""
    ends = [min(max(len(ids) - 2, 0), total - 1) for ids in (old, new)]
    return [(ends[0], ends[1])]


def aligned(old: Sequence[int], new: Sequence[int], total: int) -> TokenPairs:
    """Each token of old with its place in new, padding with padding.

    Raises PatchError unless new holds the tokens of old in order.
    """
    pairs = []
    place = 0
    for token, number in enumerate(old):
        while place < len(new) and new[place] != number:
            place += 1
        if place == len(new):
            raise PatchError(
                f"token {token} of the old text is not in the new one after those before it; give a new text "
                "that holds the old one, such as 'a neon sign' for 'a sign', or tokens='all'"
            )
        pairs.append((token, place))
        place += 1
    longer = len(new) - len(old)
    pairs += [(token, token + longer) for token in range(len(old), total)]
    return [(token, min(place, total - 1)) for token, place in pairs[:total]]
