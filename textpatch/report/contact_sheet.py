"""A contact sheet: what was generated, one line per prompt pair, with what was read."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from textpatch.errors import PatchError
from textpatch.report.heatmap import BLUE, GREY, INK, ORANGE
from textpatch.text import plain

_WIDEST_CELL, _WIDEST_SHEET = 320, 12_000  # px: beyond this no eye or browser gains anything


def draw_contact_sheet(
    rows: Sequence[Sequence[tuple]],
    *,
    captions: Sequence[str],
    words: Sequence[tuple[str, str]] | None = None,
    best: int | None = None,
    scale: float = 3,
) -> Image.Image:
    """Lay pictures out in a grid, one line per prompt pair: source, target, patched at site 0, 1, ...

    A cell of `rows` is (PIL picture, words the OCR read, or None if it was not asked); `captions` head the
    columns. `words` holds (source word, target word) per line: a reading equal to the target's is blue, to
    the source's black, others grey.
    `best` is the column to frame, by position. `scale` enlarges the pictures, but no cell beyond 320 px and
    no sheet beyond 12000 px. Raises PatchError if the lines are no grid.
    """
    _check_grid(rows, captions, words, best)
    factor = _factor(rows, scale)
    pictures = [[_scaled(picture, factor) for picture, _ in row] for row in rows]
    width = max(64, *(picture.width for row in pictures for picture in row))
    height = max(picture.height for row in pictures for picture in row)
    font = ImageFont.load_default(min(max(round(width / 10.5), 11), 28))
    gap, line = 12, round(font.size * 1.5)
    below = line if any(read is not None for row in rows for _, read in row) else 0
    size = gap + (width + gap) * len(captions), gap + line + (height + below + gap) * len(rows)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        x, y = gap + column * (width + gap), gap // 2
        _centred(draw, caption, (x, y, width, line), font, ORANGE if column == best else INK)
        for number, row in enumerate(rows):
            y = gap // 2 + line + number * (height + below + gap)
            picture = pictures[number][column]
            sheet.paste(
                picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2)
            )
            text, colour = _reading(row[column][1], words[number] if words else None)
            _centred(draw, text, (x, y + height, width, line), font, colour)
        if column == best:
            frame = (x - 7, 2, x + width + 6, sheet.height - 4)
            draw.rounded_rectangle(frame, radius=8, outline=ORANGE, width=4)
    return sheet


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


def _factor(rows, scale: float) -> float:
    widest = max(picture.width for row in rows for picture, _ in row)
    tallest = max(picture.height for row in rows for picture, _ in row)
    return min(
        scale,
        _WIDEST_CELL / widest,
        _WIDEST_CELL / tallest,
        _WIDEST_SHEET / (widest * len(rows[0])),
    )


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = [max(1, round(side * factor)) for side in picture.size]
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _reading(read: str | None, words) -> tuple[str, str]:
    """What to print under a picture, and in which colour, case and blanks aside; nothing where nobody read."""
    if read is None:
        return "", GREY
    text = plain(read)
    said, source, target = (
        "".join(word.split()).casefold() for word in (text, *(words or ("", "")))
    )
    colour = GREY if not said else BLUE if said == target else INK if said == source else GREY
    return text or "(nothing)", colour


def _centred(draw, text, box, font, colour) -> None:
    x, y, width, height = box
    text = plain(text)[:200]
    while draw.textlength(text, font) > width and len(text) > 1:
        text = text[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    draw.text((x + width / 2, y + height / 2), text, fill=colour, font=font, anchor="mm")
