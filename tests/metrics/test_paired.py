"""Comparisons of two methods on the same pairs, beside every exchange of sides written out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.planting import plant, raw
from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.metrics import paired

checked = settings(deadline=None, derandomize=True, print_blob=True, max_examples=20)


def two_methods(seed: int, n: int, shift: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of n pairs by two methods, (n, 2) each, alike but for a shift."""
    rng = np.random.default_rng(seed)
    less = rng.uniform(0, 0.8, (n, 2))
    more = (less + shift * rng.uniform(-1, 2, (n, 2))).clip(0, 1)
    return more, less


@checked
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from(["f1_of_means", "median"]))
def test_p_is_a_share_of_all_exchanges(seed, n, name):
    """Every way to exchange the sides of n pairs, one at a time."""
    more, less = two_methods(seed, n)
    statistic = metrics.f1_of_means
    if name == "median":
        statistic = np.median
        more, less = more[:, :1], less[:, :1]

    def difference(a, b):
        return statistic(*a.T, axis=-1) - statistic(*b.T, axis=-1)

    found = abs(difference(more, less))
    large = []
    for flips in itertools.product([False, True], repeat=n):
        swapped = np.array(flips)[:, None]
        a, b = np.where(swapped, less, more), np.where(swapped, more, less)
        large.append(abs(difference(a, b)) >= found - 1e-12)
    comparison = metrics.compared(more, less, statistic)
    assert comparison.p == np.mean(large)
    assert comparison.value == pytest.approx(difference(more, less))
    assert (comparison.n, comparison.differ) == (n, n)


def test_sides_change_places():
    """Exchanging both methods changes the sign of the difference and of its interval, and p not at all."""
    more, less = two_methods(3, 30)
    one = metrics.compared(more, less, metrics.f1_of_means)
    other = metrics.compared(less, more, metrics.f1_of_means)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))
    assert one.p == other.p
    assert one.low <= one.value <= one.high


def require_p_of_methods_alike():
    """Of 150 comparisons of two methods alike, on 20 pairs, p is below .2 in about 30: 5 to 55, 5 sigma."""
    rng = np.random.default_rng(5)
    small = sum(metrics.compared(*rng.uniform(size=(2, 20))).p < 0.2 for _ in range(150))
    assert 5 < small < 55


def test_methods_alike_are_seldom_told_apart(monkeypatch):
    """With fewer exchanges, which a p of .2 does not need."""
    monkeypatch.setattr(paired, "FLIPS", 199)
    require_p_of_methods_alike()


def test_a_difference_in_every_pair_is_told():
    """p is the smallest that there is: 2 of 2^n ways for few pairs, one of FLIPS + 1 for many."""
    less = np.linspace(0, 0.5, 40)
    assert metrics.compared(less[:8] + 0.2, less[:8]).p == 2 / 2**8
    assert metrics.compared(less + 0.2, less).p == 1 / (paired.FLIPS + 1)
    assert metrics.compared(less + 0.2, less).low == pytest.approx(0.2)


def test_methods_that_are_one():
    """No pair differs, p is 1 and the interval holds 0."""
    scores = np.linspace(0, 1, 20)
    assert metrics.compared(scores, scores) == (0, 0, 0, 1, 20, 0)
    changed = scores.copy()
    changed[4] += 0.1
    assert metrics.compared(changed, scores).differ == 1
    assert metrics.compared(changed, scores).p == 1


def test_few_pairs_have_no_interval():
    """Two pairs say nothing of how pairs spread."""
    found = metrics.compared([0.5, 0.6], [0.1, 0.2])
    assert (found.low, found.high, found.p) == (None, None, 0.5)


def test_pairs_by_name_are_put_in_one_order():
    """Dicts in another order are the same comparison."""
    more, less = two_methods(1, 9)
    names = [f"pair {i}" for i in range(9)]
    left = dict(zip(names, more, strict=True))
    right = dict(reversed([*zip(names, less, strict=True)]))
    found = metrics.compared(left, right, metrics.f1_of_means)
    assert found == metrics.compared(more, less, metrics.f1_of_means)


@pytest.mark.parametrize(
    "more, less, message",
    [
        ({"a": 1, "b": 0}, {"a": 1, "c": 0}, "2 pairs are on one side alone, first 'b', 'c'"),
        ({"a": 1}, [1], "one side is a dict"),
        ([1, 0, 1], [1, 0], r"scores \(3,\) and \(2,\)"),
        ([], [], r"scores \(0,\) and \(0,\)"),
        ([1, np.nan], [1, 0], "1 of 2 scores are not finite"),
    ],
)
def test_other_pairs_are_refused(more, less, message):
    """Scores that do not belong together, or are none."""
    with pytest.raises(PatchError, match=message):
        metrics.compared(more, less)


@pytest.mark.parametrize(
    "function, old, new",
    [
        ("_share_as_large", "np.abs(", "np.array("),
        ("_share_as_large", "found - ROUNDING", "found + 0.05 + ROUNDING"),
        ("_exchanges", "np.arange(2**n)", "np.arange(1, 2**n)"),
        ("compared", "gain(first, second", "gain(second, first"),
        ("compared", ".any(axis=1)", ".any(axis=0)"),
    ],
)
def test_planted_faults_are_noticed(monkeypatch, function, old, new):
    """One-sided shares, ties that do not count, an exchange left out, and sides that change places."""
    check = raw(test_p_is_a_share_of_all_exchanges, 0, 5, "f1_of_means")
    check()
    plant(monkeypatch, paired, function, old, new)
    with pytest.raises(AssertionError):
        check()
        test_few_pairs_have_no_interval()
        test_a_difference_in_every_pair_is_told()


def test_an_exchange_of_nothing_is_noticed(monkeypatch):
    """Fault: of many pairs none is ever exchanged."""
    plant(monkeypatch, paired, "_exchanges", "< 0.5", "< 0")
    monkeypatch.setattr(paired, "FLIPS", 199)
    with pytest.raises(AssertionError):
        require_p_of_methods_alike()
