"""A swap by a shipped table is an exchange at the attention call itself, on every class with a table."""

import pytest
import torch

from support.at_attention import exchanged
from support.copies import call
from support.foreign import FOREIGN, SAME, TEXT_KEYS, UNLIKE, foreign
from support.planting import plant
from textpatch import calls, capture, find_sites, masks, patch, sites
from textpatch.errors import PatchError
from textpatch.ports import matching


def swaps_are_exchanges(diffusers, name: str):
    """Row 0 reads row 1 at one site or at all, and the output is that of the exchange, to the bit."""
    model, inputs = foreign(diffusers, name)
    found = find_sites(model)
    plain = call(model, inputs)
    rows = list(range(len(plain)))
    reads = [1, *rows[1:]]
    with capture(model, "all", rows=rows) as cache:
        call(model, inputs)
    for chosen in (found[:1], found[-1:], found):
        with patch(model, cache, chosen, rows=[1, *[None] * (len(rows) - 1)]):
            patched = call(model, inputs)
        names = [site.name for site in chosen]
        expected = exchanged(model, inputs, names, reads, TEXT_KEYS[name])
        assert torch.equal(patched, expected), names
        assert not torch.equal(patched[0], plain[0]) and torch.equal(patched[1:], plain[1:])


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.long] * (x in SAME)) for x in FOREIGN | UNLIKE],
)
def test_a_swap_is_an_exchange_at_attention(diffusers, name):
    """Capture and patch by the shipped table do what an exchange of K and V at the attention call does.

    By default one form of each make is tried, and with --long all.
    """
    swaps_are_exchanges(diffusers, name)


FAULTS = {
    "tokens of the model's own left out": (
        "auraflow",
        sites.Span,
        "joined_lengths",
        "+ self.extra",
        "+ 0",
    ),
    "the first text alone": (
        "hunyuan_glyphs",
        sites.Span,
        "joined_lengths",
        "zip(*given,",
        "zip(*given[:1],",
    ),
    "texts per layer taken for rows": (
        "hidream",
        masks,
        "argument",
        "value = value[entry]",
        "value = value",
    ),
    "a place not looked up": (
        "ideogram4",
        calls.Calls,
        "text",
        "return self._call.found[span]",
        "return slice(1, 6)",
    ),
    "parts as wide as all": (
        "flux2",
        matching,
        "_part_width",
        "width = _number(modules[name], name, parts)",
        "width = 17",
    ),
    "rows of a table one after the other": (
        "audioldm2",
        matching,
        "_runs",
        "if not spec.between or not runs:",
        "if True:",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_feature_is_noticed(diffusers, monkeypatch, fault):
    """What a table can say beside the common is needed: without it swaps are others, or refused."""
    name, *place = FAULTS[fault]
    plant(monkeypatch, *place)
    with pytest.raises((AssertionError, PatchError, RuntimeError)):
        swaps_are_exchanges(diffusers, name)
