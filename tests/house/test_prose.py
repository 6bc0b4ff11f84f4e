"""What the counts of prose count, shown on sources made for it."""

import pytest

from support import prose

SOURCE = '''"""Counts things; two facts.  Another: sentence."""

# a comment
x, y = 1, 2
a, b = pair()
name = lambda v: v if v else -v


class Thing:
    """What it is."""

    text = """not a
    docstring"""

    def method(self):
        """Give the value.

        Shape: none; of no matter here.
        """
        return x if y else 0  # counted
'''


@pytest.fixture
def counts(tmp_path, monkeypatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    path = tmp_path / "source.py"
    path.write_text(SOURCE + f"long = {'x' * 110!r}\n")
    return prose.counted([path])


def test_code_lines_are_counted_without_docstrings_comments_and_blanks(counts):
    """Nine lines hold code; a string that is no docstring is code."""
    assert len(counts.code) == 9
    assert counts.p90() == 119 == max(counts.code)
    assert counts.too_long == ["source.py:21"]


def test_constructs_are_counted_once_each(counts):
    """One tuple of values, two conditionals, one lambda; unpacking a call is no tuple assign."""
    assert counts.tuple_assigns == ["source.py:4"]
    assert counts.conditionals == ["source.py:6", "source.py:20"]
    assert counts.lambdas == ["source.py:6"]
    assert counts.functions == [("source.py:15", 6)] and counts.files == [("source.py", 21)]


def test_first_sentences_are_judged(counts):
    """Of three first sentences one is glued and one begins badly; what follows the first does not matter."""
    assert [text for _, text in counts.sentences] == [
        "Counts things; two facts.",
        "What it is.",
        "Give the value.",
    ]
    assert [place for place, _ in counts.glued] == ["source.py:1"]
    assert [text for _, text in counts.badly_begun] == ["What it is."]


@pytest.mark.parametrize(
    "sentence",
    [
        "Read the pictures.",
        "Returns the rows.",
        "The rows of a run.",
        "A picture.",
        "All sites of a model.",
        "Official F1 of pairs.",
        "Named groups of sites.",
        "DeepFloyd IF in two stages.",
        "Reply of the reader.",
    ],
)
def test_sentences_that_begin_well(sentence):
    """A verb or a noun phrase, with or without an article."""
    assert prose.begins_well(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "What a run is.",
        "Whether it holds.",
        "Of every timestep, the noise.",
        "Its rows.",
        "All that reads.",
        "One of two.",
        "Moved to the device.",
        "Exactly what was asked.",
        "x (B, C, H, W) at timestep t.",
        "(B, E) the time.",
        "1.1 times the error.",
        "`denoise` with defaults.",
        "",
    ],
)
def test_sentences_that_begin_badly(sentence):
    """Prepositions, pronouns, question words, adverbs, symbols; also behind a word that promises a noun."""
    assert not prose.begins_well(sentence)


def test_every_folder_has_sources():
    """The counts are of something."""
    assert all(len(prose.sources(folder)) > 5 for folder in prose.FOLDERS)
