"""Bank of a run, projected once per prompt, read by index, and one compiled graph for every plan."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from support.by_default import taking
from support.planting import plant
from support.strategies import build_pipeline, make_rows
from support.unets import unet
from textpatch import bank, lockstep, packing
from textpatch.attention import gather_text, row_slots
from textpatch.auditing.replay import audit
from textpatch.bank import encode, spelled_out
from textpatch.errors import PatchError
from textpatch.guidance import with_guidance
from textpatch.hooks import HookRegistry
from textpatch.patching import capture, inject, patch
from textpatch.plan import Plan, Row, Swap
from textpatch.sampling import sample

PLANS = [
    Plan(),
    Plan([Swap("all", "a", "b")]),
    Plan([Swap((0, 2), ("a", "c"), "b", steps=(1,))]),
    Plan(
        [Swap(1, "a", "b", heads=(1,)), Swap(1, "c", "a", part="v", tokens=(0, 2), branch="cond")]
    ),
]


def repeated_rows() -> list[Row]:
    """Four rows of three prompts, one of them pooled by a prompt that nobody reads."""
    a, b, c = make_rows((0, 1, 2))
    return [a, b, c, replace(a, name="d", seed=9, pooled="A pooled prompt")]


@pytest.mark.parametrize("name", ["sdxl", "if"])
@pytest.mark.parametrize("swaps", PLANS)
def test_the_bank_is_read_by_index(name, swaps):
    """A run reads its bank's rows bit for bit as if each row's keys and values had been copied out for it."""
    pipeline = unet(name)
    rows = repeated_rows()
    made = sample(pipeline, rows, swaps, steps=2, guidance=4.5)
    batch = with_guidance(rows)
    noises = pipeline.noises([row.seed for row in rows])
    texts = encode(pipeline, batch)
    sites = pipeline.denoiser.sites
    assert len(texts.bank[0][0]) == 4 < len(batch)  # no prompt, and those of a, b, c
    copied = tuple(tuple(x[texts.rows(batch)] for x in kv) for kv in texts.bank)
    latents = pipeline.denoise(
        next(noises),
        replace(texts.of(batch), tokens=copied),
        steps=2,
        guidance=4.5,
        noises=noises,
        slots=lambda step: swaps.slots(step, batch, sites, tokens=texts.tokens),
    )
    assert all(torch.equal(made.latents[row.name], x) for row, x in zip(rows, latents, strict=True))


@pytest.mark.parametrize("name", ["sdxl", "if"])
def test_each_prompt_is_projected_once(name):
    """Each text projection is called once, on the distinct prompts.

    The run has 3 steps, 2 branches, and a micro-batch per row.
    """
    pipeline = unet(name)
    rows = repeated_rows()
    calls = Counter()
    taps = [tap.module for site in pipeline.denoiser.sites for tap in site.taps]
    with HookRegistry(pipeline.denoiser, taps).observe(
        lambda name, kv: calls.update({(name, len(kv)): 1})
    ):
        sample(pipeline, rows, PLANS[2], steps=3, guidance=4.5, micro_batch=2)
    assert calls == {(tap, 4): 1 for tap in taps}


@pytest.mark.parametrize("name", ["sdxl", "if"])
@pytest.mark.parametrize("guidance", [1, 4.5])
def test_hooks_that_count_steps_see_every_step(name, guidance):
    """Capture and patch around `sample` give what the plan gives that says the same.

    They act at one step of three, and there is no bank meanwhile.
    """
    pipeline = unet(name)
    rows = make_rows((0, 1))
    batch = rows if guidance == 1 else with_guidance(rows)
    with capture(pipeline.denoiser, [1, 2], rows=batch) as cache:
        sample(pipeline, rows, steps=3, guidance=guidance)
    assert len(cache) == 2 * 3 * len(batch) * 2  # sites, steps, rows, K and V
    reads = [replace(row, name="b") if row.name == "a" else None for row in batch]
    with patch(pipeline.denoiser, cache, [1, 2], rows=reads, steps=(1,)):
        hooked = sample(pipeline, rows, steps=3, guidance=guidance).latents["a"]
    asked = sample(
        pipeline, rows, Plan([Swap((1, 2), "a", "b", steps=(1,))]), steps=3, guidance=guidance
    )
    assert torch.allclose(hooked, asked.latents["a"], rtol=1e-12, atol=1e-12)
    every = sample(pipeline, rows, Plan([Swap((1, 2), "a", "b")]), steps=3, guidance=guidance)
    assert not torch.allclose(hooked, every.latents["a"], rtol=1e-6, atol=1e-6)


def calls_of_a_hooked_tap(name: str, hook, module: str | None = None) -> list[int]:
    """The rows of every call of a hooked module, a text projection when None, in a run of four steps."""
    pipeline = unet(name)
    sizes = []
    with hook(pipeline.denoiser, module or pipeline.denoiser.sites[1].taps[0].module, sizes):
        sample(pipeline, make_rows((0, 1)), PLANS[1], steps=4, guidance=1)
    return sizes


def altered(model, tap: str, sizes: list[int]):
    """Hook of torch's own that gives a projection another input, as a block like ours."""

    def alter(module, args):
        sizes.append(len(args[0]))
        return (2 * args[0],)

    return closing(
        SimpleNamespace(close=model.get_submodule(tap).register_forward_pre_hook(alter).remove)
    )


def watched(model, tap: str, sizes: list[int]):
    return HookRegistry(model, [tap]).observe_inputs(
        lambda name, inputs: sizes.append(len(inputs.args[0]))
    )


def left_alone(model, tap: str, sizes: list[int]):
    return HookRegistry(model, [tap]).replace(lambda name, output: sizes.append(len(output)))


@pytest.mark.parametrize("name", ["sdxl", "if"])
def test_hooks_see_every_step_if_they_may_alter(name, monkeypatch):
    """Hooks that may alter K and V act at each of 4 steps, hooks on inputs too.

    A hook that only watches sees the bank made once.
    """
    assert (
        calls_of_a_hooked_tap(name, altered) == calls_of_a_hooked_tap(name, left_alone) == [2] * 4
    )
    assert calls_of_a_hooked_tap(name, watched) == [2]
    with monkeypatch.context() as patch:
        plant(
            patch,
            bank,
            "_text_hooks",
            "yield from part._forward_pre_hooks.values()",
            "pass",
        )
        assert calls_of_a_hooked_tap(name, altered) == [2]
    plant(monkeypatch, HookRegistry, "observe_inputs", "before, looks_only=True", "before")
    assert calls_of_a_hooked_tap(name, watched) == [2] * 4


def test_hooks_beside_a_projection_see_every_step():
    """Hooks before a projection and within it act at every step, too."""
    model = unet("if").denoiser
    beside = ["encoder_hid_proj", model.sites[1].name + ".norm_cross"]
    assert [calls_of_a_hooked_tap("if", altered, name) for name in beside] == [[2] * 4] * 2
    pipeline = unet("sdxl")
    sizes = []
    site = pipeline.denoiser.get_submodule(pipeline.denoiser.sites[1].name)
    # as low-rank adapters wrap a projection
    site.to_k = torch.nn.Sequential(site.to_k, torch.nn.Identity())
    with altered(pipeline.denoiser, pipeline.denoiser.sites[1].name + ".to_k.1", sizes):
        sample(pipeline, make_rows((0, 1)), PLANS[1], steps=4, guidance=1)
    assert sizes == [2] * 4


def test_the_modules_of_a_text_are_those_called():
    """Modules in `text_modules` are all that `text_kv` calls, by torch's own count."""
    for name in ("sdxl", "if"):
        pipeline = unet(name)
        called = set()
        model = pipeline.denoiser
        text = pipeline.encode(["a red sign"])
        hooks = [
            part.register_forward_hook(lambda *_, at=at: called.add(at))
            for at, part in model.named_modules()
            if at
        ]
        model.text_kv(text)
        assert called == set(model.text_modules) and hooks


# --- donors that are only read


def only_read(rows: list[Row], name: str) -> list[Row]:
    """Rows with one of them not sampled, and first, because its place in the batch is nobody's."""
    return sorted(
        (replace(row, sampled=row.name != name) for row in rows), key=lambda row: row.sampled
    )


def apart(name: str, plan: Plan, micro_batch: int = 64) -> float:
    """Distance of the others' latents between a run that only reads donor b and one that samples it."""
    pipeline = unet(name)
    rows = repeated_rows()
    options = dict(steps=3, guidance=4.5, micro_batch=micro_batch)
    whole = sample(pipeline, rows, plan, **options).latents
    read = sample(pipeline, only_read(rows, "b"), plan, **options).latents
    assert read.keys() == whole.keys() - {"b"}
    return max(
        float((x - whole[row]).abs().max() / whole[row].abs().max()) for row, x in read.items()
    )


READ_B = [
    Plan([Swap("all", "a", "b")]),
    Plan([Swap((0, 2), ("a", "c"), "b", steps=(1, 2))]),
    Plan(
        [Swap(1, "a", "b", heads=(1,)), Swap(1, "c", "b", part="v", tokens=(0, 2), branch="cond")]
    ),
]


@pytest.mark.parametrize("name", ["sdxl", "if"])
@pytest.mark.parametrize("plan", READ_B)
@pytest.mark.parametrize("micro_batch", taking((2,), [2, 64]))
def test_a_donor_need_not_be_sampled(name, plan, micro_batch):
    """Readers of static text end where they end with the donor beside them, to 1e-12.

    So in every micro-batch, by default in small ones.
    """
    assert apart(name, plan, micro_batch) <= 1e-12


@pytest.mark.parametrize("name", ["sdxl", "if"])
def test_a_run_with_an_unsampled_donor_is_an_injection(name):
    """A swap a <- b with b only read is inject(b's text) in a run of a alone.

    It is so bit for bit, since the batch is the same.
    """
    pipeline, (a, b) = unet(name), make_rows((0, 1))
    made = sample(
        pipeline,
        [a, replace(b, sampled=False)],
        Plan([Swap((1, 2), "a", "b")]),
        steps=3,
        guidance=4.5,
    )
    batch = with_guidance([a])
    with inject(
        pipeline.denoiser, pipeline.encode([row.prompt and b.prompt for row in batch]), (1, 2)
    ):
        injected = sample(pipeline, [a], steps=3, guidance=4.5)
    assert torch.equal(made.latents["a"], injected.latents["a"])
    assert not torch.equal(
        made.latents["a"], sample(pipeline, [a], steps=3, guidance=4.5).latents["a"]
    )


def test_rows_that_are_only_read_cost_no_call():
    """Batches hold at most 2 sampled rows, donors not counted.

    The run is 3 steps of (a, c) and d, both branches, and nothing for b.
    """
    pipeline = unet("sdxl")
    sizes = []
    with HookRegistry(pipeline.denoiser, ["conv_in"]).observe(lambda name, x: sizes.append(len(x))):
        sample(
            pipeline,
            only_read(repeated_rows(), "b"),
            READ_B[1],
            steps=3,
            guidance=4.5,
            micro_batch=4,
        )
    assert sizes == [4] * 3 + [2] * 3


def test_the_ledger_and_the_audit_see_donors_that_are_only_read():
    """Entries are those of the run in which the donor is sampled.

    The audit passes, and checks its own reading, too.
    """
    pipeline = unet("sdxl")
    rows = repeated_rows()
    options = dict(steps=2, guidance=4.5)
    read, whole = (
        sample(pipeline, some, READ_B[0], **options).ledger for some in (only_read(rows, "b"), rows)
    )
    assert (
        [(e.site, e.step, e.reader, e.donor, e.hits_k) for e in read.entries]
        == [(e.site, e.step, e.reader, e.donor, e.hits_k) for e in whole.entries]
        != []
    )
    report = audit(pipeline, only_read(rows, "b"), READ_B[0], sample=sample, **options)
    assert report.checks and not report.failed


@pytest.mark.parametrize(
    "name, plan, says",
    [
        ("mmdit", READ_B[0], "its prompt alone does not settle its keys and values"),
        ("sdxl", Plan([Swap(1, "a", "c")]), "never reads it"),
        ("sdxl", Plan([Swap(1, "b", "a"), Swap(1, "a", "b")]), "lets it read"),
    ],
)
def test_rows_that_cannot_be_left_unsampled(name, plan, says):
    """A message says which row must be sampled, and what to do.

    It is for text that evolves, a row nobody reads, and a row that reads.
    """
    with pytest.raises(PatchError, match=f"row 'b' is not sampled.*{says}.*sample it"):
        sample(make_pipeline(name), only_read(repeated_rows(), "b"), plan, steps=2, guidance=4.5)


def test_hooked_projections_want_every_donor_sampled():
    """A hook that changes keys sees the rows of a batch, so that a donor in none is refused."""
    pipeline = unet("sdxl")
    rows = only_read(repeated_rows(), "b")
    tap = pipeline.denoiser.sites[0].taps[0].module
    with HookRegistry(pipeline.denoiser, [tap]).replace(lambda name, k: 2 * k):
        sample(pipeline, repeated_rows(), READ_B[0], steps=1, guidance=4.5)
        with pytest.raises(PatchError, match="hooks change its projections; sample it"):
            sample(pipeline, rows, READ_B[0], steps=1, guidance=4.5)


READ_FAULTS = {
    "the places of all rows": (
        bank.Texts,
        "slots",
        "torch.equal(places[drawn]",
        "torch.equal(places",
    ),
    "slots of the first rows": (bank, "_of_table", "through[drawn]", "through[: int(drawn.sum())]"),
    "tokens of all rows": (bank.Texts, "of", "if row.sampled", ""),
    "noise of all rows": (lockstep.Loop, "run", "if row.sampled", ""),
    "donors fill the batch": (
        packing,
        "_names_of_groups",
        "row.name for row in rows if row.sampled",
        "row.name for row in rows",
    ),
}


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_every_fault_of_unsampled_donors_is_seen(fault, monkeypatch):
    """A planted fault makes some run wrong, fail, or take more calls.

    Steps before the swap are among them.
    """
    plant(monkeypatch, *READ_FAULTS[fault])
    with pytest.raises((AssertionError, PatchError, RuntimeError, IndexError)):
        assert apart("sdxl", READ_B[1]) <= 1e-12
        two = (
            replace(make_rows((0, 1))[0], prompt=None),
            replace(make_rows((0, 1))[1], sampled=False),
        )
        sample(unet("sdxl"), two, Plan([Swap(1, "a", "b", steps=(1,))]), steps=2, guidance=1)
        test_rows_that_are_only_read_cost_no_call()


FAULTS = {
    "donor of another row": (
        bank,
        "_of_table",
        "places[table // tokens]",
        "places.flip(0)[table // tokens]",
    ),
    "token of the donor lost": (bank, "_of_table", "+ table % tokens", "+ 0 * table"),
    "identity of other rows": (
        bank.Texts,
        "slots",
        "own = row_slots(places,",
        "own = row_slots(places.flip(0),",
    ),
    "pooled of the prompt read": (
        bank.Texts,
        "of",
        "[self.place[row.pooled_prompt] for",
        "[self.place[row.prompt] for",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_bank_is_seen(fault, monkeypatch):
    """The run with a fault is not the run without a bank."""
    pipeline = unet("sdxl")
    rows = repeated_rows()
    swaps = PLANS[2]
    batch = with_guidance(rows)
    noises = pipeline.noises([row.seed for row in rows])
    condition = pipeline.encode([row.prompt for row in batch])
    pooled = pipeline.encode([row.pooled_prompt for row in batch]).pooled
    plain = pipeline.denoise(
        next(noises),
        replace(condition, pooled=pooled),
        steps=2,
        guidance=4.5,
        noises=noises,
        slots=lambda step: swaps.slots(
            step, batch, pipeline.denoiser.sites, tokens=condition.tokens.shape[1]
        ),
    )

    def off():
        made = sample(pipeline, rows, swaps, steps=2, guidance=4.5).latents
        return max(
            (made[row.name] - x).abs().max() / x.abs().max()
            for row, x in zip(rows, plain, strict=True)
        )

    assert off() <= 1e-12  # another batch shape of the projections
    plant(monkeypatch, *FAULTS[fault])
    assert off() > 1e-6


def make_pipeline(name: str):
    return build_pipeline() if name == "mmdit" else unet(name)


@pytest.mark.parametrize(
    "name", ["mmdit", *(pytest.param(name, marks=pytest.mark.long) for name in ("sdxl", "if"))]
)
def test_one_graph_for_every_plan(name):
    """A denoiser compiled whole runs the identity and every plan on 1 graph, with 0 recompilations.

    By default on MMDiT alone.  The slots, which could make graphs more, are the same object on all.
    """
    pipeline = make_pipeline(name)
    rows = repeated_rows()
    counter = CompileCounter()
    plain = [sample(pipeline, rows, swaps, steps=2, guidance=4.5).latents for swaps in PLANS]
    torch._dynamo.reset()
    pipeline.denoiser.compile(backend=counter, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        made = [sample(pipeline, rows, swaps, steps=2, guidance=4.5).latents for swaps in PLANS]
    assert counter.frame_count == 1
    for a, b in zip(made, plain, strict=True):
        assert all(torch.allclose(a[row], b[row], rtol=1e-12, atol=1e-12) for row in b)


def test_spelled_out_is_the_same_read():
    """Every plan's slots in full, (B, H, T) for keys and for values, gather the same keys and values."""
    pipeline = unet("if")
    batch = with_guidance(repeated_rows())
    sites = pipeline.denoiser.sites
    shapes = set()
    for swaps in PLANS:
        tables = swaps.slots(1, batch, sites, tokens=4)
        spelled = spelled_out(tables, len(batch), 4, sites)
        for i, (site, pair) in enumerate(zip(sites, spelled, strict=True)):
            entry = None if tables is None else tables[i]
            shorts = entry if isinstance(entry, tuple) else (entry, entry)
            for short, full in zip(shorts, pair, strict=True):
                keys = torch.randn(len(batch), site.text_heads, 4, 3)
                assert torch.equal(gather_text(keys, full), gather_text(keys, short))
                shapes.add((site.index, full.shape, full.dtype, full.is_contiguous()))
    assert shapes == {(s.index, (len(batch), s.text_heads, 4), torch.int32, True) for s in sites}


def test_no_slots_where_every_row_reads_itself():
    """A run without a plan, with as many rows as prompts in their order, has no slots.

    Attention keeps its fastest path then.
    """
    pipeline = unet("sdxl")
    rows = make_rows((0, 1, 2))
    texts = encode(pipeline, rows)
    assert texts.slots(None, rows, 4) is None
    turned = texts.slots(None, rows[::-1], 4)
    assert len(turned) == 4 and torch.equal(turned[3], row_slots(torch.tensor([2, 1, 0]), 4))


def test_a_table_for_the_keys_alone_is_refused():
    """A pair (table, None) is refused with what to give.

    It would read as the keys' table for both.
    """
    pipeline = unet("sdxl")
    rows = make_rows((0, 1))
    texts = encode(pipeline, rows)
    table = row_slots(torch.tensor([1, 0]), 4)
    with pytest.raises(
        PatchError, match="site 2 are a table for the keys and None for the values; give"
    ):
        pipeline.denoiser(
            pipeline.noise([0, 1]), 1.0, texts.of(rows), slots=[None, table, (table, None), None]
        )
