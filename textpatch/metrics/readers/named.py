"""Readers by the names that `--reader` and `ocr=` take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from textpatch.errors import OCRError, closest
from textpatch.metrics.readers.agreement import Agreement
from textpatch.metrics.readers.ppocr import PPOCR
from textpatch.metrics.readers.reading import Reader
from textpatch.metrics.readers.tesseract import Tesseract, alphabet_of


def _tesseract(alphabet: str) -> Reader:
    return Tesseract(alphabet=alphabet)


def _ppocr(alphabet: str) -> Reader:
    return PPOCR()


def _agreement(alphabet: str) -> Reader:
    return Agreement(PPOCR(), Tesseract(alphabet=alphabet, blank=True))


READERS: dict[str, Callable[[str], Reader]] = {
    "tesseract": _tesseract,
    "ppocr": _ppocr,
    "agreement": _agreement,
}
DEFAULT = "tesseract"
# what `reader=` takes: a reader, its name, or a function from pictures or sounds to their texts
AnyReader: TypeAlias = (
    Reader
    | str
    | Callable[[list[Image.Image]], Sequence[str]]
    | Callable[[list[np.ndarray]], Sequence[str]]
)


def reader_named(name: str, words: Iterable[str]) -> Reader:
    """Reader by name, which knows the letters of the words and no more than it must.

    Raises OCRError for an unknown name, and for a reader whose package is missing.
    """
    if name not in READERS:
        raise OCRError(f"no reader {name!r}{closest(name, READERS)}")
    return READERS[name](alphabet_of(words))
