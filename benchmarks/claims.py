"""Measure whether the shipped models draw what their sentences name.

    python benchmarks/claims.py [MODEL ...] --csv results/claims.csv

Pictures of 144 held-out test words on random signs are read by the nearest drawing, colour by colour and
pattern by pattern, and beside them clean drawings of the same signs.  A pattern is read twice: as models
paint it, fainter than drawn and begun anew in every stretch of the wall, and strictly, as one drawn wall at
full contrast.  tiny-words, whose signs have two lines, has a table of its own, NAME-two-lines.csv.

  pictures   clean drawings, or a model's
  what       attribute that is read as it was named, or pattern, of the signs that name it
  share      of the signs.  low and high are the ends of its 95 % interval
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import textpatch
from measure import Table, arguments, environment, parsed
from textpatch import metrics
from textpatch.weights.signs import evaluation
from textpatch.weights.signs.drawing import PATTERNS, Sign, SignFormat
from textpatch.weights.signs.reader import read_sign, strict_pattern
from textpatch.weights.signs.two_lines import TWO_LINES
from two_lines import signs as signs_of_two_lines

COLUMNS = ["pictures", "what", "share", "low", "high", "n"]
ONE_LINE = ["tiny-mmdit", "tiny-if", "tiny-sdxl", "planted-mmdit", "planted-if", "planted-sdxl"]
TWO_LINED = "tiny-words"
ATTRIBUTES = "word", "colour", "shape", "wall", "style", "pattern"


def claims(name: str, pictures, signs, fmt: SignFormat) -> list[dict]:
    """Share of the signs whose every attribute is read as asked, and for each pattern."""
    read = [read_sign(picture, fmt) for picture in pictures]
    strict = [strict_pattern(picture, fmt) for picture in pictures]
    pairs = list(zip(read, strict, signs, strict=True))
    rows = []
    for what in ATTRIBUTES:
        right = [getattr(seen, what) == getattr(sign, what) for seen, _, sign in pairs]
        rows.append(share_of(name, what, right))
    for pattern in PATTERNS:
        such = [each for each in pairs if each[2].pattern == pattern]
        rows.append(share_of(name, pattern, [seen.pattern == pattern for seen, _, _ in such]))
        rows.append(
            share_of(name, f"{pattern}, strictly", [found == pattern for _, found, _ in such])
        )
    return rows


def share_of(name: str, what: str, right: list[bool]) -> dict:
    """One share with its interval."""
    share = float(np.mean(right))
    low, high = metrics.wilson(share, len(right))
    return {
        "pictures": name,
        "what": what,
        "share": share,
        "low": low,
        "high": high,
        "n": len(right),
    }


def measured(models: list[str], signs: list[Sign], fmt: SignFormat) -> Iterator[dict]:
    """Rows of clean drawings of some signs, and of each model's pictures of them."""
    yield from claims("clean drawings", evaluation.clean_pictures(signs, fmt), signs, fmt)
    for model in models:
        pictures = evaluation.generated_pictures(textpatch.load(model), signs)
        yield from claims(model, pictures, signs, fmt)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    known = [*ONE_LINE, TWO_LINED]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)} (all)")
    parser.add_argument("--signs", type=int, default=144, help="pictures of each model (144)")
    options = parsed(parser, argv)
    if unknown := sorted(set(options.models) - set(known)):
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(known)}")
    measured_on = environment(options.device)
    models = options.models or known
    ours = [model for model in models if model != TWO_LINED]
    if ours:
        fmt = SignFormat()
        table = Table(COLUMNS, measured_on, options.csv, options.append)
        for row in measured(ours, evaluation.held_out_signs(options.signs, fmt), fmt):
            table.add(**row)
    if TWO_LINED in models:
        path = options.csv and options.csv.with_name(f"{options.csv.stem}-two-lines.csv")
        table = Table(COLUMNS, measured_on, path, options.append)
        drawn = signs_of_two_lines(options.signs, 2)
        for row in measured([TWO_LINED], drawn, TWO_LINES):
            table.add(**row)


if __name__ == "__main__":
    main()
