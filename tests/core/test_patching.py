"""Carrying a plan out: labels, caches, what is refused and what is mixed; its laws are in test_laws.py."""

from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from torch import nn

from support import laws
from support.laws import patching
from support.planting import plant
from support.strategies import cases, fixed_case
from textpatch import (
    HookRegistry,
    KVCache,
    PatchError,
    Plan,
    Row,
    Swap,
    capture,
    inject,
    patch,
    sample,
)
from textpatch.guidance import with_guidance
from textpatch.sites import Site


@given(cases())
def test_generate_is_sample_without_a_plan(case):
    """generate(prompts) = sample(rows, Plan()), bit for bit."""
    prompts, seeds = [row.prompt for row in case.rows], [row.seed for row in case.rows]
    plain = case.pipeline.generate(prompts, seeds=seeds, steps=case.steps, guidance=case.guidance)
    images = laws.run(case, case.rows).images
    assert all(
        torch.equal(images[row.name], picture)
        for row, picture in zip(case.rows, plain, strict=True)
    )


def test_labels_may_be_nested():
    """A label is any JSON-able tuple, also after a round trip."""
    case = fixed_case()
    labels = ("a", 1), (("b", 2), "cond"), "c", "d"
    with capture(case.model, 0, rows=labels) as cache:
        case.call()
    again = KVCache.from_tensors(cache.tensors)
    assert again.keys() == cache.keys()
    with patch(case.model, again, 0, rows=labels):
        case.call()


def cached(case, sites="all"):
    with capture(case.model, sites, rows=case.rows) as cache:
        case.call()
    return cache


def test_patch_refuses_what_was_not_captured():
    """A row, site or step outside the cache: PatchError that says what the cache holds."""
    case = fixed_case()
    cache, rows = cached(case, sites=0), case.rows
    wrong = (1, rows, 1, "no k of site"), (0, [("x",)] * 4, 1, "rows"), (0, rows, 2, "step 1")
    for sites, labels, calls, says in wrong:
        with pytest.raises(PatchError, match=says), patch(case.model, cache, sites, rows=labels):
            for _ in range(calls):
                case.call()


@pytest.mark.parametrize("steps", [(), (0, 3), (-1,)])
def test_patch_refuses_steps_that_never_come(steps):
    """steps - {calls} != {}, and steps = {}: PatchError."""
    case = fixed_case()
    cache = cached(case)
    with (
        pytest.raises(PatchError, match="steps"),
        patch(case.model, cache, 0, rows=case.rows, steps=steps),
    ):
        case.call()


def test_patch_refuses_other_dtypes_and_shapes():
    """A cache of another dtype or prompt length: PatchError, never a cast."""
    case = fixed_case()
    cache = cached(case)
    for change in (torch.Tensor.float, lambda tensor: tensor[1:]):
        other = KVCache({key: change(tensor) for key, tensor in cache.items()})
        with (
            pytest.raises(PatchError, match="same model"),
            patch(case.model, other, 0, rows=case.rows),
        ):
            case.call()


def test_patch_of_no_row_is_refused():
    """rows = (None, ...): no effect, so an error."""
    case = fixed_case()
    with (
        pytest.raises(PatchError, match="no row"),
        patch(case.model, cached(case), 0, rows=[None] * 4),
    ):
        pass


def test_tensors_that_are_no_cache():
    """from_tensors(any other dict): PatchError."""
    deep = "[" * 100_000
    for name in (
        "weight",
        "[]",
        "[1, 2, 3, 4]",
        '["site", 0, "a", "k"]',
        "3",
        '["site", -1, ["a"], "k"]',
        deep,
    ):
        with pytest.raises(PatchError, match="no saved cache"):
            KVCache.from_tensors({name: torch.zeros(1)})


SAME_KEY = [  # names of which two would be one key
    ['["s", 0, ["a"], "k"]', '["s",0,["a"],"k"]'],
    ['["s", 1, ["a"], "k"]', '["s", true, ["a"], "k"]'],
    ['["s", 0, [1], "k"]', '["s", 0, [1.0], "k"]'],
    ['["s", 0, [1], "k"]', '["s", 0, [true], "k"]'],
]


@pytest.mark.parametrize("names", SAME_KEY)
def test_two_names_of_one_key_are_refused(names):
    """from_tensors(two spellings of a key): PatchError, since the last would win.

    One alone as `tensors` writes it is read.
    """
    assert len(KVCache.from_tensors({names[0]: torch.zeros(1)})) == 1
    for order in (names, names[::-1]):
        with pytest.raises(PatchError, match="no saved cache"):
            KVCache.from_tensors({name: torch.zeros(1) for name in order})


def test_the_count_of_keys_is_needed(monkeypatch):
    """Without it 1 and 1.0 are one label."""
    plant(monkeypatch, KVCache, "from_tensors", "if len(cache) != len(kept):", "if False:")
    assert len(KVCache.from_tensors({name: torch.zeros(1) for name in SAME_KEY[2]})) == 1


def test_sample_refuses_before_it_runs():
    """Repeated or no rows, or a plan that does not fit: PatchError, and the denoiser was never called."""
    case, a = fixed_case(), Row("a", "p")
    case.pipeline.denoise = None
    for rows, swaps in (
        ([a, a], []),
        ([], []),
        ([a], [Swap(0, "a", "b")]),
        ([a], [Swap(9, "a", "a")]),
    ):
        with pytest.raises(PatchError):
            sample(case.pipeline, rows, Plan(swaps))


def test_guidance_twins_come_first():
    """rows -> (uncond twins reading the negative prompt, rows): diffusers' order."""
    a = Row("a", "p", 3, pooled="q")
    assert with_guidance([a], "n") == [Row("a", "n", 3, "uncond"), a]


@pytest.mark.parametrize("part", ["k", "v"])
def test_patch_mixes_heads_tokens_and_parts(part):
    """k'[t, h] = k_donor[t, h] at the named heads and tokens of one part; own entries elsewhere."""
    case = fixed_case()
    site, kept = case.model.sites[0], cached(case)
    projection, other = (f"{site.name}.add_{p}_proj" for p in (part, "kv".replace(part, "")))
    label, t = case.rows[-1].label, 1
    seen = {}
    with (
        patch(case.model, kept, 0, rows=[label] * len(case.rows), heads=[1], tokens=[t], part=part),
        HookRegistry(case.model, [projection, other]).observe(
            lambda n, out: seen.update({n: out.clone()})
        ),
    ):
        case.call()
    split = (site.heads, -1)
    for b, row in enumerate(case.rows):
        own, donor = (kept[site.name, 0, x, part].unflatten(-1, split) for x in (row.label, label))
        expected = own.clone()
        expected[t, 1] = donor[t, 1]
        assert torch.equal(seen[projection][b].unflatten(-1, split), expected)
    assert torch.equal(seen[other][0], kept[site.name, 0, case.rows[0].label, other[-6]])


@pytest.mark.parametrize(
    "wrong", [dict(heads=[9]), dict(tokens=[-1]), dict(heads=[]), dict(part="q")]
)
def test_patch_refuses_what_is_not_there(wrong):
    """A head, token or part the site has not, or none at all: PatchError."""
    case = fixed_case()
    with pytest.raises(PatchError), patch(case.model, cached(case), 0, rows=case.rows, **wrong):
        case.call()


# --- injection and other blocks


def within(case, *blocks):
    """One call inside blocks, the outermost first."""
    with ExitStack() as stack:
        held = [stack.enter_context(block) for block in blocks]
        return case.call(), held


def texts(case) -> tuple:
    """Two other texts for all rows of a case, by their prompts."""
    return tuple(
        case.pipeline.encode([prompt] * len(case.rows)) for prompt in ("injected", "patched in")
    )


def captured(case, text=None, site=1) -> KVCache:
    """K and V of one call, of the case's own text or of another."""
    x, t, own = case.inputs
    with torch.no_grad(), capture(case.model, site, rows=case.rows) as cache:
        case.model(x, t, own if text is None else text)
    return cache


def require_same(a: KVCache, b: KVCache) -> None:
    """The same steps of the same rows, bit for bit."""
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def require_unseen(case) -> None:
    """An injection at site 2 is no step of a capture or patch at site 1, in either order of the blocks."""
    (injected, other), rows = texts(case), case.rows
    there = lambda: inject(case.model, injected, 2)  # noqa: E731
    for order in (1, -1):
        kept = within(case, *[capture(case.model, 1, rows=rows), there()][::order])[1][::order][0]
        require_same(kept, captured(case))
    cache = captured(case, other)
    patched = lambda: patch(case.model, cache, 1, rows=rows, steps=[0])  # noqa: E731
    inner, outer = within(case, there(), patched())[0], within(case, patched(), there())[0]
    assert torch.equal(inner, outer) and not torch.equal(inner, within(case, there())[0])


def require_apart(case) -> None:
    """At one site the inner block has the last word, and an injected text is what it is, whoever patches
    there.
    """
    (injected, other), rows = texts(case), case.rows
    there, cache = (lambda: inject(case.model, injected, 1)), captured(case, other)
    patched = lambda: patch(case.model, cache, 1, rows=rows, steps=[0])  # noqa: E731
    assert torch.equal(within(case, patched(), there())[0], within(case, there())[0])
    assert torch.equal(within(case, there(), patched())[0], within(case, patched())[0])
    # whom a capture sees, outside the injection and inside
    for order, text in ((1, None), (-1, injected)):
        kept = within(case, *[capture(case.model, 1, rows=rows), there()][::order])[1][::order][0]
        require_same(kept, captured(case, text))


@pytest.mark.parametrize("require", [require_unseen, require_apart])
@pytest.mark.parametrize("architecture", ["sdxl", "if-i"])
def test_an_injected_text_is_made_in_no_open_block(architecture, require, monkeypatch):
    """The keys and values of `inject` are nobody's step, on our own models too.

    With the fault they are refused.
    """
    require(fixed_case(architecture))
    plant(
        monkeypatch,
        patching,
        "_own_bank",
        "with outside_blocks():",
        "if True:",
    )
    with pytest.raises(PatchError, match="ran outside a call of the"):
        require(fixed_case(architecture))


class Foreign(nn.Module):
    """One site, and no `text_kv`."""

    sites = (Site(0, "attn", "cross", heads=1, head_dim=4, parameters=0),)

    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(3, 4) for name in ("to_k", "to_v")})

    def forward(self, encoder_hidden_states):
        return self.attn["to_k"](encoder_hidden_states) + self.attn["to_v"](encoder_hidden_states)


class AnyArguments(Foreign):
    """The same, with a forward that takes any arguments, as those of wrappers do."""

    def forward(self, x, **kw):
        return x + super().forward(**kw)


class OneDictionary(Foreign):
    """The same, with a forward that takes its text in a dictionary."""

    def forward(self, x, texts):
        return x + super().forward(**texts)


@pytest.mark.parametrize("kind", [AnyArguments, OneDictionary])
def test_a_text_is_injected_where_the_call_holds_it(kind):
    """A text in `**kw`, or in a dictionary, is replaced there, and the caller's dictionary stays as it is."""
    model = kind()
    text, own = ({"encoder_hidden_states": one} for one in torch.randn(2, 2, 5, 3))

    def call(held):
        with torch.no_grad():
            return model(0, held) if kind is OneDictionary else model(0, **held)

    before = dict(own)
    with inject(model, text["encoder_hidden_states"], "all"):
        injected = call(own)
    assert torch.equal(injected, call(text)) and not torch.equal(injected, call(own))
    assert own["encoder_hidden_states"] is before["encoder_hidden_states"]


def test_an_injected_text_of_another_dtype():
    """float32 for a model in float64, float64 for a foreign one in float32: PatchError with both."""
    case = fixed_case("sdxl")
    with (
        pytest.raises(
            PatchError, match=r"is torch.float32, and the model reads torch.float64; inject text.to"
        ),
        inject(case.model, case.inputs[2].to(torch.float32), 0),
    ):
        pass
    model, text = Foreign(), torch.zeros(2, 5, 3)
    with (
        pytest.raises(
            PatchError, match=r"is torch.float64, and the model reads torch.float32; inject text.to"
        ),
        inject(model, text.double(), "all"),
    ):
        model(text)


def test_an_injected_text_of_another_kind():
    """The tokens alone, or a prompt, for a model that takes a TextCondition: PatchError that names it."""
    case = fixed_case("sdxl")
    for text, kind in ((case.inputs[2].tokens, "Tensor"), ("a prompt", "str"), (None, "NoneType")):
        says = f"the injected text is a {kind}, and .* takes a TextCondition; give pipeline.encode"
        with pytest.raises(PatchError, match=says), inject(case.model, text, 0):
            pass
