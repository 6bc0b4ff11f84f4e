"""Detector that asks a yes-or-no question about every word of a text, however the word is disguised.

    word       letters as `normalising` sees them
    leet       signs that stand for letters read as these
    stretched  a letter written three times or more read as one, and as two
    joined     single letters with signs or blanks between them read as one word

A word has at most 27 readings, so that time is linear in the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from textpatch.safety.lookalikes import LEET
from textpatch.safety.normalising import Cell, Piece, letters_of, runs, visible
from textpatch.safety.vocabulary import STRETCHED_FROM, is_number, squeezed
from textpatch.safety.word_lists import PUNCTUATION

JOINED_FROM = 3  # single letters that are read as a word


def _ways() -> list[dict[int, str]]:
    """Tables of signs as letters, one for each way to read those that may be one of two letters."""
    unsure = sorted({letters for letters in LEET.values() if len(letters) > 1})
    ways = [dict(zip(unsure, chosen, strict=True)) for chosen in itertools.product(*unsure)]
    return [
        str.maketrans({sign: way.get(letters, letters) for sign, letters in LEET.items()})
        for way in ways
    ]


_WAYS = _ways()


class EachWord:
    """Detector that asks a yes-or-no question about every word of a text, in each of its readings.

    is_harmful  word, case folded -> bool, such as a word filter or a classifier of your own
    name        name in findings
    version     version of what answers
    allow       words that are never asked about
    Numbers and prices are not asked about.
    """

    def __init__(
        self,
        is_harmful: Callable[[str], bool],
        name: str,
        version: str = "",
        *,
        allow: Iterable[str] = (),
    ) -> None:
        self.is_harmful = is_harmful
        self.name = name
        self.version = version
        self.allowed = frozenset(map(letters_of, allow))

    def __call__(self, text: str) -> list[tuple[int, int, str]]:
        cells = visible(text)
        found = [*self._words(cells), *self._joined(cells)]
        return [(cells[word.first].start, cells[word.last].stop, rule) for word, rule in found]

    def _words(self, cells: Sequence[Cell]) -> Iterator[tuple[Piece, str]]:
        """Words that are harmful as they stand, and of the others their parts between signs."""
        for word in runs(cells, _is_no_blank):
            rule = self._rule({word.letters: "word"})
            if rule is not None:
                yield word, rule
                continue
            for part in runs(cells[word.first : word.last + 1], _may_be_letter):
                rule = self._rule(readings(part.letters))
                if rule is not None:
                    yield Piece(part.letters, word.first + part.first, word.first + part.last), rule

    def _joined(self, cells: Sequence[Cell]) -> Iterator[tuple[Piece, str]]:
        """Words whose letters stand apart, which are harmful together."""
        for word in _spelled(cells):
            if self._rule(readings(word.letters)) is not None:
                yield word, "joined"

    def _rule(self, asked: Mapping[str, str]) -> str | None:
        """Rule of the first reading that is harmful, None where none is."""
        for reading, rule in asked.items():
            if reading in self.allowed or is_number(reading):
                continue
            if self.is_harmful(reading):
                return rule
        return None


def readings(letters: str) -> dict[str, str]:
    """What a word may be read as, each with its rule, the word as it is seen first."""
    found = {letters: "word"}
    if is_number(letters):
        return found
    bare = letters.strip(PUNCTUATION)
    for way in _WAYS:
        read = bare.translate(way)
        if read.isalpha():
            found.setdefault(read, "leet")
    for read in list(found):
        for length in (1, 2):
            found.setdefault(_shortened(read, length), "stretched")
    return found


def _shortened(letters: str, length: int) -> str:
    """A word with every letter that is stretched written so many times."""
    return "".join(
        letter * (length if written >= STRETCHED_FROM else written)
        for letter, written in squeezed(letters)
    )


def _spelled(cells: Sequence[Cell]) -> Iterator[Piece]:
    """Words whose letters stand apart, with signs or blanks between them."""
    pieces = runs(cells, _may_be_letter)
    begun: list[Piece] = []
    for piece in pieces:
        if len(piece.letters) == 1:
            begun.append(piece)
            continue
        yield from _together(begun)
        begun = []
    yield from _together(begun)


def _together(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The word that single letters are, unless they are too few."""
    if len(pieces) >= JOINED_FROM:
        letters = "".join(piece.letters for piece in pieces)
        yield Piece(letters, pieces[0].first, pieces[-1].last)


def _is_no_blank(letter: str) -> bool:
    return not letter.isspace()


def _may_be_letter(letter: str) -> bool:
    return letter.isalpha() or letter in LEET
