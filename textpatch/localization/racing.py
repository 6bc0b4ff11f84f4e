"""Scores of groups on prompt pairs, and the rule by which a race looks at few pairs before it looks at many.

A unit is what can be swapped alone, which is a site or a head.  A group is a tuple of units that are swapped
together, and the empty group () is no swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from textpatch.groups import Group

# score(groups, n) gives the values of each group on the first n prompt pairs.  With places of pairs instead
# of n it gives their values in the order of the places.  Values are arrays (n,) or (n, columns), at most 1.
Score = Callable[[Sequence[Group], "int | Sequence[int]"], list[np.ndarray]]


def doubling(first: int, last: int) -> Iterator[int]:
    """Yield `first`, twice as many, and so on for as long as there are fewer than `last`, then `last`."""
    n = first
    while n < last:
        yield n
        n = 2 * n
    yield last
