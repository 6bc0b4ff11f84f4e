"""Adapters act beside the weights and within them alike, leave nothing behind, and make old caches stale."""

import copy
import threading

import pytest
import torch
from torch import nn

from support import adapters as laws
from support.adapters import random_adapter, random_change
from support.patched_calls import anatomy, refused
from support.planting import plant
from support.strategies import fixed_case, make_rows
from textpatch import PatchError, changes, inject, patching
from textpatch.bank import encode
from textpatch.cache import KVCache
from textpatch.changes import LowRank, changes_of
from textpatch.tuning.low_rank import Adapter, base_sha256

ARCHITECTURES = "mmdit", "sdxl", "if-i"
LAWS = [
    laws.law_scale_zero_is_the_base,
    laws.law_applied_is_the_equation,
    laws.law_merged_is_applied,
    laws.law_a_swap_of_an_adapted_model_is_a_patch,
    laws.law_a_stale_cache_is_an_error,
    laws.law_a_capture_is_of_one_model,
    laws.law_static_runs_read_the_adapted_bank,
]
FAULTS = {
    "scale 0 read as none given": (
        laws.law_scale_zero_is_the_base,
        Adapter,
        "applied",
        "beside(layers, self.changes, scale,",
        "beside(layers, self.changes, scale or 1.0,",
    ),
    "left beside": (
        laws.law_scale_zero_is_the_base,
        changes,
        "_take_off",
        "entry[0] is not block",
        "True",
    ),
    "subtracted, not put back": (
        laws.law_scale_zero_is_the_base,
        changes,
        "_take_out",
        "layer.weight.data = merge.original",
        "layer.weight.data = merge.original + 1e-9",
    ),
    "alpha read as the rank": (
        laws.law_applied_is_the_equation,
        LowRank,
        "scale",
        "self.alpha / self.rank",
        "1.0",
    ),
    "first change alone merged": (
        laws.law_merged_is_applied,
        changes,
        "_merged",
        "in merge.parts",
        "in merge.parts[:1]",
    ),
    "base read by the swap": (
        laws.law_a_stale_cache_is_an_error,
        patching,
        "_require_current",
        "isinstance(cache, KVCache)",
        "False",
    ),
    "scale left out of the mark": (
        laws.law_a_stale_cache_is_an_error,
        Adapter,
        "_mark",
        "at scale {float(scale)}",
        "",
    ),
    "marks lost in a file": (
        laws.law_a_stale_cache_is_an_error,
        KVCache,
        "tensors",
        "if self.adapters:",
        "if False:",
    ),
    "two models in a cache": (
        laws.law_a_capture_is_of_one_model,
        KVCache,
        "begin",
        "if not self:",
        "if True:",
    ),
    "hooks before the change": (
        laws.law_applied_is_the_equation,
        changes._Forward,
        "__call__",
        "self.plain(*args, **named)",
        "self.plain(*args, **named) - 1e-6",
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_adapters(law, architecture):
    """The laws hold on every architecture."""
    law(fixed_case(architecture))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_notices(fault, monkeypatch):
    """A law does not hold with its fault in the library."""
    law, *place = FAULTS[fault]
    plant(monkeypatch, *place)
    with pytest.raises(AssertionError):
        law(fixed_case("sdxl"))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5))


def adapter_of(model, seed: int = 0, **fields) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter({"0": random_change(model[0], 2, generator)}, **fields)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_merge_rounds_once(layer, dtype):
    """The merged weight is the float32 sum of all changes, rounded to the weight's dtype."""
    layer.to(dtype).requires_grad_(False)
    first, second = adapter_of(layer), adapter_of(layer, seed=1)
    original = layer[0].weight.clone()
    matrices = [0.5 * first.changes["0"].matrix(), second.changes["0"].matrix()]
    with first.merged(layer, scale=0.5), second.merged(layer):
        assert torch.equal(
            layer[0].weight, (original.float() + matrices[0] + matrices[1]).to(dtype)
        )
    assert torch.equal(layer[0].weight, original)


def test_a_merge_that_overflows_leaves_the_weight(layer):
    """A sum that float16 cannot hold is refused, and the original weight is there."""
    layer.half().requires_grad_(False)
    original = layer[0].weight.clone()
    with refused("cannot hold"), adapter_of(layer).merged(layer, scale=1e6):
        pass
    assert torch.equal(layer[0].weight, original) and changes_of(layer) == ()


def test_blocks_close_in_any_order(layer):
    """Whichever block closes first, the other's change stays, and after both nothing does."""
    x = torch.randn(3, 6)
    before, plain = anatomy(layer), layer(x)
    for kind in ("applied", "merged"):
        one, other = (getattr(adapter_of(layer, seed), kind)(layer) for seed in (0, 1))
        one.__enter__()
        alone = layer(x)
        other.__enter__()
        both = layer(x)
        one.__exit__(None, None, None)
        assert not torch.equal(layer(x), both) and not torch.equal(layer(x), alone)
        other.__exit__(None, None, None)
        assert torch.equal(layer(x), plain) and anatomy(layer) == before


def test_an_error_in_the_block_leaves_the_base(layer):
    """Whatever ends the block, the model is the base again."""
    x = torch.randn(3, 6)
    plain = layer(x)
    for block in (adapter_of(layer).applied(layer), adapter_of(layer).merged(layer)):
        with pytest.raises(KeyboardInterrupt), block:
            raise KeyboardInterrupt
        assert torch.equal(layer(x), plain) and changes_of(layer) == ()


def test_a_forward_of_somebody_else_is_put_back(layer):
    """A layer whose forward was replaced before has that one again."""
    own = layer[0].forward
    layer[0].forward = replaced = lambda x: 2 * own(x)
    x = torch.randn(3, 6)
    with adapter_of(layer).applied(layer):
        assert not torch.equal(layer(x), 2 * own(x))
    assert layer[0].forward is replaced


def test_other_threads_see_the_adapter(layer):
    """An adapter is a part of the model, so that a thread of its own runs the adapted model."""
    x = torch.randn(3, 6)
    seen = []
    with adapter_of(layer).applied(layer):
        thread = threading.Thread(target=lambda: seen.append(layer(x)))
        thread.start()
        thread.join()
        assert torch.equal(seen[0], layer(x))


def test_gradients_reach_the_factors(layer):
    """Factors that ask for a gradient get that of s B A x."""
    layer.requires_grad_(False)
    change = adapter_of(layer).changes["0"]
    change.up.requires_grad_()
    x = torch.randn(3, 6)
    with Adapter({"0": change}).applied(layer):
        layer(x).sum().backward()
    expected = change.scale * (x @ change.down.mT).sum(0)
    assert torch.allclose(change.up.grad, expected.expand(5, -1))


def test_a_hash_is_of_the_model_and_not_of_its_dtype():
    """Weights published in float16 have one hash in every dtype, and another after any change."""
    model = fixed_case("sdxl").model
    adapter = random_adapter(model)
    layers = {name: model.get_submodule(name) for name in adapter.changes}
    for layer in layers.values():
        layer.weight.data = layer.weight.data.half().double()
    base = base_sha256(layers)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for layer in layers.values():
            layer.to(dtype)
        assert base_sha256(layers) == base
    next(iter(layers.values())).weight.data[0, 0] += 1
    assert base_sha256(layers) != base


def test_a_bank_and_an_injected_text_know_their_adapters():
    """A bank made before the adapter is refused in a run, and so is a text injected before it."""
    case = fixed_case("sdxl")
    adapter = random_adapter(case.model)
    texts = encode(case.pipeline, make_rows((0, 1)))
    texts.require_current(case.model)
    with adapter.applied(case.model):
        case.call()
        with refused("the bank was made under no adapter"):
            texts.require_current(case.model)
    text = case.inputs[2]
    with (
        refused("the text was injected under no adapter"),
        inject(case.model, text, "all"),
        adapter.applied(case.model),
    ):
        case.call()


BAD = {
    "nothing": (lambda m: Adapter({}), "no projections"),
    "unknown": (
        lambda m: Adapter({"1": adapter_of(m).changes["0"], "0": adapter_of(m).changes["0"]}),
        "1 of 2 projections",
    ),
    "width": (
        lambda m: Adapter({"0": LowRank(torch.ones(1, 7), torch.ones(5, 1), 1)}),
        "5 x 7, and that of this Sequential is 5 x 6",
    ),
    "base": (lambda m: adapter_of(m, base="ab" * 32), "give any_base=True"),
    "alpha 0": (lambda m: LowRank(torch.ones(1, 6), torch.ones(5, 1), 0), "alpha is 0"),
    "rank": (lambda m: LowRank(torch.ones(6, 6), torch.ones(5, 6), 1), "is 6; give 1 or more"),
    "NaN": (lambda m: LowRank(torch.ones(1, 6), torch.ones(5, 1) * torch.nan, 1), "holds NaN"),
    "shapes": (lambda m: LowRank(torch.ones(1, 6), torch.ones(5, 2), 1), "takes (r, in)"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_adapters_are_refused(bad, layer):
    """An adapter that cannot be, or belongs to another model, is one line."""
    make, says = BAD[bad]
    with refused(says), make(layer).applied(layer):
        pass


def test_requests_without_effect_are_refused(layer):
    """A block in which the model never ran, the same adapter twice, a scale that is none, and no model."""
    adapter = adapter_of(layer)
    with refused("none of 1 adapted layers ran"), adapter.applied(layer):
        pass
    with adapter.merged(layer), refused("acts on this model already"), adapter.applied(layer):
        pass
    for scale in (True, float("nan"), "1"):
        with refused("give a finite number"):
            adapter.applied(layer, scale=scale)
    with refused("give a pipeline"):
        adapter.applied(object())


def test_an_adapted_model_is_not_copied(layer):
    """A copy would keep the change for ever; of the base, and of a merged model, one can be made."""
    adapter = adapter_of(layer)
    with adapter.applied(layer):
        layer(torch.randn(3, 6))
        with pytest.raises(PatchError, match="copied or pickled"):
            copy.deepcopy(layer)
    with adapter.merged(layer):
        copied = copy.deepcopy(layer)
    assert not torch.equal(copied[0].weight, layer[0].weight)
