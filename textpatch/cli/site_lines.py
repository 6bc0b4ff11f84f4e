"""The table of a model's sites, its numbers before the names."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from textpatch.text import aligned

_GAP = "  "
_SHORTEST = 12  # letters of a name at least, however narrow the terminal


def site_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str]
) -> list[str]:
    """Lines of a table, a title and a cell for each column, and the names at their ends.

    Names are whole where the lines go to a file or a pipe.  On a terminal they are cut in the middle so that
    a line fits.
    """
    from textpatch.report.terminal import short_name

    head, *numbers = aligned([titles, *rows])
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - len(head) - len(_GAP), _SHORTEST)
        names = [short_name(name, room) for name in names]
    lines = [f"{line}{_GAP}{name}" for line, name in zip(numbers, names, strict=True)]
    return [f"{head}{_GAP}name", *lines]


def described(site) -> dict:
    """A site as plain data."""
    return {
        "index": site.index,
        "name": site.name,
        "kind": site.kind,
        "heads": site.heads,
        "width": site.heads * site.head_dim,
        "parameters": site.parameters,
    }
