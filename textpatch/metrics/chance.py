"""Chance levels of scores, which readings that have nothing to do with their pictures would get.

Letters repeat among words, so that a reading of another word is not all wrong.  A score says something by
how far it lies above its chance level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from textpatch.errors import PatchError
from textpatch.metrics.intervals import Statistic, statistic_of
from textpatch.metrics.text import characters, f1_of_means


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

    Nothing is drawn at random.  For means over items this is the exact expectation.  For `f1_of_means` it is
    the F1 of the exact expectations of precision and recall.
    Raises PatchError for less than two items.
    """
    if len(words) < 2:
        raise PatchError(
            f"asked for the chance level of {len(words)} words, where no reading can be another's; "
            "give two or more"
        )
    counts = Counter(words)
    table = np.array([[score(read, wanted) for read in counts] for wanted in counts], np.float64)
    table = table.reshape(len(counts), len(counts), -1)  # (wanted, read, columns)
    own = np.einsum("iic->ic", table)
    others = np.einsum("ijc,j->ic", table, list(counts.values())) - own
    expected = np.repeat(others / (len(words) - 1), list(counts.values()), axis=0)
    return statistic_of(expected, statistic)


def chance_f1(words: Sequence[str]) -> float:
    """Official F1 of readings that are each another item's word, as `chance_level` gives it."""
    return chance_level(words, lambda read, wanted: characters(read, wanted)[:2], f1_of_means)
