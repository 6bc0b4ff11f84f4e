"""Scores of the background, which is what lies beside the lettering of both pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from textpatch.metrics.image import (
    Box,
    Picture,
    mse,
    pixels_outside,
    psnr,
    same_size,
    ssim,
    windows_outside,
)

# Share of the pixels that lettering may fill.  What little is left beside more says nothing of a picture.
MOST_MASKED = 0.9


class Background(NamedTuple):
    """Distances of two pictures beside their lettering.

    masked  share of the pixels that lie in a box and do not count
    mse, psnr, ssim  as `image` gives them over what counts, None where there is a reason against it.  The
            psnr of backgrounds that are equal is inf
    reason  why there are no scores, "" where there are
    """

    masked: float
    mse: float | None
    psnr: float | None
    ssim: float | None
    reason: str


def background_scores(a: Picture, b: Picture, boxes: Sequence[Box]) -> Background:
    """Distances of two pictures over the pixels, and the windows, that touch no box.

    a, b   pictures of one size, as `image.mse` takes them
    boxes  left, top, right, bottom in pixels of the lettering of both pictures, grown by what a reader marks
           too tightly (`readers.reading.grown`).  Lettering of one of them alone would leave the other's in
           the score

    Raises PatchError as `image.mse` does.
    """
    a, b = same_size(a, b)
    height, width = a.shape[:2]
    masked = masked_share(boxes, height, width)
    reason = why_no_background(boxes, height, width)
    if reason:
        return Background(masked, None, None, None, reason)
    pixels = outside_all(pixels_outside, boxes, height, width)
    windows = outside_all(windows_outside, boxes, height, width)
    return Background(masked, mse(a, b, pixels), psnr(a, b, pixels), ssim(a, b, windows), "")


def masked_share(boxes: Sequence[Box], height: int, width: int) -> float:
    """Share of the pixels that lie in one of the boxes."""
    return float(1 - outside_all(pixels_outside, boxes, height, width).mean())


def why_no_background(boxes: Sequence[Box], height: int, width: int) -> str:
    """Sentence on why the background cannot be scored beside these boxes, "" where it can."""
    masked = masked_share(boxes, height, width)
    if masked > MOST_MASKED:
        return f"lettering fills {masked:.0%} of the picture, and at most {MOST_MASKED:.0%} may be masked"
    if not outside_all(windows_outside, boxes, height, width).any():
        return "lettering leaves no window of 11 x 11 pixels"
    return ""


def outside_all(
    mask: Callable[[Box | None, int, int], np.ndarray],
    boxes: Sequence[Box],
    height: int,
    width: int,
) -> np.ndarray:
    """What counts beside all boxes, bool (H, W).

    mask  `image.pixels_outside` or `image.windows_outside`
    """
    counts = mask(None, height, width)
    for box in boxes:
        counts = counts & mask(box, height, width)
    return counts
