"""Detector of the words of a list, however they are disguised.

Rules are those of `vocabulary`, over letters as `normalising` sees them, and these beside.

    joined      letters with signs between them, or single letters with blanks between them
    phrase      several words of the list's entry, whatever stands between them
    reversed    backwards, in a text that turns the direction of writing
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from textpatch.errors import PatchError
from textpatch.prompts.tables import numbered_lines
from textpatch.safety.detection import Finding
from textpatch.safety.lookalikes import LEET, MASKS
from textpatch.safety.normalising import (
    BLANK,
    Cell,
    Piece,
    letters_of,
    runs,
    turns,
    visible,
)
from textpatch.safety.vocabulary import Vocabulary

FEWEST_LETTERS = 2
PUNCTUATION = "!|+" + MASKS  # what may stand beside a word and be no part of it
JOINED_FROM = 6  # letters of several words that count as one word, too


class WordList:
    """Detector of the words of a list.

    words       words, or texts of several words.  How they are written is no matter
    allow       words that are never found, such as innocent ones that a rule takes for one of the list
    name        name in findings
    misspelled  True finds words of five letters and more with one letter wrong, too, and any innocent word
                that differs from one of them by a letter
    Raises PatchError for a list without words, for no list, and for words of a single letter, which every
    text holds.
    """

    def __init__(
        self,
        words: Iterable[str],
        *,
        allow: Iterable[str] = (),
        name: str = "words",
        misspelled: bool = False,
    ) -> None:
        if isinstance(words, (str, bytes)):
            raise PatchError("WordList was given a single text; give a list of words")
        entries = [_entry(word) for word in words]
        if not entries:
            raise PatchError("the list of harmful words is empty; give at least one word")
        short = sum(len(entry) < FEWEST_LETTERS for entry in entries)
        if short:
            raise PatchError(
                f"{short} of {len(entries)} words have less than {FEWEST_LETTERS} letters, and nearly every "
                "text holds these; leave such words out"
            )
        together = {entry.replace(BLANK, "") for entry in entries if BLANK in entry}
        self.name = name
        self.allowed = frozenset(map(_entry, allow))
        self.vocabulary = Vocabulary(
            {*entries, *(word for word in together if len(word) >= JOINED_FROM)},
            misspelled=misspelled,
        )
        told = "\n".join([*sorted(self.vocabulary.words), "", *sorted(self.allowed)])
        if misspelled:
            told += "\n\nmisspelled"
        self.version = hashlib.sha256(told.encode()).hexdigest()[:12]

    @classmethod
    def of_file(
        cls,
        path: str | os.PathLike[str],
        *,
        allow: Iterable[str] = (),
        name: str = "words",
        misspelled: bool = False,
    ) -> WordList:
        """Words of a file, one a line, where blank lines do not count.

        Raises PromptError for a file that is no text, and PatchError as above.
        """
        lines = numbered_lines(Path(path), "a text with one word a line")
        words = [line for _, line in lines]
        return cls(words, allow=allow, name=name, misspelled=misspelled)

    def __call__(self, text: str) -> list[Finding]:
        cells = visible(text)
        found = list(self._in(cells))
        if turns(text):
            backwards = list(self._in(cells[::-1]))
            found += [(first, last, "reversed") for first, last, _ in backwards]
        return _apart(
            [Finding(first, last, rule, self.name, self.version) for first, last, rule in found]
        )

    def _in(self, cells: Sequence[Cell]) -> Iterator[tuple[int, int, str]]:
        """Start, stop and rule of all that is found in some cells, overlaps included."""
        plain = runs(cells, str.isalpha)
        signs = runs(cells, _is_leet)
        masked = runs(cells, _is_masked)
        found = [*self._words(plain), *self._together(cells, plain)]
        if signs != plain:
            bare = [piece for piece in map(_trimmed, signs) if piece.letters]
            found += [*self._disguised(signs), *self._together(cells, bare)]
        if masked != signs:
            found += self._disguised(masked)
        for piece, rule in found:
            ends = (cells[piece.first], cells[piece.last])
            if piece.letters not in self.allowed:
                yield min(cell.start for cell in ends), max(cell.stop for cell in ends), rule

    def _words(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, str]]:
        for piece in pieces:
            rule = self.vocabulary.rule(piece.letters)
            if rule is not None:
                yield piece, rule

    def _disguised(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, str]]:
        """Pieces with signs in place of letters, as they are and without the signs at their ends."""
        for piece in pieces:
            for part in dict.fromkeys([piece, _trimmed(piece)]):
                rule = self.vocabulary.rule_of_signs(part.letters)
                if rule is not None:
                    yield part, rule

    def _together(self, cells: Sequence[Cell], pieces: Sequence[Piece]) -> list[tuple[Piece, str]]:
        return [*self._joined(cells, pieces), *self._phrases(pieces)]

    def _joined(
        self, cells: Sequence[Cell], pieces: Sequence[Piece]
    ) -> Iterator[tuple[Piece, str]]:
        """Pieces that are a word together.

        From each piece on no more are joined than a word may begin with, so that time stays linear.
        """
        linked = [_joins(cells, *two) for two in itertools.pairwise(pieces)] + [False]
        for begin, piece in enumerate(pieces):
            joined = piece.letters
            end = begin
            while linked[end] and self.vocabulary.begins(joined):
                end += 1
                joined += pieces[end].letters
                if self.vocabulary.is_leet(joined) and _whole(pieces, linked, begin, end):
                    yield Piece(joined, piece.first, pieces[end].last), "joined"

    def _phrases(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, str]]:
        """Several pieces that are the words of one entry."""
        for begin, piece in enumerate(pieces):
            phrase = piece.letters
            for after in pieces[begin + 1 : begin + self.vocabulary.parts]:
                if not self.vocabulary.begins(phrase):
                    break
                phrase = f"{phrase}{BLANK}{after.letters}"
                if self.vocabulary.is_leet(phrase):
                    yield Piece(phrase, piece.first, after.last), "phrase"


def _entry(word: object) -> str:
    """Word of a list as its letters are seen, several words with a blank between them.

    Signs that stand for letters become these letters, and any other sign joins what it stands between.
    """
    if not isinstance(word, str):
        raise PatchError(f"a word of the list is of type {type(word).__name__}; give texts alone")
    parts = letters_of(word).split()
    if not any(map(str.isalpha, "".join(parts))):
        return ""
    read = ["".join(LEET.get(letter, letter)[0] for letter in part) for part in parts]
    lettered = ["".join(filter(str.isalpha, part)) for part in read]
    return BLANK.join(filter(None, lettered))


def _is_leet(letter: str) -> bool:
    return letter.isalpha() or letter in LEET


def _is_masked(letter: str) -> bool:
    return _is_leet(letter) or letter in MASKS


def _trimmed(piece: Piece) -> Piece:
    """Piece without the signs at its ends that may be punctuation."""
    left = piece.letters.lstrip(PUNCTUATION)
    both = left.rstrip(PUNCTUATION)
    first = piece.first + len(piece.letters) - len(left)
    return Piece(both, first, first + len(both) - 1)


def _joins(cells: Sequence[Cell], before: Piece, after: Piece) -> bool:
    """True if signs alone stand between two pieces, or blanks between two single letters."""
    between = [cell.letter for cell in cells[before.last + 1 : after.first]]
    if BLANK not in between:
        return True
    return _are_single([before, after])


def _whole(pieces: Sequence[Piece], linked: Sequence[bool], begin: int, end: int) -> bool:
    """True unless single letters go on before or behind, since a spelled word may hold a harmful one."""
    before = begin > 0 and linked[begin - 1] and _are_single(pieces[begin - 1 : begin + 1])
    after = linked[end] and _are_single(pieces[end : end + 2])
    return not before and not after


def _are_single(pieces: Sequence[Piece]) -> bool:
    return all(len(piece.letters) == 1 for piece in pieces)


def _apart(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that do not overlap, the longest of those that begin together."""
    kept: list[Finding] = []
    for one in sorted(findings, key=_by_place):
        if not kept or one.start >= kept[-1].stop:
            kept.append(one)
    return kept


def _by_place(one: Finding) -> tuple[int, int]:
    return one.start, -one.stop
