"""Prompt pairs: what is written in the source's picture, what the target would have there, and how a reading agrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from textpatch import metrics
from textpatch.errors import PromptError

SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Pair:
    """Two prompts with text in double quotes; `words` raises PromptError where there is none.

    Several texts of a prompt are one of several words: `"ON" "AIR"` is scored as `"ON AIR"` is.
    """

    source: str
    target: str
    what: ClassVar[str] = "word"  # in which they differ, as reports say it

    @property
    def words(self) -> tuple[str, str]:
        return " ".join(quoted_texts(self.source)), " ".join(quoted_texts(self.target))

    def scored(self, read: str, *, blanks: bool = True) -> dict:
        """What was read in a picture and how it agrees with both sides; without blanks if the reader drops them."""
        words = self.words if blanks else tuple(word.replace(" ", "") for word in self.words)
        return {"read": read, **word_scores(read, words)}


def require_apart(pair: Pair) -> None:
    """Raise PromptError for a source that is its own target: no swap between them does anything."""
    if pair.source == pair.target:
        raise PromptError(
            f"source and target are both {pair.source!r}, so no swap does anything; give prompts that differ"
        )


def require_other_texts(pairs: Iterable[Pair]) -> None:
    """Raise PromptError for a target that would have in its picture what the source has: no reading could tell them apart."""
    for pair in pairs:
        source, target = pair.words
        if source == target:
            raise PromptError(
                f"source and target both have the {pair.what} {source!r}, so no reading tells which of them a "
                "swap made; give pairs that differ in it"
            )


def quoted_texts(prompt: str) -> list[str]:
    """What stands between the double quotes of a prompt.  Raises PromptError for no text, or a quote left open."""
    _, *parts = prompt.split('"')
    texts = [" ".join(part.split()) for part in parts[::2]]
    if not all(texts) or not texts or len(parts) % 2:
        curly = (
            "; its quotes are curly, and straight ones are read"
            if set("\u201c\u201d") & set(prompt)
            else ""
        )
        raise PromptError(
            f'no quoted word in {prompt!r}{curly}; write the word to render in double quotes: a sign that says "WORD"'
        )
    return texts


def quoted(prompt: str) -> str:
    """The one quoted text of a prompt.  Raises PromptError for none, and for several."""
    texts = quoted_texts(prompt)
    if len(texts) > 1:
        raise PromptError(
            f'{len(texts)} quoted texts in {prompt!r}, and here there can be one; write "{" ".join(texts)}"'
        )
    return texts[0]


def word_scores(read: str, words: tuple[str, str]) -> dict[str, float]:
    """How a reading agrees with the source's and the target's word."""
    scores = {}
    for side, word in zip((SOURCE, TARGET), words):
        match = metrics.characters(read, word)
        scores |= {
            f"precision_{side}": match.precision,
            f"recall_{side}": match.recall,
            f"exact_{side}": float(metrics.exact(read, word)),
            f"edit_{side}": metrics.edit_distance(read, word),
        }
    return scores


def in_its_words(pair: Pair) -> str:
    """The source's prompt with the target's text between its quotes; the target, where the two quote the same.

    A target of another scene asks for more than a word, and all sites that carry any of it would share in L.
    """
    own, other = (prompt.split('"') for prompt in (pair.source, pair.target))
    if len(own) != len(other) or own[1::2] == other[1::2]:
        return pair.target
    own[1::2] = other[1::2]
    return '"'.join(own)
