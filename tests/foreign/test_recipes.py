"""Recipes call diffusers' pipelines by arguments that they have, and shipped weights draw there as here."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import textpatch
from support.drawing import distance
from support.planting import plant
from textpatch.errors import PatchError
from textpatch.foreign import recipes
from textpatch.foreign.recipes import RECIPES, CalledPipe

diffusers = pytest.importorskip("diffusers")
SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a green badge that says "TIGER" on a striped yellow wall'


def recorded(name):
    """A pipeline of a class with no parts, and the arguments of its calls by name."""
    kind = getattr(diffusers, name)
    calls = []

    class Recorded(kind):
        def __init__(self):
            pass

        def __call__(self, *args, **kwargs):
            calls.append(inspect.signature(kind.__call__).bind(self, *args, **kwargs).arguments)
            return SimpleNamespace(images=[0, 1], audios=[0, 1])

    Recorded.__call__.__signature__ = inspect.signature(kind.__call__)
    return Recorded(), calls


def require_fitting_call(name):
    """A class is called by arguments that it has; guidance, seeds and a negative prompt reach it."""
    pipe, calls = recorded(name)
    recipe = RECIPES[name]
    options = {}
    if recipe.prior is not None:
        method, _ = recipe.prior
        assert callable(getattr(getattr(diffusers, name), method))
        setattr(type(pipe), method, lambda *prompts, generator, **size: (torch.zeros(1, 2),))
        options = {"height": 32, "width": 32}
    draw = CalledPipe(pipe, options)
    assert isinstance(draw.steps, int) and draw.guidance is not None
    run = dict(seeds=[3, 4], steps=7, guidance=5.0)
    assert len(draw(["a", "b"], negative=None, **run)) == 2
    assert calls[0]["prompt"] == ["a", "b"] and calls[0]["num_inference_steps"] == 7
    assert calls[0][recipe.guidance] == 5.0
    assert [one.initial_seed() for one in calls[0]["generator"]] == [3, 4]
    if recipe.negative is None or recipe.scale is not None:
        with pytest.raises(PatchError, match="reads none; leave it out"):
            draw(["a", "b"], negative="c", **run)
    else:
        draw(["a", "b"], negative="c", **run)
        assert calls[1][recipe.negative] == ["c", "c"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_class(name):
    """As diffusers of this version has it."""
    require_fitting_call(name)


def test_a_recipe_that_does_not_fit_is_noticed(monkeypatch):
    """Fault: Qwen-Image's guidance goes to the argument that it does not guide by."""
    wrong = recipes.Recipe(guidance="guidance", blank=" ")
    monkeypatch.setitem(RECIPES, "QwenImagePipeline", wrong)
    with pytest.raises(KeyError):
        require_fitting_call("QwenImagePipeline")


def test_a_second_branch_is_asked_for_where_it_must_be():
    """Qwen-Image guides only beside a negative prompt, and FLUX.1 only by a scale of its own."""
    run = dict(seeds=[3], steps=7, guidance=4.0)
    pipe, calls = recorded("QwenImagePipeline")
    CalledPipe(pipe, {})(["a"], negative=None, **run)
    CalledPipe(pipe, {})(["a"], negative=None, **run | {"guidance": 1.0})
    assert calls[0]["negative_prompt"] == [" "] and "negative_prompt" not in calls[1]
    pipe, calls = recorded("FluxPipeline")
    CalledPipe(pipe, {"true_cfg_scale": 2.0})(["a"], negative="b", **run)
    assert calls[0]["negative_prompt"] == ["b"] and calls[0]["guidance_scale"] == 4.0
    with pytest.raises(PatchError, match=r"wrap\(pipe, true_cfg_scale=...\) with a scale above 1"):
        CalledPipe(pipe, {})(["a"], negative="b", **run)


def test_arguments_that_a_call_has_not_are_refused():
    """A slip of the hand in an option is no argument of the call."""
    pipe, _ = recorded("FluxPipeline")
    with pytest.raises(PatchError, match="called without 'hight'; closest: .*height"):
        CalledPipe(pipe, {"hight": 8})


class Counting:
    """A tokenizer of as many tokens as words."""

    def __init__(self, longest):
        self.model_max_length = longest

    def __call__(self, prompt, truncation):
        return SimpleNamespace(input_ids=prompt.split())


def test_a_prompt_that_no_encoder_reads_to_its_end_is_refused(monkeypatch):
    """One encoder that reads it whole is enough, as T5 beside CLIP is."""
    pipe, _ = recorded("StableDiffusion3Pipeline")
    pipe.tokenizer, pipe.tokenizer_3 = Counting(77), Counting(1000)
    draw = CalledPipe(pipe, {})
    draw.require_whole(["word " * 200])
    with pytest.raises(
        PatchError, match=r"has 300 tokens, and Recorded cuts it after 256; .*max_seq"
    ):
        draw.require_whole(["word " * 300])
    CalledPipe(pipe, {"max_sequence_length": 512}).require_whole(["word " * 300])
    plant(monkeypatch, CalledPipe, "require_whole", "all(", "any(")
    with pytest.raises(PatchError):
        draw.require_whole(["word " * 200])


# --- the shipped weights inside diffusers' own pipelines


@pytest.fixture(scope="module")
def both():
    """name -> (the shipped weights in diffusers' pipeline, wrapped, and as `load` gives them)."""
    from support import signs_in_diffusers

    made = {}

    def of(name):
        if name not in made:
            ours = textpatch.load(name)
            pipe, options = signs_in_diffusers.MADE[name]()
            own = ours.defaults
            made[name] = (
                textpatch.wrap(
                    pipe,
                    steps=own.steps,
                    guidance=own.guidance,
                    text_box=own.text_box,
                    localized=own.localized,
                    name=name,
                    height=own.height,
                    width=own.width,
                    **options,
                ),
                ours,
            )
        return made[name]

    return of


def told(ledger):
    """What a ledger says of who read whom, without how the keys changed, which are normed in one of them."""
    return [
        (e.site, e.name, e.step, e.reader, e.donor, e.branches, e.hits_k, e.hits_v, e.dtype)
        for e in ledger.entries
    ]


# by default one U-Net and one MMDiT
@pytest.mark.parametrize(
    "name",
    ["tiny-mmdit", *(pytest.param(n, marks=pytest.mark.long) for n in ("tiny-sdxl", "tiny-if"))],
)
def test_an_edit_is_the_one_that_our_own_pipeline_makes(both, name):
    """Pictures within a level of 255, and the same reads at the same times.

    By default of the model whose text evolves.  U-Nets are edited alike wherever swaps are compared below.
    """
    theirs, ours = (textpatch.edit(each, SOURCE, TARGET, steps=2) for each in both(name))
    for side in ("image", "source", "target"):
        assert distance(getattr(theirs, side), getattr(ours, side)) <= 1, side
    assert theirs.plan == ours.plan and told(theirs.ledger) == told(ours.ledger)
    for one, other in zip(theirs.ledger.entries, ours.ledger.entries, strict=True):
        assert one.timestep == pytest.approx(other.timestep)
        assert one.sigma == pytest.approx(other.sigma, rel=1e-5)
        assert one.change_v == pytest.approx(other.change_v, rel=1e-3)


def seen(name, value):
    """A score, of which a PSNR above that of pictures one level apart, None if equal, says nothing more."""
    one_level = 20 * np.log10(255)
    if "psnr" not in name:
        return value
    return one_level if value is None else min(value, one_level)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("tiny-mmdit", dict(sites=[1, 4], steps=2)),
        # the same by other calls and kinds of sites
        pytest.param("tiny-sdxl", dict(sites=[0, 3], steps=2), marks=pytest.mark.long),
        pytest.param("tiny-if", dict(sites=[0, 3], steps=2), marks=pytest.mark.long),
        pytest.param("tiny-mmdit", {}, marks=pytest.mark.long),
        pytest.param("tiny-sdxl", {}, marks=pytest.mark.long),
        pytest.param("tiny-if", {}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_localisation_is_the_one_that_our_own_pipeline_makes(both, name, asked):
    """Readings, scores, ranks, set and counts are equal; distances of pictures within a rounded level."""
    from textpatch.weights.signs.pairs import sign_pairs

    theirs, ours = (textpatch.localize(each, sign_pairs(3), **asked).result for each in both(name))
    assert theirs.keys() == ours.keys()
    for key in theirs.keys() - {"sites", "baselines", "generations"}:
        assert theirs[key] == ours[key], key
    # ours find the text of a target in the bank where it need not be drawn
    drawn = theirs["generations"]["made"] - ours["generations"]["made"]
    assert drawn in (0, len(theirs["pairs_list"]) if name != "tiny-mmdit" else 0)
    scored = [
        zip(theirs["sites"], ours["sites"], strict=True),
        zip(theirs["baselines"].values(), ours["baselines"].values(), strict=True),
    ]
    for one, other in (pair for pairs in scored for pair in pairs):
        for score, value in one.items():
            if isinstance(value, dict) and value.get("value") is not None:
                near = pytest.approx(seen(score, other[score]["value"]), rel=1e-3, abs=1e-3)
                assert seen(score, value["value"]) == near, score


def test_an_audit_of_the_wrapped_pipeline_passes(both):
    """Each swap is held to float64 in the pipeline's own calls."""
    theirs, _ = both("tiny-mmdit")
    rows = [textpatch.Row("source", SOURCE), textpatch.Row("target", TARGET)]
    rows.append(textpatch.Row("edited", SOURCE))
    plan = textpatch.Plan([textpatch.Swap([1, 2], "edited", "target")])
    report = textpatch.audit(
        theirs, rows, plan, sample=textpatch.sample, steps=2, guidance=3.0, at=[1]
    )
    report.require()
    assert len(report.checks) == 4 and np.all([check.effect >= 0 for check in report.checks])
