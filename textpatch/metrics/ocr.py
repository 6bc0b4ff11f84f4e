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
LINE_MODE = 7  # one line of text: of 8 px capitals it read 99 %, and mode 8, for one word, 17 %
PERCENTILES = (1, 99)
# White around the ink, before enlarging: 4 pixels, or a quarter of the ink's height if that is more; and the
# tallest enlarged ink.  So 18 of 18 words are read at 12 to 500 points; at 500 points 16 without the limit,
# in 18 s for 1.1 s, and 10 with 4 pixels of white.
PAD = 4
TALLEST = 100
# Grey levels of 0..255.  Noise of standard deviation 5 spans 23 between the two percentiles, and stretched to
# full contrast would be read as letters.  Ink below 1 % of a picture escapes them, so the range counts too.
LEAST_SPAN = 24
LEAST_RANGE = 64
KNOWN_WORDS = (
    "OPEN BREAD MARKET COFFEE GARDEN HOTEL SCHOOL FLOWER STREET PAPER BRIDGE QUICK "
    "VOYAGE JACKET EXIT ZEBRA WINDOW LAMP"
).split()
TEST_SIZES = (16, 24, 36)  # points of Pillow's own font: capitals of 11, 17 and 26 px
LEAST_EXACT = 0.9
# Pictures a process: what a timeout is for, and the most that is read on for a reader that was killed
A_CALL = 64


def alphabet_of(words: Iterable[str]) -> str:
    """The smallest alphabet to read words with: capitals; small letters, too; digits, too, if they have any.

    A larger one confuses more: 0 and O, 1 and l.  A word with other characters is spelt by none of them.
    """
    letters = set("".join(words))
    alphabet = LETTERS + LETTERS.lower() * (not letters.isdisjoint(LETTERS.lower()))
    return alphabet + DIGITS * (not letters.isdisjoint(DIGITS))


class Tesseract:
    """The tesseract program as a reader of single text lines, with its dictionaries off.

    alphabet  the characters it may answer with
    blank     True keeps one blank between the words of a line; False drops all blanks
    scale     enlargement before reading.  4 suits capitals of 6 px and more, 6 and 8 read no better
    timeout   seconds that a tesseract process may take, for 64 pictures at about 10 ms a small one
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
        box     left, top, right, bottom in pixels, the part of each picture that holds text; all when None
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
        read = self._read(
            [_prepare(picture, None, self.scale, i) for i, picture in enumerate(pictures)]
        )
        right = sum(exact(r, w) for r, w in zip(read, words, strict=True))
        if right < LEAST_EXACT * len(words):
            raise OCRError(
                f"tesseract read {right} of {len(words)} known words, {LEAST_EXACT:.0%} are needed: "
                + ", ".join(f"{w} as {r!r}" for r, w in zip(read, words, strict=True))
                + "; check `tesseract --version`, its English data, and the alphabet for look-alikes"
            )
        self._tested = True

    def describe(self) -> dict:
        """Engine, version, settings and preprocessing, as a manifest must hold them to repeat a reading."""
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
        inked = [i for i, picture in enumerate(prepared) if picture is not None]
        lines = [""] * len(prepared)
        between = " " if self.blank else ""
        for first in range(0, len(inked), A_CALL):
            places = inked[first : first + A_CALL]
            for i, line in zip(places, self._run([prepared[i] for i in places]), strict=True):
                lines[i] = between.join(line.split())
        return lines

    def _run(self, pictures: list[Image.Image]) -> list[str]:
        """Lines read by one process, as starting it costs as much as reading ten; by two if it crashes."""
        try:
            return _pages(self._ask(pictures), len(pictures))
        except Crash:
            if len(pictures) > 1:
                middle = len(pictures) // 2
                return self._run(pictures[:middle]) + self._run(pictures[middle:])
            self.crashed += 1
            return [""]

    def _ask(self, pictures: list[Image.Image]) -> str:
        data = io.BytesIO()  # no file: nothing of a reader that was killed stays behind
        pictures[0].save(data, "TIFF", save_all=True, append_images=pictures[1:])
        asked = f"reading {len(pictures)} picture{'s' * (len(pictures) != 1)}"
        return tesseract(
            ["stdin", "stdout", *self._settings()],
            data.getvalue(),
            timeout=self.timeout,
            asked=asked,
        )

    def _settings(self) -> list[str]:
        settings = {
            "load_system_dawg": "0",
            "load_freq_dawg": "0",
            "tessedit_char_whitelist": self.alphabet + " " * self.blank,
        }
        chosen = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return ["-l", LANGUAGE, "--psm", str(LINE_MODE), *chosen]


def _pages(text: str, count: int) -> list[str]:
    pages = text.split("\f")
    # 5.3.0 puts a form feed between the pages; one behind the last, as of single pages, is no page
    if len(pages) == count + 1 and not pages[-1].strip():
        pages.pop()
    if len(pages) != count:
        raise OCRError(f"gave tesseract {count} pictures, got {len(pages)} readings; {text[:80]!r}")
    return pages


def _prepare(image: Image.Image, box, scale: float, index: int) -> Image.Image | None:
    """Dark ink on white, cropped, padded and enlarged, or None for a picture without contrast."""
    grey = _luminance(image, box, index)
    levels = _levels(grey)
    if levels is None:
        return None
    ink = np.clip((levels[1] - grey) / (levels[1] - levels[0]), 0, 1)  # 1 = darkest
    if ink.mean() > 0.5:  # letters cover less than half of what they stand on
        ink = 1 - ink
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(scale, TALLEST / len(ink))
    padded = np.pad(ink, max(PAD, len(ink) // 4))
    picture = Image.fromarray(np.rint(255 * (1 - padded)).astype(np.uint8))
    return picture.resize([round(scale * side) for side in picture.size], Image.Resampling.BICUBIC)


def _luminance(image: Image.Image, box, index: int) -> np.ndarray:
    if not isinstance(image, Image.Image) or image.mode[0] in "IF":
        found = f"mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
        raise OCRError(
            f"picture {index} cannot be read: {found}; give a PIL image with 8 bits a channel"
        )
    require_bounded(image, f"picture {index}")
    if box is not None:
        left, top, right, bottom = box
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise OCRError(
                f"box {tuple(box)} is not inside picture {index} of size {image.size}; shrink it"
            )
        image = image.crop(box)
    if "A" in image.getbands():  # what is transparent is seen as white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("L"), np.float64)


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
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(word)
    picture = Image.new("L", (round(right - left) + size, round(bottom - top) + size), 255)
    ImageDraw.Draw(picture).text((size / 2 - left, size / 2 - top), word, fill=0, font=font)
    return picture


def _known_words(alphabet: str, blank: bool) -> list[str]:
    """At least twelve words of the alphabet, real ones if it spells them, else the same random ones."""
    spelt = [w if set(w) <= set(alphabet) else w.lower() for w in KNOWN_WORDS]
    words = [w for w in spelt if set(w) <= set(alphabet)]
    rng = random.Random(0)
    while len(words) < 12:
        words.append("".join(rng.choice(alphabet) for _ in range(4)))
    return (
        [f"{a} {b}" for a, b in zip(words, words[1:] + words[:1], strict=True)] if blank else words
    )
