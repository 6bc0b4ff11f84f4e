"""Localising on the shipped models, whose words tesseract reads."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from support.localizing import PAIR, Parrot, planted_site
from support.planting import plant
from support.small_models import DEFAULTS, small_pipeline
from textpatch import PatchError, Row, load, localize, sample
from textpatch import groups as groups_
from textpatch.errors import OCRError, PromptError
from textpatch.localization import preconditions, trials
from textpatch.localization.layers import check
from textpatch.metrics import Tesseract, alphabet_of
from textpatch.metrics.readers.known_words import KNOWN_WORDS, draw
from textpatch.prompts.pairs import Pair
from textpatch.weights.loading import shipped_models
from textpatch.weights.signs import evaluation
from textpatch.weights.signs.drawing import SignFormat
from textpatch.weights.signs.pairs import sign_pairs
from textpatch.weights.signs.words import TEST


@pytest.fixture(scope="module")
def planted():
    return load("planted-mmdit")


def check_planted_site_is_found(pipeline):
    """Require that the planted site alone writes the target's word on the source's picture."""
    result = localize(pipeline, sign_pairs(2, split="test"), steps=2).result
    exact = {site["site"]: site["exact_target"]["value"] for site in result["sites"]}
    assert result["ranked"][0] == planted_site()
    assert exact.pop(planted_site()) >= 0.75 and set(exact.values()) == {0.0}
    assert result["sites"][planted_site()]["ssim"]["value"] > 0.95


def test_the_planted_site_is_found(planted):
    """The best site is the site of the recipe."""
    check_planted_site_is_found(planted)


def test_a_swap_one_site_off_is_noticed(planted, monkeypatch):
    """Every swap goes to the next site, and the wrong site is found.  (planted fault)"""
    honest = groups_.rows_and_plan

    def one_off(pair, seed, groups, *rest):
        rows, plan = honest(pair, seed, groups, *rest)
        moved = honest(
            pair, seed, [(groups[(i + 1) % len(groups)]) for i in range(len(groups))], *rest
        )[1]
        return rows, type(plan)(
            type(a)(b.sites, a.readers, a.donor, a.steps)
            for a, b in zip(plan.swaps, moved.swaps, strict=True)
        )

    monkeypatch.setattr(trials, "rows_and_plan", one_off)
    with pytest.raises(AssertionError):
        check_planted_site_is_found(planted)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=[pytest.mark.long] * name.startswith("planted"))
        for name in shipped_models()
        if name not in ("tiny-if-ii", "tiny-words")
    ],
)
def test_held_out_words_are_read_as_well_as_clean_drawings(model, long):
    """exact(model) >= 0.95 exact(clean drawings) on held-out words of four letters or more, --long all 283.

    The short form asks the tiny models for 2 words, and for one of DeepFloyd IF's, whose 20 steps in pixels
    cost most.  The planted models' words are read where their site is found, and tiny-words' two lines in
    tests/weights/test_signs_of_two_lines.py.
    """
    fmt, ocr = SignFormat(), Tesseract()
    few = 1 if model.endswith("-if") else 2
    signs = evaluation.held_out_signs(len(TEST) if long else few, fmt)
    assert min(len(sign.word) for sign in signs) >= 4
    clean = evaluation.reading_accuracy(
        evaluation.clean_pictures(signs, fmt), signs, fmt, ocr
    ).mean()
    made = evaluation.reading_accuracy(
        evaluation.generated_pictures(load(model), signs), signs, fmt, ocr
    ).mean()
    assert made >= 0.95 * clean > 0.9


class Waiting(Parrot):
    """A reader whose first reading lasts until the second pair is being generated.

    seconds  that it waits at most
    in_time  whether that began while it read
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.begun = threading.Semaphore(0)
        self.in_time = None

    def read(self, images, boxes=None):
        if self.in_time is None:
            self.begun.acquire()  # the pair that is read
            self.in_time = self.begun.acquire(timeout=self.seconds)
        return super().read(images, boxes)


def require_reading_beside(seconds: float, monkeypatch) -> None:
    """Require that pictures are read while others are generated."""
    reader = Waiting(seconds)
    honest = trials.sample_latents

    def generating(*args, **options):
        reader.begun.release()
        return honest(*args, **options)

    monkeypatch.setattr(trials, "sample_latents", generating)
    localize(small_pipeline(), [PAIR, PAIR[::-1]], ocr=reader)
    assert reader.in_time


def test_reading_overlaps_generation(monkeypatch):
    """The second pair is being generated before the first is read."""
    require_reading_beside(60, monkeypatch)


def test_reading_that_holds_generation_up_is_noticed(monkeypatch):
    """Fault: what is to be read is read at once."""

    class AtOnce(ThreadPoolExecutor):
        def submit(self, work):
            done = Future()
            done.set_result(work())
            return done

    monkeypatch.setattr(trials, "ThreadPoolExecutor", AtOnce)
    with pytest.raises(AssertionError):
        require_reading_beside(0.05, monkeypatch)


class Blind(Parrot):
    """A reader that reads nothing."""

    def self_test(self):
        raise OCRError("read 0 of 18 known words")


def test_a_blind_reader_is_an_error_before_anything_runs(monkeypatch):
    """No score is reported by an engine that fails its self-test, and nothing is generated."""
    monkeypatch.setattr(
        trials, "sample_latents", lambda *a, **k: pytest.fail("generated all the same")
    )
    with pytest.raises(OCRError, match="0 of 18"):
        localize(small_pipeline(), [PAIR], ocr=Blind())


def test_lettering_that_leaves_no_background_is_refused_before_anything_runs(monkeypatch):
    """A text box without a window of 11 x 11 beside it is named with the picture's size.

    Nothing is generated.
    """
    monkeypatch.setattr(
        trials, "sample_latents", lambda *a, **k: pytest.fail("generated all the same")
    )
    pipeline = small_pipeline(defaults=replace(DEFAULTS, text_box=(7, 9, 90, 24)))
    with pytest.raises(
        PatchError,
        match=r"text_box \(7, 9, 90, 24\) of pictures of 32x96 pixels .* no window of 11x11",
    ):
        localize(pipeline, [PAIR], ocr=Parrot())


def test_a_pair_that_is_there_twice_is_refused_before_anything_runs(monkeypatch):
    """One pair six times is refused, for it would narrow every interval."""
    monkeypatch.setattr(
        trials, "sample_latents", lambda *a, **k: pytest.fail("generated all the same")
    )
    with pytest.raises(
        PromptError, match="pairs 0 and 2 are the same, .* give each pair once, and more seeds"
    ):
        localize(small_pipeline(), [PAIR, PAIR[::-1], list(PAIR)], ocr=Parrot())


class Spelling(Parrot):
    """A reader that says which characters it may answer with."""

    def __init__(self, alphabet):
        self.alphabet = alphabet

    def describe(self):
        return {"engine": "parrot", "alphabet": self.alphabet}


def test_words_the_reader_cannot_spell_are_refused_before_anything_runs(monkeypatch):
    """The error names the word, its letters, the reader's, and what to do.  Nothing is generated."""
    monkeypatch.setattr(
        trials, "sample_latents", lambda *a, **k: pytest.fail("generated all the same")
    )
    with pytest.raises(
        PromptError,
        match="'TIGER' has 'T', 'I', 'G', 'R', and Spelling answers with 'HOUSE' alone; .*in Python: ocr=",
    ):
        localize(small_pipeline(), [PAIR], ocr=Spelling("HOUSE"))


@pytest.mark.parametrize(
    "words, reader, unknown",
    [
        (("HOUSE", "ON AIR"), Tesseract(), ""),
        (("HOUSE", "house"), Tesseract(), "h"),
        (("HOUSE", "Route"), Tesseract(), "o"),
        (("HOUSE", "A380"), Tesseract(), "3"),
        (("1984", "A380"), Tesseract(alphabet=alphabet_of(["1984"])), ""),
        (("House", "on air"), Tesseract(alphabet=alphabet_of(["Aa"])), ""),
        (("ÉTÉ", "A"), Tesseract(), "É"),
        (("ÉTÉ", "a1"), Parrot(), ""),
    ],
)
def test_letters_count_as_they_are_written(words, reader, unknown):
    """The reader of capitals refuses small letters and digits, and no blanks.

    A reader without an alphabet takes all.
    """
    pairs = [Pair(*(f'a sign that says "{word}"' for word in words))]
    refused = nullcontext()
    if unknown:
        refused = pytest.raises(PromptError, match=f"has '{unknown}'")
    with refused:
        preconditions.require_known_letters(pairs, reader)


def test_the_alphabet_of_words_spells_them_and_no_more():
    """The alphabet has capitals always, and small letters and digits where a word has one.

    Read with it, such words are read.
    """
    words = [
        word for form in (str.upper, str.lower, str.title) for word in map(form, KNOWN_WORDS[:6])
    ] + ["1984", "747"]
    assert [len(alphabet_of(some)) for some in (["HOUSE"], ["House"], ["A4"], words, [])] == [
        26,
        52,
        36,
        62,
        26,
    ]
    read = Tesseract(alphabet=alphabet_of(words)).read([draw(word, 24) for word in words])
    assert [one.text.lower() for one in read] == [word.lower() for word in words]


def test_a_planted_reader_of_unknown_letters_is_noticed(monkeypatch):
    """Letters are compared as scores are, without case, so that small ones pass.  (planted fault)"""
    plant(
        monkeypatch,
        preconditions,
        "require_known_letters",
        "not knows(reader, letter)",
        "not knows(reader, letter.upper())",
    )
    with pytest.raises(pytest.fail.Exception):
        test_letters_count_as_they_are_written(("HOUSE", "house"), Tesseract(), "h")


def test_scores_are_means_over_pairs_and_seeds():
    """HOUSE is read everywhere, and is the source of one pair and the target of the other.

    So the means are 1/2, 1/2, and 5 edits on one of two.
    """
    result = localize(small_pipeline(), [PAIR, PAIR[::-1]], seeds=(0, 1), ocr=Parrot()).result
    site = result["sites"][0]
    assert [site[name]["value"] for name in ("exact_source", "exact_target", "edit_source")] == [
        0.5,
        0.5,
        2.5,
    ]
    assert site["n"] == 4 and result["pairs"] == 2 and result["ocr"] == {"engine": "parrot"}
    assert (
        result["baselines"]["source"]["mse"]["value"] == 0
        and result["baselines"]["source"]["psnr"]["value"] is None
    )


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(start=2), "start is 2 of 2 steps"),
        (dict(start=-1), "start is -1 of 2 steps"),
        (dict(start="0"), "start is '0' of 2 steps"),
        (dict(start=0.5), "start is 0.5 of 2 steps"),
        (dict(sites=[9]), "no site index 9"),
        (dict(sites="x.*"), r"no site 'x\.\*'"),
        (dict(steps=0), "0 steps"),
        (dict(seeds=()), "no seed was given"),
        (dict(seeds=np.array([0.5])), "give a whole number of 0 to"),
        (dict(seeds=np.array([3, 3])), "seeds 3, 3 were asked for, one of them twice"),
        (dict(seeds=np.array([[1, 2]])), "give a whole number of 0 to"),
        (dict(seeds=None), "seeds are None; give a list of whole numbers"),
        (dict(groups=[(0,), (0,)]), "asked for twice"),
        (dict(groups=[]), "no set of sites was given"),
        (dict(groups=[(0, 1)], sites=[0]), "groups replace sites"),
        (dict(branch="cond"), "there is no other branch"),
        (dict(branch="uncond", guidance=2), "known: both, cond"),
    ],
)
def test_requests_that_cannot_be_carried_out(options, says):
    """PatchError for what a search cannot do, from `localize` and from `check`.

    That is an unknown site, a start outside the run, seeds that are none, sets that are none or twice there
    or beside sites, and one branch of a run that has no other.
    """
    pipeline = small_pipeline()
    with pytest.raises(PatchError, match=says):
        localize(pipeline, [PAIR], ocr=Parrot(), **options)
    with pytest.raises(PatchError, match=says):
        check(pipeline, [PAIR], **{"steps": 2, "guidance": 1.0, **options})


def test_numbers_of_numpy_are_numbers():
    """Seeds in an array and a start of numpy's give the result of Python's, which is plain JSON."""
    options = [dict(seeds=[0, 3], start=1), dict(seeds=np.array([0, 3]), start=np.int64(1))]
    plain, theirs = (
        json.dumps(localize(small_pipeline(), [PAIR], ocr=Parrot(), **some).result)
        for some in options
    )
    assert plain == theirs


def test_a_negative_prompt_without_guidance_is_refused():
    """PatchError in plain and in lock-step generation, for at guidance 1 no row reads the negative prompt."""
    pipeline = small_pipeline()
    with pytest.raises(PatchError, match="no effect at guidance 1"):
        pipeline.generate(PAIR[0], seeds=0, guidance=1, negative=PAIR[1])
    with pytest.raises(PatchError, match="no effect at guidance 1"):
        sample(pipeline, [Row("a", PAIR[0])], guidance=1, negative=PAIR[1])
