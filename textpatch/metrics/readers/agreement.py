"""Reader that believes two others only where they agree.

A reader that knows words repairs letters, and a picture with a broken word passes for one with the word.  Two
readers of different kinds seldom repair the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

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
# whole, and 3 with this limit (95 % interval .3 to 2.4 %); of 480 whole ones 465 and 444.  With .999 it is
# one broken word less, and 18 whole ones (`benchmarks/readers.py --limits`, pictures of their own).
SURE = 0.997


class Agreement:
    """Two readers as one, for which a word counts only where both read it.

    finder     reads the pictures and tells where each line stands, such as PPOCR
    confirmer  reads one line in each place that the finder tells, such as Tesseract
    sure       confidence of the finder, 0..1, from which a line of it counts.  A line without one counts

    Case and blanks do not matter, and are the confirmer's.  Words of the finder that the confirmer reads
    otherwise are in `Reading.unconfirmed`.  In a place that the finder found in a whole picture, ink that
    reaches the place's border is no letter, and the confirmer does not see it.
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
        places = [
            (i, place)
            for i, reading in enumerate(found)
            for place in self._places(reading, areas[i])
        ]
        asked = [_asked(images[i], place, i, areas[i] is None) for i, place in places]
        seen = self.confirmer.read([image for image, _ in asked], [box for _, box in asked])
        told: list[list[str]] = [[] for _ in images]
        for (i, _), one in zip(places, readings_of(seen, len(places), self.confirmer), strict=True):
            told[i].append(one.text)
        return [
            _agreed(reading, texts, self.sure) for reading, texts in zip(found, told, strict=True)
        ]

    def _test(self) -> None:
        cure = "let a stricter reader confirm, such as Tesseract(blank=True)"
        require_strict(self._texts, LETTERS, "two readers that agree", cure)

    def _texts(self, pictures: list[Image.Image]) -> list[str]:
        return [reading.text for reading in self.read(pictures)]

    def _places(self, reading: Reading, areas: Sequence[Area] | None) -> list[Area]:
        """Places that the confirmer reads, one for each line of the finder.

        Where the finder sees no line, the confirmer reads the areas that were asked for.  It reads nothing in
        a whole picture without a line.
        """
        if not reading.lines:
            return list(areas or [])
        places = [line.corners for line in reading.lines]
        if None in places:
            raise OCRError(
                f"the finder {type(self.finder).__name__} reads {reading.text!r} and tells no place of it, "
                "where it is to be confirmed; give a finder that tells, such as PPOCR"
            )
        return places

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
            "finder": self.finder.describe(),
            "confirmer": confirmer,
            "blank": confirmer.get("blank", True),
        }


def _asked(
    image: Image.Image, place: Area, index: int, found: bool
) -> tuple[Image.Image, list[Area] | None]:
    """Picture and box that the confirmer is given for a place, no box for a picture of the place alone.

    found  True where nobody said that a line stands there, so that more than a line may.  Then ink that
           reaches the place's border is taken away
    """
    cleared = without_border(image, place, index) if found else None
    if cleared is None:
        return image, [place]
    return cleared, None


def _agreed(reading: Reading, texts: Sequence[str], sure: float) -> Reading:
    """Lines of which both readers read something, and what one of them read alone.

    texts  what the confirmer read in each place
    sure   confidence from which a line counts
    """
    if not reading.lines:
        return Reading((), tuple(Line(text) for text in texts if text))
    lines = []
    alone = []
    for line, text in zip(reading.lines, texts, strict=True):
        both, rest = _words(line.text, text)
        if _in_doubt(line, text, sure):
            both, rest = "", line.text
        lines += [replace(line, text=both)] * bool(both)
        alone += [replace(line, text=rest)] * bool(rest)
    return Reading(tuple(lines), tuple(alone))


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
