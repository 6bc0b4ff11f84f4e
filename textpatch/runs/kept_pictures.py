"""Pictures of a run folder, each named by a hash of its pixels and held to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from textpatch.errors import PatchError, StoreError
from textpatch.pictures import as_rgb, stored_picture
from textpatch.runs.requests import flatten

_NAME = re.compile(r"images/[0-9a-f]{16}\.png")


def name_of(picture: Image.Image) -> str:
    """Path of a picture in a run folder.  Pictures of equal mode, size and pixels have one path."""
    told = f"{picture.mode} {picture.size} ".encode()
    return f"images/{hashlib.sha256(told + picture.tobytes()).hexdigest()[:16]}.png"


def kept_picture(folder: Path, name: str) -> Image.Image:
    """Read a picture of a run folder as RGB.

    Raises StoreError for a name that is none of `name_of`, and for a file that is gone, damaged or holds
    another picture than its name says.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StoreError(
            f"a record of {folder} names the picture {name!r}; a run's own are images/<hash>.png"
        )
    picture = stored_picture(folder / name)
    if name_of(picture) != name:
        raise StoreError(
            f"{folder / name} holds another picture than its name says; the same command makes it anew"
        )
    return as_rgb(picture, str(folder / name))


def holds_pictures(folder: Path, record: dict) -> bool:
    """True if a run folder holds every picture that a record names."""
    try:
        for name in _pictures_of(record):
            kept_picture(folder, name)
    except PatchError:
        return False
    return True


def _pictures_of(record: dict) -> Iterator[str]:
    """Paths under `pictures`: those called image, as of an entry, and those that are a picture's path."""
    for place, value in flatten(record.get("pictures") or {}).items():
        called = place.rpartition(".")[2] == "image"
        if called or (isinstance(value, str) and _NAME.fullmatch(value)):
            yield value
