"""Reader that believes two others only where they agree.

A reader that knows words repairs letters, and a picture with a broken word passes for one with the word.  Two
readers of different kinds seldom repair the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics.readers.border import without_border
from textpatch.metrics.readers.broken_words import require_strict
from textpatch.metrics.readers.known_words import LETTERS
from textpatch.metrics.readers.passed import once
from textpatch.metrics.readers.reading import (
    Area,
    Boxes,
    Line,
    Reader,
    Reading,
    areas_of,
    knows,
    readings_of,
)
from textpatch.stored import JSONObject

# Confidence of the finder from which a line counts.  Of 360 broken words both readers read 16 as if they were
# whole, and 4 with this limit (95 % interval .4 to 2.8 %); of 480 whole ones 470 and 451.  With .999 it is
# two broken words less, and 16 whole ones (`benchmarks/readers.py --limits`, pictures of their own).
SURE = 0.997


@dataclass(frozen=True)
class _Asked:
    """What the confirmer is asked to read.

    picture  place of the picture among those that are read
    line     of the finder, None where it saw none
    image    that the confirmer is given
    box      in it, None for the whole
    """

    picture: int
    line: Line | None
    image: Image.Image
    box: list[Area] | None


class Agreement:
    """Two readers as one, for which a word counts only where both read it.

    finder     reads the pictures and tells where each line stands, such as PPOCR
    confirmer  reads one line in each place that the finder tells, such as Tesseract
    sure       confidence of the finder, 0..1, from which a line of it counts.  A line without one counts

    Case and blanks do not matter, and are the confirmer's.  Words of the finder that the confirmer reads
    otherwise are in `Reading.unconfirmed`.  Where nobody says where lines stand, ink that reaches the border
    of a found place is no letter: both read the place without it.
    """

    def __init__(self, finder: Reader, confirmer: Reader, *, sure: float = SURE) -> None:
        self.finder = finder
        self.confirmer = confirmer
        self.sure = sure
        self._tested = False

    def read(self, images: Sequence[Image.Image], boxes: Boxes | None = None) -> list[Reading]:
        """Lines of the finder, each without the words that the confirmer does not read.

        boxes  as in `Reader.read`.  Both readers read in them
        Raises OCRError as both readers do, and for a finder that does not tell where a line stands.
        """
        found = readings_of(self.finder.read(images, boxes), len(images), self.finder)
        areas = areas_of(images, boxes)
        asked = [
            one
            for i, reading in enumerate(found)
            for one in self._asked(i, images[i], reading, areas[i])
        ]
        asked = self._read_again(asked)
        seen = self.confirmer.read([one.image for one in asked], [one.box for one in asked])
        told: list[list[tuple[Line | None, str]]] = [[] for _ in images]
        for one, reading in zip(asked, readings_of(seen, len(asked), self.confirmer), strict=True):
            told[one.picture].append((one.line, reading.text))
        return [_agreed(lines, self.sure) for lines in told]

    def _test(self) -> None:
        cure = "let a stricter reader confirm, such as Tesseract(blank=True)"
        require_strict(self._texts, LETTERS, "two readers that agree", cure)

    def _texts(self, pictures: list[Image.Image]) -> list[str]:
        return [reading.text for reading in self.read(pictures)]

    def _asked(
        self, picture: int, image: Image.Image, reading: Reading, areas: Sequence[Area] | None
    ) -> list[_Asked]:
        """What the confirmer is asked to read, for each line of the finder.

        Where the finder sees no line, the confirmer reads the areas that were asked for.  It reads nothing in
        a whole picture without a line.  Where no areas were asked for, it does not see the ink that reaches
        the border of a line's place.
        """
        if not reading.lines:
            return [_Asked(picture, None, image, [area]) for area in areas or []]
        asked = []
        for line in reading.lines:
            if line.corners is None:
                raise OCRError(
                    f"the finder {type(self.finder).__name__} reads {reading.text!r} and tells no place of "
                    "it, where it is to be confirmed; give a finder that tells, such as PPOCR"
                )
            cleared = without_border(image, line.corners, picture) if areas is None else None
            if cleared is None:
                asked.append(_Asked(picture, line, image, [line.corners]))
            else:
                asked.append(_Asked(picture, line, cleared, None))
        return asked

    def _read_again(self, asked: list[_Asked]) -> list[_Asked]:
        """The same with the finder's reading of pictures without a border, where it sees one line there."""
        cleared = [one.image for one in asked if one.box is None]
        if not cleared:
            return asked
        again = iter(readings_of(self.finder.read(cleared), len(cleared), self.finder))
        return [_read_as(one, next(again)) if one.box is None else one for one in asked]

    def self_test(self) -> None:
        """Test both readers, and let them read words with a broken letter together.

        Raises OCRError where one of them cannot read, or where they agree on more than one broken word as if
        it were whole.
        """
        if not self._tested:
            self.finder.self_test()
            self.confirmer.self_test()
            once(self.identity(), self._test)
            self._tested = True

    def identity(self) -> JSONObject | None:
        """All that the result of a self-test depends on, None where a reader does not tell."""
        if not (hasattr(self.finder, "identity") and hasattr(self.confirmer, "identity")):
            return None
        parts = [self.finder.identity(), self.confirmer.identity()]
        if None in parts:
            return None
        return {"sure": self.sure, "parts": parts}

    def knows(self, letter: str) -> bool:
        """True for a character that both readers know."""
        return knows(self.finder, letter) and knows(self.confirmer, letter)

    def describe(self) -> JSONObject:
        """Descriptions of both readers."""
        confirmer = self.confirmer.describe()
        return {
            "engine": "agreement",
            "sure": self.sure,
            "border": "cleared where a place is found",
            "finder": self.finder.describe(),
            "confirmer": confirmer,
            "blank": confirmer.get("blank", True),
        }


def _read_as(one: _Asked, reading: Reading) -> _Asked:
    """The same with a reading's only line at the place of its own, itself where there is not one line."""
    if one.line is None or len(reading.lines) != 1:
        return one
    (line,) = reading.lines
    return replace(one, line=replace(line, corners=one.line.corners))


def _agreed(lines: Sequence[tuple[Line | None, str]], sure: float) -> Reading:
    """Lines of which both readers read something, and what one of them read alone.

    lines  of the finder, None where it saw none, and what the confirmer read there
    sure   confidence from which a line counts
    """
    agreed = []
    alone = []
    for line, text in lines:
        if line is None:
            alone += [Line(text)] * bool(text)
            continue
        both, rest = _words(line.text, text)
        if _in_doubt(line, text, sure):
            both, rest = "", line.text
        agreed += [replace(line, text=both)] * bool(both)
        alone += [replace(line, text=rest)] * bool(rest)
    return Reading(tuple(agreed), tuple(alone))


def _in_doubt(line: Line, text: str, sure: float) -> bool:
    """True for a line of which the finder is not sure.

    Where the finder splits a word that the confirmer reads as one, the finder doubts the blanks, and not the
    letters.  Letters that stand far apart would otherwise never count.
    """
    if line.confidence is None or len(line.text.split()) != len(text.split()):
        return False
    return line.confidence < sure


def _words(text: str, other: str) -> tuple[str, str]:
    """Words that two readings of a line share, as `other` has them, and those that `text` has alone."""
    if _letters(text) == _letters(other):
        return other, ""
    words = text.split()
    others = other.split()
    if len(words) != len(others):
        return "", text
    same = [_letters(a) == _letters(b) for a, b in zip(words, others, strict=True)]
    alone = itertools.compress(words, [not each for each in same])
    return " ".join(itertools.compress(others, same)), " ".join(alone)


def _letters(text: str) -> str:
    """Text without blanks, in one case."""
    return "".join(text.split()).casefold()
