"""Prompt pairs from a file of one's own, and the lines of any file of prompts."""

from __future__ import annotations

import csv
from pathlib import Path

from textpatch.errors import PromptError
from textpatch.quotes import STRAIGHT, Quotation, quotations


def read_pairs(path) -> list[tuple[str, str]]:
    """Prompt pairs in a file of lines `source<TAB>target`, where blank lines do not count.

    A field may stand in quotes as spreadsheets write it, with the quotes inside doubled, such as
    "the word ""WORD"" here".
    Raises PromptError, naming file and line, for each of these.

    - a line that is no pair
    - a field whose quotes can be read in two ways
    - a file without a pair, or one that is no text
    """
    path = Path(path)
    lines = numbered_lines(path, "a text of lines `source<TAB>target`")
    for place, line in lines:
        if line.count("\t") != 1:
            raise PromptError(f"{place}: expected `source<TAB>target`, found {line!r}")
    if not lines:
        raise PromptError(f"{path}: expected lines `source<TAB>target`, found none")
    pairs = []
    for place, line in lines:
        source, target = line.split("\t")
        pairs.append((_prompt(source, place), _prompt(target, place)))
    return pairs


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
