"""A contact sheet of what was generated, one line for each prompt pair, with what was read."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from textpatch.errors import PatchError
from textpatch.pictures import as_rgb
from textpatch.report.heatmap import BLUE, GREY, INK, ORANGE
from textpatch.text import plain

# px: nobody sees more in a larger cell, and no browser gains from a wider sheet
_WIDEST_CELL = 320
_WIDEST_SHEET = 12_000
_WIDEST_GALLERY = 1_400  # what a screen shows without scrolling
_GAP = 12
_LONGEST = 200


def draw_contact_sheet(
    rows: Sequence[Sequence[tuple]],
    *,
    captions: Sequence[str],
    words: Sequence[tuple[str, str]] | None = None,
    best: int | None = None,
    note: str = "",
    scale: float = 3,
) -> Image.Image:
    """Lay pictures out in a grid, one line per prompt pair and one column per run.

    rows      lines of cells.  A cell is a PIL picture and what was read in it, None if it was not read
    captions  headings of the columns
    words     the source's and the target's word of each line, written above it.  A reading that
              equals the target's is blue, one that equals the source's black, any other grey
    best      position of the column to frame
    note      a text below all lines
    scale     enlargement of the pictures, of a cell up to 320 px and of a sheet up to 12000 px
    Raises PatchError if the lines are no grid, and for a picture that `pictures.as_rgb` refuses.
    """
    _check_grid(rows, captions, words, best)
    rows = [[(_seen(picture), read) for picture, read in row] for row in rows]
    grid = _grid(rows, captions, scale)
    if words:
        grid = replace(grid, above=grid.line)
    lines = _wrapped(note, grid)
    grid = replace(grid, notes=len(lines))
    sheet = Image.new("RGB", grid.size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        x = grid.left(column)
        colour = INK
        if column == best:
            colour = ORANGE
            _frame(draw, grid, x)
        _centred(draw, caption, (x, _GAP // 2, grid.width, grid.line), grid.font, colour)
    for number, row in enumerate(rows):
        said = None
        if words:
            said = words[number]
            _head(draw, grid, said, number)
        for column, (picture, read) in enumerate(row):
            place = grid.left(column), grid.top(number)
            _paste(sheet, grid, _scaled(picture, grid.factor), place)
            _write(draw, grid, read, said, place)
    for number, line in enumerate(lines):
        y = grid.end + number * grid.line
        draw.text((_GAP, y), line, fill=GREY, font=grid.font)
    return sheet


def draw_gallery_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], *, scale: float = 3
) -> Image.Image:
    """Lay pictures out in lines that wrap, the label of each below it.

    scale  enlargement of the pictures, of a cell up to 320 px
    Raises PatchError for no pictures, and for another number of labels.
    """
    if not pictures or len(pictures) != len(labels):
        raise PatchError(
            f"a sheet needs pictures, and a label for each; got {len(pictures)} and {len(labels)}"
        )
    cells = list(zip(map(_seen, pictures), labels, strict=True))
    one = _grid([cells], labels, scale)
    columns = min(len(cells), max(1, _WIDEST_GALLERY // (one.width + _GAP)))
    lines = -(-len(cells) // columns)
    grid = replace(one, rows=lines, columns=columns)
    sheet = Image.new("RGB", grid.size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, label) in enumerate(cells):
        x = grid.left(number % columns)
        y = grid.top(number // columns)
        _paste(sheet, grid, _scaled(picture, grid.factor), (x, y))
        _centred(draw, label, (x, y + grid.height, grid.width, grid.line), grid.font, INK)
    return sheet


def _seen(picture: Image.Image) -> Image.Image:
    """A picture as readers see it."""
    return as_rgb(picture, "a picture of the sheet")


@dataclass(frozen=True)
class _Grid:
    """Sizes of a sheet in pixels, and its font.

    rows, columns  of cells
    factor         enlargement of the pictures
    width, height  of a picture's place
    line           height of a line of text
    below          height of the readings under the pictures, 0 where nothing was read
    above          height of the words over a line of pictures
    notes          lines of text below all
    """

    rows: int
    columns: int
    factor: float
    width: int
    height: int
    font: ImageFont.ImageFont
    line: int
    below: int
    above: int = 0
    notes: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        return self.left(self.columns), self.end + self.notes * self.line

    @property
    def end(self) -> int:
        """Lower edge of the lines of pictures."""
        return self.top(self.rows) - self.above + _GAP - _GAP // 2

    def left(self, column: int) -> int:
        return _GAP + column * (self.width + _GAP)

    def top(self, number: int) -> int:
        """Upper edge of a line of pictures."""
        line = self.above + self.height + self.below + _GAP
        return _GAP // 2 + self.line + self.above + number * line


def _grid(rows: Sequence[Sequence[tuple]], captions: Sequence[str], scale: float) -> _Grid:
    factor = _factor(rows, scale)
    sizes = [_scaled_size(picture, factor) for row in rows for picture, _ in row]
    width = max(64, *(width for width, _ in sizes))
    font = ImageFont.load_default(min(max(round(width / 10.5), 11), 28))
    line = round(font.size * 1.5)
    below = 0
    if any(read is not None for row in rows for _, read in row):
        below = line
    return _Grid(
        rows=len(rows),
        columns=len(captions),
        factor=factor,
        width=width,
        height=max(height for _, height in sizes),
        font=font,
        line=line,
        below=below,
    )


def _check_grid(rows, captions, words, best) -> None:
    if not rows or not captions or any(len(row) != len(captions) for row in rows):
        raise PatchError(
            f"each line of a contact sheet needs one cell per caption ({len(captions)}); "
            f"got lines of {sorted({len(row) for row in rows})}"
        )
    if words is not None and len(words) != len(rows):
        raise PatchError(
            f"`words` needs one (source, target) per line ({len(rows)}); got {len(words)}"
        )
    if best is not None and not 0 <= best < len(captions):
        raise PatchError(f"`best` is a column from 0 to {len(captions) - 1}; got {best}")


def _factor(rows: Sequence[Sequence[tuple]], scale: float) -> float:
    """Enlargement of the pictures, `scale` where cells and sheet do not become too wide."""
    widest = max(picture.width for row in rows for picture, _ in row)
    tallest = max(picture.height for row in rows for picture, _ in row)
    return min(
        scale,
        _WIDEST_CELL / widest,
        _WIDEST_CELL / tallest,
        _WIDEST_SHEET / (widest * len(rows[0])),
    )


def _scaled_size(picture: Image.Image, factor: float) -> tuple[int, int]:
    width, height = picture.size
    return max(1, round(width * factor)), max(1, round(height * factor))


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = _scaled_size(picture, factor)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _paste(sheet: Image.Image, grid: _Grid, picture: Image.Image, place: tuple[int, int]) -> None:
    """Paste a picture into the middle of its place."""
    x, y = place
    inset_x = (grid.width - picture.width) // 2
    inset_y = (grid.height - picture.height) // 2
    sheet.paste(picture, (x + inset_x, y + inset_y))


def _write(
    draw: ImageDraw.ImageDraw, grid: _Grid, read: str | None, words, place: tuple[int, int]
) -> None:
    """Write what was read under a picture."""
    x, y = place
    text, colour = _reading(read, words)
    _centred(draw, text, (x, y + grid.height, grid.width, grid.line), grid.font, colour)


def _head(draw: ImageDraw.ImageDraw, grid: _Grid, words: tuple[str, str], number: int) -> None:
    """Write the words of a line above its pictures."""
    text = " to ".join(plain(word)[:_LONGEST] for word in words)  # Pillow's own font has no arrow
    draw.text((_GAP, grid.top(number) - grid.above), text, fill=GREY, font=grid.font)


def _wrapped(text: str, grid: _Grid) -> list[str]:
    """A text in lines that are no wider than the sheet."""
    letters = max(20, int((grid.left(grid.columns) - 2 * _GAP) / grid.font.getlength("n")))
    return textwrap.wrap(plain(text), letters)


def _frame(draw: ImageDraw.ImageDraw, grid: _Grid, x: int) -> None:
    """Draw a frame around the column that begins at x."""
    edges = (x - 7, 2, x + grid.width + 6, grid.end - 4)
    draw.rounded_rectangle(edges, radius=8, outline=ORANGE, width=4)


def _reading(read: str | None, words: tuple[str, str] | None) -> tuple[str, str]:
    """Text and colour for what was read, where case and blanks do not matter for the colour."""
    if read is None:
        return "", GREY
    text = plain(read)
    if not text:
        return "(nothing)", GREY
    source, target = words or ("", "")
    if _bare(text) == _bare(target):
        return text, BLUE
    if _bare(text) == _bare(source):
        return text, INK
    return text, GREY


def _bare(text: str) -> str:
    """A text without blanks and case."""
    return "".join(text.split()).casefold()


def _centred(draw, text, box, font, colour) -> None:
    """Write one line in the middle of a box (x, y, width, height), cut with an ellipsis to fit."""
    x, y, width, height = box
    text = plain(text)[:_LONGEST]
    while draw.textlength(text, font) > width and len(text) > 1:
        text = text[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    draw.text((x + width / 2, y + height / 2), text, fill=colour, font=font, anchor="mm")
