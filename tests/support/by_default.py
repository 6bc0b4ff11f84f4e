"""Cases of a test of which the default run takes some, and --long all."""

from collections.abc import Callable, Collection, Iterable

import pytest


def taking(wanted: Collection | Callable, cases: Iterable, *, whole: bool = False) -> list:
    """Parameters of a test, those not wanted by default marked as long.

    wanted  the cases that the default run takes, or a function that is true of them
    cases   values, or tuples of values
    whole   whether a tuple is one value
    """
    cases = list(cases)
    chosen = wanted if callable(wanted) else wanted.__contains__
    made = []
    for case in cases:
        values = case if isinstance(case, tuple) and not whole else (case,)
        made.append(pytest.param(*values, marks=[] if chosen(case) else pytest.mark.long))
    assert 0 < sum(not each.marks for each in made) < len(made), "take some, and not all"
    return made
