"""Words are asked about in every reading that a disguise leaves, and innocents in none that is not theirs."""

import time

import pytest

from support.planting import plant
from textpatch.safety import each_word, vocabulary
from textpatch.safety.detection import Finding, findings_of
from textpatch.safety.disguises import (
    INNOCENT,
    INSERTED,
    LEFT_OUT,
    MASKED,
    REPLACED,
    SWAPPED,
    reach,
)
from textpatch.safety.each_word import EachWord, readings

HARMFUL = {"grumple", "zorb", "ass"}
FOUND = {
    "grumple": "word",
    "GRUMPLE": "word",
    "ｇrumple": "word",
    "grumрlе": "word",  # Cyrillic er and ie
    "g\u200brumple": "word",
    "6rumple": "leet",
    "grump1e": "leet",
    "!grumple!": "leet",
    "20rb": "leet",
    "grrrumple": "stretched",
    "a$sss": "stretched",
    "g.r.u.m.p.l.e": "joined",
    "g r u m p l e": "joined",
    "6-r-u-m-p-1-e": "joined",
}
NOT_FOUND = ["gr*mple", "gurmple", "grumbling", "grum.ple", "gru mple", "z.0", "A55", "4$$5"]


def asking(**options) -> EachWord:
    """A detector that knows three invented words as they are written."""
    return EachWord(HARMFUL.__contains__, "asked", "1", **options)


def rule_in(text: str) -> str | None:
    """Rule of what is found in a text, None for nothing."""
    rules = [rule for _, _, rule in asking()(f"say {text} now")]
    return rules[0] if rules else None


@pytest.mark.parametrize("text", FOUND)
def test_what_is_found_is_pinned(text):
    """The rule of each disguise, whose place is the whole of it."""
    assert rule_in(text) == FOUND[text]
    (found,) = findings_of(asking(), f"say {text} now")
    assert found == Finding(4, 4 + len(text), FOUND[text], "asked", "1")


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_is_not_found_is_pinned(text):
    """What no reading leads to: hidden and swapped letters, pieces of a word, numbers."""
    assert rule_in(text) is None


@pytest.mark.parametrize("text", INNOCENT)
def test_innocents_are_clean(text):
    """Names, ordinary words, prices and blanks at unlucky places."""
    assert asking()(text) == []


def test_every_disguise_that_keeps_all_letters_is_seen_through():
    """All words are found, but with a letter hidden or wrong, which a question cannot be put about."""
    changed = (MASKED, SWAPPED, REPLACED, INSERTED, LEFT_OUT)
    for name, share in reach(asking(), ["grumple", "zorb"]).items():
        assert share == (0 if name in changed else 1), name


def test_words_that_are_allowed_are_not_asked_about():
    """However they are written."""
    asked = asking(allow=["Grumple"])
    assert asked("GRUMPLE 6rumple zorb") == [(16, 20, "word")]


def test_a_word_has_27_readings_at_most():
    """Whatever signs and stretched letters it has."""
    assert readings("grumple") == {"grumple": "word"}
    assert len(readings("1110000g666999zzz")) == 27


def test_what_the_question_raises_is_raised():
    """So that the prompt is refused."""

    def broken(word):
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        EachWord(broken, "asked")("grumple")


@pytest.mark.parametrize("unit", ["a.b.", "a ", "a1", "aaaa", "6!", "grumple "])
def test_time_is_linear_in_the_text(unit):
    """Eight times the text takes about eight times as long, where quadratic time is 64 times as long."""
    short, long = (seconds(unit * count) for count in (100, 800))
    assert long < 24 * max(short, 1e-3)


def seconds(text: str) -> float:
    """Least CPU time of three searches."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        asking()(text)
        taken.append(time.process_time() - begun)
    return min(taken)


FAULTS = [
    ("6rumple", each_word, "readings", "bare.translate(way)", "bare"),
    ("!grumple!", each_word, "readings", "letters.strip(PUNCTUATION)", "letters"),
    ("grrrumple", each_word, "readings", "_shortened(read, length)", "read"),
    ("grrrumple", each_word, "readings", "(1, 2)", "(2,)"),
    ("a$sss", each_word, "readings", "(1, 2)", "(1,)"),
    ("g.r.u.m.p.l.e", EachWord, "__call__", "*self._joined(cells)", ""),
    ("A55", vocabulary, "is_number", "digits > plain", "False"),
    ("4$$5", vocabulary, "is_number", "plain == 0", "False"),
]


@pytest.mark.parametrize("text, owner, name, old, new", FAULTS)
def test_a_rule_left_out_is_noticed(monkeypatch, text, owner, name, old, new):
    """Fault: one reading is not made, or a number is asked about."""
    assert rule_in(text) == FOUND.get(text)
    plant(monkeypatch, owner, name, old, new)
    assert rule_in(text) != FOUND.get(text)
