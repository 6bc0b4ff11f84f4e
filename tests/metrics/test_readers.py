"""What every reader is, where it reads, and what two readers say together."""

import json
import random
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.by_default import taking
from support.planting import plant
from support.results import a_result
from support.small_models import DEFAULTS, small_pipeline
from textpatch import cli, load, localize
from textpatch.cli import prompt_pairs
from textpatch.errors import OCRError, PromptError
from textpatch.html import figure
from textpatch.localization.layers import Localization
from textpatch.localization.preconditions import reader_for
from textpatch.localization.scores import picture_scores
from textpatch.localization.trials import Trials
from textpatch.metrics import (
    PPOCR,
    Agreement,
    Called,
    Line,
    Reader,
    Reading,
    Tesseract,
    alphabet_of,
    calibration,
    joined_as_official,
    reader_named,
)
from textpatch.metrics.readers import (
    agreement,
    border,
    broken_words,
    ink,
    known_words,
    named,
    reading,
)
from textpatch.metrics.readers.known_words import draw
from textpatch.metrics.readers.strictness import CALIBRATED, over_reading, told_over_reading
from textpatch.prompts.pairs import Pair, word_scores
from textpatch.report import gallery, sections
from textpatch.report.reader import told_reader
from textpatch.weights.signs.pairs import sign_pairs

SQUARE = ((0.0, 0.0), (9.0, 0.0), (9.0, 4.0), (0.0, 4.0))


class Told:
    """A reader that says what it was told to, whatever it sees, and keeps what it was asked."""

    def __init__(self, *readings, **described):
        self.readings = readings
        self.described = described
        self.asked = []

    def read(self, images, boxes=None):
        self.asked.append(boxes)
        return list(self.readings[: len(images)])

    def describe(self):
        return {"engine": "told", **self.described}

    def self_test(self):
        pass


def line(text: str, confidence: float | None = None) -> Line:
    return Line(text, SQUARE, confidence)


# --- readings


def test_a_reading_is_its_lines():
    """Text is the lines with a blank between two; boxes go around the corners, in whole pixels."""
    turned = Line("AIR", ((1.5, 2.0), (8.2, 3.0), (8.0, 9.9), (1.0, 9.0)), 0.5)
    whole = Reading((line("ON"), turned), (line("X"),))
    assert (whole.text, Reading().text) == ("ON AIR", "")
    assert whole.boxes == [(0, 0, 9, 4), (1, 2, 9, 10), (0, 0, 9, 4)]
    assert Line("A").box is None and Reading((Line("A"),)).boxes == []


def test_plain_texts_are_readings():
    """A reader may give texts.  Empty ones are readings of nothing, and other data stays as it is."""
    assert reading.readings_of(["ON", ""], 2, Told()) == [Reading((Line("ON"),)), Reading()]
    assert reading.readings_of([{"word": "A"}], 1, Told()) == [{"word": "A"}]


@pytest.mark.parametrize("found", [["A"], ["A", None], None, 3, "AB"[:1]])
def test_too_few_readings_are_an_error(found):
    """Another number than of pictures, None for a picture, and no list name the reader and what it gave."""
    with pytest.raises(OCRError, match=r"2 pictures were given to Told, which read"):
        reading.readings_of(found, 2, Told())


@pytest.mark.parametrize(
    "reader", [Tesseract(), Told(), Agreement(Told(), Told())], ids=lambda x: type(x).__name__
)
def test_readers_have_the_parts_of_a_reader(reader):
    """Whatever has read, describe and self_test is a reader, and nothing else."""
    assert isinstance(reader, Reader) and not isinstance(draw("A", 16), Reader)


# --- where is read


def side_by_side(*words: str) -> tuple[Image.Image, list]:
    """One picture with words beside each other, and their boxes."""
    drawn = [draw(word, 24) for word in words]
    sheet = Image.new("L", (sum(one.width for one in drawn), drawn[0].height + 20), 255)
    boxes = []
    left = 0
    for one in drawn:
        sheet.paste(one, (left, 10))
        boxes.append((left, 10, left + one.width, 10 + one.height))
        left += one.width
    return sheet, boxes


@pytest.mark.parametrize("make", [Tesseract, PPOCR])
def test_lines_come_in_the_order_of_their_boxes(make):
    """A line for each box, a box alone for one, None for the whole picture, each where it stands."""
    sheet, (first, second) = side_by_side("HOTEL", "BREAD")
    found = make().read([sheet, sheet], [[second, first], first])
    assert [[one.text for one in each.lines] for each in found] == [["BREAD", "HOTEL"], ["HOTEL"]]
    for box, one in zip((second, first), found[0].lines, strict=True):
        left, top, right, bottom = one.box
        assert box[0] - 4 <= left < right <= box[2] + 4 and box[1] - 4 <= top < bottom <= box[3] + 4


@pytest.mark.parametrize("make", [Tesseract, PPOCR])
def test_a_turned_line_is_read_upright(make):
    """Corners of a line that hangs at 25 degrees are turned before it is read."""
    sheet, ((left, top, right, bottom),) = side_by_side("GARDEN")
    middle = (sheet.width / 2, sheet.height / 2)
    turned = sheet.rotate(25, Image.Resampling.BICUBIC, center=middle, fillcolor=255, expand=False)

    def moved(x, y):
        c, s = 0.9063, 0.4226  # of 25 degrees
        x, y = x - middle[0], y - middle[1]
        return middle[0] + c * x + s * y, middle[1] - s * x + c * y

    corners = tuple(
        moved(*at) for at in ((left, top), (right, top), (right, bottom), (left, bottom))
    )
    (found,) = make().read([turned], [[corners]])
    assert found.text == "GARDEN" and found.lines[0].corners == corners


def test_tesseract_finds_lines_on_a_page(long):
    """Two lines are two lines, from the upper one down, each in its place, in both modes for pages.

    The long form has each mode pass its self-test first.
    """
    page = Image.new("L", (300, 140), 255)
    page.paste(draw("MARKET", 36), (20, 10))
    page.paste(draw("STREET", 36), (60, 80))
    for mode in ("page", "sparse"):
        engine = Tesseract(mode=mode)
        engine._tested = not long
        (found,) = engine.read([page])
        assert [one.text for one in found.lines] == ["MARKET", "STREET"]
        assert found.lines[0].box[3] < 75 < found.lines[1].box[1]
        assert all(one.confidence > 0.5 for one in found.lines)


def test_entries_of_boxes_are_one_a_picture():
    """Other numbers are refused with both."""
    with pytest.raises(OCRError, match="boxes has 1 entries for 2 pictures"):
        Tesseract().read([draw("A", 16)] * 2, [(0, 0, 4, 4)])


@pytest.mark.parametrize(
    "entry", [(0, 0, 4), [(0, 0, 4, 4), (1, 2)], "four", [[(0, 0), (4, 0), (4, 4)]], 7, [None]]
)
def test_what_is_no_area_is_refused(entry):
    """Neither four sides nor four corners, nor a list of these: the entry is told, and what one is."""
    with pytest.raises(OCRError, match="a box is left, top, right, bottom, and corners are four"):
        Tesseract().read([draw("A", 16)], [entry])


def test_areas_may_be_lists_and_arrays():
    """Boxes and corners mean the same as tuples, lists and arrays, alone or in a list."""
    box, corners = (1, 2, 3, 4), ((0, 0), (3, 0), (3, 2), (0, 2))
    asked = [
        box,
        [list(box), np.array(box)],
        corners,
        [list(map(list, corners))],
        np.array(corners),
    ]
    (one, two, *turned) = reading.areas_of([None] * 5, asked)
    assert one == [box] and two == [box, box] and turned == [[corners]] * 3


def test_corners_beside_the_picture_bring_no_black():
    """Corners a little outside, as finders give them, cut white paper out of a white picture."""
    outside = ((-6, -6), (46, -2), (46, 26), (-6, 22))
    part = ink.part_of(Image.new("RGB", (40, 20), "white"), outside, 0)
    assert part.getextrema() == ((255, 255),) * 3


# --- agreement


words = st.lists(st.text("abAB", min_size=1, max_size=3), max_size=4).map(" ".join)


@given(words, words)
def test_what_counts_is_read_by_both(first, second):
    """Each word that counts is a word of both in any case, and none is lost: the rest is unconfirmed."""
    images = [draw("A", 16)]
    both = Agreement(Told(Reading((line(first),) * bool(first))), Told(second))
    (found,) = both.read(images)
    counted = found.text.casefold().split()
    whole = "".join(first.split()).casefold() == "".join(second.split()).casefold()
    assert whole or set(counted) <= set(first.casefold().split()) & set(second.casefold().split())
    alone = " ".join(one.text for one in found.unconfirmed)
    letters = "".join([*counted, *alone.casefold().split()])
    assert sorted(letters) == sorted("".join(first.split()).casefold())


@pytest.mark.parametrize(
    "text, confidence, other, counts, alone",
    [
        ("HOUSE", None, "house", "house", ""),
        ("HOUSE", 0.999, "HOUSF", "", "HOUSE"),
        ("ON AIR", 0.999, "ON ALR", "ON", "AIR"),
        ("ONAIR", 0.999, "ON AIR", "ON AIR", ""),
        ("HOUSE", 0.5, "HOUSE", "", "HOUSE"),  # the finder is not sure
        ("H O USE", 0.5, "HOUSE", "HOUSE", ""),  # of the blanks alone
        ("HOUSE", 0.999, "", "", "HOUSE"),
    ],
)
def test_agreement_on_a_line(text, confidence, other, counts, alone):
    """Case and blanks are the confirmer's.  A line in doubt, and a word read otherwise, do not count."""
    (found,) = Agreement(Told(Reading((line(text, confidence),))), Told(other)).read(
        [draw("A", 16)]
    )
    assert (found.text, " ".join(one.text for one in found.unconfirmed)) == (counts, alone)


def test_the_confirmer_reads_where_the_finder_saw_lines():
    """Each line in its corners.  Where the finder sees none, the boxes asked for, and else nothing."""
    images = [draw("A", 16)] * 3
    finder = Told(Reading((line("A"), line("B"))), Reading(), Reading())
    confirmer = Told("A", "B", "C")
    found = Agreement(finder, confirmer).read(images, [None, (0, 0, 4, 4), None])
    assert confirmer.asked == [[[SQUARE], [SQUARE], [(0, 0, 4, 4)]]]
    assert [one.text for one in found] == ["A B", "", ""]
    assert [[line.text for line in one.unconfirmed] for one in found] == [[], ["C"], []]


def test_a_finder_must_tell_places():
    """Without a place of its line there is nothing to confirm, and the finder is named."""
    with pytest.raises(OCRError, match="the finder Told reads 'ON' and tells no place"):
        Agreement(Told("ON"), Told("ON")).read([draw("A", 16)])


AGREEMENTS = {
    "either is enough": ("_words", "if _letters(text) == _letters(other)", "if text or other"),
    "case counts": ("_letters", ".casefold()", ""),
    "the finder is believed": ("_in_doubt", "return line.confidence < sure", "return False"),
    "blanks are doubted": (
        "_in_doubt",
        "if line.confidence is None or len(line.text.split()) != len(text.split())",
        "if line.confidence is None",
    ),
    "what differs is dropped": ("_words", 'return "", text', 'return "", ""'),
}


@pytest.mark.parametrize("fault", AGREEMENTS)
def test_a_fault_of_agreement_is_noticed(fault, monkeypatch):
    """Planted faults: one of the lines above, or the law of what counts, no longer holds."""
    plant(monkeypatch, agreement, *AGREEMENTS[fault])
    cases = test_agreement_on_a_line.pytestmark[0].args[1]
    with pytest.raises(AssertionError):
        for case in cases:
            test_agreement_on_a_line(*case)
        test_what_counts_is_read_by_both.hypothesis.inner_test("AB BA", "A")


# --- ink on the border of a found place


def on_a_plate(word: str, margin: int) -> tuple[Image.Image, tuple]:
    """Black letters on a white plate that hangs on a dark wall, and corners that reach beyond the plate."""
    letters = draw(word, 24)
    wall = Image.new("RGB", (letters.width + 80, letters.height + 80), (60, 40, 40))
    wall.paste(letters, (40, 40))
    left, top = 40 - margin, 40 - margin
    right, bottom = wall.width - left, wall.height - top
    return wall, ((left, top), (right, top), (right, bottom), (left, bottom))


def border_is_no_letter():
    """Require that agreement reads a word whose found place holds the edge of its plate."""
    for word in ("HOUSE", "MARKET"):
        wall, corners = on_a_plate(word, 8)
        finder = Told(Reading((Line(word, corners, 1.0),)))
        (found,) = Agreement(finder, Tesseract(blank=True)).read([wall])
        assert found.text == word
        light = np.asarray(border.without_border(wall, corners, 0).convert("L"))
        assert min(light[edge].min() for edge in border.EDGES) == 255 and light.min() < 80


def test_ink_on_the_border_of_a_found_place_is_no_letter():
    """It is paper for the confirmer, and the letters stay dark."""
    border_is_no_letter()


def tight_places_keep_letters():
    """Require that letters are whole whose found place cuts them."""
    letters = draw("HOUSE", 24)
    rows, columns = np.nonzero(np.asarray(letters.convert("L")) < 128)
    left, top, right, bottom = columns.min() + 2, rows.min() + 2, columns.max() - 1, rows.max() - 1
    cleared = border.without_border(
        letters, ((left, top), (right, top), (right, bottom), (left, bottom)), 0
    )
    assert (np.asarray(cleared.convert("L")) < 128).sum() == len(rows)


def test_a_place_that_cuts_letters_takes_none_away():
    """Letters reach the border of a tight place, and not that of what is around it."""
    tight_places_keep_letters()


def narrow_places_have_a_middle():
    """Require that a place much higher than wide is cleared of the wall around a stroke."""
    wall = Image.new("RGB", (60, 140), (40, 40, 40))
    wall.paste("white", (24, 10, 40, 130))
    wall.paste("black", (30, 40, 34, 100))
    corners = ((20.0, 8.0), (44.0, 8.0), (44.0, 132.0), (20.0, 132.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cleared = border.without_border(wall, corners, 0)
    assert (np.asarray(cleared.convert("L")) < 128).sum() == 4 * 60


def test_a_narrow_place_is_cleared():
    narrow_places_have_a_middle()


def test_a_narrow_place_without_a_middle_is_noticed(monkeypatch):
    """Fault: a margin of the height alone, which leaves nothing of the width."""
    plant(monkeypatch, border, "without_border", "min(around.size) // 6", "around.height // 6")
    with pytest.raises((AssertionError, RuntimeWarning)):
        narrow_places_have_a_middle()


def border_is_reached_along_ink(dark: np.ndarray):
    """Require that ink is reached at a level where the darker pixels join it to the border, and no higher.

    The oracle goes through levels one by one, and fills from the border pixel by pixel.
    """
    found = border.reached(dark)
    for level in np.unique(dark):
        waiting = [
            at for at in np.ndindex(dark.shape) if dark[at] >= level and _at_border(at, dark.shape)
        ]
        joined = set(waiting)
        while waiting:
            y, x = waiting.pop()
            for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= at[0] < dark.shape[0] and 0 <= at[1] < dark.shape[1]
                if inside and at not in joined and dark[at] >= level:
                    joined.add(at)
                    waiting.append(at)
        assert joined == {tuple(at) for at in np.argwhere(found >= level)}


def _at_border(at: tuple[int, int], shape: tuple[int, int]) -> bool:
    return at[0] in (0, shape[0] - 1) or at[1] in (0, shape[1] - 1)


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(0, 999))
def test_ink_is_reached_along_the_darkest_way(shape, seed):
    border_is_reached_along_ink(np.random.default_rng(seed).integers(1, 4, shape) / 4)


# a passage from the border that turns back
SNAKE = (
    np.array([[1, 1, 1, 1, 1], [3, 3, 3, 3, 1], [1, 1, 1, 3, 1], [1, 3, 3, 3, 1], [1, 1, 1, 1, 1]])
    / 4
)

BORDERS = {
    "the edge stays": (border, "without_border", "dark - reached(dark)", "dark"),
    "tight places are cut": (border, "without_border", "grown_around(place)", "place"),
    "ways go down and right alone": (border, "reached", "_flow(rows[::-1], most[::-1])", "pass"),
    "ways are gone once": (border, "reached", "if np.array_equal(found, before):", "if True:"),
    "ink flows over paper": (border, "_flow", "np.minimum(rows[i - 1], most[i])", "rows[i - 1]"),
}


@pytest.mark.parametrize("fault", BORDERS)
def test_a_fault_at_the_border_is_noticed(fault, monkeypatch):
    """Planted faults: one of the laws above no longer holds."""
    plant(monkeypatch, *BORDERS[fault])
    with pytest.raises(AssertionError):
        border_is_reached_along_ink(SNAKE)
        border_is_reached_along_ink(SNAKE[::-1, ::-1])
        border_is_no_letter()
        tight_places_keep_letters()


class Looks(Told):
    """A finder that is surer the second time, when it is given what it found without the border."""

    def read(self, images, boxes=None):
        self.asked.append([image.size for image in images])
        return [self.readings[len(self.asked) - 1]]


def second_look_counts():
    """Require that what the finder reads in the place without its border counts, if that is one line."""
    wall, corners = on_a_plate("HOUSE", 8)
    first = Reading((Line("H0USE", corners, 0.9),))
    small = ((1.0, 1.0), (5.0, 1.0), (5.0, 3.0), (1.0, 3.0))
    finder = Looks(first, Reading((Line("HOUSE", small, 0.999),)))
    (found,) = Agreement(finder, Told("HOUSE")).read([wall])
    assert found == Reading((Line("HOUSE", corners, 0.999),), ())
    cleared = border.without_border(wall, corners, 0)
    assert finder.asked == [[wall.size], [cleared.size]]
    twice = Looks(first, Reading((Line("HO", small, 0.999), Line("USE", small, 0.999))))
    (found,) = Agreement(twice, Told("HOUSE")).read([wall])
    assert found == Reading((), first.lines)


def test_a_finder_reads_what_it_found_without_the_border():
    """Its second reading counts, at the place of the first."""
    second_look_counts()


LOOKS = {
    "the first look counts": ("_read_as", "len(reading.lines) != 1", "True"),
    "the first of some lines counts": (
        "_read_as",
        "if one.line is None or len(reading.lines) != 1:\n        return one\n    (line,) = reading.lines",
        "line, *_ = reading.lines",
    ),
    "the place is the second": ("_read_as", "replace(line, corners=one.line.corners)", "line"),
}


@pytest.mark.parametrize("fault", LOOKS)
def test_a_fault_of_the_second_look_is_noticed(fault, monkeypatch):
    """Planted faults: one of the laws above no longer holds."""
    plant(monkeypatch, agreement, *LOOKS[fault])
    with pytest.raises(AssertionError):
        second_look_counts()


def require_told_places_as_they_are():
    """Require that the confirmer is given a place that was asked for, with all that stands there."""
    wall, corners = on_a_plate("HOUSE", 8)
    confirmer = Told("HOUSE")
    finder = Told(Reading((Line("HOUSE", corners, 1.0),)))
    Agreement(finder, confirmer).read([wall], [(0, 0, *wall.size)])
    assert confirmer.asked == [[[corners]]]


def test_told_places_are_read_as_they_are():
    """Only where nobody told a place is ink taken away."""
    require_told_places_as_they_are()


def test_told_places_that_are_cleared_are_noticed(monkeypatch):
    """Fault: ink is taken away in boxes that were asked for, too."""
    plant(monkeypatch, agreement.Agreement, "_asked", "if areas is None else None", "")
    with pytest.raises(AssertionError):
        require_told_places_as_they_are()


# --- by a function


def of_width(pictures: list[Image.Image]) -> list[str]:
    """A function that reads the width of a picture."""
    return [str(one.width) if one.width > 1 else "" for one in pictures]


def test_a_function_is_a_reader():
    """It reads pictures, or their parts in boxes, as RGB, and its name is in the manifest."""
    reader = Called(of_width)
    reader._overread = broken_words.Overread(0, 0)
    found = reader.read(
        [draw("A", 16), draw("B", 16)], [[(0, 0, 3, 4), (0, 0, 5, 4)], (0, 0, 1, 1)]
    )
    assert [one.text for one in found] == ["3 5", ""] and found[0].boxes[1] == (0, 0, 5, 4)
    assert reader.describe()["engine"] == "of_width" and isinstance(reader, Reader)


def test_a_function_that_cannot_read_is_refused():
    """It is tested before its readings count, must give a text for each, and be a function."""
    with pytest.raises(OCRError, match="of_width read 0 of 18 known words"):
        Called(of_width).read([draw("A", 16)])
    with pytest.raises(OCRError, match=r"18 pictures were given to .*lambda.*, which read \[1\]"):
        Called(lambda pictures: [1]).self_test()
    with pytest.raises(OCRError, match="give a function of pictures"):
        Called("EasyOCR")


def test_ocr_may_be_a_function_or_a_name_and_nothing_else():
    """What is neither a reader, nor a function, nor a name is refused with what may be given."""
    pairs = [Pair('a sign that says "ON"', 'a sign that says "OFF"')]
    assert reader_for(pairs, of_width).name == "of_width"
    assert reader_for(pairs, None).alphabet == reader_for(pairs, "tesseract").alphabet
    for wrong in (3, Tesseract, draw("A", 16)):
        with pytest.raises(OCRError, match="ocr is .*; a reader has read, describe and self"):
            reader_for(pairs, wrong)


def test_pieces_are_joined_as_the_papers_code_does():
    """One blank between two pieces, lower case."""
    assert (
        joined_as_official(["Hello", "WORLD 2"]) == "hello world 2" and joined_as_official([]) == ""
    )


class LikeEasyOCR:
    """Stands where EasyOCR's Reader would, and answers as its documentation says, with a piece a word."""

    def readtext(self, image: np.ndarray, detail: int = 1) -> list:
        text = Tesseract(blank=True).read([Image.fromarray(image)])[0].text
        corners = [
            [0, 0],
            [image.shape[1], 0],
            [image.shape[1], image.shape[0]],
            [0, image.shape[0]],
        ]
        return [word if detail == 0 else (corners, word, 1.0) for word in text.split()]


def test_easyocr_reads_as_the_page_says():
    """By its interface alone, as EasyOCR cannot be installed without torchvision.

    Fault: its pieces are asked for with their corners.
    """

    def reader(**options) -> Called:
        engine = LikeEasyOCR()
        return Called(
            lambda pictures: [
                joined_as_official(engine.readtext(np.array(one), **options)) for one in pictures
            ],
            name="EasyOCR",
        )

    ours = reader(detail=0)
    words = [draw("OPEN", 36), draw("COFFEE BREAD", 24)]
    assert [one.text for one in ours.read(words)] == ["open", "coffee bread"]
    assert ours.describe()["engine"] == "EasyOCR" and ours.overread().n == broken_words.TESTED
    with pytest.raises(TypeError, match="expected str instance, tuple found"):
        reader().read(words)


@pytest.mark.parametrize("name", ["tesseract", "ppocr", "agreement"])
def test_a_picture_of_100_megapixels_is_refused(name):
    """Before anything of it is enlarged, and with its size."""
    with pytest.raises(OCRError, match="has 10000 x 10000 pixels.*shrink it"):
        reader_named(name, []).read([Image.new("1", (10_000, 10_000))])


def test_punctuation_alone_is_no_word():
    """Two that agree read nothing in it where no sign is asked for, and PP-OCR no letter."""
    signs = [draw(signs, size) for signs in ("?!.,", "...", "-", "!!!") for size in (16, 36)]
    assert [reading.text for reading in reader_named("agreement", []).read(signs)] == [""] * 8
    read = "".join(reading.text for reading in PPOCR().read(signs))
    assert "?!" in read and not any(letter.isalnum() for letter in read)


# --- strictly


def test_one_broken_word_may_be_read_as_whole():
    """A second one is an error that has both numbers, since such a reader repairs letters."""
    words = known_words.KNOWN_WORDS[:12]
    for right in (0, 1):
        told = words[:right] + ["X"] * (12 - right)
        broken_words.require_strict(lambda pictures, told=told: told, alphabet_of([]), "it", "cure")
    told = words[:2] + ["X"] * 10
    with pytest.raises(
        OCRError, match="it read 2 of 12 words with a broken letter.*and 1 may be; cure"
    ):
        broken_words.require_strict(lambda pictures: told, alphabet_of([]), "it", "cure")
    assert broken_words.read_as_whole(None, "0123456789") == (0, 0)


def test_broken_words_are_not_whole():
    """None is drawn as the whole word is, and a third of them has another letter."""
    for turn, word in enumerate(known_words.KNOWN_WORDS):
        size = known_words.TEST_SIZES[turn // 3 % 3]
        whole = broken_words.joined(broken_words.letters_of(word, broken_words.font_of(None, size)))
        broken = broken_words.broken_word(word, turn)
        place = size // 2
        ink = broken.crop((place, place, broken.width - size + place, broken.height - size + place))
        assert broken.size != (whole.width + size, whole.height + size) or (
            np.abs(255.0 - np.asarray(ink) - np.asarray(whole)).max() > 200
        )
    assert broken_words.another_letter("OPEN") == "BPEN"


def has_upright(tile: Image.Image, box: tuple) -> bool:
    """True where ink fills a column of the left half of a box along two thirds of its height."""
    left, top, right, bottom = box
    ink = np.asarray(tile)[top:bottom, left : (left + right) // 2] > 127
    return bool((ink.mean(axis=0) > 2 / 3).any())


def test_a_letter_without_its_stem_has_none():
    """In every face of the calibration, thin and heavy, with serifs and without; something else is left."""
    for file in calibration.font_files():
        for tile in broken_words.letters_of("BDEFHKLMNPR", broken_words.font_of(file, 64)):
            box = tile.getbbox()
            assert has_upright(tile, box)
            broken = broken_words.without_stem(tile.copy())
            assert broken.getbbox() and not has_upright(broken, box)


def test_a_stem_left_standing_is_noticed(monkeypatch):
    """The left third alone is not the stem."""
    plant(monkeypatch, broken_words, "without_stem", "_end_of_stem(tile)", "0")
    with pytest.raises(AssertionError):
        test_a_letter_without_its_stem_has_none()


@pytest.mark.parametrize("name", taking(("tesseract",), ["tesseract", "agreement"]))
def test_a_strict_reader_reads_broken_words_as_such(name, monkeypatch):
    """It passes.  Told that whole words are broken ones, as if it had repaired them, it does not.

    By default the reader by which agreement is confirmed.
    """
    reader = reader_named(name, [])
    reader.self_test()
    monkeypatch.setattr(broken_words, "broken_word", lambda word, turn: draw(word, 24))
    with pytest.raises(OCRError, match=r"read 1\d of 12 words with a broken letter"):
        reader._test()


def test_over_reading_is_told_of_the_reader_that_was_measured():
    """Of readers by name that of their calibration, of a function that of its self-test, else nothing."""
    assert over_reading(reader_named("agreement", []))["high"] < 0.05
    for name, counted in CALIBRATED.items():
        found = over_reading(reader_named(name, ["House"]))
        assert (found["read"], found["n"], found["by"]) == (*counted, "calibration")
        assert found["low"] < counted.read / counted.n < found["high"]
        assert f"calls {counted.read} of {counted.n} broken words right" in told_over_reading(found)
    assert over_reading(PPOCR())["self_test"] == PPOCR().overread()._asdict()
    others = [
        Tesseract(scale=1),
        Agreement(PPOCR(), Told()),
        Agreement(PPOCR(), Tesseract(), sure=0),
    ]
    assert [over_reading(one) for one in others] == [None] * 3
    function = Called(of_width)
    function._overread = broken_words.Overread(3, 12)
    assert over_reading(function)["by"] == "self-test" and over_reading(function)["n"] == 12
    assert "nobody has counted" in told_over_reading(None)


def test_a_result_names_its_reader():
    """A sentence for the terminal and the page, of both readers where two had to agree, and escaped there."""
    described = {"finder": {"engine": "<i>", "version": "6"}, "confirmer": {"engine": "tesseract"}}
    result = a_result() | {"ocr": described, "over_reading": over_reading(Tesseract())}
    told = told_reader(result)
    assert told == (
        "words read by <i> and tesseract, where both agree, which calls 40 of 600 broken words right "
        "(calibration, 95 % interval 5 to 9 %)"
    )
    assert "&lt;i&gt; and tesseract" in sections.ranking(result)
    assert told in repr(Localization(result, []))
    assert told_reader(result | {"what": "style"}).endswith("where both agree")


def test_a_reader_that_repairs_says_how_often():
    """PP-OCR reads 1 to 6 of 12 broken words as whole, and a function's number is that of its readings."""
    assert 1 <= PPOCR().overread().read <= 6 and PPOCR().overread().n == 12
    whole = known_words.words_of(alphabet_of([]), blank=False)
    knowing = Called(lambda pictures: whole[: len(pictures)])
    assert knowing.overread() == (12, 12)


# --- by name


def test_the_command_line_knows_the_readers():
    """--reader takes the names that `reader_named` does."""
    assert list(named.READERS) == prompt_pairs.READERS


@pytest.mark.parametrize("name", taking(lambda name: name != "tesseract", named.READERS))
def test_a_reader_by_name_knows_the_words(name):
    """It reads them, in small letters and with digits, and answers with no other letters by choice.

    By default PP-OCR and agreement.  Tesseract is asked so in localization/test_localize.py.
    """
    written = ["House", "A380"]
    found = reader_named(name, written).read([draw(word, 24) for word in written])
    assert [one.text.casefold() for one in found] == [word.casefold() for word in written]


def test_an_unknown_reader_is_refused():
    """The nearest name is told."""
    with pytest.raises(OCRError, match="no reader 'tesserakt'; closest: tesseract"):
        reader_named("tesserakt", ["A"])


def test_a_missing_package_says_what_to_install(monkeypatch):
    """PPOCR without ocrust is one sentence, when it is made and not after an hour of generating."""
    monkeypatch.setitem(sys.modules, "ocrust", None)
    with pytest.raises(
        OCRError, match=r"needs the package ocrust .*pip install 'textpatch\[ocr\]'"
    ):
        PPOCR()


class Scanner:
    """Stand-in of PP-OCR's engine, which finds one line in every picture and is surer of small pictures."""

    def __init__(self, corners):
        self.corners = corners
        self.sizes = []

    def scan(self, picture):
        self.sizes.append(picture.size)
        confidence = 0.9 if picture.width > 500 else 0.99
        line = SimpleNamespace(text="HOUSE", polygon=self.corners, confidence=confidence)
        return SimpleNamespace(lines=[line])


@pytest.mark.parametrize(
    "height, sizes",
    [(90, [(1000, 600)]), (200, [(1000, 600), (round(720 * 48 / 200), round(360 * 48 / 200))])],
)
def test_a_tall_line_is_read_again_from_a_reduced_picture(height, sizes):
    """More than 96 pixels high: cut out with a margin of 0.4 of its height, and read 48 pixels high.

    Its place stays where it was found.
    """
    reader = PPOCR()
    corners = ((120, 150), (680, 150), (680, 150 + height), (120, 150 + height))
    reader._engine = Scanner(corners)
    (line,) = reader._lines(Image.new("RGB", (1000, 600)), None, 0)
    assert reader._engine.sizes == sizes
    assert (line.text, line.corners) == ("HOUSE", corners)
    assert line.confidence == (0.9 if len(sizes) == 1 else 0.99)


def test_the_alphabet_has_the_signs_of_the_words():
    """Capitals always; small letters, digits and ASCII's signs as the words have them, and no accents.

    What is in it is read.
    """
    alphabet = alphabet_of(["Café 24!"])
    assert alphabet.startswith("ABC") and {*"f24!"} <= {*alphabet} and not {*"é?"} & {*alphabet}
    words = ["OPEN!", "A&B", "24/7", "DON'T", "CO-OP", "50%", "(ON)", "X@Y"]
    found = reader_named("tesseract", words).read([draw(word, 36) for word in words])
    assert [one.text for one in found] == words


@pytest.mark.parametrize(
    "name, word, unknown",
    [
        ("tesseract", "CAFÉ", "É"),
        ("agreement", "CAFÉ", "É"),
        ("tesseract", "ПРИ", "П"),
        ("ppocr", "ПРИ", "П"),
        ("ppocr", "CAFÉ 24!", None),
    ],
)
def test_words_that_a_reader_never_reads_are_refused(name, word, unknown):
    """Whichever reader is named: tesseract would read E for É, and PP-OCR nothing of Cyrillic."""
    pairs = [Pair(f'a sign that says "{word}"', 'a sign that says "A"')]
    if unknown is None:
        assert reader_for(pairs, name).knows("É")
        return
    with pytest.raises(PromptError, match=f"has '{unknown}'.*such as --reader ppocr"):
        reader_for(pairs, name)


# --- calibration


def test_calibration_counts_what_is_read(monkeypatch, long):
    """Every kind has its row.  Words of the first kind are read, misspelt ones are not.

    The short form leaves the kinds between them out.
    """
    if not long:
        some = (calibration.KINDS[0], calibration.KINDS[-2])
        monkeypatch.setattr(calibration, "KINDS", some)
    rows = calibration.calibrated("tesseract", each=1)
    assert [row["kind"] for row in rows] == [kind.name for kind in calibration.KINDS]
    of = {row["kind"]: row for row in rows}
    assert of["words, 96 x 32"]["read"] == 1 and of["another letter"]["read"] == 0
    assert all(row["n"] == 1 and row["low"] <= row["read"] <= row["high"] for row in rows)


@pytest.mark.parametrize("kind", calibration.KINDS, ids=lambda kind: kind.name)
def test_calibration_draws_the_same_every_time(kind):
    """The same pictures and words in every call, no two alike, and of wordless pictures no word."""
    first, again = calibration.samples(kind, 6), calibration.samples(kind, 6)
    assert [one.picture.tobytes() for one in first] == [one.picture.tobytes() for one in again]
    assert len({one.picture.tobytes() for one in first}) == 6
    assert all(bool(one.word) is (kind.name != "no words, 256 px") for one in first)


@pytest.mark.long
def test_agreement_can_be_trusted():
    """At most 5 % of the broken words are called right, 95 % of the clean ones are read, 0 of 40 wordless."""
    of = {row["kind"]: row for row in calibration.calibrated("agreement", 40)}
    broken = [row for row in of.values() if not row["must"] and row["kind"] != "no words, 256 px"]
    assert sum(row["read"] for row in broken) <= 0.05 * sum(row["n"] for row in broken)
    for kind in ("words, 96 x 32", "signs in scenes, 256 px"):
        assert of[kind]["read"] >= 0.95 * of[kind]["n"]
    assert of["no words, 256 px"]["read"] == 0


# --- in a localisation


def hung(pictures: list[Image.Image], size: int, angle: float) -> list[Image.Image]:
    """Signs turned by an angle in degrees on one wall like a photograph, of size x size pixels."""
    made = []
    for picture in pictures:
        wall = calibration.draw_wall(random.Random(1), (size, size))
        sign = picture.resize((size // 2, size // 6), Image.Resampling.BICUBIC).convert("RGBA")
        sign = sign.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        wall.paste(sign, (size // 5, size // 3), sign)
        made.append(wall)
    return made


# The example signs_in_scenes finds the site of tiny-mmdit at 512 px in every run.
@pytest.mark.long
@pytest.mark.parametrize(
    "reader, size, angle",
    [
        ("ppocr", 512, -8),
        ("ppocr", 1024, 8),
        ("agreement", 512, -8),
        ("agreement", 512, 8),
        ("agreement", 1024, 8),
    ],
)
def test_the_site_is_found_in_scenes(reader, size, angle, monkeypatch):
    """tiny-mmdit's signs hang turned in a scene, and nobody says where: its site is found all the same.

    Two of three words count.  The background is what lies beside the lettering that was found.
    """
    pipeline = load("tiny-mmdit")
    pipeline.defaults = replace(pipeline.defaults, text_box=None)
    plain = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda x: hung(plain(x), size, angle))
    pairs = sign_pairs(3, split="test", same_scene=True)
    found = localize(pipeline, pairs, sites=[0, 1], ocr=reader).result
    assert found["ranked"][0] == 1
    first, second = found["sites"]
    assert first["exact_target"]["value"] == 0 and second["exact_target"]["value"] > 0.6
    assert second["exact_source"]["value"] == 0
    assert second["ssim"]["value"] > 0.9 and second["n_background"] == 3


def both_are_left_out(pipeline) -> None:
    """Require that the pictures of a pair are alike beside the lettering that was read in either."""
    plain = Image.effect_noise((96, 64), 60).convert("RGB")
    one, other = plain.copy(), plain.copy()
    one.paste("red", (10, 10, 26, 14))
    other.paste("blue", (60, 40, 76, 44))
    lines = [Line("A", reading.corners_of(box)) for box in ((10, 10, 26, 14), (60, 40, 76, 44))]
    told = Told(*(Reading((line,)) for line in lines))
    pairs = [Pair('a sign that says "ON"', 'a sign that says "OFF"')]
    scored = Trials(pipeline, pairs, ocr=told).scored({"source": one, "swap": other}, 0)
    told.readings = (Reading((lines[1],)),)
    later = Trials(pipeline, pairs, ocr=told).scored({"swap": other}, 0, scored["source"])
    for entries in (scored, later):
        assert entries["swap"]["ssim"] == pytest.approx(1, abs=1e-12)
        assert entries["swap"]["mse"] == 0 and entries["swap"]["mse_uint8_wrapped"] > 0


def test_a_trial_leaves_out_the_lettering_of_both_pictures():
    """Where a model has no text box, whether the source is made now or was before."""
    both_are_left_out(small_pipeline(defaults=replace(DEFAULTS, text_box=None)))


def test_lettering_of_one_picture_alone_is_noticed(monkeypatch):
    """Fault: only the picture's own lettering is left out.  (planted fault)"""
    plant(
        monkeypatch,
        Trials,
        "scored",
        "self._lettering(source or entries[SOURCE], entries[name])",
        "self._lettering(entries[name])",
    )
    with pytest.raises(AssertionError):
        both_are_left_out(small_pipeline(defaults=replace(DEFAULTS, text_box=None)))


def test_lettering_everywhere_leaves_no_background():
    """Where what is read covers the picture, it has no background scores, and no error ends the run."""
    pipeline = small_pipeline(defaults=replace(DEFAULTS, text_box=None))
    everywhere = Reading((Line("A", reading.corners_of((0, 0, 96, 32))),))
    pairs = [Pair('a sign that says "ON"', 'a sign that says "OFF"')]
    trials = Trials(pipeline, pairs, ocr=Told(everywhere))
    assert "ssim" not in trials.scored({"source": Image.new("RGB", (96, 32))}, 0)["source"]


def test_the_report_tells_what_is_in_doubt():
    """A word that does not count stands beside "(nothing)", as text."""
    picture = {"read": "", "unconfirmed": "<HABIT>", "image": None, "f1_target": 0.0}
    told = gallery._caption(picture | word_scores("", ("HABIT", "FOCUS")), ("HABIT", "FOCUS"))
    assert "(nothing)" in told and "in doubt: &lt;HABIT&gt;" in told
    both = picture | {"unconfirmed": ""} | word_scores("", ("HABIT", "FOCUS"))
    assert "in doubt" not in gallery._caption(both, ("HABIT", "FOCUS"))


def test_the_report_outlines_what_was_read():
    """Each line's box in shares of the picture, its text as title, and neither is markup.

    Nothing is outlined where a reader tells no place, or the picture is not on the page.
    """
    found = Reading((Line("ON", SQUARE), Line("A")), (Line("<b>", SQUARE),))
    pipeline = small_pipeline(defaults=replace(DEFAULTS, text_box=None))
    pairs = [Pair('a sign that says "ON"', 'a sign that says "OFF"')]
    image = Image.new("RGB", (96, 32))
    scored = Trials(pipeline, pairs, ocr=Told(found)).scored({"source": image}, 0)["source"]
    place = 'style="left: 0.00%; top: 0.00%; width: 9.38%; height: 12.50%"'
    told = gallery._column("t", [(0, scored)], ("ON", "OFF"), "")
    assert told.count("<i ") == 2 and f'<i title="ON" {place}></i>' in told
    assert f'<i title="&lt;b&gt;" {place}></i>' in told
    for shown, seen in ((image, ()), ("a.png", scored["lettering"]), (None, scored["lettering"])):
        assert "<i " not in figure(shown, "t", seen=seen)


def test_the_lettering_of_both_pictures_is_left_out():
    """Pictures that differ where one of them has lettering are alike beside the boxes of both.

    With the box of one alone they are not.
    """
    plain = Image.effect_noise((60, 40), 60).convert("RGB")
    one, other = plain.copy(), plain.copy()
    one.paste("red", (5, 5, 15, 15))
    other.paste("blue", (40, 5, 55, 15))
    boxes = [(5, 5, 15, 15), (40, 5, 55, 15)]
    assert picture_scores(one, other, boxes)["ssim"] == pytest.approx(1, abs=1e-12)
    assert all(picture_scores(one, other, [box])["mse"] > 0 for box in boxes)
    assert reading.grown((10, 10, 30, 18)) == (8, 8, 32, 20)


def test_the_command_line_reads_by_agreement(tmp_path, monkeypatch, capsys):
    """--reader agreement is in the manifest and the result, with a column of disagreement."""
    monkeypatch.chdir(tmp_path)
    search = "localize planted-mmdit --pairs 2 --steps 2 --sites 1 --same-scene --out run --reader agreement"
    assert cli.main(search.split()) == 0
    result = json.loads((tmp_path / "run/results.json").read_text())
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert (
        result["over_reading"] == manifest["over_reading"] and manifest["over_reading"]["n"] == 600
    )
    assert result["ocr"]["engine"] == "agreement" and result["sites"][0]["n"] == 2
    assert 0 <= result["sites"][0]["disagreement"]["value"] <= 1
    assert result["sites"][0]["f1_target"]["value"] > 0.5
    assert cli.main([*search.split()[:-1], "ppocr"]) == 2
    assert "ocr.engine" in capsys.readouterr().err
    assert cli.main("localize tiny-mmdit --what style --reader ppocr".split()) == 2
    assert "--reader ppocr reads words" in capsys.readouterr().err
