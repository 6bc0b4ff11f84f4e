"""Chance levels of scores, which readings that have nothing to do with their pictures would get.

Letters repeat among words, so that a reading of another word is not all wrong.  A score says something by
how far it lies above its chance level.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from textpatch.errors import PatchError
from textpatch.metrics.intervals import Statistic, statistic_of
from textpatch.metrics.text import TINY, f1_of_means


def chance_level(
    words: Sequence[str],
    score: Callable[[str, str], float | tuple[float, ...]],
    statistic: Statistic = np.mean,
) -> float:
    """Score of readings that are each another item's word, all others equally likely.

        statistic over items i of   sum over j != i of score(w_j, w_i) / (n - 1)

    words      wanted text of each item.  A word that is there twice is another item's word, too
    score      called as score(read, wanted) on every two different words once, and gives one number, or
               several that stay together, such as precision and recall
    statistic  over items, called as `intervals.bootstrap` does

    Nothing is drawn at random.  Every two different words are compared, as a score of an edit distance is no
    sum over letters; `chance_f1` is one.  For means over items this is the exact expectation.  For
    `f1_of_means` it is the F1 of the exact expectations of precision and recall.
    Raises PatchError for less than two items.
    """
    _require_two(words)
    counts = Counter(words)
    table = np.array([[score(read, wanted) for read in counts] for wanted in counts], np.float64)
    table = table.reshape(len(counts), len(counts), -1)  # (wanted, read, columns)
    own = np.einsum("iic->ic", table)
    others = np.einsum("ijc,j->ic", table, list(counts.values())) - own
    expected = np.repeat(others / (len(words) - 1), list(counts.values()), axis=0)
    return statistic_of(expected, statistic)


def chance_f1(words: Sequence[str]) -> float:
    """Official F1 of readings that are each another item's word, as `chance_level` gives it.

        |R n W| = #{(c, k): c stands in R and in W at least k times}

    So the expected precision and recall of an item are sums over its own letters, and all items together cost
    as much as their letters are, while `chance_level` asks for every two words.
    Raises PatchError as `chance_level` does.
    """
    _require_two(words)
    letters = [_numbered(word) for word in words]
    sizes = [len(word) + TINY for word in words]
    standing: Counter[tuple[str, int]] = Counter()
    weighed: dict[tuple[str, int], float] = defaultdict(float)
    for own, size in zip(letters, sizes, strict=True):
        standing.update(own)
        for letter in own:
            weighed[letter] += 1 / size
    others = len(words) - 1
    precision = [
        (sum(weighed[letter] for letter in own) - len(own) / size) / others
        for own, size in zip(letters, sizes, strict=True)
    ]
    recall = [
        (sum(standing[letter] for letter in own) - len(own)) / size / others
        for own, size in zip(letters, sizes, strict=True)
    ]
    return float(f1_of_means(precision, recall))


def _numbered(word: str) -> list[tuple[str, int]]:
    """Characters as `characters` compares them, each with how many alike stood before it."""
    before: Counter[str] = Counter()
    numbered = []
    for letter in word:
        letter = letter.strip().lower()
        numbered.append((letter, before[letter]))
        before[letter] += 1
    return numbered


def _require_two(words: Sequence[str]) -> None:
    if len(words) < 2:
        raise PatchError(
            f"asked for the chance level of {len(words)} words, where no reading can be another's; "
            "give two or more"
        )
