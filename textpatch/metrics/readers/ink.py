"""Pictures made ready for a reader, with dark ink on white paper."""

from __future__ import annotations

import numpy as np
from PIL import Image

from textpatch.errors import OCRError, PatchError
from textpatch.metrics.readers.reading import Area, Box, is_turned
from textpatch.pictures import as_rgb

PERCENTILES = (1, 99)
# White around the ink before it is enlarged, in pixels, or a quarter of the ink's height if that is more.
PAD = 4
# Height of the enlarged ink in pixels at most.  With both limits 18 of 18 words are read at 12 to 500 points.
# At 500 points 16 are read without this limit, in 18 s instead of 1.1 s, and 10 with 4 pixels of white.
TALLEST = 100
# Pixels of an enlarged picture at most, so that a strip or a photograph is read at its own size or less.
MOST = 2**22
# Width of an enlarged picture with its white at most.  Tesseract takes 32,767 pixels.
WIDEST = 2**14
# Contrast that a picture needs to be read, in grey levels of 0..255.
# Between the two percentiles: noise of standard deviation 5 spans 23, and would be read as letters if it
# were stretched to full contrast.
LEAST_SPAN = 24
# Between the darkest and the lightest pixel: ink on less than 1 % of a picture escapes the percentiles.
LEAST_RANGE = 64
# Share of the contrast from which a pixel is ink.
INK = 0.5


def line_of_ink(grey: np.ndarray, scale: float) -> tuple[Image.Image | None, Box]:
    """Dark ink on white, cropped to the ink, padded and enlarged, and the ink's box in pixels of `grey`.

    grey   grey levels (H, W) with one line of text
    scale  enlargement, less where the ink would be taller than TALLEST, wider than WIDEST or larger than MOST
    The picture is None where there is no contrast.
    """
    levels = levels_of(grey)
    if levels is None:
        return None, (0, 0, grey.shape[1], grey.shape[0])
    ink = darkness(grey, levels)
    rows = np.flatnonzero((ink > INK).any(1))
    columns = np.flatnonzero((ink > INK).any(0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    ink = ink[box[1] : box[3], box[0] : box[2]]
    scale = min(scale, TALLEST / len(ink), WIDEST / ink.shape[1], (MOST / ink.size) ** 0.5)
    if scale < 1:  # white of a quarter of a tall picture's height would take gigabytes at full size
        return _padded(_resized(_paper(ink), scale)), box
    return _resized(_padded(_paper(ink)), scale), box


def page(grey: np.ndarray, scale: float) -> tuple[Image.Image | None, float]:
    """A whole picture enlarged, and its enlargement, less where it would be larger than MOST.

    grey  grey levels (H, W)
    The picture is None where there is no contrast.
    """
    scale = min(scale, WIDEST / max(grey.shape), (MOST / grey.size) ** 0.5)
    if levels_of(grey) is None:
        return None, scale
    return _resized(Image.fromarray(np.rint(grey).astype(np.uint8)), scale), scale


def part_of(image: Image.Image, area: Area | None, index: int) -> Image.Image:
    """Area of a picture as RGB, turned upright, None for the whole picture.

    Transparent parts are seen as white.
    Raises OCRError for what `as_rgb` refuses, and for a box outside the picture.
    """
    try:
        image = as_rgb(image, f"picture {index}")
    except PatchError as error:
        raise OCRError(str(error)) from None
    if area is not None:
        image = _cut(image, area, index)
    return image


def grey_levels(picture: Image.Image) -> np.ndarray:
    """Grey levels of a picture as float64 (H, W)."""
    return np.asarray(picture.convert("L"), np.float64)


def _cut(image: Image.Image, area: Area, index: int) -> Image.Image:
    if not is_turned(area):
        left, top, right, bottom = area
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise OCRError(
                f"box {tuple(area)} is not inside picture {index} of size {image.size}; shrink it"
            )
        return image.crop(area)
    # a point outside would bring black paper along, which reads as ink
    inside = [(min(max(x, 0), image.width), min(max(y, 0), image.height)) for x, y in area]
    first, second, third, fourth = inside
    width = max(1, round(np.hypot(second[0] - first[0], second[1] - first[1])))
    height = max(1, round(np.hypot(fourth[0] - first[0], fourth[1] - first[1])))
    corners = (*first, *fourth, *third, *second)
    return image.transform((width, height), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)


def levels_of(grey: np.ndarray) -> tuple[float, float] | None:
    """Darkest and lightest grey, or None where they are too close to tell letters from noise."""
    low, high = np.percentile(grey, PERCENTILES)
    if high - low >= LEAST_SPAN:
        return low, high
    low = grey.min()
    high = grey.max()
    if high - low >= LEAST_RANGE:
        return low, high
    return None


def darkness(grey: np.ndarray, levels: tuple[float, float], beside: int = 0) -> np.ndarray:
    """Ink of grey levels, 1 for the most, whether it is darker or lighter than what it stands on.

    levels  as of `levels_of`
    beside  pixels on each side in which there are no letters
    """
    low, high = levels
    ink = np.clip((high - grey) / (high - low), 0, 1)
    middle = ink[beside : len(ink) - beside, beside : ink.shape[1] - beside]
    if middle.mean() > 0.5:  # letters cover less than half of what they stand on
        return 1 - ink
    return ink


def _paper(ink: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * (1 - ink)).astype(np.uint8))


def _padded(picture: Image.Image) -> Image.Image:
    """Picture with white on all sides."""
    pad = max(PAD, picture.height // 4)
    sheet = Image.new("L", (picture.width + 2 * pad, picture.height + 2 * pad), 255)
    sheet.paste(picture, (pad, pad))
    return sheet


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    size = [max(1, round(scale * side)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC)
