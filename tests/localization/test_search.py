"""The searches are held against simulated truths, in which the sites that carry the word are known."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.planting import plant, raw, require_noticed
from support.truths import PAIRS, Truth
from textpatch.localization import heads as head_searching
from textpatch.localization import racing, screening, search, start_step
from textpatch.localization.heads import take_away
from textpatch.localization.racing import doubling
from textpatch.localization.screening import better_than, screen
from textpatch.localization.search import EARLY, FEW, Growth, grow, responsible
from textpatch.localization.start_step import latest_start
from textpatch.metrics import FEWEST, f1_of_means, intervals, wilson
from textpatch.metrics.intervals import gain, interval, share_interval, tells_spread


def effects(sites: int = 9, most: int = 4):
    """Sites of which one to four have an effect of at least 0.1 each, 1 together at most."""
    parts = st.dictionaries(
        st.integers(0, sites - 1), st.integers(10, 24), min_size=1, max_size=most
    )
    return parts.map(lambda some: {site: some.get(site, 0) / 100 for site in range(sites)})


def carriers(truth: Truth) -> tuple:
    return tuple(site for site, effect in truth.effects.items() if effect)


def alone(truth: Truth) -> list:
    return [(site,) for site in truth.effects]


# --- gains


@given(st.integers(0, 99), st.floats(-1, 1))
def test_a_gain_is_taken_pair_by_pair(seed, shift):
    """gain(x + c, x) = c with an interval of no width, however far the pairs lie apart."""
    values = np.random.default_rng(seed).normal(size=PAIRS)
    found = gain(values + shift, values)
    assert np.allclose([found[end] for end in ("value", "low", "high")], shift, rtol=0, atol=1e-12)


@given(st.integers(0, 99))
def test_a_gain_of_f1_is_that_of_its_means(seed):
    """gain = F1(a) - F1(b), inside its interval, and its negative the other way.

    Columns are precision and recall.
    """
    a, b = np.random.default_rng(seed).uniform(size=(2, PAIRS, 2))
    found, back = gain(a, b, f1_of_means), gain(b, a, f1_of_means)
    assert found["value"] == f1_of_means(*a.T) - f1_of_means(*b.T) == -back["value"]
    assert found["low"] <= found["value"] <= found["high"] == pytest.approx(-back["low"], abs=1e-12)


few_scores = st.integers(1, 30).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n, max_size=n))


@given(
    few_scores
    | st.integers(1, 30).flatmap(lambda n: st.floats(0, 1).map(lambda value: [value] * n))
)
def test_an_interval_of_shares_has_a_width(scores):
    """low < high with the value between them, for few pairs or many, alike or not.

    Of one pair or two, and of all alike, the interval is wilson's.
    """
    values = np.array(scores)
    found = share_interval(values)
    assert (
        0 <= found["low"] <= found["value"] <= found["high"] <= 1 and found["low"] < found["high"]
    )
    if len(scores) < FEWEST or np.ptp(values) == 0:
        assert (found["low"], found["high"]) == wilson(found["value"], len(scores))


def test_perfect_readings_of_words_of_other_lengths_are_alike():
    """Values n / (n + 1e-8) of 3 and of 8 letters have no spread.

    F1 = 1 to one in a million has wilson's width.
    """
    perfect = np.array([[n / (n + 1e-8)] * 2 for n in (3, 4, 5, 8)])
    found = share_interval(perfect, f1_of_means)
    assert found["low"] == pytest.approx(wilson(1.0, 4).low, abs=1e-5) and found["high"] <= 1


@given(few_scores)
def test_scores_that_are_no_shares_have_a_bootstrapped_interval_or_none(scores):
    """Nothing bounds what other pairs would give, though those seen happen to lie from 0 to 1.

    Of one pair or two, and of all alike, there is none.  Elsewhere it is that of shares.
    """
    values = np.array(scores)
    none = {"value": float(values.mean()), "low": None, "high": None}
    if tells_spread(values):
        assert interval(values) == share_interval(values)
    else:
        assert interval(values) == none
    assert interval(np.full(5, -0.5)) == {"value": -0.5, "low": None, "high": None}


def test_shares_of_any_score_are_noticed(monkeypatch):
    """A score that happens to lie from 0 to 1 is given a share's interval.  (planted fault)"""
    plant(
        monkeypatch,
        intervals,
        "interval",
        'return {"value": value, "low": None, "high": None}',
        'return {"value": value, **wilson(value, len(values))._asdict()}',
    )
    with pytest.raises(AssertionError):
        raw(test_scores_that_are_no_shares_have_a_bootstrapped_interval_or_none, [0.5, 0.5])()


@given(st.integers(1, FEWEST - 1), st.floats(0, 1), st.floats(0, 1))
def test_no_gain_is_clear_on_one_pair_or_two(n, more, less):
    """The interval is -1 to 1, which is all that two scores can differ by.

    Nothing joins a set, is left out, or is kept for it.
    """
    found = gain(np.full(n, more), np.full(n, less))
    assert found == {"value": pytest.approx(more - less), "low": -1, "high": 1}
    truth = Truth({0: 1.0, 1: 0.0}, pairs=n)
    steps = grow(truth, [0, 1], n, first=2)
    assert responsible(steps) == () and not any(step.kept for step in steps)
    kept = screen(
        truth,
        alone(truth),
        n,
        first=2,
        by="swap",
        keep=lambda values, pairs: better_than(truth([()], pairs)[0], values),
    )
    assert len(kept.kept) == 2


def test_three_pairs_are_enough_where_all_gain():
    """The fewest on which a site is credited."""
    assert responsible(grow(Truth({0: 1.0, 1: 0.0}, pairs=FEWEST), [0, 1], FEWEST, first=2)) == (0,)


def test_a_planted_credit_on_two_pairs_is_noticed(monkeypatch):
    """A gain is bootstrapped of any number of pairs, so that two alike are certain.  (planted fault)"""
    plant(monkeypatch, intervals, "gain", "if len(both) < FEWEST:", "if len(both) < 1:")
    with pytest.raises(AssertionError):
        test_no_gain_is_clear_on_one_pair_or_two.hypothesis.inner_test(2, 1.0, 0.2)


def test_a_planted_interval_without_a_width_is_noticed(monkeypatch):
    """Pairs that are all alike are bootstrapped.  (planted fault)"""
    plant(
        monkeypatch,
        intervals,
        "tells_spread",
        "return len(values) >= FEWEST and",
        "return len(values) >= 1 or",
    )
    with pytest.raises(AssertionError):
        test_an_interval_of_shares_has_a_width.hypothesis.inner_test([1.0, 1.0])


# --- races


@given(st.integers(1, 40), st.integers(1, 200))
def test_the_number_of_pairs_doubles(first, last):
    """A race looks at `first` pairs, then at twice as many each time, and at last once at all pairs."""
    looks = list(doubling(first, last))
    assert looks[0] == min(first, last) and looks[-1] == last and len(set(looks)) == len(looks)
    assert all(later == min(2 * earlier, last) for earlier, later in pairwise(looks))


# --- the responsible set


@given(effects(), st.integers(0, 99))
def test_the_set_is_all_that_carry_and_nothing_else(parts, seed):
    """The set is {site: effect > 0}, grown by the largest effect next.

    Each gain is the site's own, over all pairs.
    """
    truth = Truth(parts, seed=seed)
    ranked = sorted(parts, key=lambda site: (-parts[site], site))
    steps = grow(truth, ranked, PAIRS, first=4)
    assert [step.added for step in steps] == [(site,) for site in ranked[: len(carriers(truth))]]
    assert all(step.kept for step in steps)
    assert responsible(steps) == carriers(truth)
    assert [step.gain["value"] for step in steps] == pytest.approx(
        [parts[step.added[0]] for step in steps], abs=1e-12
    )
    assert {(step.group, tuple(range(PAIRS))) for step in steps} <= set(truth.asked)


def test_nothing_carries_nothing():
    """The set is empty after one step where no site has an effect.

    Nothing is tried but the first site and all together.
    """
    truth = Truth(dict.fromkeys(range(5), 0.0))
    steps = grow(truth, range(5), PAIRS, first=4)
    assert responsible(steps) == () and len(steps) == 1 and not steps[0].kept
    assert {group for group, _ in truth.asked} == {(), (0,), (0, 1, 2, 3, 4)}


class Inseparable(Truth):
    """Nothing does anything but those of `needed` together."""

    def __init__(self, needed, sites: int = 6):
        super().__init__(dict.fromkeys(range(sites), 0.0))
        self.needed = set(needed)

    def value(self, group) -> np.ndarray:
        return 0.3 + 0.7 * (self.needed <= set(group)) - self.hard


@given(st.sets(st.integers(0, 5), min_size=2, max_size=4), st.permutations(range(6)))
def test_sites_that_do_nothing_alone_begin_together(needed, ranked):
    """The set is `needed`, whichever site ranks first.

    No site is a gain alone, and those of `needed` together are.
    """
    steps = grow(Inseparable(needed), ranked, PAIRS, first=4)
    assert responsible(steps) == tuple(sorted(needed))
    assert [(step.added, step.kept) for step in steps] == [
        ((ranked[0],), False),
        (tuple(sorted(needed)), True),
    ]
    assert steps[1].gain["value"] == pytest.approx(0.7) and steps[1].pairs == PAIRS


def test_redundant_sites_are_not_both_needed():
    """One site is the set where each of two alone does all there is."""
    assert responsible(grow(Truth({0: 1.0, 1: 1.0, 2: 0.0}), [0, 1, 2], PAIRS, first=4)) == (0,)


class Failing(Truth):
    """Truth in which site 0 is perfect on all pairs but those of `failed`, where sites 0 and 1 together are.

    Nothing else does anything.
    """

    def __init__(self, failed):
        super().__init__(dict.fromkeys(range(4), 0.0))
        self.failed = list(failed)

    def value(self, group) -> np.ndarray:
        # of a perfect reading n / (n + 1e-8)
        values = np.full(PAIRS, 0.2 + 0.8 * (0 in group) * (1 - 1e-9))
        values[self.failed] = 1.0 if {0, 1} <= set(group) else 0.2
        return values


@given(st.sets(st.integers(0, PAIRS - 1), min_size=6, max_size=PAIRS - 6))
def test_a_site_that_does_nothing_alone_joins(failed):
    """The set is (0, 1) although site 1 alone scores as no swap does.

    The other sites are tried on 4 of the failed pairs and no more.
    """
    truth = Failing(failed)
    assert np.array_equal(truth.value((1,)), truth.value(()))
    assert responsible(grow(truth, range(4), PAIRS, first=4)) == (0, 1)
    tried = {group: places for group, places in truth.asked if group in ((0, 2), (0, 3))}
    assert {len(places) for places in tried.values()} == {4} and all(
        set(places) <= failed for places in tried.values()
    )


@given(st.sets(st.integers(0, PAIRS - 1), max_size=3))
def test_nothing_is_tried_where_nothing_could_gain(failed):
    """No site is tried if at most 3 of 24 pairs fail.

    (21/24)^24 > 2.5 % of draws hold none of these pairs.  Not even a perfect site could be a clear gain.
    """
    truth = Failing(failed)
    assert responsible(grow(truth, range(4), PAIRS, first=4)) == (0,)
    assert {group for group, _ in truth.asked} == {(), (0,)}


def clear_on(truth: Truth, larger, before, n: int, pairs: int) -> bool:
    """Whether the gain on the first n pairs is above zero, at the level EARLY unless they are all."""
    return (
        gain(truth.value(larger)[:n], truth.value(before)[:n], level=0.95 if n == pairs else EARLY)[
            "low"
        ]
        > 0
    )


def hoped(truth: Truth, larger, before, looked: int) -> dict:
    """Gain on all pairs of a group that was looked at on the first pairs that `before` fails.

    looked  how many these are.  The group counts as perfect on the others
    """
    values, less = np.ones_like(truth.hard), truth.value(before)
    places = np.argsort(less, kind="stable")[:looked]
    values[places] = truth.value(larger)[places]
    return gain(values, less)


@given(st.integers(0, 99), st.integers(2, 8))
def test_a_gain_is_looked_at_on_few_pairs_first(seed, least):
    """The gain of a step is taken on the first n pairs, with n doubled until the gain is clear.

    n begins with least, later with max(least, FEW).  The level is EARLY, and on all pairs 95 %.
    The first unit and the last group are scored on all pairs.
    """
    truth, before = Truth({0: 0.5, 1: 0.2, 2: 0.0}, noise=0.4, seed=seed, pairs=100), ()
    for step in grow(truth, [0, 1, 2], 100, first=4, least=least):
        looks = [max(least, FEW) if before else least]
        while looks[-1] < 100 and not clear_on(truth, step.group, before, looks[-1], 100):
            looks.append(min(2 * looks[-1], 100))
        assert step.pairs == looks[-1] and step.kept == clear_on(
            truth, step.group, before, step.pairs, 100
        )
        if step.kept:
            assert step.looked == step.pairs
            assert step.gain == gain(
                truth.value(step.group)[: step.pairs], truth.value(before)[: step.pairs]
            )
            before = step.group
    assert 100 in truth.looks(before) and 100 in truth.looks((0,))


@given(st.integers(0, 99))
def test_a_refusal_looks_no_further_than_it_must(seed):
    """A unit is refused as soon as perfection on the other pairs that fail would be no clear gain.

    It is looked at on the pairs that the group fails, then on twice as many.
    The gain of the step is then an upper bound.
    """
    truth, before = Truth({0: 1.1, 1: 0.0, 2: 0.0}, noise=0.2, seed=seed, pairs=100), ()
    truth.hard[20:] = -0.3  # most pairs are perfect, whatever is swapped
    for step in grow(truth, [0, 1, 2], 100, first=4):
        if step.kept:
            before = step.group
            continue
        looks = [int((truth.value(before) < 1).sum())]
        while looks[-1] < 100 and hoped(truth, step.group, before, looks[-1])["low"] > 0:
            looks.append(min(2 * looks[-1], 100))
        assert step.looked == looks[-1] and step.gain == hoped(
            truth, step.group, before, step.looked
        )
        exact = gain(truth.value(step.group), truth.value(before))
        assert exact["low"] <= 0 and all(exact[end] <= step.gain[end] for end in exact)
        asked = {place for group, places in truth.asked if group == step.group for place in places}
        assert asked == set(np.argsort(truth.value(before), kind="stable")[: step.looked])


def test_a_group_on_the_way_is_scored_as_far_as_it_is_needed():
    """Two of three sites with clear effects are scored together on FEW pairs, and the three on all.

    The same sites join.
    """
    truths = [Truth({0: 0.5, 1: 0.2, 2: 0.2, 3: 0.0}, pairs=100) for _ in range(2)]
    early, late = (
        grow(truth, range(4), 100, first=4, least=least)
        for truth, least in zip(truths, (4, None), strict=True)
    )
    assert responsible(early) == responsible(late) == (0, 1, 2) and early[1].group == late[1].group
    assert [step.pairs for step in early[:3]] == [4, FEW, FEW] and {
        step.pairs for step in late
    } == {100}
    assert max(truths[0].looks(early[1].group)) == FEW and max(truths[0].looks((0, 1, 2))) == 100


class Misleading(Truth):
    """Truth in which the first 32 pairs propose another site than all pairs do.

    0 and 3 together leave pairs failing.  Of the first 32 site 1 mends the worst alone.
    Of the others site 2 mends all.
    """

    def __init__(self):
        super().__init__(dict.fromkeys(range(4), 0.0), pairs=100)

    def value(self, group) -> np.ndarray:
        values = np.full(100, 0.1 + 0.3 * (0 in group) + 0.3 * (3 in group))
        values[:4] -= 0.05
        values[96:] -= 0.08
        values[0] += 0.05 * (1 in group)
        values[32:] += 0.2 * (2 in group and {0, 3} <= set(group))
        return values


def test_what_few_pairs_propose_and_all_refuse_is_not_the_end():
    """All pairs refuse site 1, which the pairs looked at propose.  They propose site 2, which is kept."""
    steps = grow(Misleading(), [0, 1, 2, 3], 100, first=4, least=4)
    assert [(step.added, step.pairs, step.kept) for step in steps[:4]] == [
        ((0,), 4, True),
        ((3,), FEW, True),
        ((1,), 100, False),
        ((2,), 64, True),
    ]
    assert responsible(steps) == (0, 2, 3)


@pytest.mark.parametrize(
    "pairs, least", [(PAIRS, None), pytest.param(100, 4, marks=pytest.mark.long)]
)
def test_chance_rarely_adds_a_site(pairs, least, long):
    """At most 6 % of 100 searches in pure noise end with a site too many, --long of 400.

    They were 2.5 % were exact intervals exact.  By default a smaller number of pairs stands for both.
    """
    searches = 400 if long else 100
    truths = [
        Truth({0: 0.5, 1: 0.0}, noise=0.2, seed=seed, pairs=pairs) for seed in range(searches)
    ]
    wrong = [responsible(grow(truth, [0, 1], pairs, first=4, least=least)) for truth in truths]
    assert set(wrong) <= {(0,), (0, 1)} and wrong.count((0, 1)) <= 0.06 * searches


# --- screening


@given(effects(), st.integers(0, 99), st.integers(FEWEST, PAIRS))
def test_a_screening_keeps_the_carriers(parts, seed, first):
    """Groups that beat no swap are kept, whichever number of pairs the screening begins with.

    Without noise the first pairs suffice.
    """
    truth = Truth(parts, seed=seed)
    rule = lambda values, pairs: better_than(truth([()], pairs)[0], values)  # noqa: E731
    found = screen(truth, alone(truth), PAIRS, first=first, by="swap", keep=rule)
    assert sorted(found.kept) == [(site,) for site in carriers(truth)] and found.pairs == first
    assert [gap["low"] > 0 for gap in found.gaps] == [True]
    seen = {group: interval(truth.value(group)[:first]) for group in alone(truth)}
    assert found.seen == {
        group: {"by": "swap", "pairs": first, **value} for group, value in seen.items()
    }


@given(st.integers(0, 99), st.integers(2, 6), st.integers(1, 4))
def test_a_screening_goes_on_with_those_in_doubt(seed, first, keep):
    """The number of pairs doubles while more than k groups are left, n' = min(2 n, all).

    Groups clearly below the k-th best are out, and are scored no more.
    """
    truth = Truth({site: 0.1 * site for site in range(6)}, noise=0.4, seed=seed)
    found = screen(
        truth, alone(truth), PAIRS, first=first, by="swap", keep=lambda values, pairs: keep
    )
    rounds = list(dict.fromkeys(len(places) for _, places in truth.asked))
    assert rounds[0] == first and all(b == min(2 * a, PAIRS) for a, b in pairwise(rounds))
    running = set(alone(truth))
    for n in rounds:
        assert {group for group, places in truth.asked if len(places) == n} == running and len(
            running
        ) > keep
        values = {group: truth.value(group)[:n] for group in running}
        worst, following = sorted(running, key=lambda group: -values[group].mean())[
            keep - 1 : keep + 1
        ]
        below = {group for group in running if gain(values[worst], values[group])["low"] > 0}
        assert {
            "by": "swap",
            "pairs": n,
            "kept": worst,
            "next": following,
            **gain(values[worst], values[following]),
        } in found.gaps
        assert all(
            found.seen[group] == {"by": "swap", "pairs": n, **interval(values[group])}
            for group in below
        )
        running -= below
    assert set(found.kept) == running and (len(running) == keep or rounds[-1] == PAIRS)
    assert set(found.ranked) == set(alone(truth)) and found.ranked[: len(running)] == found.kept


def test_sites_alike_are_all_kept():
    """A screening without a gap takes all pairs and leaves nobody out."""
    truth = Truth(dict.fromkeys(range(4), 0.3))
    found = screen(truth, alone(truth), PAIRS, first=3, by="swap", keep=lambda values, pairs: 2)
    assert (
        found.pairs == PAIRS and {gap["low"] for gap in found.gaps} == {0} and len(found.kept) == 4
    )


# --- heads


@given(effects(sites=6), st.integers(0, 99))
def test_the_heads_taken_away_are_those_needed(parts, seed):
    """Heads are taken in the order of their effects, and as many as reach the score of all."""
    truth = Truth(parts, seed=seed)
    steps = take_away(truth, list(parts), PAIRS)
    order = sorted(carriers(truth), key=lambda head: (-parts[head], head))
    assert [step.unit for step in steps] == order and steps[-1].group == carriers(truth)
    assert steps[-1].missing["value"] == pytest.approx(0, abs=1e-12)
    assert all(step.missing["value"] > 0 for step in steps[:-1])


def test_all_heads_are_taken_where_only_all_do():
    """The search ends with all of three heads that are only needed together, whatever their order."""

    def score(groups, pairs):
        return [np.full(pairs, float(len(group) == 3)) for group in groups]

    assert take_away(score, [0, 1, 2], 4)[-1].group == (0, 1, 2)


# --- the start step


@given(st.integers(0, 7), st.integers(0, 99))
def test_the_last_start_that_loses_nothing(last, seed):
    """The start is s where scores are equal up to step s and 0.2 lower after it.

    With all equal it is the last of all.
    """
    hard = np.random.default_rng(seed).uniform(0, 0.5, PAIRS)
    values = [1 - hard - 0.2 * (step > last) for step in range(8)]
    assert latest_start(values) == last and latest_start([1 - hard] * 8) == 7


# --- faults: a check, an owner, a function, a text, and the text put in its place


PARTS = {0: 0.2, 1: 0.0, 2: 0.11, 3: 0.24, 4: 0.0}
pair_by_pair = raw(test_a_gain_is_taken_pair_by_pair, 0, 0.5)
all_that_carry = raw(test_the_set_is_all_that_carry_and_nothing_else, PARTS, 0)
goes_on = raw(test_a_screening_goes_on_with_those_in_doubt, 0, 2, 2)
joins = raw(test_a_site_that_does_nothing_alone_joins, {1, 4, 5, 9, 17, 20})
not_tried = raw(test_nothing_is_tried_where_nothing_could_gain, {3, 8})
few_pairs = raw(test_a_gain_is_looked_at_on_few_pairs_first, 2, 4)
no_further = raw(test_a_refusal_looks_no_further_than_it_must, 4)
together = raw(test_sites_that_do_nothing_alone_begin_together, {1, 3}, range(6))
on_the_way = test_a_group_on_the_way_is_scored_as_far_as_it_is_needed
keeps = raw(test_a_screening_keeps_the_carriers, PARTS, 0, 6)
heads = raw(test_the_heads_taken_away_are_those_needed, PARTS, 0)
doubles = raw(test_the_number_of_pairs_doubles, 3, 12)
last_start = raw(test_the_last_start_that_loses_nothing, 3, 0)

FAULTS = {
    "both sides draw their own pairs": (
        pair_by_pair,
        intervals,
        "gain",
        "statistic(*drawn[half:]",
        "statistic(*(np.roll(x, 1, 0) for x in drawn[half:])",
    ),
    "any gain will do": (
        partial(test_chance_rarely_adds_a_site, PAIRS, None, False),
        Growth,
        "step",
        'level)["low"] > 0',
        'level)["value"] > 0',
    ),
    "every site against no swap": (
        all_that_carry,
        Growth,
        "step",
        "self.score([group], n)",
        "self.score([()], n)",
    ),
    "a set of the last site alone": (all_that_carry, Growth, "step", "(*group, *units)", "units"),
    "any gap will do": (goes_on, screening, "screen", 'if gap["low"] > 0', 'if gap["value"] > 0'),
    "the gap to the worst": (goes_on, screening, "screen", "below[0]", "below[-1]"),
    "all pairs at once": (goes_on, screening, "screen", "doubling(first, pairs)", "(first, pairs)"),
    "who is out is scored again": (
        goes_on,
        screening,
        "screen",
        "score(running, n)",
        "score([*running, *out], n)[: len(running)]",
    ),
    "a race of one round": (goes_on, screening, "screen", "len(running) == k", "True"),
    "the unclear left out": (
        test_sites_alike_are_all_kept,
        screening,
        "screen",
        "Screening(tuple(running),",
        "Screening(tuple(running[:k]),",
    ),
    "the least instead of the most": (
        all_that_carry,
        Growth,
        "_still_in",
        "ranking(seen, self.statistic)",
        "ranking(seen, self.statistic)[::-1]",
    ),
    "tried on all pairs": (joins, Growth, "joining", "doubling(self.first,", "doubling(number,"),
    "tried on pairs that do not fail": (
        joins,
        Growth,
        "joining",
        "order[:number]",
        "order[number:]",
    ),
    "perfect is not perfect": (not_tried, search, "_worst_first", "< PERFECT", "< 1"),
    "tried in vain": (
        not_tried,
        Growth,
        "joining",
        "not self._within_reach(",
        "False and self._within_reach(",
    ),
    "no swap on all pairs": (few_pairs, search, "grow", "least or pairs", "pairs"),
    "no swap on few pairs, come what may": (few_pairs, Growth, "step", "if clear:", "if True:"),
    "the first is all there is": (together, search, "grow", "if not steps[0].kept:", "if False:"),
    "what all need is what one needs": (
        together,
        search,
        "inseparable",
        "len(needed) > 1",
        "len(needed) > 9",
    ),
    "all together are always tried": (
        test_nothing_carries_nothing,
        search,
        "inseparable",
        '["low"] <= 0',
        '["low"] < 0',
    ),
    "a refusal by few pairs' proposal ends it": (
        test_what_few_pairs_propose_and_all_refuse_is_not_the_end,
        Growth,
        "extensions",
        "if steps[-1].kept:",
        "if True:",
    ),
    "later gains on as few": (on_the_way, Growth, "step", "max(self.least, FEW)", "self.least"),
    "an early look like the last": (few_pairs, Growth, "step", "level = EARLY", "level = 0.95"),
    "looked at in vain": (
        no_further,
        Growth,
        "_while_hopeful",
        "if not self._within_reach(",
        "if self._within_reach(",
    ),
    "all pairs whatever they can say": (
        no_further,
        Growth,
        "_while_hopeful",
        "max(failed, 1)",
        "len(order)",
    ),
    "no hope for the rest": (joins, search, "_hoped", "[:failed]] = 1", "[:failed]] = 0"),
    "the best first": (joins, search, "_worst_first", "argsort(means", "argsort(-means"),
    "a group on the way on all pairs": (
        on_the_way,
        Growth,
        "extensions",
        "fromkeys((known, self.pairs))",
        "fromkeys((self.pairs,))",
    ),
    "the last group on few pairs": (
        on_the_way,
        Growth,
        "extensions",
        "fromkeys((known, self.pairs))",
        "fromkeys((known,))",
    ),
    "clearly worse counts as better": (
        keeps,
        screening,
        "better_than",
        "gain(value, least",
        "gain(least, value",
    ),
    "the least needed head first": (
        heads,
        head_searching,
        "take_away",
        "worst = min(",
        "worst = max(",
    ),
    "heads enough too early": (
        heads,
        head_searching,
        "take_away",
        'missing["value"] <= 0',
        'missing["value"] <= 0.2',
    ),
    "the first start": (last_start, start_step, "latest_start", "max(s for", "min(s for"),
    "no look at all pairs": (doubles, racing, "doubling", "yield last", "return"),
    "one look too many": (doubles, racing, "doubling", "while n < last", "while n <= last"),
    "three times as many": (doubles, racing, "doubling", "2 * n", "3 * n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    require_noticed(monkeypatch, FAULTS[fault])


@pytest.mark.parametrize("pairs", range(1, FEWEST))
def test_of_one_pair_or_two_the_start_is_the_last_that_loses_nothing(pairs):
    """No loss is clear on so few pairs, and the start is still not where the score is lower."""
    values = [np.full(pairs, score) for score in (1.0, 1.0, 0.9, 0.0)]
    assert latest_start(values) == 1
