"""Text for people, as one printable line or as a table of aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: object) -> str:
    """Any text as one printable line.

    Prompts and OCR may hold newlines, terminal escapes and lone surrogates: blanks are joined, and any other
    character that cannot be printed becomes the replacement character.
    """
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its columns flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_flush_right(row, widths)) for row in rows]


def _flush_right(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]


def number_of(count: int, one: str, several: str = "") -> str:
    """A count and its noun, `1 seed` or `2 seeds`.

    several  the noun of several where it is not that of one with an s
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def duration(seconds: float) -> str:
    """A span of time in its largest unit, rounded: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
