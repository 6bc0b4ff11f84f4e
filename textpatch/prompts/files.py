"""Prompts and prompt pairs from a file of one's own."""

from __future__ import annotations

import csv
from pathlib import Path

from textpatch.errors import PromptError
from textpatch.prompts.tables import JSON, rows_of
from textpatch.quotes import STRAIGHT, Quotation, quotations

LINES_OF_PAIRS = "a text of lines `source<TAB>target`"
LINES_OF_PROMPTS = "prompts, one a line"


def read_pairs(path) -> list[tuple[str, str]]:
    """Prompt pairs in a file of lines `source<TAB>target`, of CSV, or of JSON with "source" and "target".

    A header may name the fields, see `tables.rows_of`.  In a line of tabs a field may stand in quotes as
    spreadsheets write it, with the quotes inside doubled, such as "the word ""WORD"" here".
    Raises PromptError, naming file and line, for each of these.

    - a line that is no pair
    - a field whose quotes can be read in two ways
    - a file without a pair, or one that is no text
    """
    path = Path(path)
    rows = rows_of(path, ("source", "target"), LINES_OF_PAIRS)
    if not rows:
        raise PromptError(f"{path}: expected lines `source<TAB>target`, found none")
    if not _has_tabs(path):
        return [(source, target) for _, (source, target) in rows]
    return [(_prompt(source, place), _prompt(target, place)) for place, (source, target) in rows]


def read_prompts(path) -> list[str]:
    """Prompts in a file, one a line, of CSV with a column "prompt", or of JSON with "prompt".

    Raises PromptError for a file without a prompt, and as `read_pairs` does.
    """
    path = Path(path)
    rows = rows_of(path, ("prompt",), LINES_OF_PROMPTS)
    if not rows:
        raise PromptError(f"{path} has no prompts; write one a line")
    return [prompt for _, (prompt,) in rows]


def _has_tabs(path: Path) -> bool:
    """True for a file of tab-separated fields, by its name."""
    return path.suffix.lower() not in (".csv", *JSON)


def _prompt(field: str, place: str) -> str:
    """The prompt in a field, without the quotes around the field as a whole if there are such."""
    try:
        ((prompt,),) = csv.reader([field.strip()], delimiter="\t", strict=True)
    except csv.Error:  # the quotes are not around the whole field, such as in "OPEN" on a red sign
        _require_inner_quotes(field, place)
        return field
    if STRAIGHT in field and not _quotations(prompt, place):
        raise PromptError(
            f"{place}: the only quotes of {field!r} are those around the field, so no word is quoted; "
            'quote the word too, and double its quotes: "the word ""WORD"" here"'
        )
    if field.strip().startswith(STRAIGHT):
        return prompt
    return field


def _require_inner_quotes(field: str, place: str) -> None:
    r"""Raise PromptError if a field may be quoted as a whole around quotes that are not doubled.

    "a sign "WORD" here" is such a field, and so is "a sign \"WORD\" here".
    """
    field = field.strip()
    texts = [quotation.text for quotation in _quotations(field, place)]
    whole = len(texts) == 1 or any(text != text.strip() for text in texts)
    if field.startswith(STRAIGHT) and field.endswith(STRAIGHT) and whole:
        raise PromptError(
            f"{place}: the quotes of {field!r} may be those around the field or those around words; "
            'leave out the outer ones, or double the inner ones: "the word ""WORD"" here"'
        )


def _quotations(text: str, place: str) -> list[Quotation]:
    try:
        return quotations(text)
    except PromptError as error:
        raise PromptError(f"{place}: {error}") from None
