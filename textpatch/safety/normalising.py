"""Letters of a text as people see them, each with its place in the text as it was written.

    NFKD -> without marks and invisible characters -> look-alikes -> case folded

The rules of Unicode are those of UAX 15 and of case folding; look-alikes are a part of UTS 39.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from textpatch.safety.lookalikes import LOOKALIKES

# marks that combine with a letter or enclose it, formatting, and control characters
INVISIBLE = {"Mn", "Me", "Cf", "Cc"}
# marks, embeddings, overrides and isolates that turn the direction of writing
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# letters of other scripts that are drawn as nothing
BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
BLANK = " "


class Cell(NamedTuple):
    """One character as people see it.

    letter  case folded, " " for any blank
    start   place of what it was written as
    stop    place behind that, and behind the invisible characters that follow
    """

    letter: str
    start: int
    stop: int


class Piece(NamedTuple):
    """Neighbouring cells as a string, with the numbers of the first and the last cell."""

    letters: str
    first: int
    last: int


def visible(text: str) -> list[Cell]:
    """Cells of a text, in time linear in its length."""
    seen = [(place, letter) for place, one in enumerate(text) for letter in _seen(one)]
    # a cell reaches up to the next, over what is invisible between them
    stops = [*(place for place, _ in seen[1:]), len(text)]
    return [
        Cell(letter, place, max(stop, place + 1))
        for (place, letter), stop in zip(seen, stops, strict=False)
    ]


def letters_of(text: str) -> str:
    """Letters of a text as people see them, every blank as " "."""
    return "".join(cell.letter for cell in visible(text))


def turns(text: str) -> bool:
    """True for a text with a character that turns the direction of writing."""
    return not BIDI.isdisjoint(text)


@lru_cache(maxsize=4096)
def _seen(character: str) -> str:
    """What one character is seen as, "" if it is invisible."""
    if character.isspace():
        return BLANK
    if character in BLANK_LETTERS:
        return ""
    return "".join(map(_folded, unicodedata.normalize("NFKD", character)))


def _folded(part: str) -> str:
    """A part of a decomposed character, case folded, "" if it is invisible."""
    if unicodedata.category(part) in INVISIBLE:
        return ""
    if part.isspace():
        return BLANK
    # capitals and small letters may look like different letters, as Greek eta does
    return LOOKALIKES.get(part) or part.casefold()


def runs(cells: Sequence[Cell], belongs: Callable[[str], bool]) -> list[Piece]:
    """Longest pieces whose letters all belong."""
    pieces: list[Piece] = []
    begun: list[str] = []
    for number, cell in enumerate(cells):
        if belongs(cell.letter):
            begun.append(cell.letter)
        elif begun:
            pieces.append(_piece(begun, number))
            begun = []
    if begun:
        pieces.append(_piece(begun, len(cells)))
    return pieces


def _piece(letters: Sequence[str], stop: int) -> Piece:
    return Piece("".join(letters), stop - len(letters), stop - 1)
