"""Prompt pairs of one's own that differ in something with names, such as two instruments."""

from __future__ import annotations

import os
from pathlib import Path

from textpatch.errors import PromptError
from textpatch.prompts.pairs import LabelledPair
from textpatch.prompts.tables import numbered_lines

LINE = "source<TAB>target<TAB>name in the source<TAB>name in the target"


def read_labelled_pairs(path: str | os.PathLike[str], what: str) -> list[LabelledPair]:
    """Pairs in a file of lines of four fields, LINE, where blank lines do not count.

    what  what the names are of, as reports call it
    Raises PromptError, naming file and line, for a line of other fields, for an empty one, and for a file
    without a pair.
    """
    path = Path(path)
    lines = numbered_lines(path, f"a text of lines `{LINE}`")
    pairs = []
    for place, line in lines:
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 4 or not all(fields):
            raise PromptError(f"{place}: expected `{LINE}`, found {line!r}")
        source, target, *names = fields
        pairs.append(LabelledPair(source, target, (names[0], names[1]), what))
    if not pairs:
        raise PromptError(f"{path}: expected lines `{LINE}`, found none")
    return pairs
