"""Signs of two lines are counted line by line, and a picture counts where both are right."""

import pytest

from support.planting import plant
from support.scripts import importer
from textpatch.metrics.readers.reading import Line, Reading
from textpatch.weights.signs.drawing import Sign
from textpatch.weights.signs.evaluation import clean_pictures
from textpatch.weights.signs.two_lines import TWO_LINES

DRAWN = [Sign(text, "red", "sign", "blue") for text in ("SKY\nTEA", "OWL\nVAN")]


@pytest.fixture
def two_lines(monkeypatch):
    return importer(monkeypatch)("two_lines")


class Spelling:
    """Reader that answers with given texts, in small letters and with blanks between them."""

    def __init__(self, *texts: str):
        self.texts = texts

    def read(self, images, boxes):
        assert len(images) == len(boxes) == len(self.texts)
        return [Reading([Line(" ".join(text.lower()))]) for text in self.texts]


def require_counted(two_lines):
    """Three lines of four, and one picture of two.   A line beside those asked for makes all wrong."""
    read = two_lines.by(Spelling("SKY", "TEA", "OWL", "FAN"))
    found = read([None] * 2, DRAWN, [(0, 0, 1, 1)] * 2)
    assert two_lines.shares(found) == {"lines": 0.75, "whole": 0.5}
    assert two_lines.right(["SKY"], DRAWN[0]) == [True, False]
    assert two_lines.right(["SKY", "TEA"], Sign("SKY")) == [False]


def test_lines_and_pictures_are_counted(two_lines):
    require_counted(two_lines)


def test_a_line_too_many_is_noticed(two_lines, monkeypatch):
    """Fault: a line that nobody asked for counts for nothing."""
    plant(monkeypatch, two_lines, "right", "only and read == line", "read == line")
    with pytest.raises(AssertionError):
        require_counted(two_lines)


def test_clean_drawings_are_read_whole(two_lines):
    """By the nearest drawing, and the signs are the same ones in every run."""
    for words in (1, 4):
        drawn = two_lines.signs(4, words, case="title")
        found = two_lines.by_drawing(clean_pictures(drawn, TWO_LINES), drawn, None)
        assert two_lines.shares(found) == {"lines": 1.0, "whole": 1.0}
        assert drawn == two_lines.signs(4, words, case="title")
        assert drawn != two_lines.signs(4, words, "random letters", "title")
