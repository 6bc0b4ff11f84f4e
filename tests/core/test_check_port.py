"""check_port is held to its word: a wrong table, a model or a fault in the code for each check that must
find it.
"""

import re
from contextvars import copy_context
from dataclasses import dataclass, replace

import pytest
import torch

from support.foreign import foreign
from support.laws import patching
from support.planting import plant
from textpatch import anatomy, attending, cache, calls, hooks, ports, reading, sites, taps, testing
from textpatch.errors import PatchError
from textpatch.ports.matching import SiteSpec
from textpatch.ports.shipped import shipped_table
from textpatch.sites import Span
from textpatch.testing import check_port, facts, swaps


@dataclass
class Bench:
    """A model under test, ready for a fault."""

    diffusers: object
    monkeypatch: pytest.MonkeyPatch
    model: torch.nn.Module
    inputs: dict
    table: tuple[SiteSpec, ...]


def rows(change=None, **fields):
    """A table with other rows."""
    return lambda bench: setattr(
        bench,
        "table",
        tuple(replace(spec, **(change(spec) if change else fields)) for spec in bench.table),
    )


def flipped(spec: SiteSpec) -> dict:
    """Text first for image first, and the other way."""
    order = {None: None, "text first": "image first", "image first": "text first"}[spec.order]
    place = {"all": "all", "first": "last", "last": "first"}[spec.span.place]
    return {"order": order, "span": replace(spec.span, place=place)}


def exchanged(spec: SiteSpec) -> dict:
    """K for V."""
    return {"projections": tuple(reversed(spec.projections or anatomy.TEXT_PROJECTIONS[spec.kind]))}


def table(change):
    return lambda bench: setattr(bench, "table", change(bench.table))


def code(*place):
    return lambda bench: plant(bench.monkeypatch, *place)


def module(name: str, fn):
    """A module of the model that puts out fn of its output."""
    return lambda bench: bench.model.get_submodule(name).register_forward_hook(
        lambda m, args, out: fn(out)
    )


def attribute(owner, name: str, value):
    return lambda bench: bench.monkeypatch.setattr(owner, name, value)


def one_text(bench: Bench):
    bench.inputs["encoder_hidden_states"][1] = bench.inputs["encoder_hidden_states"][0]


def attention_of_its_own(bench: Bench):
    bench.model.set_attn_processor(bench.diffusers.models.attention_processor.AttnProcessor())


UNPACKED = (
    SiteSpec(
        "layers.*.attn", "single", span=Span("first", mask="encoder_attention_mask"), kv_heads=2
    ),
)


class Shared:
    """A ContextVar that all threads share."""

    def __init__(self):
        self.get, self.set = lambda: self.value, lambda value: setattr(self, "value", value)
        self.set(frozenset())


FAULTS = {  # check that must find it, model, fault
    "a model with noise": (
        facts.calls_agree,
        "sd3",
        module("proj_out", lambda x: x + torch.randn_like(x)),
    ),
    "one text twice": (facts.texts_differ, "sd3", one_text),
    "fused rows not declared": (facts.channels_are_read_once, "prx", rows(fused=None)),
    "three heads share two": (facts.queries_share_heads_evenly, "krea2", rows(heads=3)),
    "parameters miscounted": (
        facts.parameters_are_counted,
        "sd3",
        code(sites, "parameter_count", "p.numel()", "len(p)"),
    ),
    "projections that were fused": (
        facts.taps_fire_once,
        "fused_flux",
        table(lambda _: ports.flux.FLUX),
    ),
    "registration order": (
        facts.sites_run_in_order,
        "sdxl",
        rows(lambda spec: {"modules": (spec.modules[0], spec.modules[2], spec.modules[1])}),
    ),
    "single blocks first": (facts.sites_run_in_order, "flux", table(lambda table: table[::-1])),
    "attention that is not torch's": (facts.attention_follows, "pixart", attention_of_its_own),
    "image projections": (facts.span_is_the_text, "sd35", rows(projections=("to_k", "to_v"))),
    "image attention": (
        facts.span_is_the_text,
        "sdxl",
        rows(
            lambda spec: {"modules": tuple(path.replace("attn2", "attn1") for path in spec.modules)}
        ),
    ),
    "SD3.5's second attention": (
        facts.span_is_the_text,
        "sd35",
        rows(modules="transformer_blocks.*.attn2", projections=("to_k", "to_v")),
    ),
    "half the heads": (facts.heads_are_attentions, "qwen_image", rows(heads=1)),
    "twice the heads": (facts.heads_are_attentions, "sdxl", rows(heads=4)),
    "shared heads not declared": (facts.heads_are_attentions, "krea2", rows(kv_heads=None)),
    "order of SD3": (facts.values_are_attentions, "sd35", rows(flipped)),
    "order of IF": (facts.values_are_attentions, "deepfloyd_if", rows(flipped)),
    "order of Qwen-Image": (facts.values_are_attentions, "qwen_image", rows(flipped)),
    "K and V exchanged": (facts.values_are_attentions, "pixart", rows(exchanged)),
    "fused V and Q": (facts.values_are_attentions, "fused_flux", rows(fused=(1, 0, 3))),
    "fused K and V exchanged": (facts.values_are_attentions, "prx", rows(fused=(1, 0, 2))),
    "fused Q and V": (facts.keys_are_attentions, "fused_flux", rows(fused=(0, 2, 3))),
    "queries for keys": (
        facts.keys_are_attentions,
        "sd35",
        rows(projections=("add_q_proj", "add_v_proj")),
    ),
    "span of Krea 2": (facts.pictures_do_not_reach_the_text, "krea2", rows(flipped)),
    "span of Z-Image": (facts.pictures_do_not_reach_the_text, "z_image", rows(flipped)),
    "padding not declared": (
        facts.texts_do_not_reach_the_picture,
        "z_image",
        rows(span=Span("last", "cap_feats")),
    ),
    "text read off the image": (facts.text_is_read, "krea2", rows(flipped)),
    "text that evolves": (facts.static_text_is_static, "sd3", rows(kind="added")),
    "rows that meet": (
        facts.rows_are_apart,
        "sd3",
        module("context_embedder", lambda x: x - x.mean(0)),
    ),
    "rows by place": (
        facts.rows_may_be_permuted,
        "sdxl",
        module("conv_out", lambda x: x + torch.ones(2, 1, 1, 1).cumsum(0)),
    ),
    "span of FLUX's single blocks": (
        swaps.a_row_that_reads_another_is_that_row,
        "flux",
        table(lambda table: (table[0], replace(table[1], **flipped(table[1])))),
    ),
    "FLUX's single blocks left out": (
        swaps.a_row_that_reads_another_is_that_row,
        "flux",
        table(lambda table: table[:1]),
    ),
    "one row for all": (
        swaps.captures_are_what_attention_gets,
        "sd3",
        code(patching, "capture", "part] = own[b]", "part] = own[0]"),
    ),
    "capture that writes": (
        swaps.capture_changes_nothing,
        "sd3",
        code(
            attending, "text_at_attention", "[:, :, place], site)", "[:, :, place].zero_(), site)"
        ),
    ),
    "capture that casts": (
        swaps.dtypes_are_kept,
        "sd3",
        code(
            patching,
            "capture",
            "part] = own[b].detach().clone()",
            "part] = own[b].detach().double()",
        ),
    ),
    "twice the own": (
        swaps.own_text_is_the_identity,
        "sd3",
        code(patching, "patch", "] = _mixed(", "] = 2 * _mixed("),
    ),
    "swap dropped": (
        swaps.a_swap_changes_its_row,
        "krea2",
        code(attending, "_with_written", "into[place] = x", "pass"),
    ),
    "every row patched": (
        swaps.a_swap_changes_no_other_row,
        "sd3",
        code(patching, "patch", "own.clone()", "own.roll(1, 0)"),
    ),
    "values as keys": (
        swaps.a_swap_is_attended_to,
        "prx",
        code(cache, "stored_kv", "label, part\n", 'label, "vk"["kv".index(part)]\n'),
    ),
    "heads ignored": (
        swaps.one_head_is_one_head,
        "krea2",
        code(patching, "_mixed", "if heads is None else heads", ""),
    ),
    "tokens ignored": (
        swaps.one_token_is_one_token,
        "z_image",
        code(patching, "_mixed", "if tokens is None else tokens", ""),
    ),
    "values in the place of keys": (
        swaps.keys_are_keys,
        "sdxl",
        code(attending, "text_at_attention", 'if part == "k" else', "if False else"),
    ),
    "keys in the place of values": (
        swaps.values_are_values,
        "krea2",
        code(attending, "text_at_attention", 'if part == "k" else', "if True else"),
    ),
    "part ignored": (
        swaps.keys_and_values_differ,
        "sd3",
        code(attending, "text_at_attention", "for part in parts:", 'for part in "kv":'),
    ),
    "other heads lost": (
        swaps.all_heads_are_the_site,
        "krea2",
        code(patching, "_mixed", "own.clone()", "0 * own"),
    ),
    "numbers against the run": (
        swaps.earlier_sites_are_unchanged,
        "flux",
        table(lambda table: table[::-1]),
    ),
    "first site alone": (
        swaps.all_sites_are_attended_to,
        "sd3",
        code(taps, "chosen_sites", "(known, given)", "(known, given)[:1]"),
    ),
    "the middle left out": (
        swaps.a_row_that_reads_another_is_that_row,
        "sdxl",
        rows(lambda spec: {"modules": (spec.modules[0], spec.modules[2])}),
    ),
    "steps from one": (
        swaps.steps_are_calls,
        "sd3",
        code(calls.Calls, "_begin", "Call(self.count,", "Call(self.count + 1,"),
    ),
    "the prompt injected": (
        swaps.injection_is_patching,
        "prx",
        code(patching, "_fill_at_first_call", "replace_argument(inputs, read[0], text)", "pass"),
    ),
    "packed text not declared": (
        swaps.masked_text_is_where_it_was,
        "lumina2",
        table(lambda _: UNPACKED),
    ),
    "masks stay": (
        swaps.masks_go_with_their_keys,
        "pixart",
        code(reading.Reading, "_read_mask", "mask[place] = by_keys.mT", "pass"),
    ),
    "no mask injected": (
        swaps.an_injected_text_brings_its_mask,
        "pixart",
        code(patching, "_fill_at_first_call", "replace_argument(inputs, name, mask)", "pass"),
    ),
    "rows not counted": (
        swaps.other_rows_are_refused,
        "sd3",
        code(patching, "_require_rows", "if len(output) != len(labels):", "if False:"),
    ),
    "shapes not compared": (
        swaps.other_shapes_are_refused,
        "sd3",
        code(
            cache,
            "stored_kv",
            "if stored.shape != own.shape or stored.dtype != own.dtype:",
            "if False:",
        ),
    ),
    "range not looked at": (
        swaps.what_is_not_there_is_refused,
        "krea2",
        code(patching, "_mixed", "site.text_heads, site)", "site.text_heads + 1, site)"),
    ),
    "rows that share a NaN": (
        swaps.nan_does_not_leak,
        "sd3",
        module("context_embedder", lambda x: x + 0 * x.sum(0)),
    ),
    "no gate for threads": (
        swaps.threads_are_untouched,
        "sd3",
        attribute(hooks, "_open_blocks", Shared()),
    ),
    "hooks left behind": (
        swaps.nothing_is_left_behind,
        "sd3",
        attribute(hooks, "_close", lambda *_: None),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_table_is_found(diffusers, monkeypatch, fault):
    """The check named for a fault fails with it; without it, as for every shipped table, it holds."""
    check, name, spoil = FAULTS[fault]
    model, inputs = foreign(diffusers, name)
    bench = Bench(diffusers, monkeypatch, model, inputs, shipped_table(model))
    spoil(bench)
    monkeypatch.setattr(testing, "CHECKS", [check])
    with pytest.raises(
        PatchError, match="fails 1 of 1 checks .*\n" + re.escape(" ".join(check.__doc__.split()))
    ):
        copy_context().run(check_port, model, bench.table, bench.inputs)


def test_every_check_has_a_fault():
    """{checks} = {checks that some fault fails}."""
    assert {check for check, *_ in FAULTS.values()} == set(testing.CHECKS)


def test_all_failures_come_together(diffusers):
    """One PatchError names every check that fails, each with the sites where it does."""
    model, inputs = foreign(diffusers, "sdxl")
    wrong = tuple(replace(spec, **exchanged(spec)) for spec in shipped_table(model))
    with pytest.raises(PatchError) as error:
        check_port(model, wrong, inputs)
    first, *failed = str(error.value).splitlines()
    assert (
        first
        == f"UNet2DConditionModel fails {len(failed)} of {len(testing.CHECKS)} checks of its table:"
    )
    assert len(failed) == 2 and all("not at '" in line for line in failed)
