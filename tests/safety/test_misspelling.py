"""Words with one letter wrong are found where that is asked for, and no others."""

import itertools
import random
from string import ascii_lowercase

import pytest

from support.planting import plant
from textpatch.safety import misspelling
from textpatch.safety.misspelling import Misspelled
from textpatch.safety.word_lists import WordList

LISTED = ["grumple", "zorb", "quindle nark"]
FOUND = ["grumble", "grample", "rumple", "grümble", "grumpole", "xgrumple", "GRUNPLE"]
MISSED = ["crumble", "grmble", "zorp", "orb", "quindle nerk", "g.r.u.m.b.l.e", "grumbl3"]


def edits(word: str, alphabet: str) -> set[str]:
    """All that is one letter away from a word, the word itself left out."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    inserted = {a + letter + b for (a, b), letter in itertools.product(cuts, alphabet)}
    left_out = {a + b[1:] for a, b in cuts if b}
    replaced = {a + letter + b[1:] for (a, b), letter in itertools.product(cuts, alphabet) if b}
    return (inserted | left_out | replaced) - {word}


def test_every_edit_of_a_word_is_found():
    """Each of the words that are one letter away, at every place and with every letter."""
    index = Misspelled(["grumple", "zorbl"])
    for word in ("grumple", "zorbl"):
        assert all(letters in index for letters in edits(word, ascii_lowercase))
    assert "grumple" not in index and "" not in index and "zorb" in index


def disagreements() -> int:
    """Of 2,000 strings of three letters, those of which the index and the edits say different things."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abc", k=rng.choice([4, 5, 6]))) for _ in range(20)]
    near = set().union(*(edits(word, "abc") for word in words if len(word) >= 5))
    expected = near - {word for word in words if len(word) >= 5}
    index = Misspelled(words)
    drawn = {"".join(rng.choices("abc", k=rng.randrange(3, 9))) for _ in range(2000)}
    return len({letters for letters in drawn if letters in index} ^ (expected & drawn))


def test_nothing_else_is_found():
    """The index agrees with all edits written out, on strings that are often near a word."""
    assert disagreements() == 0


FAULTS = [
    ("_one_hidden", "letters[i + 1 :]", "letters[i:]"),
    ("_one_left_out", "range(len(letters))", "range(1, len(letters))"),
]
METHODS = [
    ("__init__", ">= MISSPELLED_FROM", "> MISSPELLED_FROM"),
    ("__contains__", "self._longest + 1", "self._longest"),
    ("__contains__", "or letters in self._words", ""),
    ("__contains__", "letters in self._shorter or", ""),
    ("__contains__", "not self._hidden.isdisjoint(_one_hidden(letters))", "False"),
    ("__contains__", "return not", "return False and not"),
]


@pytest.mark.parametrize(
    "owner, name, old, new",
    [
        *((misspelling, *fault) for fault in FAULTS),
        *((Misspelled, *fault) for fault in METHODS),
    ],
)
def test_an_edit_left_out_is_noticed(monkeypatch, owner, name, old, new):
    """Fault: one kind of edit, one place or one length is not looked up, or a word counts as misspelled."""
    plant(monkeypatch, owner, name, old, new)
    assert disagreements() > 0


@pytest.mark.parametrize("text", [*FOUND, *MISSED])
def test_a_list_finds_them_where_asked(text):
    """Words of five letters and more in plain letters.  No list finds them by itself."""
    found = WordList(LISTED, misspelled=True)(f"say {text}!")
    assert [one.rule for one in found] == ["misspelled"] * (text in FOUND)
    rules = [one.rule for one in WordList(LISTED)(f"say {text}!")]
    assert "misspelled" not in rules


def test_other_rules_come_first():
    """What is found without it keeps its rule, and words that are allowed stay so."""
    listed = WordList(["grumple"], allow=["grumble"], misspelled=True)
    rules = {"grmple": "dropped", "gurmple": "swapped", "grumples": "plural", "grumple": "plain"}
    for text, rule in rules.items():
        assert [one.rule for one in listed(text)] == [rule]
    assert listed("grumble") == [] and listed("grumqle")


def test_the_version_tells_that_it_was_asked_for(tmp_path):
    """A list that finds more is another, from a file, too, and one that does not is what it was."""
    path = tmp_path / "words.txt"
    path.write_text("grumple\n", "utf-8")
    asked = WordList.of_file(path, misspelled=True)
    assert asked("grumble") and asked.version != WordList(["grumple"]).version
    assert asked.version == WordList(["grumple"], misspelled=True).version
