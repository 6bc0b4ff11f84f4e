"""Signs are read from pictures, pairs differ in one attribute, and planted carriers are found."""

import importlib
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.by_default import taking
from support.small_models import DEFAULTS, small_pipeline
from textpatch import localize
from textpatch.errors import OCRError, PatchError, PromptError
from textpatch.localization import trials
from textpatch.localization.trials import Trials
from textpatch.prompts.pairs import Pair, quoted, quoted_texts
from textpatch.sampling import Samples
from textpatch.weights.signs import reader as attributes
from textpatch.weights.signs.drawing import (
    PATTERNS,
    PHASES,
    Sign,
    SignFormat,
    draw_wall,
    random_sign,
)
from textpatch.weights.signs.evaluation import clean_pictures
from textpatch.weights.signs.pairs import ATTRIBUTES, attribute_pairs
from textpatch.weights.signs.reader import SignReader, read_sign
from textpatch.weights.signs.words import TEST, VALIDATION

FMT = SignFormat()


def drawn(sign: Sign, noise: float = 0, seed: int = 0, fmt: SignFormat = FMT) -> Image.Image:
    (picture,) = clean_pictures([sign], fmt)
    grey = np.random.default_rng(seed).normal(0, noise, (fmt.height, fmt.width, 3))
    return Image.fromarray((np.asarray(picture) + grey).clip(0, 255).astype(np.uint8))


# --- reading


@settings(max_examples=max(settings().max_examples // 2, 1))
@given(st.integers(0, 10**6))
def test_reading_undoes_drawing(seed):
    """read(draw(sign) + n) = sign, n normal of standard deviation 15 of 255, and at twice the size."""
    sign = random_sign(random.Random(seed), FMT)
    assert read_sign(drawn(sign, 15, seed)) == sign
    assert read_sign(drawn(sign, fmt=FMT.enlarged(2)), FMT.enlarged(2)) == sign


@given(st.sampled_from(PATTERNS[1:]), st.integers(0, 10**6))
def test_faint_patterns_that_begin_anew_are_read(pattern, seed):
    """A wall at 0.6 of its contrast and of another phase in each quarter has the same pattern."""
    rng = random.Random(seed)
    sign = replace(random_sign(rng, FMT), pattern=pattern)
    picture = np.asarray(drawn(replace(sign, pattern="plain")), np.float32)
    bare = draw_wall(sign.wall, "plain", FMT, 0)
    for left in range(0, 96, 24):
        wall = bare + 0.6 * (draw_wall(sign.wall, pattern, FMT, rng.choice(PHASES)) - bare)
        picture[:5, left : left + 24], picture[-5:, left : left + 24] = (
            wall[:5, left : left + 24],
            wall[-5:, left : left + 24],
        )
    assert read_sign(Image.fromarray(picture.round().astype(np.uint8))) == sign


def test_no_letters_are_no_word():
    """A plate without lettering, whose pixels are those behind the word of another, reads ""."""
    picture, (left, top, right, bottom) = drawn(Sign("WORD", "red")), FMT.text_box
    picture.paste(picture.getpixel((left, top)), (left, top, right, bottom))
    assert read_sign(picture) == replace(Sign("", "red"), style=read_sign(picture).style)


def test_a_picture_of_another_size_is_refused():
    """A picture of another size than the format's is refused with both sizes, for places are the format's."""
    with pytest.raises(PatchError, match="96x32 pixels, found a picture of 64x32"):
        read_sign(Image.new("RGB", (64, 32)))


@pytest.fixture
def forgetful():
    """No drawing is remembered, before and after."""
    drawings = attributes._walls, attributes._plates, attributes._letters
    for each in drawings:
        each.cache_clear()
    yield
    for each in drawings:
        each.cache_clear()


@pytest.mark.parametrize("part", ["word_mask", "plate_mask", "draw_wall"])
def test_a_reader_that_draws_otherwise_is_noticed(part, forgetful, monkeypatch):
    """The reader's self-test raises OCRError for mirrored letters, plates or walls.  (planted fault)"""
    honest = getattr(attributes, part)
    monkeypatch.setattr(attributes, part, lambda *which: np.flip(honest(*which), 1))
    with pytest.raises(OCRError, match="of 20 drawings right, all are needed"):
        SignReader().self_test()


def test_the_reader_passes_its_self_test():
    """All of 20 drawings, and what a manifest needs is plain data."""
    SignReader().self_test()
    assert SignReader().describe()["format"]["width"] == 96


# --- pairs


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_pairs_differ_in_one_attribute(attribute):
    """Source and target signs differ in the attribute and in nothing else.

    No plate has its wall's colour.
    """
    pairs = attribute_pairs(attribute, 40)
    for pair in pairs:
        a, b = map(asdict, pair.signs)
        assert [name for name in ATTRIBUTES if a[name] != b[name]] == [attribute]
        assert (pair.source, pair.target) == tuple(sign.prompt() for sign in pair.signs)
        assert (
            a["colour"] != a["wall"]
            and b["colour"] != b["wall"]
            and {a["word"], b["word"]} <= set(VALIDATION)
        )
    assert pairs == attribute_pairs(attribute, 40) != attribute_pairs(attribute, 40, seed=1)
    assert [p.signs[0] for p in pairs] == [p.signs[0] for p in attribute_pairs("word", 40)]


def test_pairs_that_cannot_be_made():
    """An unknown attribute is answered with the closest.  The test words are others."""
    with pytest.raises(PatchError, match="no 'colours'; closest: colour"):
        attribute_pairs("colours", 2)
    with pytest.raises(PatchError, match="asked for 60 pairs"):
        attribute_pairs("wall", 60)
    assert {pair.signs[0].word for pair in attribute_pairs("wall", 60, split="test")} <= set(TEST)


def test_a_reading_is_scored_by_its_attribute():
    """The target's value scores 1, and the source's and any third score 0.

    others = how much of the other five attributes is the source's.
    """
    (pair,) = [p for p in attribute_pairs("shape", 8) if p.words == ("sign", "arrow")][:1]
    seen = asdict(pair.signs[0])
    for shape, target, source in (("arrow", 1, 0), ("sign", 0, 1), ("badge", 0, 0)):
        scores = pair.scored(seen | {"shape": shape, "wall": "none"})
        assert (scores["read"], scores["others"]) == (shape, 0.8)
        for side, right in (("target", target), ("source", source)):
            assert [
                scores[f"{name}_{side}"] for name in ("exact", "precision", "recall", "edit")
            ] == [right] * 3 + [1 - right]


def test_a_word_is_scored_by_its_letters():
    """Of a pair that differs in its word, precision and recall are those of characters."""
    (pair,) = attribute_pairs("word", 1)
    scores = pair.scored(asdict(pair.signs[0]) | {"word": pair.words[1][:2]})
    assert scores["precision_target"] == pytest.approx(1) and scores[
        "recall_target"
    ] == pytest.approx(2 / len(pair.words[1]))


# --- planted carriers


def simulated(carriers: dict):
    """A `sample_latents` that draws signs.

    A patched row has those attributes of the target whose sites are all swapped.
    """

    def sample_latents(pipeline, rows, plan, **options):
        signs = {row.name: read_prompt(row.prompt) for row in rows}
        for swap in plan.swaps:
            (reader,) = swap.readers
            told = signs[swap.donor]
            carried = {
                a: getattr(told, a) for a, sites in carriers.items() if sites <= {*swap.sites}
            }
            signs[reader] = replace(signs[reader], **carried)
        pictures = (
            torch.from_numpy(np.array(picture))
            for picture in clean_pictures(list(signs.values()), FMT)
        )
        latents = {
            name: picture.permute(2, 0, 1) / 127.5 - 1
            for name, picture in zip(signs, pictures, strict=True)
        }
        return Samples(latents, {}, plan, tuple(rows), options["steps"], options["guidance"])

    return sample_latents


def read_prompt(prompt: str) -> Sign:
    """The sign of a prompt, looked up among those it can be of."""
    _, colour, shape, *rest, before, wall, _ = prompt.split()
    pattern = before if before in PATTERNS else "plain"
    style = rest[rest.index("in") + 1] if "in" in rest else "plain"
    return Sign(quoted(prompt), colour, shape, wall, pattern, style)


CARRIERS = {
    "word": {0},
    "style": {0, 2},
    "colour": {1},
    "shape": {1, 2},
    "wall": {2},
    "pattern": {0, 1, 2},
}


@pytest.fixture(scope="module")
def three_sites():
    return small_pipeline(num_layers=3)


@pytest.fixture
def carries(monkeypatch):
    """The benchmark, as a script finds its neighbours."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("carries")


def check_carriers(attribute: str, pipeline, carries):
    """Require that carriers are found and all else stays.

    They are one site alone, or several that do nothing alone, found by what is lost without each.
    """
    found = carries.Carriers(pipeline, attribute, 8, 1.0, None)
    sites, summary = CARRIERS[attribute], found.summary()
    single = len(sites) == 1
    assert set(found.needed) == set(found.set) == sites
    assert (summary["half"], summary["all_sites"] > 0.5) == (int(single), True)
    rows = {row["sites"]: row for row in found.rows()}
    alone = [rows[str(site)] for site in range(3)]
    assert [row["share"] for row in alone] == pytest.approx(
        [float(sites == {site}) for site in range(3)]
    )
    assert [row["others"] for row in alone] == [1, 1, 1] and rows["0+1+2"]["exact"] == rows[
        "target"
    ]["exact"] == 1


@pytest.mark.parametrize("attribute", taking(("word", "colour", "shape"), ATTRIBUTES))
def test_planted_carriers_are_found(attribute, three_sites, carries, monkeypatch):
    """The carriers are the sites that a simulated model takes each attribute from, by default of three."""
    monkeypatch.setattr(trials, "sample_latents", simulated(CARRIERS))
    check_carriers(attribute, three_sites, carries)


@pytest.mark.parametrize("attribute", taking(("word", "colour"), ATTRIBUTES))
def test_other_carriers_are_noticed(attribute, three_sites, carries, monkeypatch):
    """A model that takes the attribute from other sites, or another along with it, is noticed.

    By default of two attributes, as the check is one for all.  (planted fault)
    """
    elsewhere = CARRIERS | {
        attribute: {(1 + max(CARRIERS[attribute])) % 3} if len(CARRIERS[attribute]) < 3 else {0}
    }
    monkeypatch.setattr(trials, "sample_latents", simulated(elsewhere))
    with pytest.raises(AssertionError):
        check_carriers(attribute, three_sites, carries)


def test_localize_takes_signs_for_words(three_sites, monkeypatch):
    """Other pairs and another reader give the same search, with the values as its words."""
    monkeypatch.setattr(trials, "sample_latents", simulated(CARRIERS))
    result = localize(three_sites, attribute_pairs("colour", 6), ocr=SignReader()).result
    assert (
        result["ranked"][0] == 1
        and result["set"]["sites"] == [1]
        and result["ocr"]["engine"] == "nearest drawing"
    )
    assert (
        result["sites"][1]["exact_target"]["value"] == 1
        and result["sites"][0]["exact_source"]["value"] == 1
    )
    with pytest.raises(PatchError, match="is not quoted; use another mode"):
        localize(
            three_sites, attribute_pairs("wall", 4), ocr=SignReader(), mode="contribution", keep=1
        )


# --- several words


class Says:
    """A reader that always says the same, with or without the blanks of what it reads."""

    def __init__(self, text: str, blank: bool):
        self.text, self.blank = text, blank

    def self_test(self):
        pass

    def read(self, images, boxes=None):
        return [self.text] * len(images)

    def describe(self):
        return {"engine": "says", "blank": self.blank}


@pytest.mark.parametrize("quote", ['"ON AIR"', '"ON" "AIR"', '"ON  AIR"', '" ON" and "AIR "'])
@pytest.mark.parametrize(
    "text, blank, right",
    [("ONAIR", False, 1), ("ON AIR", True, 1), ("ONAIR", True, 0), ("AIRON", False, 0)],
)
def test_texts_of_several_words_are_read_in_order(quote, text, blank, right, three_sites):
    """Words in their order score exact = 1.  A reader that drops blanks is asked for none."""
    pairs = [(f"a sign that says {quote}", 'a sign that says "OFF"')]
    record = Trials(replace_check(three_sites), pairs, ocr=Says(text, blank))
    scores = record.pairs[0].scored(text, blanks=record.blanks)
    assert scores["exact_source"] == right and scores["recall_source"] == pytest.approx(
        5 / 6 if blank and not right else 1
    )


def replace_check(pipeline):
    """The pipeline with words it has never heard of allowed."""
    other = pipeline.at(DEFAULTS.height, DEFAULTS.width)
    other.check = lambda prompts, **options: None
    return other


def test_one_text_is_asked_for_where_two_cannot_be():
    """`quoted` names both texts.  Quotes left open are refused by all."""
    assert quoted_texts('"A  B" or "C"') == ["A B", "C"] and Pair('"A" "B"', '"C"').words == (
        "A B",
        "C",
    )
    with pytest.raises(PromptError, match='2 quoted texts in .* write "A B"'):
        quoted('a sign that says "A" and "B"')
    with pytest.raises(PromptError, match="no quoted word"):
        quoted_texts('a sign that says "A" and "B')


# --- sizes


def test_another_size_shares_the_weights(three_sites):
    """at(own size) makes the same picture bit for bit, and at(h, w) makes h x w.

    The first pipeline stays as it was.
    """
    prompt, same = attribute_pairs("word", 1)[0].source, three_sites.at(32, 96)
    assert (
        same.generate(prompt, seeds=0)[0].tobytes()
        == three_sites.generate(prompt, seeds=0)[0].tobytes()
    )
    assert three_sites.at(64, 32).generate(prompt, seeds=0)[0].size == (32, 64)
    assert (
        same.denoiser is three_sites.denoiser
        and same.defaults.text_box is None
        and three_sites.defaults == DEFAULTS
    )


def test_sdxls_sizes_grow_along(three_sites):
    """Original, crop and wanted size are times the height or the width."""
    told = small_pipeline(defaults=replace(DEFAULTS, micro=(32, 96, 0, 8, 32, 96)))
    assert told.at(64, 48).defaults.micro == (64, 48, 0, 4, 64, 48)
    assert told.encode(["a"]).micro.tolist() == [[32, 96, 0, 8, 32, 96]]
    assert torch.equal(
        told.at(64, 48).encode(["a"]).micro, torch.tensor([[64.0, 48, 0, 4, 64, 48]])
    )


@pytest.mark.parametrize(
    "size, why",
    [
        ((0, 32), "0x32"),
        ((30, 96), "do not divide into patches of 4x4"),
        ((32, 128), "position table holds 24x24"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size, why, three_sites):
    """PatchError for no pixels, no whole patches, and more patches than there are positions."""
    with pytest.raises(PatchError, match=why):
        three_sites.at(*size).generate("a red sign", seeds=0)
