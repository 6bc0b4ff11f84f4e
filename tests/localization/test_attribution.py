"""Attribution is held to finite differences of what the swap itself puts out, on every architecture."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.by_default import taking
from support.localizing import PAIR, Parrot
from support.planting import raw, require_noticed
from support.small_models import small_pipeline
from support.strategies import ARCHITECTURES, fixed_case
from textpatch import PatchError, Row, edit, load, localize, sample
from textpatch.attention import row_slots
from textpatch.errors import PromptError
from textpatch.hooks import HookRegistry
from textpatch.localization import attribution as attributing
from textpatch.localization.attribution import attributions, drops
from textpatch.prompts.pairs import Pair, in_its_words
from textpatch.recording import exit_modules
from textpatch.weights.signs.pairs import sign_pairs


def first_call(pipeline):
    """x (1, C, H, W), t and the text of two prompts, as the first of three steps has them."""
    x = pipeline.schedule.start(next(pipeline.noises([3])), 3)
    return (
        pipeline.schedule.model_input(x, 0, 3),
        pipeline.schedule.timesteps(3)[0],
        pipeline.encode(["a", "b"]),
    )


def distance(model, x, t, text, part: dict) -> float:
    """Distance L with some modules' outputs replaced by `part`, {name: output}."""
    with HookRegistry(model, list(part)).replace(lambda name, out: part[name]), torch.no_grad():
        own, wanted = model(x.repeat(2, 1, 1, 1), t, text)[:, : x.shape[1]]
    return float((own - wanted).square().sum())


def put_out(model, x, t, text, names, slots=None) -> dict:
    """Outputs of some modules in a call, {name: output}."""
    seen = {}
    with (
        HookRegistry(model, names).observe(lambda name, out: seen.update({name: out})),
        torch.no_grad(),
    ):
        model(x.repeat(2, 1, 1, 1), t, text, slots=slots)
    return seen


@pytest.mark.parametrize("architecture", taking(lambda name: name != "if-ii", ARCHITECTURES))
@settings(max_examples=3)
@given(seed=st.integers(0, 99))
def test_it_is_the_slope_towards_the_swap(architecture, seed):
    """a = - dL / de to 1e-6, where a site puts out (1 - e) own + e swapped.

    `swapped` is what the swap itself puts out.
    """
    case = fixed_case(architecture, seed=seed)
    model = case.model
    x, t, text = first_call(case.pipeline)
    e = 1e-5  # its square's share of L was measured: 2e-8
    found, tokens = drops(model, x, t, text), text.tokens.shape[1]
    largest = max(map(abs, found.values()))
    assert largest > 0
    for site, names in exit_modules(model, model.sites).items():
        swap = [
            row_slots(torch.tensor([1, 1]), tokens) if other == site else None
            for other in model.sites
        ]
        own, swapped = (put_out(model, x, t, text, names, slots) for slots in (None, swap))
        moved = lambda e: {name: torch.lerp(own[name], swapped[name], e) for name in names}  # noqa: E731
        slope = (distance(model, x, t, text, moved(e)) - distance(model, x, t, text, moved(-e))) / (
            2 * e
        )
        assert abs(found[site] + slope) < 1e-6 * largest


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_runs_along_the_sources_generation(architecture):
    """drop = the sum over steps from `start` on of a at the latents that enter them.

    |shares| come to 1.
    """
    case = fixed_case(architecture)
    pipeline, steps = case.pipeline, 3
    whole, image = attributions(pipeline, "a", "b", seed=3, steps=steps, guidance=4.5)
    plain = sample(pipeline, [Row("a", "a", 3)], steps=steps, guidance=4.5, keep_trajectory=True)
    text, times = pipeline.encode(["a", "b"]), pipeline.schedule.timesteps(steps)
    inputs = [
        pipeline.schedule.model_input(x[None], step, steps)
        for step, x in enumerate(plain.trajectory["a"][:steps])
    ]
    each = [drops(case.model, x, t, text) for x, t in zip(inputs, times, strict=True)]
    late, _ = attributions(pipeline, "a", "b", seed=3, steps=steps, guidance=4.5, start=1)
    for site in case.model.sites:
        expected = [drop[site] for drop in each]
        assert whole[site.index]["drop"] == pytest.approx(sum(expected), rel=1e-9)
        assert late[site.index]["drop"] == pytest.approx(sum(expected[1:]), rel=1e-9)
    assert sum(abs(values["share"]) for values in whole.values()) == pytest.approx(1)
    assert torch.equal(image, plain.images["a"])


def test_prompts_read_alike_are_refused():
    """PatchError for prompts that nothing tells apart, for which no site has a share."""
    with pytest.raises(PatchError, match="read alike"):
        attributions(fixed_case().pipeline, "a", "a", steps=2)


@pytest.mark.parametrize("start", [-1, 3, 9])
def test_a_start_outside_the_run_is_refused(start):
    """PatchError for a start outside 0..n - 1, before anything is generated."""
    with pytest.raises(PatchError, match=f"start is {start} of 3 steps; .*a start within the run"):
        attributions(fixed_case().pipeline, "a", "b", steps=3, start=start)


@pytest.mark.parametrize(
    "model, sites",
    [
        ("planted-mmdit", {1}),
        pytest.param("planted-sdxl", {10}, marks=pytest.mark.long),
        pytest.param("planted-if", {3, 4}, marks=pytest.mark.long),
    ],
)
def test_the_planted_sites_stand_out(model, sites):
    """They have more than .8 of all, in each picture, and where the target is another scene, too.

    By default on one model.  On U-Nets test_it_is_the_slope_towards_the_swap holds the slopes.
    """
    pipeline = load(model)
    for same_scene in (True, False):
        ((source, target),) = sign_pairs(1, same_scene=same_scene)
        found, _ = attributions(
            pipeline, source, in_its_words(Pair(source, target)), steps=4, guidance=1
        )
        assert sum(found[site]["share"] for site in sites) > 0.8


@pytest.mark.parametrize(
    "source, target, asked",
    [
        ('a red sign that says "A"', 'a blue wall with "B C"', 'a red sign that says "B C"'),
        ('"A" above "B"', 'over "C" stands "D"', '"C" above "D"'),
        ('"A" above "B"', 'one "C"', 'one "C"'),  # nobody knows which of the two it replaces
        ('a red sign that says "A"', 'a blue sign that says "A"', 'a blue sign that says "A"'),
    ],
)
def test_only_the_words_are_asked_for(source, target, asked):
    """The target's texts are put between the source's quotes.

    The target itself is asked for where there are more or fewer texts, or the same.
    """
    assert in_its_words(Pair(source, target)) == asked


def test_pairs_of_one_prompt_are_refused(monkeypatch):
    """PromptError from localize and edit, before anything is generated."""
    pipeline, same = small_pipeline(), (PAIR[0], PAIR[0])
    monkeypatch.setattr(pipeline, "denoise", lambda *a, **k: pytest.fail("generated all the same"))
    for work in (
        lambda: localize(pipeline, [PAIR, same], ocr=Parrot()),
        lambda: edit(pipeline, *same, sites=0),
    ):
        with pytest.raises(PromptError, match="source and target are both"):
            work()


# --- faults: a check, an owner, a function, a text, and the text put in its place


slope = raw(test_it_is_the_slope_towards_the_swap, "mmdit", seed=1)
of_if = raw(test_it_is_the_slope_towards_the_swap, "if-i", seed=1)
along = partial(test_it_runs_along_the_sources_generation, "sdxl")

FAULTS = {
    "what a swap would add to L": (slope, attributing, "drops", "-sum(", "sum("),
    "text that asks nothing": (
        slope,
        attributing,
        "change",
        "eager(q[:1], k, v)",
        "eager(q[:1] * (q is record.q[0]), k, v)",
    ),
    "its own text": (slope, attributing, "_with_text_of_second", "text[1:]", "text[:1]"),
    "the target's image": (
        of_if,
        attributing,
        "_with_text_of_second",
        "x[:1] for x in image",
        "x[1:] for x in image",
    ),
    "the variance, too": (of_if, attributing, "drops", "[:, : x.shape[1]]", ""),
    "every step": (along, attributing, "attributions", "range(start, steps)", "range(steps)"),
    "the first latents at every step": (
        along,
        attributing,
        "attributions",
        "path[step][None]",
        "path[0][None]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    require_noticed(monkeypatch, FAULTS[fault])
