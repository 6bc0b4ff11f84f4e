"""The bank of a run: projected once per prompt, read by index, and one compiled graph for every plan."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from strategies import build_pipeline, make_rows
from test_audit import unet
from test_faults import plant
from torch._dynamo.testing import CompileCounter

from textpatch import bank
from textpatch.attention import gather_text, row_slots
from textpatch.bank import encode, spelled_out
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.patch import capture, patch
from textpatch.plan import Plan, Row, Swap, with_guidance
from textpatch.sampling import sample

PLANS = [
    Plan(),
    Plan([Swap("all", "a", "b")]),
    Plan([Swap((0, 2), ("a", "c"), "b", steps=(1,))]),
    Plan([Swap(1, "a", "b", heads=(1,)), Swap(1, "c", "a", part="v", tokens=(0, 2), branch="cond")]),
]


def repeated_rows() -> list[Row]:
    """Four rows of three prompts, one of them pooled by a prompt that nobody reads."""
    a, b, c = make_rows((0, 1, 2))
    return [a, b, c, replace(a, name="d", seed=9, pooled="A pooled prompt")]


@pytest.mark.parametrize("name", ["sdxl", "if"])
@pytest.mark.parametrize("swaps", PLANS)
def test_the_bank_is_read_by_index(name, swaps):
    """A run reads its bank's rows bit for bit as if each row's keys and values had been copied out for it."""
    pipeline, rows = unet(name), repeated_rows()
    made = sample(pipeline, rows, swaps, steps=2, guidance=4.5)
    batch, noises = with_guidance(rows), pipeline.noises([row.seed for row in rows])
    texts, sites = encode(pipeline, batch), pipeline.denoiser.sites
    assert len(texts.bank[0][0]) == 4 < len(batch)  # no prompt, and those of a, b, c
    copied = tuple(tuple(x[texts.rows(batch)] for x in kv) for kv in texts.bank)
    latents = pipeline.denoise(
        next(noises), replace(texts.of(batch), tokens=copied), steps=2, guidance=4.5, noises=noises,
        slots=lambda step: swaps.slots(step, batch, sites, tokens=texts.tokens),
    )  # fmt: skip
    assert all(torch.equal(made.latents[row.name], x) for row, x in zip(rows, latents))


@pytest.mark.parametrize("name", ["sdxl", "if"])
def test_each_prompt_is_projected_once(name):
    """3 steps, 2 branches, a micro-batch per row: one call of each text projection, on the distinct prompts."""
    pipeline, rows, calls = unet(name), repeated_rows(), Counter()
    taps = [tap.module for site in pipeline.denoiser.sites for tap in site.taps]
    with HookRegistry(pipeline.denoiser, taps).observe(lambda name, kv: calls.update({(name, len(kv)): 1})):
        sample(pipeline, rows, PLANS[2], steps=3, guidance=4.5, micro_batch=2)
    assert calls == {(tap, 4): 1 for tap in taps}


@pytest.mark.parametrize("name", ["sdxl", "if"])
@pytest.mark.parametrize("guidance", [1, 4.5])
def test_hooks_that_count_steps_see_every_step(name, guidance):
    """capture and patch around `sample` = the plan that says the same, at one step of three; no bank meanwhile."""
    pipeline, rows = unet(name), make_rows((0, 1))
    batch = rows if guidance == 1 else with_guidance(rows)
    with capture(pipeline.denoiser, [1, 2], rows=batch) as cache:
        sample(pipeline, rows, steps=3, guidance=guidance)
    assert len(cache) == 2 * 3 * len(batch) * 2  # sites, steps, rows, K and V
    reads = [replace(row, name="b") if row.name == "a" else None for row in batch]
    with patch(pipeline.denoiser, cache, [1, 2], rows=reads, steps=(1,)):
        hooked = sample(pipeline, rows, steps=3, guidance=guidance).latents["a"]
    asked = sample(pipeline, rows, Plan([Swap((1, 2), "a", "b", steps=(1,))]), steps=3, guidance=guidance)
    assert torch.allclose(hooked, asked.latents["a"], rtol=1e-12, atol=1e-12)
    every = sample(pipeline, rows, Plan([Swap((1, 2), "a", "b")]), steps=3, guidance=guidance)
    assert not torch.allclose(hooked, every.latents["a"], rtol=1e-6, atol=1e-6)


FAULTS = {
    "donor of another row": (bank, "_through", "places[entry // tokens]", "places.flip(0)[entry // tokens]"),
    "token of the donor lost": (bank, "_through", "+ entry % tokens", "+ 0 * entry"),
    "identity of other rows": (bank.Texts, "slots", "own = row_slots(places,", "own = row_slots(places.flip(0),"),
    "pooled of the prompt read": (bank.Texts, "of", "[self.place[row.pooled_prompt] for", "[self.place[row.prompt] for"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_bank_is_seen(fault, monkeypatch):
    """The run with a fault is not the run without a bank."""
    pipeline, rows, swaps = unet("sdxl"), repeated_rows(), PLANS[2]
    batch, noises = with_guidance(rows), pipeline.noises([row.seed for row in rows])
    condition = pipeline.encode([row.prompt for row in batch])
    pooled = pipeline.encode([row.pooled_prompt for row in batch]).pooled
    plain = pipeline.denoise(
        next(noises), replace(condition, pooled=pooled), steps=2, guidance=4.5, noises=noises,
        slots=lambda step: swaps.slots(step, batch, pipeline.denoiser.sites, tokens=condition.tokens.shape[1]),
    )  # fmt: skip

    def off():
        made = sample(pipeline, rows, swaps, steps=2, guidance=4.5).latents
        return max((made[row.name] - x).abs().max() / x.abs().max() for row, x in zip(rows, plain))

    assert off() <= 1e-12  # another batch shape of the projections
    plant(monkeypatch, *FAULTS[fault])
    assert off() > 1e-6


def make_pipeline(name: str):
    return build_pipeline() if name == "mmdit" else unet(name)


@pytest.mark.parametrize("name", ["sdxl", "if", "mmdit"])
def test_one_graph_for_every_plan(name):
    """Compiled whole, a denoiser runs the identity and every plan at every step on 1 graph, with 0 recompilations."""
    pipeline, rows, counter = make_pipeline(name), repeated_rows(), CompileCounter()
    plain = [sample(pipeline, rows, swaps, steps=2, guidance=4.5).latents for swaps in PLANS]
    torch._dynamo.reset()
    pipeline.denoiser.compile(backend=counter, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        made = [sample(pipeline, rows, swaps, steps=2, guidance=4.5).latents for swaps in PLANS]
    assert counter.frame_count == 1
    for a, b in zip(made, plain):
        assert all(torch.allclose(a[row], b[row], rtol=1e-12, atol=1e-12) for row in b)


def test_spelled_out_is_the_same_read():
    """Every plan's slots in full, (B, H, T) for keys and for values, gather the same keys and values."""
    pipeline, batch = unet("if"), with_guidance(repeated_rows())
    sites, shapes = pipeline.denoiser.sites, set()
    for swaps in PLANS:
        tables = swaps.slots(1, batch, sites, tokens=4)
        for i, (site, pair) in enumerate(zip(sites, spelled_out(tables, len(batch), 4, sites))):
            entry = None if tables is None else tables[i]
            for short, full in zip(entry if isinstance(entry, tuple) else (entry, entry), pair):
                keys = torch.randn(len(batch), site.text_heads, 4, 3)
                assert torch.equal(gather_text(keys, full), gather_text(keys, short))
                shapes.add((site.index, full.shape, full.dtype, full.is_contiguous()))
    assert shapes == {(s.index, (len(batch), s.text_heads, 4), torch.int32, True) for s in sites}


def test_no_slots_where_every_row_reads_itself():
    """No plan, and as many rows as prompts in their order: None, so that attention keeps its fastest path."""
    pipeline, rows = unet("sdxl"), make_rows((0, 1, 2))
    texts = encode(pipeline, rows)
    assert texts.slots(None, rows, 4) is None
    turned = texts.slots(None, rows[::-1], 4)
    assert len(turned) == 4 and torch.equal(turned[3], row_slots(torch.tensor([2, 1, 0]), 4))


def test_a_table_for_the_keys_alone_is_refused():
    """(table, None) would read as the keys' table for both: an error that says what to give."""
    pipeline, rows = unet("sdxl"), make_rows((0, 1))
    texts, table = encode(pipeline, rows), row_slots(torch.tensor([1, 0]), 4)
    with pytest.raises(PatchError, match="site 2 are a table for the keys and None for the values; give"):
        pipeline.denoiser(pipeline.noise([0, 1]), 1.0, texts.of(rows), slots=[None, table, (table, None), None])
