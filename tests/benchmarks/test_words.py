"""One word to four are exchanged in one scene, and the tables have a row for each line and part."""

import pytest

from support.planting import plant
from support.scripts import importer, rows_of


@pytest.fixture
def words(monkeypatch):
    return importer(monkeypatch)("words")


def require_as_many_words(words):
    """Pairs of one to four words have so many on either side, in one scene."""
    for count in (1, 2, 3, 4):
        for pair in words.pairs_of(4, count):
            assert [len(text.split()) for text in pair.words] == [count] * 2
            scenes = [
                [part for i, part in enumerate(prompt.split('"')) if i % 2 == 0]
                for prompt in (pair.source, pair.target)
            ]
            assert scenes[0] == scenes[1]


def test_pairs_have_as_many_words_as_asked_for(words):
    require_as_many_words(words)


def test_another_number_of_words_is_noticed(words, monkeypatch):
    """Fault: a word more than asked for."""
    plant(monkeypatch, words, "pairs_of", "words=words", "words=words % 4 + 1")
    with pytest.raises(AssertionError):
        require_as_many_words(words)


@pytest.mark.long
def test_every_table_is_made(words, tmp_path):
    """Two pairs of the shipped model, in four files, by one command that finds what it has made.

    By default tests/localization/test_word_by_word.py holds what is measured to simulated truths.
    """
    command = [
        "--signs",
        "2",
        "--pairs",
        "2",
        "--limits",
        "1",
        "--runs",
        str(tmp_path / "runs"),
        "--threads",
        "1",
    ]
    words.main([*command, "--csv", str(tmp_path / "words.csv")])
    rows = {
        name: rows_of(tmp_path / f"words{name}.csv") for name in ("", "-sites", "-places", "-parts")
    }
    assert [(row["words"], row["edited"]) for row in rows[""]] == [
        (count, what)
        for count in "1234"
        for what in ("no swap", "sites found", "all sites", "the target's prompt")
    ]
    limits = {row["texts"]: row["drawn"] for row in rows_of(tmp_path / "words-limits.csv")}
    assert limits["3 letters"] == "yes" and limits["6 letters"] == limits["small letters"] == "no"
    assert [row["site"] for row in rows["-places"]] == list("01234567")
    assert {row["part"] for row in rows["-parts"]} >= {"head 0.0", "head 3.1", "from step 7"}
    assert {row["donor"] for row in rows["-sites"]} == {"word 1", "word 2", "exchanged", "repeated"}
    again = tmp_path / "again.csv"
    words.main([*command, "--csv", str(again)])
    assert rows_of(again) == rows[""]
