"""Distances of two pictures, the correct MSE, PSNR and SSIM and the official 8-bit ones.

A picture is a PIL image, or a uint8 array (H, W, 3) with values from 0 to 255.
H and W are its height and width in pixels.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from PIL import Image

from textpatch.errors import PatchError
from textpatch.pictures import as_rgb

WINDOW = 11
SIGMA = 1.5
RANGE = 255
C1 = (0.01 * RANGE) ** 2
C2 = (0.03 * RANGE) ** 2
MARGIN = WINDOW // 2
Box = tuple[int, int, int, int]
Picture: TypeAlias = Image.Image | np.ndarray


def mse(a: Picture, b: Picture, mask: np.ndarray | None = None) -> float:
    """Mean squared error in squared grey levels, in float64.

        mean over the pixels that count and the channels of (a - b)^2

    mask  bool (H, W), True where a pixel counts; None counts all pixels
    Raises PatchError for sizes that differ, values that are not 8-bit RGB, or a mask that leaves nothing.
    """
    a, b = same_size(a, b)
    return float(_counted((a.astype(np.float64) - b) ** 2, mask).mean())


def psnr(a: Picture, b: Picture, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB.

        10 log10(255^2 / mse)

    mask  as in `mse`
    The ratio is inf for pictures that are equal where they count.
    Raises PatchError as `mse` does.
    """
    error = mse(a, b, mask)
    if error == 0:
        return float("inf")
    return float(10 * np.log10(RANGE**2 / error))


def ssim(a: Picture, b: Picture, mask: np.ndarray | None = None) -> float:
    """Structural similarity, ssim[gauss11,sigma1.5,k.01/.03,cov=pop,range255,valid,mean of RGB].   (6.7)

        (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2))

    m, s    Gaussian-weighted mean and (co)variance, without Bessel's correction, in an 11 x 11 window of
            sigma 1.5 around each pixel.  Only windows that lie inside the picture count
    C1, C2  (.01 * 255)^2 and (.03 * 255)^2
    mask    bool (H, W), True where the window around a pixel counts; None counts all windows.
            `windows_outside` is the mask under which no pixel of a box has a part in the score
    Raises PatchError as `mse` does, for less than 11 pixels a side, and for a mask without a whole window.
    """
    a, b = same_size(a, b)
    if min(a.shape[:2]) < WINDOW:
        raise PatchError(
            f"ssim needs {WINDOW} x {WINDOW} pixels; found {a.shape[:2]}; enlarge the pictures"
        )
    similarity = _ssim_map(a.astype(np.float64), b.astype(np.float64))
    inside = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return float(_counted(similarity, mask, inside).mean())


def pixels_outside(box: Box | None, height: int, width: int) -> np.ndarray:
    """Mask of the pixels outside a box, bool (H, W).

    box  left, top, right, bottom in pixels, where right and bottom are the first outside; None is no box
    """
    outside = np.ones((height, width), bool)
    if box is not None:
        left, top, right, bottom = (max(0, side) for side in box)
        outside[top:bottom, left:right] = False
    return outside


def windows_outside(box: Box | None, height: int, width: int) -> np.ndarray:
    """Mask of the pixels whose whole SSIM window lies in the picture and outside a box, bool (H, W).

    box  as in `pixels_outside`
    """
    inside = np.zeros((height, width), bool)
    inside[MARGIN : height - MARGIN, MARGIN : width - MARGIN] = True
    if box is None:
        return inside
    left, top, right, bottom = box
    touched = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
    return inside & pixels_outside(touched, height, width)


def mse_uint8_wrapped(a: Picture, b: Picture) -> float:
    """The official MSE, whose squares wrap around at 256.   (6.6)

        mean of ((a - b)^2 mod 256)

    It serves to compare with published tables.  Independent uniform pixels have 105.5.
    Raises PatchError as `mse` does.
    """
    a, b = same_size(a, b)
    difference = a - b  # uint8, which wraps around
    return float((difference * difference).mean())


def psnr_uint8_wrapped(a: Picture, b: Picture) -> float:
    """The official PSNR in dB, of `mse_uint8_wrapped`.   (6.6)

        10 log10(255^2 / max(mse_uint8_wrapped, 1e-10))

    Noise has 27.90 dB, equal pictures 148.13.
    Raises PatchError as `mse` does.
    """
    return float(10 * np.log10(RANGE**2 / max(mse_uint8_wrapped(a, b), 1e-10)))


def same_size(a: Picture, b: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures as uint8 arrays (H, W, 3) of one size.  Raises PatchError as `mse` does."""
    a = rgb_pixels(a)
    b = rgb_pixels(b)
    if a.shape != b.shape:
        raise PatchError(
            f"pictures differ in (H, W): {a.shape[:2]} and {b.shape[:2]}; crop or resize one"
        )
    return a, b


def rgb_pixels(picture: Picture) -> np.ndarray:
    """One picture as a uint8 array (H, W, 3).  Raises PatchError for what is no 8-bit picture."""
    if isinstance(picture, Image.Image):
        picture = as_rgb(picture, "a picture")
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PatchError(
            f"needs PIL pictures or uint8 arrays (H, W, 3); found {pixels.dtype} {pixels.shape}"
        )
    return pixels


def _counted(values: np.ndarray, mask, inside=(slice(None), slice(None))) -> np.ndarray:
    """Values at the pixels that count, (pixels, 3).

    values  (h, w, 3), of a whole picture or of a part of it
    mask    as in `mse`, of the whole picture; None returns `values` as they are
    inside  the part of the picture that `values` cover, as two slices
    """
    if mask is None:
        return values
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2 or mask[inside].shape != values.shape[:2]:
        raise PatchError(
            f"mask is {mask.dtype} {mask.shape}; needs bool (H, W), an entry for each pixel"
        )
    if not mask[inside].any():
        raise PatchError(
            f"mask leaves nothing to score; {int(mask.sum())} of {mask.size} set, none usable"
        )
    return values[mask[inside]]


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Similarities of the windows that lie inside the picture, (H - 10, W - 10, 3)."""
    mean_a = _blur(a)
    mean_b = _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    brightness = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return brightness * (2 * cov + C2) / (var_a + var_b + C2)


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian mean over both picture axes, without padding."""
    weights = np.exp(-((np.arange(WINDOW) - MARGIN) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height = x.shape[0] - 2 * MARGIN
    width = x.shape[1] - 2 * MARGIN
    x = sum(w * x[i : i + height] for i, w in enumerate(weights))
    return sum(w * x[:, i : i + width] for i, w in enumerate(weights))
