"""Pictures from a disk, opened as if somebody hostile had written them."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from textpatch.errors import PatchError, StoreError

MOST_PIXELS = 2**25  # 100 MB as RGB; no model here draws a thirtieth of it
MODES = ("L", "RGB", "RGBA")  # those of a run folder; no other is converted without a loss
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a PNG file as an RGB picture.

    Raises StoreError for a file that is no PNG, is damaged, or has colours of another mode than MODES, and
    PatchError for a picture of more than MOST_PIXELS.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", _BOMBS[0])
            file = Image.open(path, formats=["PNG"])
        with file:
            require_bounded(file, str(path))
            return as_rgb(file, str(path))
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, *_BOMBS) as error:
        raise StoreError(
            f"cannot read picture {path}: {error}; expected a whole PNG file, make it anew"
        ) from error


def as_rgb(picture: Image.Image, what: str) -> Image.Image:
    """A picture in RGB, without its transparency.

    Raises StoreError for colours of another mode than MODES, and PatchError for what is no picture.
    """
    if not isinstance(picture, Image.Image):
        raise PatchError(
            f"{what} is {type(picture).__name__}; give a PIL picture, or the path of a PNG file"
        )
    if picture.mode not in MODES:
        modes = ", ".join(MODES)
        raise StoreError(
            f"{what} has colours of mode {picture.mode}; expected {modes}; make it anew"
        )
    return picture.convert("RGB")


def opened(image: Image.Image | str, run: Any) -> Image.Image:
    """Picture of a record, which holds the picture or its path in the run's folder."""
    if isinstance(image, Image.Image):
        return image
    return open_picture(run.folder / image)


def require_bounded(image: Image.Image, what: str) -> None:
    """Raise PatchError, before a pixel is decoded, for a picture of more than MOST_PIXELS."""
    if image.width * image.height > MOST_PIXELS:
        raise PatchError(
            f"{what} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are opened, "
            "shrink it"
        )


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
