"""Measure whether the shipped models draw what their sentences name.

    python benchmarks/claims.py [MODEL ...]

Pictures of 144 held-out test words on random signs are read by the nearest drawing, colour by colour and
pattern by pattern, and beside them clean drawings of the same signs.  A pattern is read twice: as models
paint it, fainter than drawn and begun anew in every stretch of the wall, and strictly, as one drawn wall at
full contrast.  It writes benchmarks/results/claims.csv, and claims-two-lines.csv for tiny-words.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

import textpatch
from textpatch import metrics
from textpatch.weights.signs import evaluation
from textpatch.weights.signs.drawing import PATTERNS, Sign, SignFormat
from textpatch.weights.signs.reader import read_sign, strict_pattern
from textpatch.weights.signs.two_lines import TWO_LINES
from two_lines import signs as signs_of_two_lines

RESULTS = Path(__file__).parent / "results"
ONE_LINE = ["tiny-mmdit", "tiny-if", "tiny-sdxl"]
TWO_LINED = "tiny-words"
SIGNS = 144
ATTRIBUTES = "word", "colour", "shape", "wall", "style", "pattern"


def claims(name: str, pictures, signs, fmt: SignFormat) -> list[dict]:
    """Share of the signs whose every attribute is read as asked, and for each pattern."""
    read = [read_sign(picture, fmt) for picture in pictures]
    strict = [strict_pattern(picture, fmt) for picture in pictures]
    pairs = list(zip(read, strict, signs, strict=True))
    rows = []
    for what in ATTRIBUTES:
        right = [getattr(seen, what) == getattr(sign, what) for seen, _, sign in pairs]
        rows.append(row(name, what, right))
    for pattern in PATTERNS:
        such = [each for each in pairs if each[2].pattern == pattern]
        rows.append(row(name, pattern, [seen.pattern == pattern for seen, _, _ in such]))
        rows.append(row(name, f"{pattern}, strictly", [found == pattern for _, found, _ in such]))
    return rows


def row(name: str, what: str, right: list[bool]) -> dict:
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


def measured(models: list[str], signs: list[Sign], fmt: SignFormat) -> list[dict]:
    """Rows of clean drawings of some signs, and of each model's pictures of them."""
    rows = claims("clean drawings", evaluation.clean_pictures(signs, fmt), signs, fmt)
    for model in models:
        pictures = evaluation.generated_pictures(textpatch.load(model), signs)
        found = claims(model, pictures, signs, fmt)
        for each in found:
            print(*each.values())
        rows += found
    return rows


def write(name: str, rows: list[dict]) -> None:
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(models: list[str]) -> None:
    models = models or [*ONE_LINE, TWO_LINED]
    ours = [model for model in models if model != TWO_LINED]
    if ours:
        fmt = SignFormat()
        write("claims", measured(ours, evaluation.held_out_signs(SIGNS, fmt), fmt))
    if TWO_LINED in models:
        drawn = signs_of_two_lines(SIGNS, "held-out words")
        write("claims-two-lines", measured([TWO_LINED], drawn, TWO_LINES))


if __name__ == "__main__":
    main(sys.argv[1:])
