"""Words read from pictures by tesseract."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from textpatch.errors import OCRError
from textpatch.metrics.ocr_process import LANGUAGE, Crash, tesseract, version
from textpatch.metrics.text import exact
from textpatch.pictures import require_bounded

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
# Tesseract's mode for one line of text.  It reads 99 % of capitals 8 px high, mode 8 (one word) 17 %.
LINE_MODE = 7
PERCENTILES = (1, 99)
# White around the ink before it is enlarged, in pixels, or a quarter of the ink's height if that is more.
PAD = 4
# Height of the enlarged ink in pixels at most.  With both limits 18 of 18 words are read at 12 to 500 points.
# At 500 points 16 are read without this limit, in 18 s instead of 1.1 s, and 10 with 4 pixels of white.
TALLEST = 100
# Contrast that a picture needs to be read, in grey levels of 0..255.
# Between the two percentiles: noise of standard deviation 5 spans 23, and would be read as letters if it
# were stretched to full contrast.
LEAST_SPAN = 24
# Between the darkest and the lightest pixel: ink on less than 1 % of a picture escapes the percentiles.
LEAST_RANGE = 64
KNOWN_WORDS = (
    "OPEN BREAD MARKET COFFEE GARDEN HOTEL SCHOOL FLOWER STREET PAPER BRIDGE QUICK "
    "VOYAGE JACKET EXIT ZEBRA WINDOW LAMP"
).split()
# In points of Pillow's own font, whose capitals are then 11, 17 and 26 px high.
TEST_SIZES = (16, 24, 36)
LEAST_EXACT = 0.9
# Pictures that one process reads.  A timeout is for so many, and a process whose reader was killed reads
# no more than these.
A_CALL = 64


def alphabet_of(words: Iterable[str]) -> str:
    """The smallest alphabet to read words with.

    It holds the capitals, the small letters if the words have any, and the digits if the words have any.
    A larger alphabet confuses more, such as 0 with O and 1 with l.  It spells no word with other characters.
    """
    letters = set("".join(words))
    alphabet = LETTERS
    for more in (LETTERS.lower(), DIGITS):
        if not letters.isdisjoint(more):
            alphabet += more
    return alphabet


class Tesseract:
    """The tesseract program as a reader of single text lines, with its dictionaries off.

    alphabet  the characters it may answer with
    blank     True keeps one blank between the words of a line, False drops all blanks
    scale     enlargement before reading.  4 suits capitals of 6 px and more, 6 and 8 read no better
    timeout   seconds that a tesseract process may take.  It reads up to 64 pictures, a small one in 10 ms
    Raises OCRError for an alphabet or a scale that cannot be used.
    """

    def __init__(
        self,
        *,
        alphabet: str = LETTERS,
        blank: bool = False,
        scale: float = 4,
        timeout: float = 120.0,
    ):
        if not alphabet or any(c.isspace() or not c.isprintable() for c in alphabet):
            raise OCRError(
                f"cannot read with alphabet {alphabet!r}; give printable characters, no blanks"
            )
        if scale < 1 or timeout <= 0:
            raise OCRError(
                f"cannot read with {scale=}, {timeout=}; needs scale >= 1 and timeout > 0"
            )
        self.alphabet = alphabet
        self.blank = blank
        self.scale = scale
        self.timeout = timeout
        self.crashed = 0
        self._tested = False

    def read(
        self, images: Sequence[Image.Image], box: tuple[int, int, int, int] | None = None
    ) -> list[str]:
        """Text lines of the pictures, one for each and "" where there is none.

        The first call runs `self_test`.
        images  pictures of any sizes, 8 bits a channel, dark or light letters on a calmer ground
        box     the part of each picture that holds text, as left, top, right, bottom in pixels.  None is the
                whole picture
        A picture that crashes tesseract reads as "" and is counted in `crashed`.
        Raises OCRError if tesseract is missing, fails, is too slow, or fails its self-test.
        """
        prepared = [_prepare(image, box, self.scale, i) for i, image in enumerate(images)]
        if prepared:
            self.self_test()
        return self._read(prepared)

    def self_test(self) -> None:
        """Read known words drawn with Pillow's own font, once per instance.

        A reader that reads nothing would otherwise pass for a model that writes nothing.
        Raises OCRError, naming words and readings, if fewer than 0.9 of them are read exactly.
        """
        if self._tested:
            return
        words = _known_words(self.alphabet, self.blank)
        pictures = [_draw(word, TEST_SIZES[i % len(TEST_SIZES)]) for i, word in enumerate(words)]
        prepared = [_prepare(picture, None, self.scale, i) for i, picture in enumerate(pictures)]
        readings = list(zip(self._read(prepared), words, strict=True))
        right = sum(exact(read, word) for read, word in readings)
        if right < LEAST_EXACT * len(words):
            told = ", ".join(f"{word} as {read!r}" for read, word in readings)
            raise OCRError(
                f"tesseract read {right} of {len(words)} known words, {LEAST_EXACT:.0%} are needed: {told}; "
                "check `tesseract --version`, its English data, and the alphabet for look-alikes"
            )
        self._tested = True

    def describe(self) -> dict:
        """Engine, version, settings and preprocessing, all that a manifest needs to repeat a reading."""
        return {
            "engine": "tesseract",
            "version": version(),
            "psm": LINE_MODE,
            "alphabet": self.alphabet,
            "blank": self.blank,
            "dictionaries": False,
            "percentiles": list(PERCENTILES),
            "least_contrast": [LEAST_SPAN, LEAST_RANGE],
            "pad": PAD,
            "scale": self.scale,
            "tallest": TALLEST,
            "resample": "bicubic",
        }

    def _read(self, prepared: list[Image.Image | None]) -> list[str]:
        """Text lines of prepared pictures, "" for None."""
        inked = [i for i, picture in enumerate(prepared) if picture is not None]
        lines = [""] * len(prepared)
        between = " " * self.blank
        for first in range(0, len(inked), A_CALL):
            places = inked[first : first + A_CALL]
            found = self._run([prepared[i] for i in places])
            for i, line in zip(places, found, strict=True):
                lines[i] = between.join(line.split())
        return lines

    def _run(self, pictures: list[Image.Image]) -> list[str]:
        """Lines read by one process, or by two for half of the pictures each if it crashes.

        Starting a process costs as much as reading ten pictures.
        """
        try:
            return _pages(self._ask(pictures), len(pictures))
        except Crash:
            if len(pictures) > 1:
                middle = len(pictures) // 2
                return self._run(pictures[:middle]) + self._run(pictures[middle:])
            self.crashed += 1
            return [""]

    def _ask(self, pictures: list[Image.Image]) -> str:
        """Text that one process prints for the pictures."""
        data = io.BytesIO()  # in memory, as a reader that is killed would leave a file behind
        pictures[0].save(data, "TIFF", save_all=True, append_images=pictures[1:])
        asked = f"reading {len(pictures)} picture{'s' * (len(pictures) != 1)}"
        return tesseract(
            ["stdin", "stdout", *self._settings()],
            data.getvalue(),
            timeout=self.timeout,
            asked=asked,
        )

    def _settings(self) -> list[str]:
        """Arguments of the program that set the language, the mode and the alphabet."""
        settings = {
            "load_system_dawg": "0",
            "load_freq_dawg": "0",
            "tessedit_char_whitelist": self.alphabet + " " * self.blank,
        }
        chosen = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return ["-l", LANGUAGE, "--psm", str(LINE_MODE), *chosen]


def _pages(text: str, count: int) -> list[str]:
    """Readings of `count` pictures in what the program printed."""
    pages = text.split("\f")
    # 5.3.0 prints a form feed between two pages, and one behind a single page, after which no page comes
    if len(pages) == count + 1 and not pages[-1].strip():
        pages.pop()
    if len(pages) != count:
        raise OCRError(f"gave tesseract {count} pictures, got {len(pages)} readings; {text[:80]!r}")
    return pages


def _prepare(image: Image.Image, box, scale: float, index: int) -> Image.Image | None:
    """Dark ink on white, cropped to the ink, padded and enlarged, or None without contrast."""
    grey = _luminance(image, box, index)
    levels = _levels(grey)
    if levels is None:
        return None
    ink = np.clip((levels[1] - grey) / (levels[1] - levels[0]), 0, 1)  # 1 = darkest
    if ink.mean() > 0.5:  # letters cover less than half of what they stand on
        ink = 1 - ink
    rows = np.flatnonzero((ink > 0.5).any(1))
    columns = np.flatnonzero((ink > 0.5).any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(scale, TALLEST / len(ink))
    padded = np.pad(ink, max(PAD, len(ink) // 4))
    picture = Image.fromarray(np.rint(255 * (1 - padded)).astype(np.uint8))
    return picture.resize([round(scale * side) for side in picture.size], Image.Resampling.BICUBIC)


def _luminance(image: Image.Image, box, index: int) -> np.ndarray:
    """Grey levels of a picture, or of its part in a box, as float64 (H, W)."""
    _require_8_bits(image, index)
    require_bounded(image, f"picture {index}")
    if box is not None:
        left, top, right, bottom = box
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise OCRError(
                f"box {tuple(box)} is not inside picture {index} of size {image.size}; shrink it"
            )
        image = image.crop(box)
    if "A" in image.getbands():  # transparent parts are seen as white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("L"), np.float64)


def _require_8_bits(image, index: int) -> None:
    """Raise OCRError for anything but a PIL image with 8 bits a channel."""
    if not isinstance(image, Image.Image):
        found = type(image).__name__
    elif image.mode[0] in "IF":
        found = f"mode {image.mode}"
    else:
        return
    raise OCRError(
        f"picture {index} cannot be read: {found}; give a PIL image with 8 bits a channel"
    )


def _levels(grey: np.ndarray) -> tuple[float, float] | None:
    """Darkest and lightest grey, or None where they are too close to tell letters from noise."""
    low, high = np.percentile(grey, PERCENTILES)
    if high - low >= LEAST_SPAN:
        return low, high
    low = grey.min()
    high = grey.max()
    if high - low >= LEAST_RANGE:
        return low, high
    return None


def _draw(word: str, size: int) -> Image.Image:
    """Draw a word in black on white, `size` points high."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(word)
    picture = Image.new("L", (round(right - left) + size, round(bottom - top) + size), 255)
    ImageDraw.Draw(picture).text((size / 2 - left, size / 2 - top), word, fill=0, font=font)
    return picture


def _known_words(alphabet: str, blank: bool) -> list[str]:
    """Twelve words of the alphabet or more, each two words long if `blank`.

    They are English words in capitals or small letters as far as the alphabet spells these.  Random words,
    the same in every call, make up the twelve.
    """
    words = [word for known in KNOWN_WORDS if (word := _spelt(known, alphabet))]
    rng = random.Random(0)
    while len(words) < 12:
        words.append("".join(rng.choice(alphabet) for _ in range(4)))
    if not blank:
        return words
    return [f"{a} {b}" for a, b in zip(words, words[1:] + words[:1], strict=True)]


def _spelt(word: str, alphabet: str) -> str | None:
    """The word in capitals, else in small letters, or None if the alphabet spells neither."""
    for spelling in (word, word.lower()):
        if set(spelling) <= set(alphabet):
            return spelling
    return None
