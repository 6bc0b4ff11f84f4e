"""Words drawn with Pillow's own font, which a reader must read before its readings count."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from textpatch.errors import OCRError
from textpatch.metrics.text import exact

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KNOWN_WORDS = (
    "OPEN BREAD MARKET COFFEE GARDEN HOTEL SCHOOL FLOWER STREET PAPER BRIDGE QUICK "
    "VOYAGE JACKET EXIT ZEBRA WINDOW LAMP"
).split()
# In points of Pillow's own font, whose capitals are then 11, 17 and 26 px high.
TEST_SIZES = (16, 24, 36)
LEAST_EXACT = 0.9


def words_of(alphabet: str, blank: bool) -> list[str]:
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


def require_read(
    read: Callable[[list[Image.Image]], list[str]], words: list[str], engine: str, cure: str
) -> None:
    """Raise OCRError, naming words and readings, if fewer than LEAST_EXACT of the words are read exactly.

    A reader that reads nothing would otherwise pass for a model that writes nothing.
    read    gives the texts of pictures
    engine  what reads, and `cure` what to do, for the message
    """
    readings = list(zip(read(drawn(words)), words, strict=True))
    right = sum(exact(text, word) for text, word in readings)
    if right < LEAST_EXACT * len(words):
        told = ", ".join(f"{word} as {text!r}" for text, word in readings)
        raise OCRError(
            f"{engine} read {right} of {len(words)} known words, {LEAST_EXACT:.0%} are needed: {told}; {cure}"
        )


def draw(word: str, size: int) -> Image.Image:
    """Draw a word in black on white, `size` points high."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(word)
    picture = Image.new("L", (round(right - left) + size, round(bottom - top) + size), 255)
    ImageDraw.Draw(picture).text((size / 2 - left, size / 2 - top), word, fill=0, font=font)
    return picture


def drawn(words: list[str]) -> list[Image.Image]:
    """Draw words in turns of TEST_SIZES."""
    return [draw(word, TEST_SIZES[i % len(TEST_SIZES)]) for i, word in enumerate(words)]


def _spelt(word: str, alphabet: str) -> str | None:
    """The word in capitals, else in small letters, or None if the alphabet spells neither."""
    for spelling in (word, word.lower()):
        if set(spelling) <= set(alphabet):
            return spelling
    return None
