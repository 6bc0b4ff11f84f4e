"""Chance levels, beside a loop over all other items and beside drawing them at random."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.planting import plant, raw
from support.scripts import FOLDER, importer, rows_of
from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.localization import scores
from textpatch.localization.scores import chance_levels
from textpatch.metrics import chance
from textpatch.prompts.pairs import Pair
from textpatch.report.result import chance_of, runs_of
from textpatch.weights.signs.pairs import attribute_pairs, sign_pairs

checked = settings(deadline=None, derandomize=True, print_blob=True, max_examples=30)
some_words = st.lists(st.text("abcAB é", max_size=5), min_size=2, max_size=6)


@checked
@given(some_words)
def test_a_chance_level_is_the_mean_over_all_others(words):
    """Every item is read as every other one, words that are there twice included."""
    n = len(words)
    expected = sum(
        metrics.one_minus_ned(words[j], words[i]) for i in range(n) for j in range(n) if i != j
    )
    found = metrics.chance_level(words, metrics.one_minus_ned)
    assert found == pytest.approx(expected / (n * (n - 1)), abs=1e-12)


@checked
@given(some_words)
def test_the_chance_f1_is_that_of_expected_precision_and_recall(words):
    """P and R over all others, and then the official F1 of their means."""
    n = len(words)
    matches = [metrics.characters(words[j], words[i]) for i in range(n) for j in range(n) if i != j]
    wanted = metrics.f1_of_means([m.precision for m in matches], [m.recall for m in matches])
    assert metrics.chance_f1(words) == pytest.approx(wanted, abs=1e-12)
    one_by_one = metrics.chance_level(
        words, lambda *pair: metrics.characters(*pair)[:2], metrics.f1_of_means
    )
    assert one_by_one == pytest.approx(wanted, abs=1e-12)


def test_chance_levels_by_hand():
    """AB and BC have one letter of two in common, and CD none with AB."""
    assert metrics.chance_level(["AB", "BC", "CD"], metrics.sample_f1) == pytest.approx(1 / 3)
    assert metrics.chance_f1(["AB", "BC", "CD"]) == pytest.approx(1 / 3, abs=1e-5)
    assert metrics.chance_level(["A", "A", "B"], metrics.word_accuracy) == pytest.approx(1 / 3)
    assert metrics.chance_level(["A", "A"], metrics.word_accuracy) == 1
    # A is read as BB and CCC, with rates 2 and 3, BB with 1 and 1.5, CCC with 1 and 1
    assert metrics.chance_level(["A", "BB", "CCC"], metrics.cer, np.median) == 1.25


def test_shuffled_readings_score_the_chance_level():
    """2,000 readings of 40 words by others drawn at random: within five standard errors of the level."""
    words = [Pair(*pair).words[1] for pair in sign_pairs(40)]
    dice = random.Random(0)
    drawn = []
    for _ in range(2000):
        read, wanted = dice.sample(words, 2)
        drawn.append(metrics.one_minus_ned(read, wanted))
    error = np.std(drawn) / len(drawn) ** 0.5
    assert abs(np.mean(drawn) - metrics.chance_level(words, metrics.one_minus_ned)) < 5 * error


def test_one_item_has_no_chance_level():
    """No other item's word can be read."""
    with pytest.raises(PatchError, match="chance level of 1 words"):
        metrics.chance_f1(["A"])
    assert chance_levels([Pair('a "A"', 'a "B"')]) == {"f1_source": None, "f1_target": None}


def test_pairs_have_the_levels_of_their_words():
    """Source and target apart, and blanks left out for a reader that drops them."""
    pairs = [Pair('a "A B"', 'a "CD"'), Pair('a "AB"', 'a "CE"')]
    assert chance_levels(pairs)["f1_target"] == metrics.chance_f1(["CD", "CE"])
    assert chance_levels(pairs)["f1_source"] == metrics.chance_f1(["A B", "AB"])
    assert chance_levels(pairs, blanks=False)["f1_source"] == pytest.approx(1, abs=1e-5)


def test_other_attributes_are_right_or_wrong_as_a_whole():
    """The level of a colour is how often another pair has the same one."""
    pairs = attribute_pairs("colour", 12)
    values = [pair.words[1] for pair in pairs]
    same = sum(values.count(value) - 1 for value in values)
    assert chance_levels(pairs)["f1_target"] == pytest.approx(same / (12 * 11))


def test_results_show_their_chance_level():
    """A line for it below the two runs, and none in a result of older versions or of one pair."""
    old = {"baselines": {"source": {}, "target": {}}}
    level = {"chance": {"f1_source": 0.25, "f1_target": 0.5}}
    assert chance_of(old) is None and len(runs_of(old)) == 2
    assert len(runs_of(old | {"chance": dict.fromkeys(level["chance"])})) == 2
    *_, (run, label, told) = runs_of(old | level)
    assert (run, label) == ("chance", "chance level")
    assert told == {"f1_source": {"value": 0.25}, "f1_target": {"value": 0.5}}


def test_levels_of_the_pages_are_those_of_the_words(monkeypatch):
    """The rows of results/chance.csv whose words are here, computed anew."""
    script = importer(monkeypatch)("chance")
    stored = {
        row["words"]: row for row in rows_of(FOLDER / "results/chance.csv") if row["score"] == "f1"
    }
    sets = script.shipped()
    assert stored.keys() == {*sets, "SimpleBench"}
    for words, pairs in sets.items():
        row = stored[words]
        assert len(pairs) == int(row["pairs"])
        found = script.levels(pairs, "f1")
        for side, level in found.items():
            assert level == pytest.approx(float(row[side]), abs=1e-12), (words, side)


@pytest.mark.parametrize(
    "function, old, new",
    [
        ("chance_level", "- own", "- 0 * own"),
        ("chance_level", "/ (len(words) - 1)", "/ len(words)"),
        ("chance_level", "score(read, wanted)", "score(wanted, read)"),
        (
            "chance_level",
            "np.repeat(others / (len(words) - 1), list(counts.values()), axis=0)",
            "others / 2",
        ),
        ("chance_f1", "- len(own) / size", ""),
        ("chance_f1", "+= 1 / size", "+= 1"),
        ("_numbered", "(letter, before[letter])", "(letter, 0)"),
    ],
)
def test_planted_faults_are_noticed(monkeypatch, function, old, new):
    """Items read as themselves, sides exchanged, and words or letters counted once that stand twice."""
    check = raw(test_the_chance_f1_is_that_of_expected_precision_and_recall, ["abb", "abb", "abc"])
    uneven = raw(test_a_chance_level_is_the_mean_over_all_others, ["ab", "ab", "ac"])
    plant(monkeypatch, chance, function, old, new)
    with pytest.raises(AssertionError):
        check()
        uneven()
        test_chance_levels_by_hand()


@pytest.mark.parametrize(
    "check, old, new",
    [
        (test_pairs_have_the_levels_of_their_words, "if not blanks", "if blanks"),
        (test_pairs_have_the_levels_of_their_words, "pair.words[place]", "pair.words[1 - place]"),
        (test_other_attributes_are_right_or_wrong_as_a_whole, "operator.eq", "metrics.sample_f1"),
    ],
)
def test_planted_faults_of_a_localisation_s_levels_are_noticed(monkeypatch, check, old, new):
    """Blanks the other way round, the other side's words, and colours compared letter by letter."""
    plant(monkeypatch, scores, "chance_levels", old, new)
    with pytest.raises(AssertionError):
        check()
