"""Sanitizing leaves clean prompts alone, takes one pass, reads again, and tells no harmful word."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from support.planting import plant
from support.small_models import DEFAULTS, small_pipeline
from support.unets import unet
from textpatch import edit, load, sanitize
from textpatch.editing import localized
from textpatch.editing.localized import Localized
from textpatch.editing.methods import PromptSwap
from textpatch.errors import PatchError
from textpatch.guidance import SafeLatentDiffusion
from textpatch.metrics import Tesseract, ssim, windows_outside
from textpatch.prompts.pairs import Pair
from textpatch.safety import sanitizing
from textpatch.safety.methods import NegativePrompt, SafeGuidance
from textpatch.safety.replacement import NearLength
from textpatch.safety.sanitizing import Sanitizer
from textpatch.safety.word_lists import WordList

HARMFUL = 'a red sign that says "GRUMP" on a blue wall'
CLEAN = 'a red sign that says "HOUSE" on a blue wall'
LISTED = WordList(["grump"])


@pytest.fixture(scope="module")
def planted():
    return load("planted-mmdit")


@pytest.fixture(scope="module")
def small():
    return small_pipeline()


def law_clean_prompts_are_untouched(pipeline):
    """A prompt without harmful text gives the plain picture, bit for bit, and none of it is swapped."""
    for seed in (0, 7):
        (made,) = sanitize(pipeline, CLEAN, detector=LISTED, sites=0, seed=seed)
        (plain,) = pipeline.generate([CLEAN], seeds=seed)
        assert made.image.tobytes() == plain.tobytes()
        assert made.outcome == "passed" and made.edit.plan.swaps == () and made.attempts == ()


def test_clean_prompts_are_untouched(small):
    law_clean_prompts_are_untouched(small)


def test_a_touched_clean_prompt_is_noticed(monkeypatch, small):
    """Fault: a prompt in which nothing was found is drawn from another seed's noise."""
    plant(monkeypatch, sanitizing.Sanitizer, "plain", "prompt), seed", "prompt), seed + 1")
    with pytest.raises(AssertionError):
        law_clean_prompts_are_untouched(small)


def test_the_word_is_replaced_and_the_picture_stays(planted):
    """tesseract reads the benign word, and outside the lettering the picture is the harmful prompt's."""
    (made,) = sanitize(planted, [HARMFUL], detector=LISTED, verify="reader")
    (benign,) = made.screened.replacements
    (plain,) = planted.generate([HARMFUL], seeds=0)
    box = planted.defaults.text_box
    (reading,) = Tesseract().read([made.image], [box])
    assert reading.text == benign and made.outcome == "replaced"
    assert ssim(made.image, plain, windows_outside(box, plain.height, plain.width)) > 0.9


@pytest.mark.parametrize("name", ["sdxl", "if"])
def test_static_text_takes_one_row(name):
    """Where text is static the batch is that of a plain run, and the clean prompt is encoded alone."""
    pipeline = unet(name)
    rows = rows_run(pipeline, Localized(sites=0))
    assert rows == rows_run(pipeline, PromptSwap())


def test_evolving_text_takes_one_row_more(small):
    """Where text evolves the clean prompt's run goes along."""
    assert rows_run(small, Localized(sites=0)) == [2] and rows_run(small, PromptSwap()) == [1]


def test_a_donor_that_runs_along_is_noticed(monkeypatch):
    """Fault: the clean prompt is sampled although its text is static."""
    plant(
        monkeypatch, localized, "_needed", "sampled=TARGET in also or not settled", "sampled=True"
    )
    with pytest.raises(AssertionError):
        test_static_text_takes_one_row("sdxl")


def rows_run(pipeline, method) -> list[int]:
    """Distinct batch sizes of the denoiser, in rows of one branch."""
    sizes = set()
    pair = Pair(HARMFUL, CLEAN)
    hook = pipeline.denoiser.register_forward_pre_hook(
        lambda module, given: sizes.add(len(given[0]))
    )
    try:
        made = method(pipeline, pair, seed=0, steps=2, guidance=1.0, also=())
    finally:
        hook.remove()
    assert made.generations in sizes
    return sorted(sizes)


def law_of_the_models_own_sites():
    """Without sites the swap is where the model's words are replaced, else where they were localised."""
    for own, asked, sites in (
        (dict(localized=(1,), replaced=(0, 1)), {}, [0, 1]),
        (dict(localized=(1,)), {}, [1]),
        (dict(localized=(1,), replaced=(0, 1)), dict(sites=0), [0]),
        (dict(localized=(1,), replaced=(0, 1)), dict(method=Localized()), [1]),
    ):
        pipeline = small_pipeline(defaults=dataclasses.replace(DEFAULTS, **own))
        (made,) = sanitize(pipeline, HARMFUL, detector=LISTED, **asked)
        assert made.decision["sites"] == sites


def test_sites_are_the_models_own():
    law_of_the_models_own_sites()


class OwnDefaults:
    """Settings that have all that DEFAULTS have, but name no sites for `sanitize`."""

    localized = (1,)

    def __getattr__(self, name):
        if name == "replaced":
            raise AttributeError(name)
        return getattr(DEFAULTS, name)


def test_settings_of_ones_own_need_not_name_sites_for_it():
    """Words are then replaced where they were localised."""
    pipeline = small_pipeline(defaults=OwnDefaults())
    (made,) = sanitize(pipeline, HARMFUL, detector=LISTED)
    assert made.decision["sites"] == [1]


REPLACED = 'getattr(pipeline.defaults, "replaced", ()) or None'


@pytest.mark.parametrize("wrong", ["pipeline.defaults.localized", "None"])
def test_sites_of_another_kind_are_noticed(monkeypatch, wrong):
    """Fault: the word is replaced where it was localised, whatever the model's settings say."""
    plant(monkeypatch, sanitizing, "_method", REPLACED, wrong)
    with pytest.raises(AssertionError):
        law_of_the_models_own_sites()


def reading(*texts):
    """A reader that gives one text after another, whatever it is shown."""
    left = list(texts)

    def read(images, boxes=None):
        return [SimpleNamespace(text=left.pop(0))]

    return SimpleNamespace(read=read)


@pytest.mark.parametrize(
    "texts, start, outcome, tried",
    [
        (["CLOUD"], 0, "replaced", [("localized", 0, False)]),
        ([""], 0, "replaced", [("localized", 0, False)]),
        (
            ["G R U M P", "CLOUD"],
            0,
            "replaced",
            [("localized", 0, True), ("prompt_swap", None, False)],
        ),
        (["GRUMQ", "CLOUD"], 1, "replaced", [("localized", 1, True), ("localized", 0, False)]),
        (
            ["GRUMP"] * 3,
            1,
            "refused",
            [("localized", 1, True), ("localized", 0, True), ("prompt_swap", None, True)],
        ),
    ],
)
def test_a_legible_word_is_tried_otherwise(small, texts, start, outcome, tried):
    """An earlier start, then the clean prompt, then refusal, and each attempt is told."""
    (made,) = sanitize(
        small,
        HARMFUL,
        detector=LISTED,
        replacer=NearLength(["CLOUD"]),
        sites=0,
        start=start,
        verify=reading(*texts),
    )
    assert made.outcome == outcome and (made.image is None) == (outcome == "refused")
    assert [(one.method, one.start, one.legible) for one in made.attempts] == tried


def test_a_reader_that_fails_refuses(small):
    """What nobody could read is not shown."""
    (made,) = sanitize(small, HARMFUL, detector=LISTED, sites=0, verify=reading())
    assert made.image is None and made.reason == "the reader failed (IndexError)"


def test_a_word_left_legible_is_noticed(monkeypatch, small):
    """Fault: whatever is read counts as illegible."""
    plant(
        monkeypatch,
        sanitizing.Sanitizer,
        "_legible",
        "is_legible(text, screened, self.detector)",
        "False",
    )
    with pytest.raises(AssertionError):
        test_a_legible_word_is_tried_otherwise(small, ["GRUMP"] * 2, 0, "refused", [])


def test_decisions_tell_no_word(small):
    """The ledger of a prompt is JSON with places, rules and versions, and without the word."""
    made = sanitize(
        small,
        [HARMFUL, CLEAN, HARMFUL + " grump"],
        detector=LISTED,
        sites=0,
        replacer=NearLength(["CLOUD"]),
    )
    assert [one.outcome for one in made] == ["replaced", "passed", "refused"]
    told = json.dumps([one.decision for one in made])
    assert "grump" not in told.lower() and "CLOUD" in told
    (finding,) = made[0].decision["findings"]
    assert HARMFUL[finding["start"] : finding["stop"]] == "GRUMP"
    assert finding["rule"] == "plain" and finding["version"] == LISTED.version


@pytest.mark.parametrize(
    "prompt, replacer, reason",
    [
        (
            'a red sign that says "GRÜMP" on a blue wall',
            NearLength(["CLOUD"]),
            "cannot read the prompt",
        ),
        (HARMFUL, NearLength(["cloud9"]), "cannot read the replacement"),
        ("a zebra crossing", NearLength(), "cannot read the prompt"),
    ],
)
def test_what_the_model_cannot_read_is_refused(small, prompt, replacer, reason):
    """A word outside the vocabulary is a decision about one prompt, and no end of all others."""
    made = sanitize(small, [prompt, CLEAN], detector=LISTED, replacer=replacer, sites=0)
    assert reason in made[0].reason and made[1].outcome == "passed"


@pytest.mark.parametrize(
    "method, branches",
    [
        ("prompt_swap", 2),
        (NegativePrompt('a sign with text "{}"'), 2),
        (SafeGuidance('a sign with text "{}"', preset="max"), 3),
    ],
)
def test_other_methods_are_guidances_and_prompts(small, method, branches):
    """Each makes one picture under its own guidance, from the prompt that it is meant for."""
    (made,) = sanitize(small, HARMFUL, detector=LISTED, method=method, guidance=2.0)
    assert made.edit.generations == 1 and not made.edit.plan.swaps
    guidance = made.edit.guidance
    if method == "prompt_swap":
        (clean,) = small.generate([made.screened.clean], seeds=0, guidance=2.0)
        assert made.image.tobytes() == clean.tobytes()
    else:
        assert len(guidance.branches) == branches
        named = guidance.concept if branches == 3 else guidance.negative
        assert named == 'a sign with text "GRUMP"'


def test_safe_guidance_guides_an_edit(small):
    """An edit takes the guidance itself, and its picture is not that of the same scale without a concept."""
    safe, plain = (
        edit(small, HARMFUL, CLEAN, sites=0, seed=0, guidance=guidance)
        for guidance in (SafeLatentDiffusion(3.0, "a blue wall", "max"), 3.0)
    )
    assert safe.guidance.concept == "a blue wall"
    assert safe.image.tobytes() != plain.image.tobytes()


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(prompts=[]), "no prompts"),
        (dict(prompts=[3]), "of type int"),
        (dict(detector=None), "the detector is None"),
        (dict(policy="censor"), "policy is 'censor'"),
        (dict(outside="ignore"), "outside is 'ignore'"),
        (dict(verify="tesserakt"), "closest: tesseract"),
        (dict(verify=3), "verify is 3"),
        (dict(method="lokalized"), "closest: localized"),
        (dict(method="prompt_swap", start=1), "start was given"),
        (dict(start=2), "start is 2 of 2 steps"),
        (dict(branch="cond"), "there is no other branch"),
        (dict(sites=9), "9"),
        (dict(sites=None), "run localize first"),
        (dict(seed=-1), "seed -1"),
        (dict(method="negative_prompt", sites=None), "no effect|1"),
    ],
)
def test_requests_that_cannot_be_carried_out(small, options, says):
    """One error that says what was asked and what to do."""
    asked = dict(prompts=[HARMFUL], detector=LISTED, sites=0) | options
    if asked.get("method") is not None:
        asked.pop("sites")
    with pytest.raises(PatchError, match=says):
        sanitize(small, asked.pop("prompts"), **asked)


def test_a_template_that_the_model_cannot_read_refuses(small):
    """No error shows the harmful word, which the template holds."""
    method = NegativePrompt(template="~ {} ~")
    (made,) = sanitize(small, HARMFUL, detector=LISTED, method=method, guidance=3)
    assert made.outcome == "refused" and made.image is None
    assert "negative_prompt" in made.reason and "GRUMP" not in json.dumps(made.decision)


def test_a_guidance_object_beside_a_guidance_is_refused(small):
    """A method that is a guidance takes the scale of a number."""
    from textpatch.guidance import ClassifierFree

    sanitizer = Sanitizer(
        small, detector=LISTED, method="safe_guidance", guidance=ClassifierFree(2.0)
    )
    with pytest.raises(PatchError, match="give a number"):
        sanitizer(HARMFUL)
