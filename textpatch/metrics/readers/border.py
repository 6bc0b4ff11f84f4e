"""Ink that reaches the border of a found place, taken away, since it is no letter.

Around letters that stand far apart a finder marks most of their sign, and the sign's edge reads as letters.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from textpatch.metrics.readers import ink
from textpatch.metrics.readers.reading import Area, grown_around

# the four sides of a picture
EDGES = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])


def without_border(image: Image.Image, place: Area, index: int) -> Image.Image | None:
    """Dark ink on white, as it stands at a found place and does not reach its border.

    index  of the picture, for errors
    A tight place cuts letters.  So a quarter of the place's shorter side is looked at on each side, too,
    and letters are the ink that does not reach the border of that.  What lies between a letter and the border
    is paper.
    The picture is None where no ink is on the place's own border, so that nothing is to be taken away.
    Raises OCRError as `ink.part_of` does.
    """
    dark, _ = _ink_of(ink.part_of(image, place, index))
    if not any((dark[edge] > ink.INK).any() for edge in EDGES):
        return None
    around = ink.part_of(image, grown_around(place), index)
    dark, span = _ink_of(around, beside=min(around.size) // 6)
    inside = dark - reached(dark)
    return Image.fromarray(np.rint(255 - span * inside).astype(np.uint8)).convert("RGB")


def _ink_of(part: Image.Image, beside: int = 0) -> tuple[np.ndarray, float]:
    """Ink of a part, 0..1, and the grey levels between none and all of it.

    beside  pixels on each side in which there are no letters
    There is no ink where there is no contrast.
    """
    grey = ink.grey_levels(part)
    levels = ink.levels_of(grey)
    if levels is None:
        return np.zeros_like(grey), 0.0
    return ink.darkness(grey, levels, beside), levels[1] - levels[0]


def reached(dark: np.ndarray) -> np.ndarray:
    """Ink that is reached from the border, for each pixel the least on the darkest way there.

    dark  ink (H, W), 0..1
    Ways go from a pixel to its four neighbours.  This is the reconstruction of `dark` from its border, as
    L. Vincent, IEEE Transactions on Image Processing 2 (1993), defines it.
    """
    found = np.zeros_like(dark)
    for edge in EDGES:
        found[edge] = dark[edge]
    while True:
        before = found.copy()
        for rows, most in ((found, dark), (found.T, dark.T)):
            _flow(rows, most)
            _flow(rows[::-1], most[::-1])
        if np.array_equal(found, before):
            return found


def _flow(rows: np.ndarray, most: np.ndarray) -> None:
    """Let every row take what the row before it has, in place, and no more than the most it may have."""
    for i in range(1, len(rows)):
        np.maximum(rows[i], np.minimum(rows[i - 1], most[i]), out=rows[i])
