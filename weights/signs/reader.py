"""Reader of signs by synthesis, which gives the description whose drawing is nearest to a picture.

    wall, pattern  = argmin || picture - such a wall ||^2                  above and below the plate
    colour, shape  = argmin || picture - such a plate on that wall ||^2    on the plate without the lettering
    style, word    = argmin sum over places min over letters || picture - such a letter on that plate ||^2

A pattern may be fainter than drawn and begin anew in every stretch of the wall, as models paint it.  A place
of the word may be empty, so that the word is read along with its style, and neither has to be known first.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from textpatch.errors import OCRError, PatchError
from textpatch.metrics.readers.reading import Boxes
from textpatch.pictures import as_rgb
from textpatch.stored import JSONObject
from textpatch.weights.signs.drawing import (
    COLOURS,
    DARK,
    LIGHT,
    PATTERNS,
    PHASES,
    Sign,
    SignFormat,
    draw_wall,
    ink_on,
    painted,
    plate_mask,
    random_sign,
    word_mask,
)
from textpatch.weights.signs.evaluation import clean_pictures

# Stretches of the wall on either side, and contrast of faint patterns, chosen on 96 validation signs.  There
# tiny-mmdit's patterns are read at .99 and tiny-sdxl's at .91, and in one stretch at full contrast at .54 and
# .79.  On 96 test signs it is .98 and .79.
STRETCHES = 4
FAINT = 0.7
INKS = DARK, LIGHT


def read_sign(image: Image.Image, fmt: SignFormat = SignFormat()) -> Sign:
    """Read the sign that a picture shows.   Its word is "" where no letters stand.

    Raises PatchError for a picture of another size than the format's.
    """
    image = as_rgb(image, "the picture of a sign")
    if image.size != (fmt.width, fmt.height):
        raise PatchError(
            f"a sign is read from {fmt.width}x{fmt.height} pixels, found a picture of "
            f"{image.width}x{image.height}; generate it at the model's own size"
        )
    picture = np.asarray(image, np.float32)  # (H, W, 3)
    wall, pattern = _wall(picture, fmt)
    colour, shape = _plate(picture, wall, fmt)
    style, word = _lettering(picture, colour, fmt)
    return Sign(word, colour, shape, wall, pattern, style)


def read_text(image: Image.Image, sign: Sign, fmt: SignFormat) -> str:
    """Read the text of a sign whose colour and style are known, its lines separated by newlines."""
    picture = np.asarray(as_rgb(image, "the picture of a sign"), np.float32)
    letters = _letters(sign.colour, fmt)
    error = letters.distances(_cells(picture, fmt)).reshape(
        fmt.lines * fmt.longest, len(letters.names), -1
    )
    look = letters.names.index(sign.style) + INKS.index(ink_on(sign.colour))
    error = error[:, look]  # (places, one more than letters)
    return _text(error.argmin(axis=1).reshape(fmt.lines, -1), fmt)


@dataclass(frozen=True)
class Drawings:
    """Drawings of all that some places of a picture may show.

    names  of what is drawn; a name may stand for several of the N drawings that follow each other
    drawn  (places, N, P), P numbers for each place
    """

    names: list
    drawn: np.ndarray

    @functools.cached_property
    def norms(self) -> np.ndarray:
        return np.square(self.drawn).sum(axis=-1)

    def distances(self, seen: np.ndarray) -> np.ndarray:
        """Squared distances (places, N) from what is seen (places, P), up to a constant for each place."""
        return self.norms - 2 * (self.drawn @ seen[..., None])[..., 0]


def strict_pattern(image: Image.Image, fmt: SignFormat = SignFormat()) -> str:
    """Pattern of the one drawn wall, at full contrast and of one beginning, nearest to a picture's."""
    picture = np.asarray(as_rgb(image, "the picture of a sign"), np.float32)
    error = _walls(fmt).distances(_stretches(picture, fmt)).sum(axis=0)  # (walls * phases,)
    error = error.reshape(-1, 2, fmt.phases)[:, 0].min(axis=1)  # without the faint ones
    names = _walls(fmt).names[::2]
    return names[error.argmin()][1]


def _wall(picture: np.ndarray, fmt: SignFormat) -> tuple[str, str]:
    walls = _walls(fmt)
    error = walls.distances(_stretches(picture, fmt))  # (stretches, walls * phases)
    error = error.reshape(len(error), len(walls.names), fmt.phases).min(axis=2).sum(axis=0)
    return walls.names[error.argmin()]


@functools.lru_cache
def _walls(fmt: SignFormat) -> Drawings:
    """Every wall and pattern, faint ones too, at every phase, in the stretches above and below the plate."""
    names = []
    drawn = []
    for wall, pattern, contrast in itertools.product(COLOURS, PATTERNS, (1, FAINT)):
        bare = draw_wall(wall, "plain", fmt, 0)
        full = [draw_wall(wall, pattern, fmt, phase) for phase in PHASES[: fmt.phases]]
        names.append((wall, pattern))
        drawn += [_stretches(bare + contrast * (each - bare), fmt) for each in full]
    return Drawings(names, np.stack(drawn, axis=1))


def _stretches(picture: np.ndarray, fmt: SignFormat) -> np.ndarray:
    """Pieces of the picture above and below the plate, (2 STRETCHES, P)."""
    high = min(fmt.plate[1], fmt.height - fmt.plate[3])
    both = np.stack([picture[:high], picture[fmt.height - high :]])  # (2, h, W, 3)
    pieces = both.reshape(2, high, STRETCHES, fmt.width // STRETCHES, 3)
    return pieces.swapaxes(1, 2).reshape(2 * STRETCHES, -1)


def _plate(picture: np.ndarray, wall: str, fmt: SignFormat) -> tuple[str, str]:
    plates = _plates(wall, fmt)
    (error,) = plates.distances(_plate_alone(picture, fmt))
    return plates.names[error.argmin()]


@functools.lru_cache
def _plates(wall: str, fmt: SignFormat) -> Drawings:
    """Every colour and shape of plate on a wall."""
    names = list(itertools.product(COLOURS, fmt.shapes))
    behind = draw_wall(wall, "plain", fmt, 0)
    drawn = []
    for colour, shape in names:
        picture = painted(behind, COLOURS[colour], plate_mask(shape, fmt))
        drawn.append(_plate_alone(picture, fmt))
    return Drawings(names, np.stack(drawn, axis=1))


def _plate_alone(picture: np.ndarray, fmt: SignFormat) -> np.ndarray:
    """Plate without the lettering, (1, P)."""
    where = np.zeros((fmt.height, fmt.width), bool)
    left, top, right, bottom = fmt.plate
    where[top:bottom, left:right] = True
    left, top, right, bottom = fmt.text_box
    where[top:bottom, left:right] = False
    return picture[where].reshape(1, -1)


def _lettering(picture: np.ndarray, colour: str, fmt: SignFormat) -> tuple[str, str]:
    """Style and text on a plate of a colour."""
    cells = _cells(picture, fmt)
    letters = _letters(colour, fmt)
    error = letters.distances(cells)  # (places, looks * one more than letters)
    error = error.reshape(len(cells), len(letters.names), -1)
    look = error.min(axis=2).sum(axis=0).argmin()
    nearest = error[:, look].argmin(axis=1)  # (places,)
    return letters.names[look], _text(nearest.reshape(fmt.lines, -1), fmt)


def _cells(picture: np.ndarray, fmt: SignFormat) -> np.ndarray:
    """Places of letters, line by line, (lines * longest, P)."""
    lefts = [fmt.left + place * fmt.pitch for place in range(fmt.longest)]
    return np.stack([_cell(picture, left, top, fmt) for top in fmt.tops for left in lefts])


def _text(nearest: np.ndarray, fmt: SignFormat) -> str:
    """Text of the letters at the places (lines, longest), 0 for an empty one.

    An empty place is a space between words, where signs have several of these.
    """
    if fmt.lines == 1:
        return "".join(["", *fmt.letters][letter] for letter in nearest[0])
    lines = ["".join([" ", *fmt.letters][letter] for letter in line).rstrip() for line in nearest]
    return "\n".join(lines).rstrip("\n")


@functools.lru_cache
def _letters(colour: str, fmt: SignFormat) -> Drawings:
    """Empty places and single letters on a plate of a colour, in every style and both inks."""
    plate = np.broadcast_to(np.float32(COLOURS[colour]), (fmt.height, fmt.width, 3))
    names = []
    drawn = []
    for style, ink in itertools.product(fmt.styles, INKS):
        names.append(style)
        masks = [word_mask(letter, style, fmt) for letter in ["", *fmt.letters]]
        drawn += [_cell(painted(plate, ink, mask), fmt.left, fmt.top, fmt) for mask in masks]
    return Drawings(names, np.stack(drawn)[None])


def _cell(picture: np.ndarray, left: int, top: int, fmt: SignFormat) -> np.ndarray:
    """Place of one letter on the line with this top, (P,)."""
    rows = slice(top - fmt.unit, top + fmt.cap + 3 * fmt.unit)
    return picture[rows, left : left + fmt.pitch].ravel()


class SignReader:
    """Reader of all attributes of signs, which `localize` takes in place of tesseract.

    A reading of a picture is a dict {attribute: value}, which `SignPair` scores.
    """

    def __init__(self, fmt: SignFormat = SignFormat()) -> None:
        self.fmt = fmt

    def read(
        self, images: Sequence[Image.Image], boxes: Boxes | None = None
    ) -> list[dict[str, str]]:
        """Read the attributes of each picture.   Their places are known without `boxes`."""
        return [asdict(read_sign(image, self.fmt)) for image in images]

    def self_test(self) -> None:
        """Read 20 clean drawings.   Raises OCRError unless every attribute is read right."""
        rng = random.Random("self-test")
        signs = [random_sign(rng, self.fmt) for _ in range(20)]
        readings = self.read(clean_pictures(signs, self.fmt))
        wrong = [sign for i, sign in enumerate(signs) if readings[i] != asdict(sign)]
        if wrong:
            raise OCRError(
                f"read {len(signs) - len(wrong)} of {len(signs)} drawings right, all are needed; "
                f"wrong: {wrong[0]}; signs are not drawn as they are read"
            )

    def describe(self) -> JSONObject:
        """Settings that a manifest must hold to repeat a reading."""
        return {
            "engine": "nearest drawing",
            "stretches": STRETCHES,
            "faint": FAINT,
            "format": asdict(self.fmt),
        }
