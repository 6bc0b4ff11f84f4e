"""Several texts in one prompt: each is exchanged, read and scored by itself, and they are scored together."""

import json
import re
from dataclasses import replace

import pytest

from support.planting import plant
from support.small_models import DEFAULTS, save_small, small_pipeline
from textpatch import PatchError, cli, edit, load, localize
from textpatch.errors import PromptError
from textpatch.localization import trials
from textpatch.metrics.readers import reading
from textpatch.metrics.readers.reading import Line, Reading, corners_of, line_boxes, texts_in
from textpatch.prompts import tokens
from textpatch.prompts.alignment import word_tokens
from textpatch.prompts.pairs import Pair
from textpatch.prompts.tokens import shared_places, tokens_of_words
from textpatch.quotes import quoted_words, with_other_words
from textpatch.report.lines import line_by_line
from textpatch.report.page import summary_html

UPPER = (7, 2, 81, 14)
LOWER = (7, 15, 81, 30)
SOURCE = 'a red sign that says "HOU" "TI" on a blue wall'
TARGET = 'a red sign that says "BOA" "ZX" on a blue wall'


@pytest.fixture(scope="module")
def small():
    """A random model whose pictures are said to have two lines."""
    return small_pipeline(defaults=replace(DEFAULTS, text_box=(UPPER, LOWER)))


class TwoLines:
    """A reader that always reads the source's first word above the target's second."""

    def self_test(self):
        pass

    def describe(self):
        return {"engine": "two lines"}

    def read(self, images, boxes=None):
        assert boxes == [(UPPER, LOWER)] * len(images)
        return ["HOU\nZX"] * len(images)


def test_a_word_is_exchanged_by_its_number():
    """Words are counted along all texts, and the others stay as they are, escapes and signs included."""
    prompt = r'a sign “GOOD DAY” and “SAY 5"” here'
    assert with_other_words(prompt, {2: "NIGHT", 3: "A"}) == r'a sign “GOOD NIGHT” and “A 5"” here'
    spans = [prompt[one.start : one.end] for one in quoted_words(prompt)]
    assert spans == ["GOOD", "DAY", "SAY", '5"']
    assert [one.text for one in quoted_words(prompt)] == [0, 0, 1, 1]
    assert with_other_words(r'a "\"B\" C"', {2: "D"}) == r'a "\"B\" D"'


@pytest.mark.parametrize(
    "words, says",
    [
        ({3: "A"}, "in the place of word 3 of .* quotes 2: 1 HOU, 2 TI; give the number of one"),
        ({0: "A"}, "place of word 0"),
        ({2: " "}, "' ' was asked for in the place of word 2, TI, .* is no word; give letters"),
        ({}, "no word was given for .*: 1 HOU, 2 TI"),
    ],
)
def test_words_that_cannot_be_exchanged_are_refused(words, says):
    with pytest.raises(PromptError, match=says):
        with_other_words(SOURCE, words)


def test_each_word_has_its_own_tokens(small, monkeypatch):
    """Those of a word are its letters' in each encoder, and a shift by one is noticed."""
    apart = tokens_of_words(small, SOURCE)
    assert [len(places) for places in apart] == [6, 4]  # in CLIP and in T5
    assert not set(apart[0]) & set(apart[1])
    assert word_tokens(small, SOURCE) == tuple(sorted(apart[0] + apart[1]))
    assert shared_places(small, Pair(SOURCE, with_other_words(SOURCE, {2: "ZX"}))) == {2: apart[1]}
    plant(monkeypatch, tokens.PromptTokens, "of_words", "offset + place", "offset + place + 1")
    assert tokens_of_words(small, SOURCE) != apart


@pytest.mark.parametrize(
    "target, says",
    [
        ('a red sign that says "HOU" "TIX" on a blue wall', "word 2 stands at tokens .* as TI and"),
        ('a red sign that says "HOU" on a blue wall', "quotes 2 words and .* 1"),
        ('a green sign that says "HOU" "TI" on a blue wall', "are alike, so none"),
    ],
)
def test_words_whose_tokens_are_not_the_others_are_refused(small, target, says):
    with pytest.raises(PromptError, match=says):
        shared_places(small, Pair(SOURCE, target))


def test_an_edit_of_one_word_swaps_its_tokens_alone(small):
    """The plan names the tokens of the second word, which Plan and Swap take as they are."""
    made = edit(small, SOURCE, {2: "ZX"}, sites=0, tokens="changed", also=())
    (swap,) = made.plan.swaps
    assert swap.tokens == tokens_of_words(small, SOURCE)[1]
    assert made.pair.target == 'a red sign that says "HOU" "ZX" on a blue wall'
    whole = edit(small, SOURCE, {2: "ZX"}, sites=0, also=())
    assert whole.plan.swaps[0].tokens is None
    with pytest.raises(PatchError, match="the method prompt_swap has no tokens"):
        edit(small, SOURCE, {2: "ZX"}, method="prompt_swap", tokens="changed")


def test_lines_are_scored_one_by_one_and_together(small, monkeypatch):
    """Each line is held to its own texts, the page shows it, and lines that change places are noticed."""
    found = localize(small, [(SOURCE, TARGET)], sites=0, ocr=TwoLines())
    first, second = found.result["sites"][0]["texts"]
    assert first["exact_source"]["value"] == second["exact_target"]["value"] == 1
    assert first["exact_target"]["value"] == second["exact_source"]["value"] == 0
    assert found.result["sites"][0]["exact_source"]["value"] == 0
    assert found.records[0]["pictures"]["site-0"]["read"] == "HOU ZX"
    assert line_by_line(found.result).count("<tr>") == 1 + 3 * 2
    page = summary_html(found.result, found.records)
    assert '"read source">HOU</span> / <span class="read target">ZX' in page
    one = localize(
        small, [(SOURCE.replace('" "', ""), TARGET.replace('" "', ""))], sites=0, ocr=TwoLines()
    )
    assert "texts" not in one.result["sites"][0] and not line_by_line(one.result)
    plant(
        monkeypatch,
        trials.Trials,
        "_read_as",
        "texts_in(read, self.boxes)",
        "texts_in(read, self.boxes)[::-1]",
    )
    wrong = localize(small, [(SOURCE, TARGET)], sites=0, ocr=TwoLines()).result["sites"][0]["texts"]
    assert wrong[0]["exact_source"]["value"] == 0


def test_what_is_read_in_a_box_is_that_boxs(monkeypatch):
    """A line belongs to the box around its middle, lines without a place to boxes as many, else to none."""
    upper = Line("A", corners_of((8, 3, 40, 13)))
    lower = [
        Line(text, corners_of(box))
        for text, box in (("B", (8, 16, 30, 28)), ("C", (31, 14, 60, 28)))
    ]
    assert texts_in(Reading((upper, *lower)), (UPPER, LOWER)) == ["A", "B C"]
    assert texts_in(Reading((*lower,)), (UPPER, LOWER)) == ["", "B C"]
    assert texts_in(reading.as_reading("\nB"), (UPPER, LOWER)) == ["", "B"]
    assert texts_in(reading.as_reading("A B"), (UPPER, LOWER)) == []
    assert line_boxes(UPPER) == (UPPER,) and line_boxes([UPPER, LOWER]) == (UPPER, LOWER)
    assert line_boxes(None) == ()


def test_more_texts_than_lines_are_refused(small):
    three = 'a red sign that says "A" "B" "C" on a blue wall'
    with pytest.raises(PromptError, match=r"quotes 3 texts \(A, B, C\), and .* small have 2 lines"):
        edit(small, three, {2: "D"}, sites=0)
    with pytest.raises(PromptError, match="have 2 lines"):
        localize(small, [(SOURCE, three)], sites=0, ocr=TwoLines())
    # nobody knows of one place how many texts it holds
    edit(small_pipeline(), three, {2: "D"}, sites=0, also=())


def test_boxes_of_lines_are_kept_in_a_folder(small, tmp_path):
    """As lists of numbers, and other lists are refused."""
    save_small(tmp_path / "two", small)
    assert load(tmp_path / "two").defaults.text_box == (UPPER, LOWER)
    file = tmp_path / "two" / "textpatch.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps(body | {"text_box": [[1, 2, 3], [4, 5, 6, 7]]}))
    with pytest.raises(PatchError, match="text_box is .* or as many for each line"):
        load(tmp_path / "two")


@pytest.mark.parametrize(
    "word, says",
    [
        ("TIGER", "--word TIGER is one text, and .* quotes 2; .* --word 2=TIGER"),
        ("3=TIGER", "'TIGER' was asked for in the place of word 3 .* quotes 2"),
        ("2=", "'' was asked for in the place of word 2"),
        ("1=A 1=B", "names a word twice"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_a_word(word, says, capsys):
    assert cli.main(["edit", "small", "--source", SOURCE, "--word", word]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_lines_of_a_reader_without_blanks_are_scored_without_them():
    """The blank that joins two lines is nobody's reading, and the texts are read exactly."""
    pair = Pair(SOURCE, SOURCE)
    read = " ".join(pair.texts[0])
    assert " " in read and pair.scored(read, blanks=False)["exact_source"] == 1
    assert pair.scored(read.replace(" ", ""), blanks=True)["exact_source"] == 0
