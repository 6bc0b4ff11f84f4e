"""Methods of editing by name: which pictures they make, at which cost, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from support.localizing import PAIR
from support.planting import plant
from support.small_models import small_pipeline
from textpatch import PatchError, edit, load
from textpatch.cli import compared_edits
from textpatch.editing import methods
from textpatch.editing.localized import Localized
from textpatch.prompts.pairs import Pair


@pytest.fixture(scope="module")
def pipelines():
    """A model whose text is static, and one whose text changes with depth, of two steps each."""
    static = load("tiny-sdxl")
    static.defaults = replace(static.defaults, steps=2)
    return {"static": static, "evolving": small_pipeline()}


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def require_the_targets_own_picture():
    """prompt_swap draws what generating the target's prompt from the seed draws."""
    pipeline = small_pipeline()
    made = edit(pipeline, *PAIR, method="prompt_swap", seed=3)
    (drawn,) = pipeline.generate([PAIR[1]], seeds=3)
    assert same(made.image, drawn) and same(made.target, drawn) and made.method == "prompt_swap"
    assert not made.plan.swaps and not same(made.source, made.image)


def test_a_prompt_swap_is_the_targets_own_picture():
    """It has no plan, and the source's picture beside it."""
    require_the_targets_own_picture()


def test_a_prompt_swap_from_other_noise_is_noticed(monkeypatch):
    """Fault: the target begins with the noise of the next seed."""
    plant(
        monkeypatch,
        methods.PromptSwap,
        "__call__",
        "Row(TARGET, pair.target, seed)",
        "Row(TARGET, pair.target, seed + 1)",
    )
    with pytest.raises(AssertionError):
        require_the_targets_own_picture()


def test_injection_is_the_swap_at_every_step(pipelines):
    """Where text is static it gives the localized picture from step 0 on, bit for bit."""
    pipeline = pipelines["static"]
    injected = edit(pipeline, *PAIR, method="injection", sites=[0, 1])
    swapped = edit(pipeline, *PAIR, sites=[0, 1])
    assert same(injected.image, swapped.image) and injected.plan == swapped.plan
    assert (injected.method, swapped.method) == ("injection", "localized")
    assert not same(injected.image, injected.source)


@pytest.mark.parametrize(
    "model, also, rows",
    [
        ("static", (), 1),
        ("static", ("source",), 2),
        ("static", ("source", "target"), 3),
        ("evolving", (), 2),
        ("evolving", ("source", "target"), 3),
    ],
)
def test_what_an_edit_costs(pipelines, monkeypatch, model, also, rows):
    """Where text is static the target is read and not run, unless its picture is asked for.

    One prompt is encoded that generating would not encode, the target.
    """
    pipeline = pipelines[model]
    encoded = []
    encode = pipeline.encode
    with monkeypatch.context() as patch:
        patch.setattr(
            pipeline, "encode", lambda prompts: encoded.extend(prompts) or encode(prompts)
        )
        made = edit(pipeline, *PAIR, sites=0, also=also)
    assert sorted(filter(None, encoded)) == sorted(PAIR)
    assert made.generations == rows and made.pictures.keys() == {*also, "edited"}
    whole = edit(pipeline, *PAIR, sites=0)
    # another batch shape moves the last bits
    assert abs(np.asarray(made.image, int) - np.asarray(whole.image, int)).max() <= 1


def test_a_function_is_a_method():
    """It is called with the pair, the seed, and the steps and guidance of the model."""

    def mine(pipeline, pair, *, seed, steps, guidance, also):
        assert (seed, steps, also) == (2, pipeline.defaults.steps, ("source",))
        return Localized(sites=0)(
            pipeline, pair, seed=seed, steps=steps, guidance=guidance, also=also
        )

    made = edit(small_pipeline(), *PAIR, method=mine, seed=2, also=("source",))
    assert made.pair == Pair(*PAIR) and made.target is None


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(method="localised"), "no method of editing is called 'localised'.*localized"),
        (dict(method=3), "method is 3; give the name of a method"),
        (
            dict(method="prompt_swap", sites=0),
            "the method prompt_swap has no sites, and 0 was given",
        ),
        (dict(method="injection", start=1), "the method injection has no start"),
        (dict(method="injection", sites=0), "injection is undefined for"),
        (dict(method=Localized(0), sites=1), "the method localized has no sites"),
        (dict(sites=0, also="source"), "also is 'source'; name the plain pictures"),
        (dict(sites=0, also=["edited"]), "also is \\['edited'\\]"),
    ],
)
def test_what_no_method_can_do_is_refused(options, says):
    """PatchError says what was asked, and what there is."""
    with pytest.raises(PatchError, match=says):
        edit(small_pipeline(), *PAIR, **options)


def test_the_command_line_names_the_methods():
    """--method offers what the library has, which it does not import to say so."""
    assert [*methods.METHODS] == compared_edits.METHODS
