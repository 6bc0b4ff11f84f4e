"""Calibration of readers, by pictures of words that must be read and of words that must not.

A reader that repairs letters calls a broken word right, and a model that draws broken words then passes for
one that can write.  So half of the pictures show a word with one letter broken, and half of a reader's score
is how often it reads such a word as if it were whole.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from textpatch.metrics.intervals import wilson
from textpatch.metrics.readers.broken_words import (
    HEADED,
    LOPSIDED,
    font_of,
    half_erased,
    joined,
    letters_of,
    mirrored,
    upside_down,
    without_stem,
)
from textpatch.metrics.readers.in_time import InTime
from textpatch.metrics.readers.known_words import KNOWN_WORDS, LETTERS
from textpatch.metrics.readers.named import reader_named
from textpatch.metrics.readers.reading import Reading
from textpatch.metrics.readers.tesseract import alphabet_of
from textpatch.metrics.text import exact
from textpatch.text import aligned

UNREAD = "unread"  # what pictures of no whole word must be
EACH = 16  # pictures of a kind, with which three readers take less than a minute
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
SIZE = 64  # points, from which letters are made smaller
GAP = 22  # about the space that the shipped models leave between two letters
SMALL = (96, 32)
SCENE = (256, 256)


@dataclass(frozen=True)
class Sample:
    """A picture, and the word that is read in it, or must not be."""

    picture: Image.Image
    word: str


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind.

    draw  gives a sample for dice and a font file
    must  True if the word must be read, False if it must not
    """

    name: str
    draw: Callable[[random.Random, str | None], Sample]
    must: bool


def font_files() -> list[str | None]:
    """Files of free fonts that are there, Pillow's own, as None, and matplotlib's DejaVu."""
    try:
        import matplotlib
    except ImportError:
        return [None]
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return [None, *(str(folder / f"{face}.ttf") for face in FACES)]


def samples(kind: Kind, each: int = EACH, dice: str = "") -> list[Sample]:
    """Pictures of a kind, the same in every call with the same dice."""
    rng = random.Random(kind.name + dice)
    files = font_files()
    return [kind.draw(rng, files[i % len(files)]) for i in range(each)]


def calibrated(name: str, each: int = EACH) -> list[dict]:
    """Shares of the words of every kind that a reader reads, with intervals and seconds a picture.

    name  as `reader_named` takes it
    Raises OCRError where the reader is not installed, cannot read, or hangs.
    """
    rows = []
    readers: dict[
        str, InTime
    ] = {}  # by alphabet, because loading one takes as long as reading forty words
    for kind in KINDS:
        drawn = samples(kind, each)
        alphabet = alphabet_of(sample.word for sample in drawn)
        if alphabet not in readers:
            readers[alphabet] = InTime(reader_named(name, alphabet))
            readers[alphabet].self_test()
        reader = readers[alphabet]
        start = time.perf_counter()
        readings = reader.read([sample.picture for sample in drawn])
        seconds = (time.perf_counter() - start) / len(drawn)
        right = read_of(readings, drawn)
        ends = wilson(right / len(drawn), len(drawn))
        rows.append(
            {
                "reader": name,
                "kind": kind.name,
                "must": kind.must,
                "read": right,
                "n": len(drawn),
                **ends._asdict(),
                "seconds": seconds,
            }
        )
    return rows


def told_calibration(columns: dict[str, list[dict]]) -> list[str]:
    """Lines of a table with a column for each reader.

    columns  what `calibrated` gave, by the reader's name
    """
    first, *_ = columns.values()
    lines = [list(columns)]
    kinds = ["must be"]
    for i, row in enumerate(first):
        wanted = "read" if row["must"] else UNREAD
        lines.append([_share(rows[i]) for rows in columns.values()])
        kinds.append(f"{wanted}  {row['kind']}")
    lines.append([f"{1000 * rows[0]['seconds']:.0f}" for rows in columns.values()])
    kinds.append("milliseconds a picture of 96 x 32")
    head = f"pictures read, of {first[0]['n']} of each kind, and 95 % intervals in percent"
    table = zip(aligned(lines), kinds, strict=True)
    return [head, *(f"{numbers}  {kind}" for numbers, kind in table)]


def _share(row: dict) -> str:
    return f"{row['read']} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def read_of(readings: Sequence[Reading], drawn: Sequence[Sample]) -> int:
    """Number of samples whose word is read, or in which anything is, where there is none."""
    pairs = zip(readings, drawn, strict=True)
    return sum(_is_read(reading.text, sample.word) for reading, sample in pairs)


def _is_read(text: str, word: str) -> bool:
    """True if the word is read, where blanks and case do not matter, or anything in a wordless picture."""
    if not word:
        return bool(text)
    return exact("".join(text.split()), "".join(word.split()))


# --- drawing


def _colours(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Dark and light colour, either of which may be the ink."""
    dark = tuple(rng.randrange(0, 90) for _ in range(3))
    light = tuple(rng.randrange(170, 256) for _ in range(3))
    return rng.choice([(dark, light), (light, dark)])


def _sign(mask: Image.Image, rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Letters in the middle of a plain ground, as large as they fit."""
    ink, ground = _colours(rng)
    scale = min(0.8 * size[0] / mask.width, 0.6 * size[1] / mask.height)
    mask = mask.resize(
        [max(1, round(scale * side)) for side in mask.size], Image.Resampling.LANCZOS
    )
    picture = Image.new("RGB", size, ground)
    place = (size[0] - mask.width) // 2, (size[1] - mask.height) // 2
    picture.paste(ink, (*place, place[0] + mask.width, place[1] + mask.height), mask)
    return picture


def draw_wall(rng: random.Random, size: tuple[int, int] = SCENE) -> Image.Image:
    """Picture without words, of soft light, blurred shapes and grain."""
    dice = np.random.default_rng(rng.randrange(2**32))
    coarse = dice.integers(40, 216, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = dice.integers(0, size[0]), dice.integers(0, size[1])
        box = (
            int(left),
            int(top),
            int(left + dice.integers(20, 120)),
            int(top + dice.integers(20, 120)),
        )
        colour = tuple(int(part) for part in dice.integers(0, 256, 3))
        rng.choice([draw.ellipse, draw.rectangle])(box, fill=colour)
    picture = picture.filter(ImageFilter.GaussianBlur(2))
    grain = dice.normal(0, 10, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def _scene(mask: Image.Image, rng: random.Random, angle: float = 0.0) -> Image.Image:
    """A sign that hangs somewhere on a wall, turned by an angle in degrees."""
    wall = draw_wall(rng)
    width = rng.randrange(110, 190)
    sign = _sign(mask, rng, (width, width // 3)).convert("RGBA")
    sign = sign.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    place = rng.randrange(0, SCENE[0] - sign.width), rng.randrange(0, SCENE[1] - sign.height)
    wall.paste(sign, place, sign)
    return wall


# --- kinds


def _word(rng: random.Random, among: str | None = None) -> str:
    """A known word, with a letter out of `among`."""
    words = [word for word in KNOWN_WORDS if among is None or not set(word).isdisjoint(among)]
    return rng.choice(words)


def _mask(word: str, file: str | None) -> Image.Image:
    return joined(letters_of(word, font_of(file, SIZE)))


def _clean(rng: random.Random, file: str | None) -> Sample:
    word = _word(rng)
    return Sample(_sign(_mask(word, file), rng, SMALL), word)


def _far_apart(rng: random.Random, file: str | None) -> Sample:
    word = _word(rng)
    return Sample(_sign(joined(letters_of(word, font_of(file, SIZE)), GAP), rng, SMALL), word)


def _small_letters(rng: random.Random, file: str | None) -> Sample:
    word = _word(rng).lower()
    return Sample(_sign(_mask(word, file), rng, SMALL), word)


def _random_letters(rng: random.Random, file: str | None) -> Sample:
    word = "".join(rng.choices(LETTERS, k=5))
    return Sample(_sign(_mask(word, file), rng, SMALL), word)


def _in_a_scene(rng: random.Random, file: str | None) -> Sample:
    word = _word(rng)
    return Sample(_scene(_mask(word, file), rng), word)


def _turned(rng: random.Random, file: str | None) -> Sample:
    word = _word(rng)
    return Sample(_scene(_mask(word, file), rng, rng.uniform(-8, 8)), word)


def _blurred(rng: random.Random, file: str | None) -> Sample:
    sample = _in_a_scene(rng, file)
    return Sample(sample.picture.filter(ImageFilter.GaussianBlur(1.2)), sample.word)


def _two_lines(rng: random.Random, file: str | None) -> Sample:
    words = [_word(rng), _word(rng)]
    first, second = (_mask(word, file) for word in words)
    both = Image.new("L", (max(first.width, second.width), first.height + second.height + 24))
    both.paste(first, (0, 0))
    both.paste(second, (0, first.height + 24))
    wall = draw_wall(rng)
    sign = _sign(both, rng, (180, 110))
    wall.paste(sign, (rng.randrange(0, 70), rng.randrange(0, 140)))
    return Sample(wall, " ".join(words))


def _broken(
    among: str, change: Callable[[Image.Image], Image.Image], gap: int = 0
) -> Callable[[random.Random, str | None], Sample]:
    """Kind of pictures in which one letter out of `among` is changed."""

    def draw(rng: random.Random, file: str | None) -> Sample:
        word = _word(rng, among)
        place = rng.choice([i for i, letter in enumerate(word) if letter in among])
        tiles = letters_of(word, font_of(file, SIZE))
        tiles[place] = change(tiles[place])
        return Sample(_sign(joined(tiles, gap), rng, SMALL), word)

    return draw


def _misspelt(rng: random.Random, file: str | None) -> Sample:
    """A word with another letter in the place of one."""
    word = _word(rng)
    place = rng.randrange(len(word))
    other = rng.choice([letter for letter in LETTERS if letter != word[place]])
    written = word[:place] + other + word[place + 1 :]
    return Sample(_sign(_mask(written, file), rng, SMALL), word)


def _wordless(rng: random.Random, file: str | None) -> Sample:
    return Sample(draw_wall(rng), "")


KINDS = (
    Kind("words, 96 x 32", _clean, True),
    Kind("small letters, 96 x 32", _small_letters, True),
    Kind("letters far apart, 96 x 32", _far_apart, True),
    Kind("random letters, 96 x 32", _random_letters, True),
    Kind("signs in scenes, 256 px", _in_a_scene, True),
    Kind("turned up to 8 degrees, 256 px", _turned, True),
    Kind("blurred, 256 px", _blurred, True),
    Kind("two lines, 256 px", _two_lines, True),
    Kind("a letter mirrored", _broken(LOPSIDED, mirrored), False),
    Kind("a letter upside down", _broken(HEADED, upside_down), False),
    Kind("a letter half erased", _broken(LETTERS, half_erased), False),
    Kind("a letter without its stem", _broken("BDEFHKLMNPR", without_stem), False),
    Kind("half erased, letters far apart", _broken(LETTERS, half_erased, GAP), False),
    Kind("another letter", _misspelt, False),
    Kind("no words, 256 px", _wordless, False),
)
