"""Replacers, which name a benign word for a harmful text.

A replacer is any function of the harmful text and the prompt that it stands in.  It returns what is written
in the text's place, or raises, and then the prompt is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from textpatch.errors import PatchError, PromptError
from textpatch.prompts.tables import numbered_lines
from textpatch.quotes import STRAIGHT, STRAIGHTENED
from textpatch.safety.normalising import letters_of

BENIGN = """
SUN SKY TEA MAP HAT RIVER LAMP MOON LEAF BREAD CLOUD TABLE GARDEN WINDOW BASKET MEADOW LANTERN HARBOUR
BLANKET TEASPOON MOUNTAIN NOTEBOOK BUTTERFLY SUNFLOWER WATERFALL LIGHTHOUSE STRAWBERRY WHEELBARROW
GRANDMOTHER MARKETPLACE WATERMELONS GRASSHOPPERS KINDERGARTEN CONSTELLATION
""".split()


class Replacer(Protocol):
    """What names a benign word."""

    def __call__(self, found: str, prompt: str) -> str:
        """Text that is written in the place of a harmful one.

        found   the harmful text, as written
        prompt  the prompt that it stands in
        """


class NearLength:
    """Replacer that takes a word of a list whose length is nearest, so that the layout stays.

    words  benign words
    seed   which of the words of one length is taken for which harmful one
    The word is written in capitals, with one capital or in small letters, as the harmful one is.
    Raises PatchError for a list without words, and for words that cannot stand between quotes.
    """

    def __init__(self, words: Iterable[str] = BENIGN, *, seed: int = 0) -> None:
        if isinstance(words, (str, bytes)):
            raise PatchError("NearLength was given a single text; give a list of words")
        self.words = list(words)
        self.seed = seed
        if not self.words:
            raise PatchError("the list of benign words is empty; give at least one word")
        for word in self.words:
            if not isinstance(word, str) or not is_writable(word):
                raise PatchError(
                    f"{word!r} cannot stand between quotes; give words without quotes, none empty"
                )

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], *, seed: int = 0) -> NearLength:
        """Words of a file, one a line.  Raises PromptError for a file that is no text."""
        lines = numbered_lines(Path(path), "a text with one word a line")
        return cls([line for _, line in lines], seed=seed)

    def __call__(self, found: str, prompt: str) -> str:
        plain = "".join(filter(str.isalnum, letters_of(found)))
        nearest = min(abs(len(word) - len(plain)) for word in self.words)
        near = [word for word in self.words if abs(len(word) - len(plain)) == nearest]
        digest = hashlib.sha256(f"{self.seed}/{plain}".encode()).digest()
        return _written_as(near[int.from_bytes(digest[:8], "big") % len(near)], found)


class Mapped:
    """Replacer that looks a harmful text up, however it is disguised by look-alikes or case.

    table      harmful text -> benign text
    otherwise  replacer of what the table has not.  Without one the prompt is refused
    Raises PatchError for an empty table.
    """

    def __init__(self, table: Mapping[str, str], otherwise: Replacer | None = None) -> None:
        if not table:
            raise PatchError("the table of replacements is empty; give at least one")
        self.table = {letters_of(found): benign for found, benign in table.items()}
        self.otherwise = otherwise

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], otherwise: Replacer | None = None) -> Mapped:
        """Table of a file of lines `harmful<TAB>benign`.

        Raises PromptError, which names the line and not what is in it, for a line of another form.
        """
        table = {}
        for place, line in numbered_lines(Path(path), "a text of lines `harmful<TAB>benign`"):
            if line.count("\t") != 1:
                raise PromptError(
                    f"{place}: expected `harmful<TAB>benign`, found {line.count(chr(9))} tabs; "
                    "write one tab between the two"
                )
            found, benign = line.split("\t")
            table[found] = benign
        return cls(table, otherwise)

    def __call__(self, found: str, prompt: str) -> str:
        benign = self.table.get(letters_of(found))
        if benign is not None:
            return benign
        if self.otherwise is None:
            raise PatchError("the table of replacements has no entry for what was found")
        return self.otherwise(found, prompt)


def is_writable(text: str) -> bool:
    """True for a text that can stand between quotes of any kind, and has letters."""
    quoted = STRAIGHT in text.translate(STRAIGHTENED)
    return any(map(str.isalnum, text)) and not quoted and text.isprintable()


def _written_as(word: str, found: str) -> str:
    """A word in the case of another text."""
    if found.upper() == found:
        return word.upper()
    if found[:1].upper() == found[:1]:
        return word.capitalize()
    return word.lower()
