"""What a picture of a sign shows, read by synthesis: the description whose drawing is nearest to it.

    wall, pattern  = argmin || picture - such a wall ||^2                       above and below the plate
    colour, shape  = argmin || picture - such a plate on that wall ||^2         on the plate, but for the lettering
    style, word    = argmin sum over places min over letters || picture - such a letter on that plate ||^2

A pattern may be fainter than drawn and begin anew in every stretch of the wall, as models paint it.  A place may be
empty; so the word is read along with its style, and neither has to be known first.
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
from textpatch.weights.signs.drawing import (
    COLOURS,
    DARK,
    LETTERS,
    LIGHT,
    PATTERNS,
    PHASES,
    SHAPES,
    Sign,
    SignFormat,
    draw_wall,
    painted,
    plate_mask,
    random_sign,
    word_mask,
)
from textpatch.weights.signs.evaluation import clean_pictures

# Chosen on 96 validation signs, where tiny-mmdit's patterns are read at .99 and tiny-sdxl's at .91, and in one stretch at
# full contrast at .54 and .79; on 96 test signs it is .98 and .79.
STRETCHES, FAINT = 4, 0.7


def read_sign(image: Image.Image, fmt: SignFormat = SignFormat()) -> Sign:
    """The sign that a picture shows; its word is "" where no letters stand.

    Raises PatchError for a picture of another size than the format's.
    """
    if image.size != (fmt.width, fmt.height):
        raise PatchError(
            f"a sign is read from {fmt.width}x{fmt.height} pixels, found a picture of "
            f"{image.width}x{image.height}; generate it at the model's own size"
        )
    picture = np.asarray(image.convert("RGB"), np.float32)  # (H, W, 3)
    wall, pattern = _wall(picture, fmt)
    colour, shape = _plate(picture, wall, fmt)
    style, word = _lettering(picture, colour, fmt)
    return Sign(word, colour, shape, wall, pattern, style)


@dataclass(frozen=True)
class Drawings:
    """What can be seen in some places of a picture, P numbers each: drawn (places, N, P), named by N names."""

    names: list
    drawn: np.ndarray

    @functools.cached_property
    def norms(self) -> np.ndarray:
        return np.square(self.drawn).sum(axis=-1)

    def distances(self, seen: np.ndarray) -> np.ndarray:
        """Squared distances (places, N) from what is seen, (places, P); less its own norm, which all have in common."""
        return self.norms - 2 * (self.drawn @ seen[..., None])[..., 0]


def _wall(picture: np.ndarray, fmt: SignFormat) -> tuple[str, str]:
    walls = _walls(fmt)
    error = walls.distances(_stretches(picture, fmt))  # (stretches, walls * phases)
    error = error.reshape(len(error), len(walls.names), len(PHASES)).min(axis=2).sum(axis=0)
    return walls.names[error.argmin()]


@functools.lru_cache
def _walls(fmt: SignFormat) -> Drawings:
    """Every wall and pattern, faint ones too, at every phase, in the stretches above and below the plate."""
    names, drawn = [], []
    for wall, pattern, contrast in itertools.product(COLOURS, PATTERNS, (1, FAINT)):
        bare = draw_wall(wall, "plain", fmt, 0)
        full = [draw_wall(wall, pattern, fmt, phase) for phase in PHASES]
        names.append((wall, pattern))
        drawn += [_stretches(bare + contrast * (each - bare), fmt) for each in full]
    return Drawings(names, np.stack(drawn, axis=1))


def _stretches(picture: np.ndarray, fmt: SignFormat) -> np.ndarray:
    """What is above and below the plate, in pieces (2 STRETCHES, P)."""
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
    names, behind = list(itertools.product(COLOURS, SHAPES)), draw_wall(wall, "plain", fmt, 0)
    drawn = [_plate_alone(painted(behind, COLOURS[c], plate_mask(s, fmt)), fmt) for c, s in names]
    return Drawings(names, np.stack(drawn, axis=1))


def _plate_alone(picture: np.ndarray, fmt: SignFormat) -> np.ndarray:
    """The plate but for the lettering, (1, P)."""
    (left, top, right, bottom), letters = fmt.plate, fmt.text_box
    where = np.zeros((fmt.height, fmt.width), bool)
    where[top:bottom, left:right] = True
    where[letters[1] : letters[3], letters[0] : letters[2]] = False
    return picture[where].reshape(1, -1)


def _lettering(picture: np.ndarray, colour: str, fmt: SignFormat) -> tuple[str, str]:
    lefts = [fmt.left + place * fmt.pitch for place in range(fmt.longest)]
    letters = _letters(colour, fmt)
    error = letters.distances(
        np.stack([_cell(picture, left, fmt) for left in lefts])
    )  # (places, looks * 27)
    error = error.reshape(len(lefts), len(letters.names), -1)
    look = error.min(axis=2).sum(axis=0).argmin()
    return letters.names[look], "".join(
        ["", *LETTERS][letter] for letter in error[:, look].argmin(axis=1)
    )


@functools.lru_cache
def _letters(colour: str, fmt: SignFormat) -> Drawings:
    """One place of a plate of a colour: for every style, in both inks, nothing and each letter."""
    plate, names, drawn = (
        np.broadcast_to(np.float32(COLOURS[colour]), (fmt.height, fmt.width, 3)),
        [],
        [],
    )
    for style, ink in itertools.product(fmt.styles, (DARK, LIGHT)):
        names.append(style)
        masks = [word_mask(letter, style, fmt) for letter in ["", *LETTERS]]
        drawn += [_cell(painted(plate, ink, mask), fmt.left, fmt) for mask in masks]
    return Drawings(names, np.stack(drawn)[None])


def _cell(picture: np.ndarray, left: int, fmt: SignFormat) -> np.ndarray:
    top, bottom = fmt.top - fmt.unit, fmt.top + fmt.cap + 3 * fmt.unit
    return picture[top:bottom, left : left + fmt.pitch].ravel()


class SignReader:
    """All attributes of signs, where `localize` would have the word that tesseract reads.

    What it reads of a picture is a dict of attribute -> value, which `SignPair` scores.
    """

    def __init__(self, fmt: SignFormat = SignFormat()):
        self.fmt = fmt

    def read(self, images: Sequence[Image.Image], box=None) -> list[dict[str, str]]:
        """The attributes of each picture; where its parts are is known, so `box` is not needed."""
        return [asdict(read_sign(image, self.fmt)) for image in images]

    def self_test(self) -> None:
        """Read clean drawings; raises OCRError unless every attribute of 20 is read right."""
        rng = random.Random("self-test")
        signs = [random_sign(rng, self.fmt) for _ in range(20)]
        wrong = [
            sign
            for sign, seen in zip(signs, self.read(clean_pictures(signs, self.fmt)))
            if seen != asdict(sign)
        ]
        if wrong:
            raise OCRError(
                f"read {len(signs) - len(wrong)} of {len(signs)} drawings right, all are needed; "
                f"wrong: {wrong[0]}; signs are not drawn as they are read"
            )

    def describe(self) -> dict:
        """What a manifest must hold to repeat a reading."""
        return {
            "engine": "nearest drawing",
            "stretches": STRETCHES,
            "faint": FAINT,
            "format": asdict(self.fmt),
        }
