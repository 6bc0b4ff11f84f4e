"""Readings of pictures, and what a reader is.

A reader reads pictures, says how, and tests itself.  Every reader gives lines of text, with the places where
they stand and how sure it is of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from textpatch.errors import OCRError

# Left, top, right, bottom in pixels, where right and bottom are the first outside.
Box = tuple[int, int, int, int]
# Four points (x, y) in pixels around a line, clockwise from above its first letter.
Corners = tuple[tuple[float, float], ...]
Area = Box | Corners


@dataclass(frozen=True)
class Line:
    """A line of text.

    text        what is read
    corners     place of the line, None from a reader that tells none
    confidence  how sure the reader is, 0..1, None from a reader that tells nothing
    """

    text: str
    corners: Corners | None = None
    confidence: float | None = None

    @property
    def box(self) -> Box | None:
        """Smallest upright box around the corners."""
        if self.corners is None:
            return None
        return box_around(self.corners)


@dataclass(frozen=True)
class Reading:
    """What is read in one picture.

    lines        lines in reading order
    unconfirmed  lines, or what is left of them, that only one of two readers read.  They do not count.
                 None from a reader that is one
    """

    lines: tuple[Line, ...] = ()
    unconfirmed: tuple[Line, ...] | None = None

    @property
    def text(self) -> str:
        """Text of all lines, with a blank between two, or "" where nothing is read."""
        return " ".join(line.text for line in self.lines if line.text)

    @property
    def boxes(self) -> list[Box]:
        """Boxes of all places where a reader saw text, whether it counts or not."""
        return [
            line.box for line in (*self.lines, *(self.unconfirmed or ())) if line.box is not None
        ]


@runtime_checkable
class Reader(Protocol):
    """What `localize`, `edit` and the other applications ask of a reader."""

    def read(
        self, images: Sequence[Image.Image], boxes: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """Readings of pictures, one each.

        boxes  for each picture a box, a list of boxes or corners with one line in each, or None for the
               whole picture.  None alone is the whole picture of each
        """
        ...

    def describe(self) -> dict:
        """Plain data that a manifest must hold to repeat a reading, "engine" among it."""
        ...

    def self_test(self) -> None:
        """Raise OCRError where the reader cannot read."""
        ...


def box_around(area: Area) -> Box:
    """Smallest upright box of whole pixels around a box or corners."""
    if not isinstance(area[0], Sequence):
        return tuple(area)
    columns = [point[0] for point in area]
    rows = [point[1] for point in area]
    return int(min(columns)), int(min(rows)), -int(-max(columns) // 1), -int(-max(rows) // 1)


def grown(box: Box) -> Box:
    """A box with a quarter of its height more on each side.

    The rims of letters, and what a model draws around them, lie beside what a reader marks.
    """
    left, top, right, bottom = box
    more = -((top - bottom) // 4)
    return left - more, top - more, right + more, bottom + more


def corners_of(box: Box) -> Corners:
    """Corners of an upright box."""
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)


def areas_of(
    images: Sequence[Image.Image], boxes: Sequence[Any] | None
) -> list[Sequence[Area] | None]:
    """Areas to read in each picture, None for a whole picture.

    Raises OCRError for another number of entries than pictures.
    """
    if boxes is None:
        return [None] * len(images)
    if len(boxes) != len(images):
        raise OCRError(
            f"boxes has {len(boxes)} entries for {len(images)} pictures; give one for each picture: a box, "
            "a list of boxes, or None"
        )
    return [_areas(entry) for entry in boxes]


def _areas(entry: Any) -> list[Area] | None:
    if entry is None:
        return None
    if len(entry) and not isinstance(entry[0], Sequence):
        return [tuple(entry)]
    return list(entry)


def readings_of(found: Any, count: int, reader: Any) -> list[Any]:
    """Readings that a reader gave for so many pictures, with a Reading in the place of every plain text.

    Raises OCRError for another number of readings, and for None.
    """
    if not isinstance(found, Sequence) or len(found) != count or None in found:
        raise OCRError(
            f"{count} pictures were given to {type(reader).__name__}, which read {found!r}; "
            "`read` gives a reading for each, empty for nothing"
        )
    return [as_reading(one) for one in found]


def as_reading(one: Any) -> Any:
    """Reading of a plain text, and anything else as it is."""
    if not isinstance(one, str):
        return one
    if not one:
        return Reading()
    return Reading((Line(one),))
