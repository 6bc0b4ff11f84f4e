"""The number of pairs that would settle a difference, held to its formula and to draws of that many pairs."""

import math

import numpy as np
import pytest

from support.planting import plant
from textpatch.errors import PatchError
from textpatch.metrics import f1_of_means, power
from textpatch.metrics.intervals import gain
from textpatch.metrics.power import pairs_to_settle

DRAWS = 100


def test_of_a_mean_it_is_the_textbook_number():
    """(1.960 + 0.842)^2 of the variance over the squared mean of the differences, 3 pairs at least."""
    more = np.array([0.0, 1.0, 0.5, 1.0, 0.0, 1.0])
    less = np.array([0.0, 0.5, 0.5, 0.0, 0.5, 0.5])
    share = np.var(more - less, ddof=1) / np.mean(more - less) ** 2
    assert pairs_to_settle(more, less) == math.ceil(7.8489 * share) == 35
    assert pairs_to_settle(more + 10, less) == 3


def require_as_many_as_are_needed():
    """Of draws of so many pairs about four of five have a clear gain, and of half as many pairs fewer.

    The statistic is the F1 of the mean precision and recall, whose pairs are drawn out of 300.
    """
    rng = np.random.default_rng(0)
    less = rng.uniform(0, 0.8, (300, 2))
    more = (less + rng.normal(0.05, 0.2, (300, 1))).clip(0, 1)
    needed = pairs_to_settle(more, less, f1_of_means)
    clear = {}
    for n in (needed, needed // 2):
        drawn = [rng.integers(len(more), size=n) for _ in range(DRAWS)]
        gains = [gain(more[draw], less[draw], f1_of_means)["low"] > 0 for draw in drawn]
        clear[n] = np.mean(gains)
    within = 4 * math.sqrt(0.8 * 0.2 / DRAWS)  # four standard errors of a share
    assert abs(clear[needed] - 0.8) < within
    assert clear[needed // 2] < 0.8 - within


def test_so_many_pairs_settle_it_four_times_of_five():
    """Oracle: the interval that is asked, on pairs drawn anew."""
    require_as_many_as_are_needed()


@pytest.mark.parametrize(
    "function, old, new",
    [
        ("pairs_to_settle", " + NormalDist().inv_cdf(power)", ""),
        ("_pseudo_values", "n * found - (n - 1) *", ""),
    ],
)
def test_planted_another_number_is_noticed(monkeypatch, function, old, new):
    """Faults: pairs that settle it half the time, and gains without a pair in place of the pair's own."""
    plant(monkeypatch, power, function, old, new)
    with pytest.raises(AssertionError):
        require_as_many_as_are_needed()


def test_what_tells_no_number():
    """Two pairs, and pairs that show no gain.  Levels that are none are refused."""
    values = np.array([0.2, 0.4, 0.9])
    assert pairs_to_settle(values[:2] + 0.1, values[:2]) is None
    assert pairs_to_settle(values, values) is None
    assert pairs_to_settle(values, values + 0.1) is None
    with pytest.raises(PatchError, match=r"level is 0.95 and power 1"):
        pairs_to_settle(values, values, power=1)
