"""Guidance has branches with prompts, combines predictions, and keeps its state with its row."""

from dataclasses import dataclass, replace

import pytest
import torch

from support.planting import plant
from support.strategies import build_pipeline, fixed_case, make_rows
from textpatch import guidance as guiding
from textpatch.errors import PatchError
from textpatch.guidance import (
    ClassifierFree,
    Guidance,
    Unguided,
    as_guidance,
    branch_rows,
    with_guidance,
)
from textpatch.plan import Plan, Row, Swap
from textpatch.sampling import sample

ROWS = make_rows((0, 1, 2))


@dataclass(frozen=True)
class Pulled:
    """A safety guidance of three branches with momentum.

    d = u + s (c - u) - m, m <- (m + w - u) / 2
    """

    scale: float = 3.0
    branches: tuple[str, ...] = ("uncond", "away", "cond")

    def check(self, rows, steps):
        pass

    def prompt(self, branch, row):
        return None if branch == "uncond" else "what is kept away"

    def begin(self, x):
        return {"momentum": torch.zeros_like(x)}

    def combine(self, predictions, at, state):
        u, w, c = (predictions[branch] for branch in self.branches)
        momentum = (state["momentum"] + w - u) / 2
        return u + self.scale * (c - u) - momentum, {"momentum": momentum}

    def describe(self):
        return {"pulled": self.scale}


def final(pipeline, rows, guidance, plan=Plan(), **options):
    return sample(pipeline, rows, plan, steps=4, guidance=guidance, **options).latents


def test_a_number_is_classifier_free_guidance():
    """A number 3 is ClassifierFree(3), bit for bit, and 0 and 1 are Unguided; .5 is a scale.

    All are Guidance, and so is what others write.
    """
    pipeline = build_pipeline()
    numbers = {3: ClassifierFree(3), 0.5: ClassifierFree(0.5), 1: Unguided(), 0: Unguided()}
    for number, object_ in numbers.items():
        a, b = (final(pipeline, ROWS, guidance) for guidance in (number, object_))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert as_guidance(number) == object_ and isinstance(object_, Guidance)
    rows = []
    pipeline.denoiser.register_forward_pre_hook(lambda model, inputs: rows.append(len(inputs[0])))
    final(pipeline, ROWS, 0)
    assert set(rows) == {len(ROWS)}  # none is unconditional
    assert isinstance(Pulled(), Guidance) and as_guidance(Pulled()) == Pulled()


def by_definition(pipeline, rows, negatives, scale):
    """Latents of the loop written out, with two calls of the denoiser on one row at a time."""
    made = {}
    for row in rows:
        x = pipeline.schedule.start(pipeline.noise([row.seed]), 4)
        own, other = (pipeline.encode([prompt]) for prompt in (row.prompt, negatives[row.name]))
        for step, t in enumerate(pipeline.schedule.timesteps(4)):
            with torch.no_grad():
                u, c = (
                    pipeline.denoiser(pipeline.schedule.model_input(x, step, 4), t, text)
                    for text in (other, own)
                )
            x = pipeline.schedule.step(x, u + scale * (c - u), step, 4)
        made[row.name] = x[0]
    return made


def require_negatives_of_their_rows() -> None:
    pipeline = build_pipeline()
    negatives = {"a": "dull", "b": None, "c": "loud"}
    made = final(pipeline, ROWS, ClassifierFree(3.5, negatives), micro_batch=2)
    for name, x in by_definition(pipeline, ROWS, negatives, 3.5).items():
        # another batch shape moves the last bits
        assert torch.allclose(made[name], x, rtol=1e-10, atol=1e-12)


def test_a_negative_prompt_per_row():
    """Each row's unconditional branch reads the row's own negative prompt, whatever micro-batch it is in."""
    require_negatives_of_their_rows()
    one = final(build_pipeline(), ROWS, ClassifierFree(3, "dull"))
    assert all(
        torch.equal(x, one[name])
        for name, x in final(build_pipeline(), ROWS, 3, negative="dull").items()
    )


def require_state_of_its_row() -> None:
    case = fixed_case()
    together = final(case.pipeline, ROWS, Pulled(), Plan([Swap(1, "a", "b")]))
    apart = final(case.pipeline, ROWS, Pulled(), Plan([Swap(1, "a", "b")]), micro_batch=3)
    forked = final(
        case.pipeline,
        [*ROWS, Row("d", "prompt a", 0, joins=2, copies="a")],
        Pulled(),
        Plan([Swap(1, ("a", "d"), "b")]),
    )
    stateless = final(case.pipeline, ROWS, ClassifierFree(3), Plan([Swap(1, "a", "b")]))
    for name, x in together.items():
        assert not torch.allclose(x, stateless[name])
        assert torch.allclose(x, apart[name], rtol=1e-10, atol=1e-12)
        assert torch.allclose(x, forked[name], rtol=1e-10, atol=1e-12)
    assert torch.allclose(forked["d"], forked["a"], rtol=1e-10, atol=1e-12)


def test_three_branches_and_state_per_row():
    """State of a guidance goes with its row into micro-batches and forks."""
    require_state_of_its_row()


FAULTS = {
    "scale of the other sign": (
        require_negatives_of_their_rows,
        ClassifierFree,
        "combine",
        "self.scale * (",
        "-self.scale * (",
    ),
    "everybody's negative prompt": (
        require_negatives_of_their_rows,
        ClassifierFree,
        "prompt",
        "return self.negative[row.name]",
        'return self.negative["a"]',
    ),
    "branches in another order": (
        require_negatives_of_their_rows,
        guiding,
        "branch_rows",
        "[*others, *rows]",
        "[*rows, *others]",
    ),
    "state of nothing": (
        require_state_of_its_row,
        "textpatch.lockstep.Loop",
        "_in_parts",
        "states[row.name] = states[row.copies]",
        "pass",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    check, owner, *place = FAULTS[fault]
    if isinstance(owner, str):
        from textpatch.lockstep import Loop as owner
    plant(monkeypatch, owner, *place)
    with pytest.raises(AssertionError):
        check()


def test_the_batch_of_a_run():
    """A batch holds all rows in each branch.

    Other branches are pooled of their own prompt.
    """
    rows = [replace(ROWS[0], pooled="pooled")]
    assert branch_rows(rows, ClassifierFree(2, "n")) == with_guidance(rows, "n")
    assert [(row.prompt, row.branch, row.pooled) for row in branch_rows(rows, Pulled())] == [
        (None, "uncond", None),
        ("what is kept away", "away", None),
        ("prompt a", "cond", "pooled"),
    ]
    assert branch_rows(rows, Unguided()) == rows


def test_rows_of_plain_generation_are_the_prompts_places():
    """Negative prompts by name are held to all prompts, and micro-batches change nothing."""
    pipeline = build_pipeline()
    prompts = ["a", "b", "c"]
    named = ClassifierFree(3, {"0": "dull", "1": None, "2": "loud"})
    whole, parts = (
        pipeline.generate(prompts, seeds=[0, 1, 2], guidance=named, micro_batch=size)
        for size in (64, 2)
    )
    rows = [Row(str(i), prompt, i) for i, prompt in enumerate(prompts)]
    expected = sample(pipeline, rows, guidance=named).latents.values()
    for one, other, x in zip(whole, parts, expected, strict=True):
        assert torch.allclose(one, x, rtol=1e-10, atol=1e-12)
        assert torch.allclose(other, x, rtol=1e-10, atol=1e-12)
    with pytest.raises(PatchError, match="row '2' has none"):
        pipeline.generate(
            prompts, seeds=0, guidance=ClassifierFree(3, {"0": "dull", "1": None}), micro_batch=2
        )


def test_what_manifests_hold():
    """A number stays as it was given, and an object gives plain data."""
    kept = {
        3: 3,
        1.5: 1.5,
        ClassifierFree(2): 2.0,
        ClassifierFree(2, "n"): {"scale": 2.0, "negative": "n"},
        Unguided(): 1.0,
    }
    assert all(guiding.described(guidance) == plain for guidance, plain in kept.items())


@pytest.mark.parametrize(
    "ask, says",
    [
        (lambda: ClassifierFree(0), "never reads the rows' own prompts"),
        (lambda: ClassifierFree(1), "never reads its negative prompt"),
        (lambda: as_guidance(float("nan")), "give a finite number"),
        (lambda: as_guidance(10**400), "give a finite number"),
        (lambda: as_guidance(True), "give a number, or an object"),
        (lambda: as_guidance(Unguided), "give a number, or an object"),
        (lambda: as_guidance(Pulled(branches=())), "their last must be 'cond'"),
        (lambda: as_guidance("3"), "give a number, or an object"),
        (lambda: as_guidance(1, "n"), "has no effect at guidance 1"),
        (lambda: as_guidance(0, "n"), "has no effect at guidance 0"),
        (lambda: as_guidance(ClassifierFree(3), "n"), "leave one of them out"),
        (lambda: as_guidance(Pulled(branches=("cond", "uncond"))), "their last must be 'cond'"),
        (lambda: ClassifierFree(3, 5), "a negative prompt is 5"),
        (lambda: ClassifierFree(3, {"a": 5}), "a negative prompt is 5"),
        (lambda: Unguided().prompt("uncond", ROWS[0]), "has none"),
        (lambda: final(build_pipeline(), ROWS, ClassifierFree(3, {"a": "n"})), "row 'b' has none"),
        (
            lambda: final(build_pipeline(), ROWS, ClassifierFree(3, dict.fromkeys("abcd"))),
            "row 'd', which is none",
        ),
    ],
)
def test_guidance_that_is_none_is_refused(ask, says):
    """A message says what was given, and what to give."""
    with pytest.raises(PatchError, match=says):
        ask()
