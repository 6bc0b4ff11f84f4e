"""Reader by a function of one's own, and the official way to make text of EasyOCR's pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics.readers import ink
from textpatch.metrics.readers.broken_words import Overread, read_as_whole
from textpatch.metrics.readers.known_words import LETTERS, require_read, words_of
from textpatch.metrics.readers.reading import Boxes, Line, Reading, corners_of, gathered, places_of
from textpatch.pictures import as_rgb
from textpatch.stored import JSONObject


class Called:
    """A function from pictures to their texts as a reader.

    function  takes a list of RGB pictures and returns a text for each, "" where there is none
    name      what a manifest calls it, the function's own name when None
    Raises OCRError for what cannot be called.
    """

    def __init__(
        self, function: Callable[[list[Image.Image]], Sequence[str]], name: str | None = None
    ) -> None:
        if not callable(function):
            raise OCRError(f"a reader was asked of {function!r}; give a function of pictures")
        self.function = function
        self.name = name or getattr(function, "__qualname__", type(function).__name__)
        self._overread: Overread | None = None

    def read(self, images: Sequence[Image.Image], boxes: Boxes | None = None) -> list[Reading]:
        """Readings of pictures, with a line for each box, or one for the whole picture.

        boxes  as in `Reader.read`
        Raises OCRError for a function that gives another number of texts than it was given pictures.
        """
        if len(images):
            self.self_test()
        places = places_of(images, boxes)
        parts = [ink.part_of(images[i], area, i) for i, area in places]
        found = [
            [Line(text, corners_of(area or (0, 0, *part.size)))] * bool(text)
            for (_, area), part, text in zip(places, parts, self._texts(parts), strict=True)
        ]
        return gathered(len(images), places, found)

    def self_test(self) -> None:
        """Read known words drawn with Pillow's own font, and words with a broken letter, once per instance.

        Raises OCRError, naming words and readings, if fewer than 0.9 of the known words are read exactly.
        Broken words that are read as if they were whole are no error.  `overread` counts them.
        """
        self.overread()

    def overread(self) -> Overread:
        """Broken words of the self-test that are read as if they were whole.   Raises as `self_test` does."""
        if self._overread is None:
            words = words_of(LETTERS, blank=False)
            require_read(self._texts, words, self.name, "look at its own settings")
            self._overread = read_as_whole(self._texts, LETTERS)
        return self._overread

    def describe(self) -> JSONObject:
        """Name of the function.  What it depends on, its owner must note."""
        return {"engine": self.name, "blank": True}

    def _texts(self, pictures: list[Image.Image]) -> list[str]:
        texts = list(self.function([as_rgb(picture, "a picture") for picture in pictures]))
        require_texts(texts, len(pictures), self.name)
        return texts


class Listening:
    """A function from sounds to their texts as a reader, which nothing can test before there are sounds.

    function, name  as of `Called`
    """

    def __init__(
        self, function: Callable[[list[np.ndarray]], Sequence[str]], name: str | None = None
    ) -> None:
        called = Called(function, name)
        self.function = function
        self.name = called.name

    def read(self, images: Sequence[np.ndarray], boxes: Boxes | None = None) -> list[str]:
        """Texts of sounds, each as a whole.   Raises OCRError for another number of texts than sounds."""
        texts = list(self.function(list(images)))
        require_texts(texts, len(images), self.name)
        return texts

    def self_test(self) -> None:
        """Test nothing."""

    def describe(self) -> JSONObject:
        """Name of the function.  What it depends on, its owner must note."""
        return {"engine": self.name, "blank": True}


def require_texts(texts: list[Any], count: int, name: str) -> None:
    """Raise OCRError unless a function gave a text for each of so many things."""
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise OCRError(
            f"{count} pictures were given to {name}, which read {texts!r}; "
            "a reader gives a text for each, empty for nothing"
        )


def joined_as_official(pieces: Iterable[str]) -> str:
    """Text of the pieces that EasyOCR's `readtext(picture, detail=0)` gives, as the paper's code joins them.

    Pieces are joined by one blank and lower-cased.   (6.1)
    """
    return " ".join(pieces).lower()
