"""Rows of prompts in a file of tab- or comma-separated values or of JSON lines, with or without a header.

The name of the file says which it is: .csv, .jsonl or .ndjson, and anything else is tab-separated.
Blank lines and lines that begin with # do not count.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from textpatch.errors import PromptError

COMMENT = "#"
JSON = (".jsonl", ".ndjson")
Rows = list[tuple[str, list[str]]]


def numbered_lines(path: Path, expected: str) -> list[tuple[str, str]]:
    """Place and text of every line that is not blank, where a place is the file and the line's number.

    expected  what the file should be, as an error message says it
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise PromptError(
            f"cannot read prompts from {path}: {error}; expected {expected}"
        ) from None
    return [(f"{path}, line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]


def rows_of(path: Path, columns: Sequence[str], expected: str) -> Rows:
    """Place and fields of every row, the fields in the order of `columns`.

    columns   names that a header or a JSON object gives the fields.  A header may name others, too
    expected  what the file should be, as an error message says it
    Raises PromptError, naming file and line, for a row without exactly these fields.
    """
    lines = numbered_lines(path, expected)
    lines = [(place, line) for place, line in lines if not line.startswith(COMMENT)]
    if path.suffix.lower() in JSON:
        return [(place, _of_json(place, line, columns)) for place, line in lines]
    split = _split_csv if path.suffix.lower() == ".csv" else _split_tsv
    rows = [(place, split(place, line)) for place, line in lines]
    order = list(range(len(columns)))
    if rows and _is_header(rows[0][1], columns):
        names = _lower(rows.pop(0)[1])
        order = [names.index(name) for name in columns]
        return [(place, _taken(place, fields, names, order)) for place, fields in rows]
    for place, fields in rows:
        if len(fields) != len(columns):
            shape = _between(path).join(columns)
            raise PromptError(f"{place}: expected `{shape}`, found {_between(path).join(fields)!r}")
    return rows


def _between(path: Path) -> str:
    """What stands between two fields, as a message shows it."""
    if path.suffix.lower() == ".csv":
        return ","
    return "<TAB>"


def _is_header(fields: Sequence[str], columns: Sequence[str]) -> bool:
    return set(columns) <= set(_lower(fields))


def _lower(fields: Sequence[str]) -> list[str]:
    return [field.strip().lower() for field in fields]


def _taken(place: str, fields: list[str], names: list[str], order: list[int]) -> list[str]:
    """The fields of a row below a header, in the order of the columns."""
    if len(fields) != len(names):
        raise PromptError(
            f"{place}: the header names {len(names)} fields ({', '.join(names)}), "
            f"found {len(fields)}: {fields!r}"
        )
    return [fields[number] for number in order]


def _split_tsv(place: str, line: str) -> list[str]:
    return line.split("\t")


def _split_csv(place: str, line: str) -> list[str]:
    try:
        (fields,) = csv.reader([line], strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise PromptError(
            f"{place}: {line!r} is no line of CSV ({error}); put a field with quotes or commas in quotes, "
            'and double those inside: "a sign that says ""WORD"""'
        ) from None
    return fields


def _of_json(place: str, line: str, columns: Sequence[str]) -> list[str]:
    """The fields of a line of JSON: an object, a list, or a text where there is one column."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: {line[:80]!r} is no JSON ({error})") from None
    if isinstance(row, str):
        row = [row]
    if isinstance(row, dict):
        row = [row.get(name) for name in columns]
    if not isinstance(row, list) or len(row) != len(columns) or not all(map(_is_text, row)):
        names = ", ".join(f'"{name}": "..."' for name in columns)
        raise PromptError(f"{place}: expected {{{names}}}, found {line[:80]}")
    return row


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
