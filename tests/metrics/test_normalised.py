"""Scores of words after a normaliser, beside their definitions, and all scores over some readings."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.planting import plant, raw
from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.metrics import normalised, reading_scores
from textpatch.metrics.readers.reading import Line, Reading

checked = settings(deadline=None, derandomize=True, print_blob=True, max_examples=30)
words = st.text("abAB-1 é", max_size=7)
normalisers = st.sampled_from([metrics.FOLDED, metrics.STRICT, metrics.BARE])


def distance(a: str, b: str) -> int:
    """Levenshtein's recursion from the front."""

    @functools.cache
    def rest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        return min(rest(i + 1, j) + 1, rest(i, j + 1) + 1, rest(i + 1, j + 1) + (a[i] != b[j]))

    return rest(0, 0)


def plainly(text: str, normaliser: metrics.Normaliser) -> str:
    """The text as a normaliser leaves it, for the letters of `words`."""
    if normaliser.fold:
        text = text.lower()
    if not normaliser.signs:
        text = text.replace("-", "")
    return " ".join(text.split())


@checked
@given(words, words, normalisers)
def test_scores_are_their_definitions(read, wanted, normaliser):
    """Accuracy is equality, CER and 1-NED are distances by a recursion, and F1 matches letters one by one."""
    a, b = (plainly(text, normaliser) for text in (read, wanted))
    if not b:
        return
    assert metrics.word_accuracy(read, wanted, normaliser) == float(a == b)
    assert metrics.cer(read, wanted, normaliser) == distance(a, b) / len(b)
    longer = max(len(a), len(b))
    assert metrics.one_minus_ned(read, wanted, normaliser) == 1 - distance(a, b) / longer
    left = list(b)
    for letter in a:
        if letter in left:
            left.remove(letter)
    common = len(b) - len(left)
    found = metrics.sample_f1(read, wanted, normaliser)
    assert found == pytest.approx(common and 2 / (len(a) / common + len(b) / common))


def test_scores_by_hand():
    """HOUSE read for MOUSES: 2 of 6 letters to mend, and 5 against 6 letters with 4 in common."""
    assert metrics.cer("HOUSE", "mouses") == 2 / 6
    assert metrics.one_minus_ned("HOUSE", "mouses") == 1 - 2 / 6
    assert metrics.sample_f1("HOUSE", "mouses") == 8 / 11
    assert metrics.cer("abcabc", "x") == 6  # which is more than 1
    assert metrics.one_minus_ned("", "") == metrics.sample_f1("", "") == 1


@pytest.mark.parametrize(
    "read, wanted, folded, strict, bare",
    [
        ("house", "HOUSE", 1, 0, 1),
        ("SALE!", "SALE", 0, 0, 1),
        ("A-B", "AB", 0, 0, 1),
        ("A  B", "A B", 1, 1, 1),
        ("AB", "A B", 0, 0, 0),
        ("cafe\u0301", "café", 1, 1, 1),
        ("cafe", "café", 0, 0, 0),
        ("STRASSE", "straße", 1, 0, 1),
        # vowels of Devanagari are marks, without which another word is left
        ("\u0915\u093f", "\u0915", 0, 0, 0),
    ],
)
def test_what_a_normaliser_takes_as_the_same(read, wanted, folded, strict, bare):
    """Case, signs, blanks, and accents that are written in two ways."""
    for normaliser, same in zip(
        (metrics.FOLDED, metrics.STRICT, metrics.BARE), (folded, strict, bare), strict=True
    ):
        assert metrics.word_accuracy(read, wanted, normaliser) == same, normaliser.describe()


def test_normalisers_say_what_they_do():
    """The words that stand beside a score."""
    assert metrics.FOLDED.describe() == "case folded, signs kept"
    assert metrics.STRICT.describe() == "case as it stands, signs kept"
    assert metrics.BARE.describe() == "case folded, letters and digits alone"


def test_refusals():
    """A text of which nothing is left, a rate of an empty text, and lines that are one text."""
    with pytest.raises(
        PatchError, match=r"'\?!' nothing is left to compare \(case folded, letters"
    ):
        metrics.word_accuracy("?", "?!", metrics.BARE)
    with pytest.raises(PatchError, match="error rate of an empty text"):
        metrics.cer("A", "")
    with pytest.raises(PatchError, match="give a list with the text of each line"):
        metrics.best_line("HOUSE", "HOUSE")


@checked
@given(st.lists(words, max_size=4), words.filter(str.strip))
def test_no_line_is_closer_than_the_best(lines, wanted):
    """The best line is one of those read, and of none there is none."""
    best = metrics.best_line(lines, wanted)
    assert best in (lines or [""])
    if lines:
        scores = [metrics.one_minus_ned(line, wanted) for line in lines]
        assert metrics.one_minus_ned(best, wanted) == max(scores)


# --- all scores over readings

READINGS = [
    Reading((Line("HOUSE"), Line("n. 4"))),
    Reading(),
    "TREE",
    Reading((Line("CART"),)),
    Reading((Line(" "),)),
]
WANTED = ["house", "RIVER", "tree", "CAT", "DOG"]


def require_scores_by_hand():
    """Five pictures, two of them empty, and one with a line too many."""
    found = metrics.scores_of_readings(READINGS, WANTED)
    value = {name: score["value"] for name, score in found.items() if isinstance(score, dict)}
    assert found["n"] == 5 and found["normaliser"] == "case folded, signs kept"
    assert value["empty"] == 2 / 5
    assert value["word_accuracy"] == 1 / 5
    assert value["best_line_accuracy"] == 2 / 5
    assert value["one_minus_ned"] == pytest.approx((5 / 10 + 0 + 1 + 3 / 4 + 0) / 5)
    assert value["best_line_one_minus_ned"] == pytest.approx((1 + 0 + 1 + 3 / 4 + 0) / 5)
    assert value["cer"] == pytest.approx((5 / 5 + 1 + 0 + 1 / 3 + 1) / 5)
    assert value["sample_f1"] == pytest.approx((10 / 15 + 0 + 1 + 6 / 7 + 0) / 5)
    texts = ["HOUSE n. 4", "", "TREE", "CART", ""]
    assert value["f1"] == metrics.f1(zip(texts, WANTED, strict=True))


def test_scores_of_readings_by_hand():
    """Every value of a small table."""
    require_scores_by_hand()


def test_scores_of_readings_have_intervals_and_chance_levels():
    """Ends hold the value between them, and chance levels are those of the words alone."""
    found = metrics.scores_of_readings(READINGS, WANTED)
    for name, score in found.items():
        if isinstance(score, dict):
            assert score["low"] <= score["value"] <= score["high"], name
    assert found["f1"]["chance"] == metrics.chance_f1(WANTED)
    assert found["cer"]["chance"] == metrics.chance_level(WANTED, metrics.cer)
    assert found["empty"]["chance"] is None
    assert metrics.scores_of_readings(["A"], ["A"])["f1"]["chance"] is None


@pytest.mark.parametrize("readings, wanted", [(["A"], ["A", "B"]), ([], [])])
def test_readings_have_a_word_each(readings, wanted):
    """Other numbers of both, and none, are refused with both."""
    with pytest.raises(PatchError, match=f"{len(readings)} readings and {len(wanted)} words"):
        metrics.scores_of_readings(readings, wanted)


# --- faults

FAULTS = [
    (
        raw(test_scores_are_their_definitions, "abab", "ab", metrics.FOLDED),
        normalised,
        "cer",
        "/ len(wanted)",
        "/ max(len(read), len(wanted), 1)",
    ),
    (
        raw(test_scores_are_their_definitions, "abab", "ab", metrics.FOLDED),
        normalised,
        "one_minus_ned",
        "max(len(read), len(wanted), 1)",
        "len(wanted)",
    ),
    (
        raw(test_scores_are_their_definitions, "a", "ab", metrics.FOLDED),
        normalised,
        "sample_f1",
        "2 * common / (len(read) + len(wanted))",
        "common / max(len(read), len(wanted))",
    ),
    (
        raw(test_scores_are_their_definitions, "a", "A", metrics.STRICT),
        normalised.Normaliser,
        "__call__",
        "if self.fold:",
        "if True:",
    ),
    (
        raw(test_what_a_normaliser_takes_as_the_same, "\u0915\u093f", "\u0915", 0, 0, 0),
        normalised,
        "_counts",
        "in _LETTERING",
        'in "LN"',
    ),
    (
        raw(test_no_line_is_closer_than_the_best, ["b", "a"], "a"),
        normalised,
        "best_line",
        "max(lines, key",
        "min(lines, key",
    ),
    (require_scores_by_hand, reading_scores, "_lines", "if text.strip()", "if True"),
    (
        require_scores_by_hand,
        reading_scores,
        "scores_of_readings",
        "_values(score, closest, words)",
        "_values(score, texts, words)",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[2])
def test_planted_faults_are_noticed(monkeypatch, fault):
    """A score by another definition breaks the law that it has."""
    check, *place = fault
    check()
    plant(monkeypatch, *place)
    with pytest.raises(AssertionError):
        check()
