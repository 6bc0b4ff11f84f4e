"""Tables of a run as CSV, in which a spreadsheet finds no formula."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence


def csv_of(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV.

    The columns are all keys in the order of their first appearance.
    None and an absent key are an empty cell.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if columns:
        writer.writerow([_cell(column) for column in columns])
        for row in rows:
            writer.writerow([_cell(row.get(column)) for column in columns])
    return text.getvalue()


def _cell(value):
    """Return a value as a cell of CSV, in whose text a spreadsheet finds no formula."""
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value)
    if not isinstance(value, str):
        return value
    # some readers end a line at \r, and the writer does not quote it
    text = value.replace("\r", "\n")
    if text.startswith(tuple("=+-@\t\n")):
        return "'" + text  # or a spreadsheet would run =cmd(...)
    return text
