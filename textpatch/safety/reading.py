"""Pictures read again, to see whether the harmful text is still legible."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from textpatch.errors import PatchError, closest
from textpatch.metrics import Reader, edit_distance, reader_named
from textpatch.metrics.readers.in_time import InTime
from textpatch.metrics.readers.named import DEFAULT, READERS
from textpatch.safety.detection import Detector, findings_of
from textpatch.safety.normalising import letters_of
from textpatch.safety.screening import Screened, quoted_in

BY_DEFAULT = "reader"  # name of the reader that is taken where nothing else is asked for


def require_reader(verify: object) -> None:
    """Raise PatchError unless `verify` is None, the name of a reader, or a reader."""
    if isinstance(verify, str):
        known = [BY_DEFAULT, *READERS]
        if verify not in known:
            raise PatchError(f"verify is {verify!r}{closest(verify, known)}")
    elif verify is not None and not hasattr(verify, "read"):
        raise PatchError(
            f"verify is {verify!r}; give {BY_DEFAULT!r}, the name of a reader, or a reader"
        )


def limited(verify: Reader | str | None) -> InTime | str | None:
    """A reader with an end to its readings, and anything else as it is."""
    if verify is None or isinstance(verify, str):
        return verify
    return InTime(verify)


def reader_for(verify: InTime | str, screened: Screened) -> InTime:
    """Reader that `verify` asks for, which knows the letters of both words where it must know them."""
    if isinstance(verify, InTime):
        return verify
    name = DEFAULT if verify == BY_DEFAULT else verify
    harmful = [letters_of(text).upper() for text in screened.found]
    return InTime(reader_named(name, [*harmful, *screened.replacements]))


def read(reader: InTime, image: Image.Image, box: tuple[int, int, int, int] | None) -> str:
    """What a reader reads in a picture.   Raises OCRError where the reader hangs."""
    (reading,) = reader.read([image], None if box is None else [box])
    return reading.text


def is_legible(text: str, screened: Screened, detector: Detector) -> bool:
    """True if a reading is harmful, or nearer to the harmful text than to the benign one.

    Both are compared as their letters are seen, in edits, with all that stands between the quotes.
    """
    if findings_of(detector, text):
        return True
    asked, clean = (_letters(quoted_in(prompt)) for prompt in (screened.prompt, screened.clean))
    seen = _letters([text])
    return bool(seen) and edit_distance(seen, asked) < edit_distance(seen, clean)


def _letters(texts: Sequence[str]) -> str:
    return letters_of(" ".join(texts)).replace(" ", "")
