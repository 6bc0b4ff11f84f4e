"""Official scores of what was read against what was wanted.

Sections are those of the paper's official evaluation ("Precise Parameter Localization for Textual
Generation in Diffusion Models", ICLR 2025).  Strings go in and plain numbers come out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from textpatch.errors import PatchError

TINY = 1e-8  # of the official precision and recall, so that an empty string has them


class Match(NamedTuple):
    """Character scores of one reading, as `characters` gives them."""

    precision: float
    recall: float
    exact_multiset: bool


def characters(read: str, wanted: str) -> Match:
    """Precision and recall of the characters read, as multisets and without their order.   (6.2)

        P = |R n W| / (|R| + 1e-8),   Q = |R n W| / (|W| + 1e-8),   exact_multiset: R = W

    R, W  multisets of the lower-cased characters of `read` and `wanted`
    As in the official code all blanks count as one and the same character.
    An empty string scores 0 and 0, even against another empty one.  An anagram is an exact multiset.
    """
    found = [c.strip().lower() for c in read]
    sought = [c.strip().lower() for c in wanted]
    common = (Counter(found) & Counter(sought)).total()
    same = sorted(found) == sorted(sought)
    return Match(common / (len(found) + TINY), common / (len(sought) + TINY), same)


def f1(pairs: Iterable[tuple[str, str]]) -> float:
    """Official OCR F1 of (read, wanted) pairs.   (6.3)

    It is the F1 of mean precision and mean recall, not the mean of F1s.
    Raises PatchError if there are no pairs.
    """
    matches = [characters(read, wanted) for read, wanted in pairs]
    if not matches:
        raise PatchError("asked for the F1 of no readings; give at least one (read, wanted) pair")
    return float(f1_of_means([m.precision for m in matches], [m.recall for m in matches]))


def f1_of_means(precision: ArrayLike, recall: ArrayLike, axis: int = -1) -> np.ndarray:
    """F1 of mean precision and mean recall.   (6.3)

        F1 = 2 mean(P) mean(Q) / (mean(P) + mean(Q) + 1e-6)

    precision, recall  (..., items), averaged along `axis`
    It is a statistic that `bootstrap` takes.
    """
    p = np.mean(precision, axis=axis)
    q = np.mean(recall, axis=axis)
    return 2 * p * q / (p + q + 1e-6)


def exact(read: str, wanted: str) -> bool:
    """True where both strings are equal up to case, blanks included."""
    return read.lower() == wanted.lower()


def edit_distance(read: str, wanted: str) -> int:
    """Levenshtein distance of the lower-cased strings, in characters, not normalised.   (6.4)

    d(i, j) = min(d(i-1, j) + 1, d(i, j-1) + 1, d(i-1, j-1) + [r_i != w_j])
    d(i, 0) = i,   d(0, j) = j
    """
    return edits(read.lower(), wanted.lower())


def edits(read: str, wanted: str) -> int:
    """Levenshtein distance of two strings as they stand."""
    row = list(range(len(wanted) + 1))
    for i, r in enumerate(read, 1):
        above = row
        row = [i]
        for j, w in enumerate(wanted, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != w)))
    return row[-1]
