"""The ranked table of a localisation as plain text, as wide as a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from textpatch.report.result import decimal, ranked_sites, runs_of, span_of, value_of
from textpatch.text import plain

_TITLES = ("rank", "site", "exact", "F1 target", "F1 source", "bg SSIM", "n")
# Columns that a narrow terminal does without, the first of them first.
_LEFT_OUT = ("F1 source", "bg SSIM", "n", "exact")
# Letters of a name at least, before a column is left out.
_NAME = 9
_GAP = "  "
# What stands in place of the rank of a site that was not ranked by all pairs.
_STATES = {"screened out": "out", "joined": "set"}


def table(result: dict, width: int | None = None) -> str:
    """The ranked plain-text table, baselines and then the sites, best first.

    width  columns that the table may take.  None takes the terminal's, or 80 where there is none
    In a narrow table names are cut first.  Then scores are left out, but not F1 towards the target.
    """
    width = width or shutil.get_terminal_size().columns
    columns = _columns(result)
    for title in _LEFT_OUT:
        if _room(columns, width) < _NAME:
            del columns[title]
    names = _names(result, max(_room(columns, width), _NAME))
    padded = [_padded(title, cells) for title, cells in columns.items()]
    padded.append(["name", "-" * max(map(len, names)), *names])
    return "\n".join(_GAP.join(line).rstrip() for line in zip(*padded, strict=True))


def _columns(result: dict) -> dict[str, list[str]]:
    """Cells of all columns but the names, by title."""
    rows = [("", "", *_cells(scores)) for _, _, scores in runs_of(result)]
    for rank, site in enumerate(ranked_sites(result), 1):
        rows.append((_place(site, rank), str(site["site"]), *_cells(site)))
    cells = zip(*rows, strict=True)
    return {title: list(column) for title, column in zip(_TITLES, cells, strict=True)}


def _cells(scores: dict) -> tuple[str, ...]:
    """The numbers of a run or a site."""
    return (
        decimal(value_of(scores, "exact_target")),
        span_of(scores, "f1_target"),
        decimal(value_of(scores, "f1_source")),
        decimal(value_of(scores, "ssim")),
        str(scores.get("n", "-")),
    )


def _place(site: dict, rank: int) -> str:
    """Rank of a site that was seen on all pairs, and else the word for what became of it."""
    return _STATES.get(site.get("status", {}).get("state"), str(rank))


def _room(columns: dict[str, list[str]], width: int) -> int:
    """Letters that the other columns leave for the names."""
    return width - sum(_width(title, cells) + len(_GAP) for title, cells in columns.items())


def _width(title: str, cells: Sequence[str]) -> int:
    return max(map(len, [title, *cells]))


def _padded(title: str, cells: Sequence[str]) -> list[str]:
    """A column with its title and a rule, flush right."""
    width = _width(title, cells)
    return [cell.rjust(width) for cell in (title, "-" * width, *cells)]


def _names(result: dict, width: int) -> list[str]:
    """Names of the runs and the sites, none longer than `width`."""
    names = []
    for run, label, _ in runs_of(result):
        if len(label) > width:
            label = run
        names.append(label)
    return names + [short_name(site["name"], width) for site in ranked_sites(result)]


def short_name(name: str, width: int) -> str:
    """A module path in so many letters, its last part whole.

    The parts before the last are cut evenly, so that the numbers stay, which tell sites apart.  Where that is
    not enough, the middle is left out.
    """
    *parts, last = plain(name).split(".")
    for letters in range(width, 0, -1):
        short = ".".join([*(part[:letters] for part in parts), last])
        if len(short) <= width:
            return short
    begin = max(width - len(last) - len(".."), 0)
    return f"{short[:begin]}..{last}"[:width]
