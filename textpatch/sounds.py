"""Sounds drawn as pictures, so that whatever shows pictures shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

SIZE = 192, 48  # width and height in pixels
PAPER = 255
INK = 40


def as_picture(drawn: Any) -> Image.Image:
    """A picture as it is, and a sound as the outline of its wave.

    drawn  a PIL picture, or an array (samples,) or (channels, samples), of which all channels are one wave
    A column of pixels goes from the lowest to the highest sample of its part, in shares of the loudest.
    """
    if isinstance(drawn, Image.Image):
        return drawn
    wave = np.asarray(drawn, np.float64)
    wave = np.nan_to_num(wave.reshape(-1, wave.shape[-1]).mean(axis=0))
    loudest = np.abs(wave).max() or 1.0
    width, height = SIZE
    picture = np.full((height, width), PAPER, np.uint8)
    for x, part in enumerate(np.array_split(wave / loudest, width)):
        if part.size:
            top, bottom = (
                round((1 - level) / 2 * (height - 1)) for level in (part.max(), part.min())
            )
            picture[top : bottom + 1, x] = INK
    return Image.fromarray(picture).convert("RGB")
