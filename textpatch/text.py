"""Text for people: any text as one printable line, and tables of aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text) -> str:
    """One line of printable text: prompts and OCR may hold newlines, terminal escapes, lone surrogates."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split())
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its columns flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
