"""Readings of pictures, and what a reader is.

A reader reads pictures, says how, and tests itself.  Every reader gives lines of text, with the places where
they stand and how sure it is of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

from PIL import Image

from textpatch.errors import OCRError

# Left, top, right, bottom in pixels, where right and bottom are the first outside.
Box = tuple[int, int, int, int]
# Four points (x, y) in pixels around a line, clockwise from above its first letter.
Corners = tuple[tuple[float, float], ...]
Area: TypeAlias = Box | Corners
# for each picture a box, the box or corners of each line, or None for the whole picture
Boxes: TypeAlias = Sequence[Area | Sequence[Area] | None]


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
    unconfirmed  lines, or what is left of them, that only one of two readers read, or was not sure of.  They
                 do not count.  None from a reader that is one
    """

    lines: tuple[Line, ...] = ()
    unconfirmed: tuple[Line, ...] | None = None

    @property
    def text(self) -> str:
        """Text of all lines, with a blank between two, or "" where nothing is read."""
        return " ".join(line.text for line in self.lines if line.text)

    @property
    def placed(self) -> list[Line]:
        """Lines whose place a reader told, whether they count or not."""
        return [
            line for line in (*self.lines, *(self.unconfirmed or ())) if line.corners is not None
        ]

    @property
    def boxes(self) -> list[Box]:
        """Boxes of all places where a reader saw text, whether it counts or not."""
        return [box_around(line.corners) for line in self.placed]


# what a reader gives of a picture: a reading, its text alone, or words for each of several attributes
Read: TypeAlias = Reading | str | Mapping[str, str]


@runtime_checkable
class Reader(Protocol):
    """What `localize`, `edit` and the other applications ask of a reader."""

    def read(self, images: Sequence[Image.Image], boxes: Boxes | None = None) -> Sequence[Read]:
        """Readings of pictures, one each.

        boxes  for each picture a box, a list of boxes or corners with one line in each, or None for the
               whole picture.  None alone is the whole picture of each
        """
        ...

    def describe(self) -> Mapping[str, object]:
        """Plain data that a manifest must hold to repeat a reading, "engine" among it."""
        ...

    def self_test(self) -> None:
        """Raise OCRError where the reader cannot read."""
        ...


def knows(reader: Reader, letter: str) -> bool:
    """True unless a reader says that it never answers with a character.

    A reader says so by a method `knows(letter)`, or by an alphabet in what it describes.
    """
    if hasattr(reader, "knows"):
        return reader.knows(letter)
    alphabet = reader.describe().get("alphabet")
    return alphabet is None or letter in alphabet


def box_around(area: Area) -> Box:
    """Smallest upright box of whole pixels around a box or corners."""
    if not is_turned(area):
        return area
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


def grown_around(area: Area) -> Corners:
    """Corners of an area with a quarter of its shorter side more on each side, turned as it is."""
    first, second, third, fourth = corners_of(area)
    more = min(math.dist(first, second), math.dist(first, fourth)) / 4
    along = more / (math.dist(first, second) or 1)
    across = more / (math.dist(first, fourth) or 1)
    right = [along * (b - a) for a, b in zip(first, second, strict=True)]
    down = [across * (b - a) for a, b in zip(first, fourth, strict=True)]
    return (
        (first[0] - right[0] - down[0], first[1] - right[1] - down[1]),
        (second[0] + right[0] - down[0], second[1] + right[1] - down[1]),
        (third[0] + right[0] + down[0], third[1] + right[1] + down[1]),
        (fourth[0] - right[0] + down[0], fourth[1] - right[1] + down[1]),
    )


def corners_of(area: Area) -> Corners:
    """Corners of an upright box, and corners as they are."""
    if is_turned(area):
        return area
    left, top, right, bottom = area
    return (left, top), (right, top), (right, bottom), (left, bottom)


def is_turned(area: Area) -> bool:
    """True for corners, False for an upright box."""
    return isinstance(area[0], tuple)


def line_boxes(text_box: Any) -> tuple[Box, ...]:
    """Boxes of the lines of text of a pipeline's pictures.

    text_box  that of the pipeline's defaults, one box, a box for each line, or None where nobody knows them
    Raises OCRError for anything else.
    """
    return tuple(_areas(text_box) or ())


def texts_in(reading: Reading, boxes: Sequence[Box]) -> list[str]:
    """Text that was read in each box, [] where nobody can tell.

    A line belongs to the box that holds its middle.  Lines without a place belong to the boxes in their order
    if there are as many.
    """
    lines = reading.lines
    if any(line.box is None for line in lines):
        return [line.text for line in lines] if len(lines) == len(boxes) else []
    return [
        " ".join(line.text for line in lines if line.text and _holds(box, line.box))
        for box in boxes
    ]


def _holds(box: Box, line: Box) -> bool:
    """True where the middle of a line lies in a box."""
    left, top, right, bottom = box
    across = left <= (line[0] + line[2]) / 2 <= right
    return across and top <= (line[1] + line[3]) / 2 <= bottom


def areas_of(images: Sequence[Image.Image], boxes: Boxes | None) -> list[list[Area] | None]:
    """Areas to read in each picture, None for a whole picture.

    Raises OCRError for another number of entries than pictures, and for what is neither box nor corners.
    """
    if boxes is None:
        return [None] * len(images)
    if len(boxes) != len(images):
        raise OCRError(
            f"boxes has {len(boxes)} entries for {len(images)} pictures; give one for each picture: a box, "
            "a list of boxes, or None"
        )
    return [_areas(entry) for entry in boxes]


def places_of(images: Sequence[Image.Image], boxes: Boxes | None) -> list[tuple[int, Area | None]]:
    """Every line to read, as the place of its picture and the area in it, None for the whole picture.

    Raises OCRError as `areas_of` does.
    """
    places: list[tuple[int, Area | None]] = []
    for i, areas in enumerate(areas_of(images, boxes)):
        if areas is None:
            places.append((i, None))
        else:
            places += [(i, area) for area in areas]
    return places


def gathered(
    count: int, places: Sequence[tuple[int, Area | None]], found: Sequence[Sequence[Line]]
) -> list[Reading]:
    """Readings of so many pictures, with the lines that were found in each of the places."""
    lines: list[list[Line]] = [[] for _ in range(count)]
    for (i, _), some in zip(places, found, strict=True):
        lines[i] += some
    return [Reading(tuple(some)) for some in lines]


def _areas(entry: Any) -> list[Area] | None:
    if entry is None:
        return None
    area = _area(entry)
    if area is not None:
        return [area]
    areas = [None]
    if isinstance(entry, Iterable):
        areas = [_area(one) for one in entry]
    if None in areas:
        raise OCRError(
            f"boxes has the entry {entry!r}; a box is left, top, right, bottom, and corners are four points "
            "(x, y): give one of these, or a list of them"
        )
    return areas


def _area(one: Any) -> Area | None:
    """A box or corners as tuples, None for anything else."""
    if not hasattr(one, "__len__") or len(one) != 4:
        return None
    if all(isinstance(side, Real) for side in one):
        return tuple(one)
    if all(hasattr(point, "__len__") and len(point) == 2 for point in one):
        return tuple((float(x), float(y)) for x, y in one)
    return None


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
    """Reading of a plain text, line by line, and anything else as it is."""
    if not isinstance(one, str):
        return one
    return Reading(tuple(Line(line) for line in one.splitlines()))
