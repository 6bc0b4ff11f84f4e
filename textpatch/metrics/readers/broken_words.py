"""Words with a letter broken, or another, which a strict reader must not read as if they were whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from textpatch.errors import OCRError
from textpatch.metrics.readers.known_words import KNOWN_WORDS, LETTERS, TEST_SIZES
from textpatch.metrics.text import exact

# Letters that are others, or no letters, when they are mirrored or turned upside down.
LOPSIDED = "BCDEFGJKLNPQRSZ"
HEADED = "AFGJLPQRTUVY"
# Share of a letter's height that a column of ink fills where it is of an upright stroke.
STEM = 0.7
# Broken words of a self-test, a third of each kind.  The kinds are those of which tesseract and the agreement
# of two read 0 of 100 (`benchmarks/readers.py`).
TESTED = 12
# Broken words that a strict reader may read as if they were whole, for one that another version reads.
MOST_READ = 1


class Overread(NamedTuple):
    """Broken words that a reader reads as if they were whole, of n."""

    read: int
    n: int


def read_as_whole(read: Callable[[list[Image.Image]], list[str]], alphabet: str) -> Overread:
    """Count the broken words of an alphabet that a reader reads as if they were whole.

    read  gives the texts of pictures
    There are none in an alphabet without capitals.
    """
    words = [word for word in KNOWN_WORDS if set(word) <= set(alphabet)][:TESTED]
    if not words:
        return Overread(0, 0)
    texts = read([broken_word(word, i) for i, word in enumerate(words)])
    pairs = zip(texts, words, strict=True)
    return Overread(sum(exact("".join(text.split()), word) for text, word in pairs), len(words))


def require_strict(
    read: Callable[[list[Image.Image]], list[str]], alphabet: str, engine: str, cure: str
) -> None:
    """Raise OCRError if more than MOST_READ broken words are read as if they were whole.

    A model that draws broken words would otherwise pass for one that can write.
    read    gives the texts of pictures
    engine  what reads, and `cure` what to do, for the message
    """
    found = read_as_whole(read, alphabet)
    if found.read > MOST_READ:
        raise OCRError(
            f"{engine} read {found.read} of {found.n} words with a broken letter as if they were whole, and "
            f"{MOST_READ} may be; {cure}"
        )


def broken_word(word: str, turn: int) -> Image.Image:
    """Draw a word with a letter mirrored, upside down or another, in turns, in black on white.

    The letter is the first that can be broken in this way.
    """
    size = TEST_SIZES[turn // 3 % len(TEST_SIZES)]
    among, change = ((LOPSIDED, mirrored), (HEADED, upside_down), (LETTERS, None))[turn % 3]
    places = [i for i, letter in enumerate(word) if letter in among]
    if not places:
        change = None
    if change is None:
        word = another_letter(word)
    letters = letters_of(word, font_of(None, size))
    if change is not None:
        letters[places[0]] = change(letters[places[0]])
    mask = joined(letters)
    picture = Image.new("L", (mask.width + size, mask.height + size), 255)
    picture.paste(0, (size // 2, size // 2), mask)
    return picture


def another_letter(word: str) -> str:
    """The word with the letter 13 places on in the alphabet in the place of its first."""
    return LETTERS[(LETTERS.index(word[0]) + 13) % len(LETTERS)] + word[1:]


# --- drawing


def font_of(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    """Font of a file, Pillow's own for None."""
    if file is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(file, size)


def letters_of(word: str, font: ImageFont.FreeTypeFont) -> list[Image.Image]:
    """Masks of the letters of a word, each as wide as its place and as high as the line."""
    ascent, descent = font.getmetrics()
    masks = []
    for letter in word:
        mask = Image.new("L", (max(1, round(font.getlength(letter))), ascent + descent))
        ImageDraw.Draw(mask).text((0, 0), letter, fill=255, font=font)
        masks.append(mask)
    return masks


def joined(letters: list[Image.Image], gap: int = 0) -> Image.Image:
    """Mask of a line of letters, cropped to its ink.

    gap  pixels between two letters more than their font leaves
    """
    line = Image.new("L", (sum(tile.width + gap for tile in letters), letters[0].height))
    left = 0
    for tile in letters:
        line.paste(tile, (left, 0))
        left += tile.width + gap
    return line.crop(line.getbbox())


# --- what breaks a letter


def mirrored(tile: Image.Image) -> Image.Image:
    """Letter with left and right exchanged."""
    return tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def upside_down(tile: Image.Image) -> Image.Image:
    """Letter turned about the middle of its ink."""
    box = tile.getbbox()
    turned = tile.copy()
    turned.paste(tile.crop(box).transpose(Image.Transpose.ROTATE_180), box[:2])
    return turned


def half_erased(tile: Image.Image) -> Image.Image:
    """Letter without the lower half of its ink."""
    left, top, right, bottom = tile.getbbox()
    tile.paste(0, (left, (top + bottom) // 2, right, bottom))
    return tile


def without_stem(tile: Image.Image) -> Image.Image:
    """Letter without the left third of its ink, and without all of its stem.

    The left third alone leaves heavy letters a thinner stem, and letters with serifs all of theirs.
    """
    left, top, right, bottom = tile.getbbox()
    end = max(left + (right - left) // 3, _end_of_stem(tile))
    tile.paste(0, (left, top, end, bottom))
    return tile


def _end_of_stem(tile: Image.Image) -> int:
    """First column behind the first upright stroke of a letter, 0 where there is none."""
    _, top, _, bottom = tile.getbbox()
    inked = (np.asarray(tile) > 0).sum(axis=0)
    upright = np.append(inked > STEM * (bottom - top), False)
    if not upright.any():
        return 0
    begin = int(upright.argmax())
    return begin + int(upright[begin:].argmin())
