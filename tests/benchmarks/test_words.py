"""One word and two are exchanged on the same signs, and the tables have a row for each line and part."""

import pytest

from support.planting import plant
from support.scripts import importer, rows_of


@pytest.fixture
def words(monkeypatch):
    return importer(monkeypatch)("words")


def require_same_signs(words):
    """Pairs of one word are those of two without the second text on either side."""
    one, two = (words.pairs_of(4, count) for count in (1, 2))
    assert [len(pair.texts[0]) for pair in (*one, *two)] == [1] * 4 + [2] * 4
    for short, long in zip(one, two, strict=True):
        for alone, both in ((short.source, long.source), (short.target, long.target)):
            first, second = both.split(" and ", 1)
            assert alone == first + second[second.index('"', 1) + 1 :]


def test_one_word_stands_on_the_same_signs(words):
    require_same_signs(words)


def test_a_second_text_left_in_the_source_is_noticed(words, monkeypatch):
    """Fault: only the target's prompt loses its second text."""
    plant(
        monkeypatch,
        words,
        "pairs_of",
        'SECOND.sub("", prompt) for prompt in (one.source, one.target)',
        'SECOND.sub("", prompt, i) for i, prompt in enumerate((one.source, one.target), -1)',
    )
    with pytest.raises(AssertionError):
        require_same_signs(words)


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
        for count in "12"
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
