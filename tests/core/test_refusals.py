"""Refusals of bad input say the site's or module's name, what was asked, what was found, and what to do."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from support.laws import anatomy
from support.strategies import fixed_case
from textpatch import HookRegistry, KVCache, PatchError, Plan, Swap, capture, inject, patch, sample

A = ("a", "cond")
TWINS = [("a", "uncond"), ("a", "cond")]
ELSEWHERE = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def call(case, rows: int):
    """The denoiser once, on the first so many rows."""
    x, t, text = case.inputs
    with torch.no_grad():
        case.model(x[:rows], t, text[list(range(rows))])


def cache_of(case, labels) -> KVCache:
    with capture(case.model, "all", rows=labels) as cache:
        call(case, len(labels))
    return cache


def patching(captured, reads, rows: int, change=lambda cache: cache, **options) -> Callable:
    """Patch a call of so many rows at site 0 from a changed cache."""

    def work(case):
        with patch(case.model, change(cache_of(case, captured)), 0, rows=reads, **options):
            call(case, rows)

    return work


def capturing(labels, rows: int) -> Callable:
    def work(case):
        with capture(case.model, 0, rows=labels):
            call(case, rows)

    return work


def call_twice(case):
    """A run of two steps from a cache of one."""
    with patch(case.model, cache_of(case, [A]), 0, rows=[A]):
        call(case, 1), call(case, 1)


def each(change) -> Callable:
    return lambda cache: KVCache({key: change(x) for key, x in cache.items()})


def planning(**fields) -> Callable:
    def work(case):
        swap = Swap(**{"sites": 0, "readers": "a", "donor": "b"} | fields)
        case.pipeline.denoise = None  # refused before anything runs
        sample(case.pipeline, case.rows, Plan([swap]), steps=3, guidance=1)

    return work


def hooking(change) -> Callable:
    def work(case):
        tap = case.model.sites[0].taps[0].module
        with HookRegistry(case.model, [tap]).replace(lambda name, output: change(output)):
            call(case, 2)

    return work


def injecting(change) -> Callable:
    def work(case):
        x, t, text = case.inputs
        with inject(case.model, change(text), 0):
            case.model(x, t, text)

    return work


@dataclass(frozen=True)
class Refused:
    """work(case) must be refused in one line that holds all of these."""

    work: Callable
    asked: str
    found: str
    advice: str
    architecture: str = "mmdit"
    name: str = ""  # of the site, site 0 if none is given


EXPECTED = {
    "2 rows into 1": Refused(
        patching(TWINS, TWINS, 1), "2 rows were labelled", "batch of 1 rows", "label every row"
    ),
    "1 row into 2": Refused(
        patching([A], [A], 2), "1 rows were labelled", "batch of 2 rows", "label every row"
    ),
    "1 row into 2, both named": Refused(
        patching([A], TWINS, 2), "row ('a', 'uncond')", "rows ('a', 'cond')", "capture that one too"
    ),
    "2 rows captured as 1": Refused(
        capturing([A], 2), "1 rows were labelled", "batch of 2 rows", "both guidance branches"
    ),
    "token count": Refused(
        patching([A], [A], 1, each(lambda x: x[1:])),
        "(4, 8)",
        "(3, 8)",
        "same model, prompt length",
    ),
    "heads": Refused(
        patching([A], [A], 1, each(lambda x: x[:, :4])), "(4, 8)", "(4, 4)", "same model"
    ),
    "dtype": Refused(
        patching([A], [A], 1, each(torch.Tensor.float)), "float64", "float32", "same model"
    ),
    "device": Refused(
        patching([A], [A], 1, lambda cache: cache.to("meta")),
        "on cpu",
        "on meta",
        "cache.to('cpu')",
    ),
    "cache of another model": Refused(
        patching(
            [A],
            [A],
            1,
            lambda cache: KVCache({(ELSEWHERE, *key[1:]): x for key, x in cache.items()}),
        ),
        "no k of site",
        f"holds sites {ELSEWHERE}",
        "patch only what was captured",
    ),
    "step not captured": Refused(call_twice, "at step 1", "steps 0", "capture that one too"),
    "step beyond the run, patch": Refused(
        patching([A], [A], 1, steps=(0, 3)), "no step 3", "there are 1", "give steps of 0..0"
    ),
    "step before the run, patch": Refused(
        patching([A], [A], 1, steps=(-1, 0)), "no step -1", "there are 1", "give steps of 0..0"
    ),
    "head, patch": Refused(
        patching([A], [A], 1, heads=[9]), "no head 9", "there are 2", "give heads of 0..1"
    ),
    "token, patch": Refused(
        patching([A], [A], 1, tokens=[-1, 0]), "no token -1", "there are 4", "tokens of 0..3"
    ),
    "step beyond the run, plan": Refused(
        planning(steps=[3]), "no step 3", "there are 3", "give steps of 0..2"
    ),
    "head, plan": Refused(planning(heads=[2]), "no head 2", "there are 2", "give heads of 0..1"),
    "token, plan": Refused(
        planning(tokens=[4]), "no token 4", "there are 4", "give tokens of 0..3"
    ),
    "plan for another model": Refused(
        planning(sites=ELSEWHERE), f"no site '{ELSEWHERE}'", "among the 3", "find_sites"
    ),
    "index of another model": Refused(
        planning(sites=57), "no site index 57", "0..2", "find_sites", name="57"
    ),
    "kind of another model": Refused(
        planning(sites="kind:cross"),
        "of kind 'cross'",
        "kinds here: joint",
        "find_sites",
        name="joint",
    ),
    "hook: shape": Refused(hooking(lambda x: x[:, 1:]), "(2, 3, 8)", "(2, 4, 8)", "give the like"),
    "hook: dtype": Refused(hooking(torch.Tensor.float), "float32", "float64", "give the like"),
    "hook: device": Refused(hooking(lambda x: x.to("meta")), "on meta", "on cpu", "give the like"),
    "hook: kind": Refused(
        hooking(lambda x: (x, x)), "a tuple of a tensor", "for a tensor", "or None"
    ),
    "hook: no tensor": Refused(hooking(lambda x: True), "gave a bool", "for a tensor", "or None"),
    "injected rows": Refused(
        injecting(lambda text: text[[0]]),
        "(1, 4, 24)",
        "(4, 4, 24)",
        "one row of equal length",
        "sdxl",
    ),
    "injected tokens": Refused(
        injecting(lambda text: replace(text, tokens=text.tokens[:, 1:])),
        "(4, 3, 24)",
        "(4, 4, 24)",
        "one row of equal length",
        "sdxl",
    ),
}


@pytest.mark.parametrize("wrong", EXPECTED)
def test_refused(wrong):
    """A refusal is one line with the name and both values, and leaves the model as it was."""
    expected = EXPECTED[wrong]
    case = fixed_case(expected.architecture)
    before = anatomy(case.model)
    with pytest.raises(PatchError) as error:
        expected.work(case)
    name = expected.name or case.model.sites[0].name
    for words in (name, expected.asked, expected.found, expected.advice):
        assert words in str(error.value)
    assert "\n" not in str(error.value) and anatomy(case.model) == before


def test_the_right_input_is_accepted():
    """Work of each kind above, done rightly, raises no error."""
    case = fixed_case()
    patching(
        TWINS, TWINS, 2, lambda cache: cache.to(torch.float32).to("cpu", torch.float64), steps=[0]
    )(case)
    capturing([A], 1)(case)
    hooking(lambda x: x * 2)(case)
    injecting(lambda text: text)(fixed_case("sdxl"))
    sample(
        case.pipeline,
        case.rows,
        Plan([Swap("kind:joint", "a", "b", steps=[2], heads=[1], tokens=[3])]),
        steps=3,
    )
