"""Reader by the tesseract program, strict because its dictionaries are off."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import string
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics.readers import ink
from textpatch.metrics.readers.broken_words import require_strict
from textpatch.metrics.readers.known_words import LETTERS, require_read, words_of
from textpatch.metrics.readers.passed import once
from textpatch.metrics.readers.reading import (
    Area,
    Box,
    Boxes,
    Corners,
    Line,
    Reading,
    box_around,
    corners_of,
    gathered,
    is_turned,
    places_of,
)
from textpatch.metrics.readers.tesseract_call import LANGUAGE, Crash, program, tesseract, version
from textpatch.stored import JSONObject

DIGITS = "0123456789"
# Tesseract's mode for one line of text.  It reads 99 % of capitals 8 px high, mode 8 (one word) 17 %.
LINE_MODE = 7
# Pictures that one process reads.  A timeout is for so many, and a process whose reader was killed reads
# no more than these.
A_CALL = 64
MODES = {"line": LINE_MODE, "page": 3, "sparse": 11}
# Levels of rows in the program's table, and the number of their cells.
PAGE = "1"
WORD = "5"
CELLS = 12


def alphabet_of(words: Iterable[str]) -> str:
    """The smallest alphabet to read words with.

    It holds the capitals, the small letters if the words have any, the digits if the words have any, and the
    signs of ASCII that the words have, such as !.  A larger alphabet confuses more, such as 0 with O and 1
    with l.  Other characters are left out: told to read them, tesseract with English data reads E for É.
    """
    letters = {letter for letter in "".join(words) if not letter.isspace()}
    alphabet = LETTERS
    for more in (LETTERS.lower(), DIGITS):
        if not letters.isdisjoint(more):
            alphabet += more
    return alphabet + "".join(sorted(letters & set(string.punctuation)))


class Word(NamedTuple):
    """One word of the program's table.

    line        numbers of the block, paragraph and line where it stands
    box         left, top, right, bottom in pixels of the sheet
    confidence  0..1
    """

    line: tuple[str, ...]
    box: Box
    confidence: float
    text: str


def pages(table: str, count: int) -> list[list[Word]]:
    """Words of each of `count` pictures in the table that the program printed.

    Raises OCRError for a table of another number of pages.
    """
    found: list[list[Word]] = []
    for row in table.splitlines():
        cells = row.split("\t")
        if cells[0] == PAGE:
            found.append([])
        elif cells[0] == WORD and len(cells) == CELLS and found and cells[-1].strip():
            left, top, width, height = map(int, cells[6:10])
            box = (left, top, left + width, top + height)
            found[-1].append(Word(tuple(cells[2:5]), box, float(cells[10]) / 100, cells[-1]))
    if len(found) != count:
        raise OCRError(
            f"gave tesseract {count} pictures, got {len(found)} readings; {table[:80]!r}"
        )
    return found


class Sheet(NamedTuple):
    """A picture as the program is given it, and where it comes from.

    picture  None where there is nothing to read
    area     the part of the original that it shows
    scale    pixels of the sheet per pixel of the original.  None for a line of ink, whose place is the area
    """

    picture: Image.Image | None
    area: Area
    scale: float | None = None


class Tesseract:
    """The tesseract program as a reader, with its dictionaries off.

    mode      "line" reads one line in each picture or box.  "page" looks for lines in columns, and "sparse"
              for text anywhere
    alphabet  the characters it may answer with
    blank     True keeps one blank between the words of a line, False drops all blanks
    language  name of the program's data, such as eng
    scale     enlargement before reading.  4 suits capitals of 6 px and more, 6 and 8 read no better
    timeout   seconds that a tesseract process may take.  It reads up to 64 pictures, a small one in 10 ms
    Raises OCRError for a mode, an alphabet or a scale that cannot be used.
    """

    def __init__(
        self,
        *,
        mode: str = "line",
        alphabet: str = LETTERS,
        blank: bool = False,
        language: str = LANGUAGE,
        scale: float = 4,
        timeout: float = 120.0,
    ) -> None:
        if mode not in MODES:
            raise OCRError(f"cannot read in mode {mode!r}; give one of {', '.join(MODES)}")
        if not alphabet or any(c.isspace() or not c.isprintable() for c in alphabet):
            raise OCRError(
                f"cannot read with alphabet {alphabet!r}; give printable characters, no blanks"
            )
        if scale < 1 or timeout <= 0:
            raise OCRError(
                f"cannot read with {scale=}, {timeout=}; needs scale >= 1 and timeout > 0"
            )
        self.mode = mode
        self.alphabet = alphabet
        self.blank = blank
        self.language = language
        self.scale = scale
        self.timeout = timeout
        self.crashed = 0
        self._tested = False

    def read(self, images: Sequence[Image.Image], boxes: Boxes | None = None) -> list[Reading]:
        """Lines of the pictures, in the order of the boxes, or from top to bottom.

        The first call runs `self_test`.
        images  pictures of any sizes, 8 bits a channel, dark or light letters on a calmer ground
        boxes   as in `Reader.read`
        A picture that crashes tesseract reads as nothing and is counted in `crashed`.
        Raises OCRError if tesseract is missing, fails, is too slow, or fails its self-test.
        """
        if len(images):
            self.self_test()
        return self._readings(images, boxes)

    def self_test(self) -> None:
        """Read known words drawn with Pillow's own font, and words with a broken letter.

        They are read once in a process for each program and setting.
        Raises OCRError, naming words and readings, if fewer than 0.9 of the known words are read exactly, or
        if more than one broken word is read as if it were whole.
        """
        if not self._tested:
            once(self.identity(), self._test)
            self._tested = True

    def knows(self, letter: str) -> bool:
        """True for a character of the alphabet."""
        return letter in self.alphabet

    def describe(self) -> JSONObject:
        """Engine, version, settings and preprocessing, all that a manifest needs to repeat a reading."""
        return {
            "engine": "tesseract",
            "version": version(),
            "psm": MODES[self.mode],
            "language": self.language,
            "alphabet": self.alphabet,
            "blank": self.blank,
            "dictionaries": False,
            "percentiles": list(ink.PERCENTILES),
            "least_contrast": [ink.LEAST_SPAN, ink.LEAST_RANGE],
            "pad": ink.PAD,
            "scale": self.scale,
            "tallest": ink.TALLEST,
            "resample": "bicubic",
        }

    def identity(self) -> JSONObject:
        """All that the result of a self-test depends on, the program and its data among it."""
        program_there = shutil.which(program())
        data = os.environ.get("TESSDATA_PREFIX")
        return {**self.describe(), "program": program_there, "data": data, "timeout": self.timeout}

    def _test(self) -> None:
        cure = f"check `tesseract --version`, its data {self.language!r}, and the alphabet for look-alikes"
        require_read(self._texts, words_of(self.alphabet, self.blank), "tesseract", cure)
        require_strict(self._texts, self.alphabet, "tesseract", cure)

    def _texts(self, pictures: list[Image.Image]) -> list[str]:
        return [reading.text for reading in self._readings(pictures, None)]

    def _readings(self, images: Sequence[Image.Image], boxes: Boxes | None) -> list[Reading]:
        places = places_of(images, boxes)
        sheets = [self._sheet(images[i], area, i) for i, area in places]
        return gathered(len(images), places, self._read(sheets))

    def _sheet(self, image: Image.Image, area: Area | None, index: int) -> Sheet:
        """Picture that the program is given of an area, None for the whole picture."""
        part = ink.part_of(image, area, index)
        grey = ink.grey_levels(part)
        if self.mode == "line":
            picture, around = ink.line_of_ink(grey, self.scale)
            return Sheet(picture, _inside(area, around))
        picture, scale = ink.page(grey, self.scale)
        return Sheet(picture, area or (0, 0, *part.size), scale)

    def _read(self, sheets: list[Sheet]) -> list[list[Line]]:
        """Lines of sheets, none where there is nothing to read."""
        inked = [i for i, sheet in enumerate(sheets) if sheet.picture is not None]
        found: list[list[Line]] = [[] for _ in sheets]
        for first in range(0, len(inked), A_CALL):
            places = inked[first : first + A_CALL]
            pages = self._run([sheets[i].picture for i in places])
            for i, words in zip(places, pages, strict=True):
                found[i] = self._lines(words, sheets[i])
        return found

    def _run(self, pictures: list[Image.Image]) -> list[list[Word]]:
        """Words read by one process, or by two for half of the pictures each if it crashes.

        Starting a process costs as much as reading ten pictures.
        """
        try:
            return pages(self._ask(pictures), len(pictures))
        except Crash:
            if len(pictures) > 1:
                middle = len(pictures) // 2
                return self._run(pictures[:middle]) + self._run(pictures[middle:])
            self.crashed += 1
            return [[]]

    def _ask(self, pictures: list[Image.Image]) -> str:
        """Table that one process prints for the pictures."""
        data = io.BytesIO()  # in memory, as a reader that is killed would leave a file behind
        pictures[0].save(data, "TIFF", save_all=True, append_images=pictures[1:])
        return tesseract(
            ["stdin", "stdout", *self._settings()],
            data.getvalue(),
            timeout=self.timeout,
            asked=f"reading {len(pictures)} picture{'s' * (len(pictures) != 1)}",
            language=self.language,
        )

    def _settings(self) -> list[str]:
        """Arguments of the program that set the language, the mode, the alphabet and the output."""
        settings = {
            "load_system_dawg": "0",
            "load_freq_dawg": "0",
            "tessedit_char_whitelist": self.alphabet + " " * self.blank,
            "tessedit_create_tsv": "1",
        }
        chosen = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return ["-l", self.language, "--psm", str(MODES[self.mode]), *chosen]

    def _lines(self, words: list[Word], sheet: Sheet) -> list[Line]:
        """Lines of the words of one sheet."""
        between = " " * self.blank
        lines = []
        for _, group in itertools.groupby(words, key=attrgetter("line")):
            some = list(group)
            text = between.join("".join(word.text.split()) for word in some)
            confidence = sum(word.confidence for word in some) / len(some)
            lines.append(Line(text, _place(some, sheet), confidence))
        return lines


def _inside(area: Area | None, around: Box) -> Area:
    """Place of the ink in the original, the corners themselves where the area is turned."""
    if area is None:
        return around
    if is_turned(area):
        return area
    left, top = area[:2]
    return left + around[0], top + around[1], left + around[2], top + around[3]


def _place(words: list[Word], sheet: Sheet) -> Corners:
    """Corners of a line in the original."""
    if sheet.scale is None or is_turned(sheet.area):
        return corners_of(sheet.area)
    points = [point for word in words for point in corners_of(word.box)]
    left, top, right, bottom = (side / sheet.scale for side in box_around(points))
    return corners_of(
        (left + sheet.area[0], top + sheet.area[1], right + sheet.area[0], bottom + sheet.area[1])
    )
