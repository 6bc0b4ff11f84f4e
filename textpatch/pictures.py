"""Pictures that somebody else wrote or gave, opened and made RGB as if they were hostile."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

from textpatch.errors import PatchError, StoreError

MOST_PIXELS = 2**25  # 100 MB as RGB; no model here draws a thirtieth of it
MODES = ("L", "RGB", "RGBA")  # those of a run folder; no other is converted without a loss
FORMATS = ("PNG", "JPEG", "WEBP")  # of pictures that somebody gives
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_BROKEN = (OSError, ValueError, SyntaxError, struct.error, zlib.error, *_BOMBS)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a PNG file as an RGB picture, as `as_rgb` sees it.  Raises as `stored_picture` does."""
    return as_rgb(stored_picture(path), str(path))


def stored_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a PNG file as a picture of one of MODES.

    Raises StoreError for a file that is no PNG, is damaged, or has colours of another mode than MODES, and
    PatchError for a picture of more than MOST_PIXELS.
    """
    path = Path(path)
    try:
        with _file(path, ("PNG",)) as file:
            if file.mode not in MODES:
                modes = ", ".join(MODES)
                raise StoreError(
                    f"{path} has colours of mode {file.mode}; expected {modes}; make it anew"
                )
            file.load()
            return file
    except _BROKEN as error:
        raise StoreError(
            f"cannot read picture {path}: {error}; expected a whole PNG file, make it anew"
        ) from error


def open_given(path: str | os.PathLike[str]) -> Image.Image:
    """Read a PNG, JPEG or WebP file that somebody gives, as `as_rgb` has it.  Of several frames the first.

    Raises PatchError for a file of another format, for one that is damaged, and as `as_rgb` does.
    """
    path = Path(path)
    try:
        with _file(path, FORMATS) as file:
            return as_rgb(file, str(path))
    except _BROKEN as error:
        raise PatchError(
            f"cannot read picture {path}: {error}; give a whole PNG, JPEG or WebP file"
        ) from error


def _file(path: Path, formats: tuple[str, ...]) -> Image.Image:
    """Picture of a file of these formats, of which nothing is decoded yet.

    Raises PatchError for more than MOST_PIXELS, and one of _BROKEN for a file that is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", _BOMBS[0])
        file = Image.open(path, formats=formats)
    try:
        require_bounded(file, str(path))
    except PatchError:
        file.close()
        raise
    return file


def as_rgb(image: Any, what: str) -> Image.Image:
    """A picture as RGB of 8 bits, as it would be shown on white paper, the picture itself if it is that.

    It is turned as its EXIF says, and transparent parts are white.
    what  the name of the picture for the message
    Raises PatchError for what is no PIL picture, has no pixel or more than MOST_PIXELS, has 16 bits or floats
    in a channel, whose range nobody has told, and for a file that is not whole.
    """
    _require_8_bits(image, what)
    require_bounded(image, what)
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except _BROKEN as error:
        raise PatchError(f"{what} cannot be read: {error}; give a whole one") from None
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    if image.mode == "RGB":
        return image
    return image.convert("RGB")


def opened(image: Image.Image | str, run: Any) -> Image.Image:
    """Picture of a record, which holds the picture or its path in the run's folder."""
    if isinstance(image, Image.Image):
        return image
    return run.picture(image)


def require_bounded(image: Image.Image, what: str) -> None:
    """Raise PatchError, before a pixel is decoded, for a picture of more than MOST_PIXELS."""
    if image.width * image.height > MOST_PIXELS:
        raise PatchError(
            f"{what} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are opened, "
            "shrink it"
        )


def _require_8_bits(image: Any, what: str) -> None:
    """Raise PatchError for anything but a PIL picture with 8 bits a channel and a pixel at least."""
    if not isinstance(image, Image.Image):
        found = type(image).__name__
    elif image.mode[0] in "IF":
        found = f"mode {image.mode}"
    elif not image.width or not image.height:
        found = f"no pixels, {image.width} x {image.height}"
    else:
        return
    raise PatchError(f"{what} cannot be read: {found}; give a PIL image with 8 bits a channel")


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
