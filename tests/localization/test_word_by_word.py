"""Each word exchanged alone says of simulated truths what is true, and its pictures are those of `edit`."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support.planting import plant
from support.small_models import DEFAULTS, small_pipeline
from textpatch import edit, localize
from textpatch.cli import localize_command
from textpatch.cli.parser import command_parser
from textpatch.errors import PatchError, PromptError
from textpatch.localization import word_by_word
from textpatch.localization.trials import Trials
from textpatch.localization.word_by_word import beside, donors_of, each_word, rows_each
from textpatch.prompts.pairs import Pair
from textpatch.quotes import quoted_words
from textpatch.reference_models.drawn_words import DrawnWords
from textpatch.report.headline import answer
from textpatch.report.page import report_html
from textpatch.report.word_by_word import findings, meaning, words_one_by_one

UPPER = (7, 2, 81, 14)
LOWER = (7, 15, 81, 30)
# of each pair the first word is replaced by one as long, the second by a longer one
WORDS = (
    ("HOU", "TI", "BOA", "ZXY"),
    ("SKY", "LI", "OAK", "MUG"),
    ("SUN", "OX", "KEY", "ABC"),
    ("DAY", "UP", "FOX", "OWL"),
)
PAIRS = [
    (
        f'a red sign that says "{first}" "{second}" on a blue wall',
        f'a red sign that says "{third}" "{fourth}" on a pink wall',
    )
    for first, second, third, fourth in WORDS
]
GROUPS = (0,), (1,), (0, 1)


@pytest.fixture(scope="module")
def small():
    """A random model whose pictures are said to have two lines."""
    return small_pipeline(defaults=replace(DEFAULTS, text_box=(UPPER, LOWER)))


class Written:
    """Pictures that hold what is written on two lines, and their reader.

    At site 0 words of other lengths break their lines, and others change nothing.  At site 1 any new word
    breaks its line.  Together the sites write the donor's words, but not from the tokens of one word alone.
    """

    def __init__(self):
        self.texts = []

    def self_test(self):
        pass

    def describe(self):
        return {"engine": "written"}

    def read(self, images, boxes=None):
        return [self.texts[np.asarray(image)[0, 0, 0]] for image in images]

    def sample(self, pipeline, rows, plan=(), **run):
        """Pictures by row name, each of a colour that is the number of its text."""
        words = {row.name: [one.word for one in quoted_words(row.prompt)] for row in rows}
        images = {}
        for row in rows:
            lines = words[row.name]
            for swap in (one for one in plan.swaps if row.name in one.readers):
                lines = self.swapped(swap, lines, words[swap.donor])
            self.texts.append("\n".join(lines))
            images[row.name] = Image.new("RGB", (96, 32), (len(self.texts) - 1, 0, 0))
        return SimpleNamespace(images=images)

    @staticmethod
    def swapped(swap, old: list[str], new: list[str]) -> list[str]:
        if swap.sites == (0,):
            return [a if len(a) == len(b) else "??" for a, b in zip(old, new, strict=True)]
        if swap.sites == (1,):
            return [a if a == b else "??" for a, b in zip(old, new, strict=True)]
        return old if swap.tokens is not None and len(swap.tokens) < 7 else new


def simulated(small, monkeypatch) -> tuple[dict, list[dict]]:
    """What each_word finds in the simulated truth, and its records."""
    world = Written()
    monkeypatch.setattr(word_by_word, "sample", world.sample)
    trials = Trials(small, PAIRS, ocr=world)
    made = each_word(trials, GROUPS)
    assert made["generations"] == sum(len(record["pictures"]) for record in trials.records)
    assert made["generations"] <= 4 * rows_each(2, GROUPS)
    return made, trials.records


@pytest.fixture(scope="module")
def truth(small):
    with pytest.MonkeyPatch.context() as patch:
        return simulated(small, patch)


def require_truth(found: dict) -> None:
    """Raise unless the result says what the simulated sites do."""
    places = {place["group"]: place for place in found["places"]}
    assert meaning(places["0"], found) == "where letters stand, whichever they are"
    assert meaning(places["1"], found) == "letters"
    shares = {
        (swap["donor"], swap["tokens"], swap["group"]): [
            line["exact_target"]["value"] for line in swap["lines"]
        ]
        for swap in found["swaps"]
    }
    assert shares["word 1", "all", "0+1"] == shares["exchanged", "all", "0+1"] == [1, 1]
    assert shares["word 1", "all", "1"] == [0, 1] and shares["word 2", "all", "1"] == [1, 0]
    assert shares["word 1", "its own", "0+1"] == [0, 1]
    assert shares["repeated", "all", "0+1"] == [1, 1]
    assert shares["repeated", "all", "0"] == [1, 0]


def test_simulated_sites_are_told_apart(truth):
    """A site of places, one of letters, both together, and the tokens of a word alone."""
    require_truth(truth[0])


def test_lengths_taken_for_each_other_are_noticed(small, monkeypatch):
    """Fault: words as long count as longer ones, and longer ones as words as long."""
    plant(
        monkeypatch,
        word_by_word,
        "donors_of",
        "len(word) != len(old[number - 1])",
        "len(word) == len(old[number - 1])",
    )
    found, _ = simulated(small, monkeypatch)
    with pytest.raises(AssertionError):
        require_truth(found)


def test_the_page_and_the_sentences_say_it(truth):
    """Sentences name the group that writes words best, the page has a row for each line, and pictures."""
    found, records = truth
    said = " ".join(findings(found))
    assert "Another word 1 at sites 0+1 is written in 1.00 [0.51, 1.00]" in said
    assert "Swapped alone, site 0: where letters stand, whichever they are." in said
    assert "The new word 2 is longer or shorter in 4 pictures: it is written in 1.00" in said
    assert "the tokens of the word alone write 0.00 [0.00, 0.49] of 4 (word 1)." in said
    page = words_one_by_one({"each_word": found}, records)
    assert page.count("<td>1 changes</td>") == 4 + 1 and page.count("<td>2 changes</td>") == 2 + 2
    assert page.count("<figure>") == 1 + 4 + (3 + 3) + (3 + 1) + 3 + 3
    assert words_one_by_one({}, []) == ""


def test_donors_have_other_words_in_the_sources_prompt():
    """One word of the target's at a time, the words exchanged, the first repeated; none without effect."""
    pair = Pair('a "AB" and "CD" b', 'c "EF" and "CD" d')
    assert {donor.name: (donor.prompt, donor.lines) for donor in donors_of(pair)} == {
        "word 1": ('a "EF" and "CD" b', (0,)),
        "exchanged": ('a "CD" and "AB" b', (0, 1)),
        "repeated": ('a "AB" and "AB" b', (1,)),
    }
    assert donors_of(Pair('a "AB" and "AB" b', 'a "AB" and "AB" c')) == []


def require_drawn_donors():
    """Donors that a model's card refuses are left out, here the longest words side by side."""
    draws = DrawnWords("ABCDEFGH", 2, 4, lines=2, in_all=6)
    pipeline = SimpleNamespace(defaults=SimpleNamespace(draws=draws))
    pair = Pair('a "AB" and "ABCD" b', 'a "EFGH" and "CD" b')
    assert [donor.name for donor in donors_of(pair)] == [
        "word 1",
        "word 2",
        "exchanged",
        "repeated",
    ]
    drawn = word_by_word.drawn_donors(pipeline, pair)
    assert [donor.name for donor in drawn] == ["word 2", "exchanged", "repeated"]


def test_donors_that_are_not_drawn_are_left_out(monkeypatch):
    """Fault: the card is not looked at."""
    require_drawn_donors()
    plant(monkeypatch, word_by_word, "drawn_donors", "draws.admits(donor.prompt)", "True")
    with pytest.raises(AssertionError):
        require_drawn_donors()


def test_pictures_are_those_of_edit(small, monkeypatch):
    """A swap of one word's tokens, or of all, gives what `edit` gives by the same prompt and sites."""
    trials = Trials(small, PAIRS[:1], ocr=Written())
    monkeypatch.setattr(Written, "read", lambda self, images, boxes: ["A\nB"] * len(images))
    each_word(trials, [(0, 1)])
    pictures = trials.records[0]["pictures"]
    for tokens, scope in ((None, "all"), ("changed", "its own")):
        wanted = edit(small, PAIRS[0][0], {1: "BOA"}, sites=[0, 1], tokens=tokens, also=("source",))
        made = pictures[f"word 1/{scope}/site-0+1"]
        levels = [np.asarray(image, int) for image in (made["image"], wanted.image)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
        assert made["same"] == pytest.approx(
            beside(wanted.image, wanted.source, [UPPER])["same"], abs=0.01
        )


def places_of_one_line(small, monkeypatch) -> list[dict]:
    """What is said of places by a reader that gives one line for two."""
    monkeypatch.setattr(Written, "read", lambda self, images, boxes: ["AB"] * len(images))
    return each_word(Trials(small, PAIRS[:1], ocr=Written()), [(0,)])["places"]


def test_a_reader_that_says_no_lines_says_none_that_stays(small, monkeypatch):
    """Its pictures are scored as a whole, and no line has a share."""
    assert places_of_one_line(small, monkeypatch) == [{"group": "0", "lines": []}]


def test_lines_looked_for_where_none_is_said_are_noticed(small, monkeypatch):
    """Fault: every entry is taken to have scores of each line."""
    plant(monkeypatch, word_by_word, "_at_places", "TEXTS not in entry or ", "")
    with pytest.raises(KeyError):
        places_of_one_line(small, monkeypatch)


def test_pixels_in_a_box_do_not_count():
    """Of 96 x 32 pixels a third of the lower half differs, by a little or by much."""
    source = Image.new("RGB", (96, 32), (100, 100, 100))
    other = source.copy()
    other.paste((110, 100, 100), (0, 16, 32, 32))
    assert beside(other, source, [(0, 16, 96, 32)]) == {"same": 1, "near": 1}
    assert beside(other, source, [(0, 0, 96, 16)]) == {"same": pytest.approx(2 / 3), "near": 1}
    other.paste((120, 100, 100), (0, 16, 32, 32))
    assert beside(other, source, [])["near"] == pytest.approx(5 / 6)


def test_localize_adds_it_and_refuses_what_has_no_several_words(small, monkeypatch):
    """It is part of the result and of the answer; one text, or one place, is refused before a picture."""
    monkeypatch.setattr(Written, "read", lambda self, images, boxes: ["HOU\nZX"] * len(images))
    found = localize(small, PAIRS[:1], sites=0, ocr=Written(), each_word=True)
    assert [group["name"] for group in found.result["each_word"]["groups"]] == ["0"]
    assert "Another word 1 at site 0" in answer(found.result)
    page = report_html(found.result, heatmap=bytes(24), sheet=found.records, manifest={})
    assert "Which word is where" in page
    one = [tuple(prompt.replace('" "', "") for prompt in PAIRS[0])]
    with pytest.raises(PromptError, match="do not quote several texts with as many words each"):
        localize(small, one, sites=0, ocr=Written(), each_word=True)
    with pytest.raises(PatchError, match="1 lines are known for 2 quoted texts"):
        localize(small_pipeline(), PAIRS, sites=0, ocr=Written(), each_word=True)


def test_the_command_says_beforehand_what_it_takes(small, monkeypatch):
    """The generations of each word are counted, and --no-each-word leaves them out."""
    monkeypatch.setattr(localize_command, "announced", lambda *told, **run: told[2:])
    asked = {"sites": "all", "groups": None, "steps": 2, "guidance": 1.0}
    pairs = [Pair(*PAIRS[0])]
    for flags, each, said, rows in (
        ([], 2, "(2 sites + source + target + 27 for each word alone)", 31),
        (["--no-each-word"], 0, "(2 sites + source + target)", 4),
    ):
        options = command_parser().parse_args(["localize", "small", *flags])
        assert localize_command._words_each(options, small, pairs) == each
        made, generations = localize_command._announced(options, small, asked, 1, 64, each)
        assert said in made and generations == rows
