"""Parts of a U-Net that run again in the backward pass, to save memory, read the same text again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.planting import plant
from textpatch import load
from textpatch.attention import row_slots
from textpatch.reference_models import deepfloyd_if, sdxl
from textpatch.reference_models.pipeline import Pipeline

PARTS = {
    "sdxl": (
        sdxl.CrossAttention,
        sdxl.Block,
        sdxl.Transformer,
        sdxl.DownBlock,
        sdxl.MidBlock,
        sdxl.UpBlock,
    ),
    "if": (
        deepfloyd_if.AddedAttention,
        deepfloyd_if.DownBlock,
        deepfloyd_if.MidBlock,
        deepfloyd_if.UpBlock,
    ),
}
EVERY_PART = [(name, part) for name, parts in PARTS.items() for part in parts]
# The older checkpointing follows gradients through tensors that are arguments themselves, and not through
# lists of them.
GIVEN_TENSORS = [
    ("sdxl", sdxl.CrossAttention),
    ("sdxl", sdxl.Block),
    ("if", deepfloyd_if.AddedAttention),
]
PROMPTS = [
    'a red sign that says "HOUSE" on a blue wall',
    'a red sign that says "BREAD" on a blue wall',
]
READINGS = list(product(("tokens", "bank"), ("own", "turned")))
FEW_READINGS = [("bank", "turned")]


@cache
def shipped(name: str) -> Pipeline:
    """A shipped model whose weights want gradients."""
    pipeline = load(f"tiny-{name}")
    pipeline.denoiser.requires_grad_(True)
    return pipeline


@contextmanager
def checkpointed(model: nn.Module, part: type[nn.Module], reentrant: bool) -> Iterator[None]:
    """All modules of a class run again in the backward pass."""
    modules = [module for module in model.modules() if isinstance(module, part)]
    assert modules
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=reentrant)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def gradients(pipeline: Pipeline, held: str, slots: str) -> dict[str, Tensor]:
    """Gradients of the denoiser's parameters by name, the text held as tokens or in a bank, every other
    site turned or not.

    Without those that pooled the text, which is done before.
    """
    model, text = pipeline.denoiser, pipeline.encode(PROMPTS)
    swap = row_slots(torch.tensor([1, 0]), text.tokens.shape[1])
    tables = [swap if site.index % 2 else None for site in model.sites]
    if held == "bank":
        text = replace(text, tokens=model.text_kv(text))
    x = pipeline.noise([0, 1]).requires_grad_()
    model.zero_grad()
    output = model(x, torch.tensor(500.0), text, slots=tables if slots == "turned" else None)
    output.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@cache
def expected(name: str, held: str, slots: str) -> dict[str, Tensor]:
    return gradients(shipped(name), held, slots)


def require_the_same(
    name: str, part: type[nn.Module], held: str, slots: str, *, reentrant: bool
) -> None:
    """Gradients with a part checkpointed are those without, bit for bit."""
    pipeline, wanted = shipped(name), expected(name, held, slots)
    with checkpointed(pipeline.denoiser, part, reentrant):
        found = gradients(pipeline, held, slots)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[parameter], grad) for parameter, grad in wanted.items())


def test_the_readings_differ():
    """Slots turn the gradients of every site's keys, so that a table lost on the way would be seen."""
    for name in PARTS:
        own, turned = (expected(name, "tokens", slots) for slots in ("own", "turned"))
        keys = [tap.module for site in shipped(name).denoiser.sites for tap in site.taps]
        assert keys and all(
            not torch.equal(own[f"{key}.weight"], turned[f"{key}.weight"]) for key in keys
        )


@pytest.mark.parametrize("name, part", EVERY_PART)
def test_gradients_are_those_without_checkpointing(name, part, long):
    """Each part of each shipped U-Net, from tokens and from a bank, with and without slots.

    The short form reads a bank with slots.  The older checkpointing reads tokens.
    """
    for held, slots in READINGS if long else FEW_READINGS:
        require_the_same(name, part, held, slots, reentrant=False)


@pytest.mark.parametrize("name, part", GIVEN_TENSORS)
def test_so_they_are_with_the_older_checkpointing(name, part, long):
    """The same with `use_reentrant=True`, for parts whose arguments are tensors.

    By default with slots, which turn every site's gradients.
    """
    for slots in ("own", "turned") if long else ("turned",):
        require_the_same(name, part, "tokens", slots, reentrant=True)


USED_UP = "skips = skips[: -len(block.resnets)]", "del skips[-len(block.resnets):]"
FAULTS = {
    "sdxl: the skips are used up": (
        "sdxl",
        sdxl.UpBlock,
        sdxl.StableDiffusion,
        "forward",
        *USED_UP,
    ),
    "if: the skips are used up": (
        "if",
        deepfloyd_if.UpBlock,
        deepfloyd_if.DeepFloydIF,
        "forward",
        *USED_UP,
    ),
    "sdxl: a site is read once": (
        "sdxl",
        sdxl.Transformer,
        sdxl.Transformer,
        "forward",
        "reads[block.attn2.site]",
        "reads.pop(block.attn2.site)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_running_again_is_seen(fault, monkeypatch):
    """A model that changes what a part was given holds, until that part runs again."""
    name, part, *change = FAULTS[fault]
    wanted = expected(name, "tokens", "turned")
    plant(monkeypatch, *change)
    found = gradients(shipped(name), "tokens", "turned")
    assert all(torch.equal(found[parameter], grad) for parameter, grad in wanted.items())
    with pytest.raises((IndexError, KeyError, RuntimeError)):
        require_the_same(name, part, "tokens", "turned", reentrant=False)
