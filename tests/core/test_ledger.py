"""Ledgers tell who read whom, by how much that changed K and V, and why a swap changed nothing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings

from support.audits import audited, rich_case
from support.laws import patching, run, tables
from support.patched_calls import cells
from support.planting import plant
from support.strategies import cases, fixed_case, make_rows
from support.unets import unet
from textpatch import bookkeeping
from textpatch.bookkeeping import Recorder, Watch
from textpatch.errors import PatchError
from textpatch.ledger import (
    ITSELF,
    LINES,
    NO_EFFECT,
    OVERRIDDEN,
    SAME_TEXT,
    Ledger,
)
from textpatch.plan import Plan, Row, Swap
from textpatch.reads import Reads
from textpatch.sampling import Samples, sample
from textpatch.sites import Site, Span, Tap

# a run of each is made several times
FEWER = max(settings().max_examples // 2, 1)


def changes(case, cache, step: int, among=True):
    """Changes |K donor - K own| of every cell that reads another row, subtracted one by one.

    Yields (site, part, reader, donor, change).
    """
    batch = case.branches(case.rows)
    own, read = (tables(case, p, step) for p in (Plan(), case.plan))  # (sites, k and v, B, H, T)
    for site, part, b, h, t in ((own != read) & among).nonzero().tolist():
        reader = batch[b]
        donor = batch[read[site, part, b, h, t] // case.tokens]
        kv = [
            cache[case.model.sites[site].name, step, row.label, "kv"[part]]
            for row in (reader, donor)
        ]
        mine, theirs = (x.unflatten(-1, (case.model.sites[site].heads, -1))[t, h] for x in kv)
        yield site, part, reader, donor, float((theirs - mine).abs().max())


def expected(case, cache) -> dict:
    """Branches, hits and changes of each (step, site, reader, donor), by counting."""
    found = {}
    for step in range(case.steps):
        for site, part, reader, donor, change in changes(case, cache, step):
            entry = found.setdefault(
                (step, site, reader.name, donor.name), [set(), [0, 0], [0.0, 0.0]]
            )
            entry[0].add(reader.branch)
            entry[1][part] += 1
            entry[2][part] = max(entry[2][part], change)
    return found


def require_true(case, ledger: Ledger, cache) -> None:
    """The ledger's entries are the expected ones, in order and bit for bit."""
    counted = sorted(expected(case, cache).items())
    times, sigmas = (
        getattr(case.pipeline.schedule, name)(case.steps) for name in ("timesteps", "sigmas")
    )
    assert [(e.step, e.site, e.reader, e.donor) for e in ledger.entries] == [
        key for key, _ in counted
    ]
    for entry, (_, (branches, hits, changes)) in zip(ledger.entries, counted, strict=True):
        assert (entry.branches, [entry.hits_k, entry.hits_v]) == (tuple(sorted(branches)), hits)
        assert [entry.change_k, entry.change_v] == changes
        assert (entry.timestep, entry.sigma) == (
            float(times[entry.step]),
            float(sigmas[entry.step]),
        )
        assert (entry.name, entry.dtype, entry.backend) == (
            case.model.sites[entry.site].name,
            "float64",
            "sdpa",
        )


def recorded(case) -> tuple[Ledger, dict]:
    """A run's ledger, and all text keys and values of the same run."""
    with patching.capture(case.model, "all", rows=case.branches(case.rows)) as cache:
        return run(case, case.rows, case.plan).ledger, cache


@settings(max_examples=FEWER)
@given(cases())
def test_entries(case):
    """hits = #{cells that read another row}, change = max |K donor - K own| over them, for every plan."""
    require_true(case, *recorded(case))


@settings(max_examples=FEWER)
@given(cases())
def test_micro_batches(case):
    """Ledgers of micro-batches of one row, of two, and of all but one have equal hits, and changes within
    1e-10.

    No reader is entered twice.
    """
    whole = run(case, case.rows, case.plan).ledger
    for size in {1, 2, 2 * len(case.rows) - 1}:
        parts = run(case, case.rows, case.plan, micro_batch=size).ledger
        unchanged = [
            [replace(e, change_k=0.0, change_v=0.0) for e in x.entries] for x in (whole, parts)
        ]
        assert unchanged[0] == unchanged[1] and whole.silent == parts.silent
        for part in ("change_k", "change_v"):
            a, b = ([getattr(entry, part) for entry in x.entries] for x in (whole, parts))
            assert a == pytest.approx(b, rel=1e-10)


@given(cases())
def test_json(case):
    """from_json(to_json(ledger)) = ledger."""
    ledger = run(case, case.rows, case.plan).ledger
    assert Ledger.from_json(ledger.to_json()) == ledger


FAULTS = {
    "heads not counted": (Watch, "_count", "* site.text_heads // looked.heads", ""),
    "first step's table kept": (
        Watch,
        "_look_up",
        "before.slots is table and before.winners is winners",
        "True",
    ),
    "change of another token": (
        bookkeeping,
        "_change",
        "[cells.tokens, cells.heads]",
        "[0, cells.heads]",
    ),
    "change of the whole row": (
        bookkeeping,
        "_change",
        "[cells.donor_tokens, cells.heads]",
        "",
    ),
    "reader and donor exchanged": (
        Watch,
        "_entry",
        "site.index, reader, donor,",
        "site.index, donor, reader,",
    ),
    "one table for keys and values": (
        Watch,
        "enter_site",
        "entry if isinstance(entry, tuple)",
        "(entry[0],) * 2 if isinstance(entry, tuple)",
    ),
    "one row alone": (
        bookkeeping,
        "cells_read",
        "moved.any(-1).any(-1).nonzero()",
        "moved.any(-1).any(-1).nonzero()[:1]",
    ),
    "keys entered as values": (
        Recorder,
        "_observing",
        "watch.made(site, part, own)",
        'watch.made(site, {"k": "v", "v": "k"}[part], own)',
    ),
}


@pytest.fixture(scope="module")
def _true_without_a_fault():
    """true(ledger), once for all faults."""
    require_true(rich_case(), *recorded(rich_case()))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("_true_without_a_fault")
def test_the_test_notices(fault, monkeypatch):
    """true(ledger), and not true(ledger with the fault)."""
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises((AssertionError, RuntimeError)):
        require_true(rich_case(), *recorded(rich_case()))


def test_a_row_is_entered_once(monkeypatch):
    """A row that runs in two micro-batches has its hits counted once.

    Row b reads d and is read by a and c, so that it runs twice with three rows at a time.
    """
    case = fixed_case()
    plan = Plan([Swap(0, ("a", "c"), "b"), Swap(0, "b", "d")])

    def hits(**options) -> list[int]:
        entries = run(case, case.rows, plan, **options).ledger.entries
        return [entry.hits_k for entry in entries]

    assert hits() == hits(micro_batch=6)
    plant(
        monkeypatch, bookkeeping, "cells_read", "if batch[reader].name not in names:", "if False:"
    )
    assert hits() != hits(micro_batch=6)


# --- silence


def silent(case, *swaps: Swap, rows=None) -> list:
    made = sample(case.pipeline, rows or case.rows, Plan(swaps), steps=2, guidance=4.5)
    return [(s.swap, s.why) for s in made.ledger.silent]


def with_dead_site():
    """A case whose site 1 makes the same keys and values of every text."""
    case = fixed_case()
    for tap in case.model.sites[1].taps:
        case.model.get_submodule(tap.module).weight.zero_()
    return case


def with_dead_heads(case):
    """A case of which the first head of every site makes the same keys and values of every text."""
    for site in case.model.sites:
        for tap in site.taps:
            case.model.get_submodule(tap.module).weight[: site.head_dim].zero_()
    return case


def why_silent(case, cache, i: int) -> str | None:
    """Reason why swap i changed nothing, from every cell that it names and no later swap does.

    None if it changed one.
    """
    swap, *later = case.plan.swaps[i:]
    prompts = {row.name: row.prompt for row in case.rows}
    found = []
    for step in range(case.steps):
        own = cells(case, swap, step)
        for other in later:
            own &= ~cells(case, other, step)
        made = changes(case, cache, step, among=own)
        found += [
            (prompts[reader.name] != prompts[donor.name], change)
            for *_, reader, donor, change in made
        ]
    if swap.readers == (swap.donor,) or not found:
        return ITSELF if swap.readers == (swap.donor,) else OVERRIDDEN
    apart = [change for differ, change in found if differ]
    if any(apart or [change for _, change in found]):
        return None
    return NO_EFFECT if apart else SAME_TEXT


def require_silence_told(case) -> None:
    """The ledger's silent swaps and reasons are those that follow from every swap's own cells."""
    ledger, cache = recorded(case)
    reasons = [why_silent(case, cache, i) for i in range(len(case.plan.swaps))]
    assert [(s.swap, s.why) for s in ledger.silent] == [
        (i, why) for i, why in enumerate(reasons) if why
    ]


@settings(max_examples=FEWER)
@given(cases())
def test_every_swap_answers_for_itself(case):
    """Silent swaps are those of whose own cells none reads other K or V, for every plan.

    A swap's own cells are those that it names and no later swap does.
    """
    require_silence_told(with_dead_heads(case))


def side_by_side():
    """Swaps of one reader, donor and site in one plan.

    One is dead beside one that is alive, one is overridden, and two take turns.
    """
    plan = Plan(
        [
            Swap(0, "a", "b", heads=(0,)),
            Swap(0, "a", "b", heads=(1,)),
            Swap(1, "c", "d", tokens=(1,)),
            Swap(1, "c", "d"),
            Swap(2, "a", "b", steps=(0,)),
            Swap(2, "a", "b", steps=(1, 2)),
        ]
    )
    return with_dead_heads(replace(fixed_case(), plan=plan))


def test_no_swap_vouches_for_another():
    """A dead swap is silent, and an error, beside a live one of its reader, donor and site.

    So is one that is overridden.
    """
    ledger = recorded(side_by_side())[0]
    assert [(s.swap, s.why) for s in ledger.silent] == [(0, NO_EFFECT), (2, OVERRIDDEN)]
    with pytest.raises(PatchError, match="1 of the plan's swaps had no effect, first swap 0"):
        ledger.require()


SILENCE_FAULTS = {
    "one swap vouches for another": (Reads, "_why_silent", "if key.swap == i", ""),
    "swaps of another step": (Recorder, "_winners", "winners(step,", "winners(0,"),
    "swaps of the step before": (
        Watch,
        "_look_up",
        "before.slots is table and before.winners is winners",
        "torch.equal(before.slots, table)",
    ),
    "the cells of a pair's other swaps": (
        bookkeeping,
        "cells_read",
        "(who[reader] == pair)",
        "(who[reader] // swaps == pair // swaps)",
    ),
    "off by one swap": (Plan, "winners", "// length[site] - B)", "// length[site] - B - 1)"),
}


@pytest.fixture(scope="module")
def _told_without_a_fault():
    require_silence_told(side_by_side())


@pytest.mark.parametrize("fault", SILENCE_FAULTS)
@pytest.mark.usefixtures("_told_without_a_fault")
def test_silence_notices(fault, monkeypatch):
    """told(ledger), and not told(ledger with the fault)."""
    plant(monkeypatch, *SILENCE_FAULTS[fault])
    with pytest.raises(AssertionError):
        require_silence_told(side_by_side())


def test_silence_with_a_reason():
    """Silence with a reason is named, and no error.

    Reasons are a swap with itself, later swaps that take all entries, and equal texts.
    """
    case = fixed_case()
    kept = Swap(1, "a", "c")
    assert silent(case, kept) == []
    assert silent(case, Swap("all", "a", "a"), kept) == [(0, ITSELF)]
    assert silent(case, Swap(1, "a", "b"), kept) == [(0, OVERRIDDEN)]
    assert silent(case, Swap(1, "a", "b", part="k"), Swap(1, "a", "c", part="v")) == []
    first, second = (replace(kept, donor="b", steps=(step,)) for step in (0, 1))
    assert silent(case, first, second, replace(kept, steps=(0,))) == [(0, OVERRIDDEN)]
    twins = [Row("a", "same"), Row("b", "same", seed=1), Row("c", "other")]
    assert silent(with_dead_site(), Swap(1, "a", "b"), Swap(2, "a", "b"), rows=twins) == [
        (0, SAME_TEXT)
    ]
    made = sample(case.pipeline, case.rows, Plan([kept, Swap(0, "c", "c")]), steps=2, guidance=4.5)
    made.ledger.require()
    assert (
        str(made.ledger).splitlines()[-1]
        == "silent: swap 1 (c <- c at site 0): its readers are its donor"
    )


def test_silence_without_one_is_an_error():
    """A site with the same keys and values for all texts makes `require` name its swap, and no other."""
    case = with_dead_site()
    dead = Swap(1, "a", "b")
    alive = Swap((0, 1), "c", "b")
    assert silent(case, dead, alive) == [(0, NO_EFFECT)]
    with pytest.raises(
        PatchError, match=r"1 of the plan's swaps had no effect, first swap 1 \(a <- b at site 1\)"
    ):
        sample(
            case.pipeline, case.rows, Plan([alive, dead]), steps=2, guidance=4.5
        ).ledger.require()


def test_no_plan_no_ledger():
    """A run without swaps has no entry and no silence."""
    case = fixed_case()
    assert run(case, case.rows).ledger == Ledger() == Samples({}, {}, Plan(), (), 1, 1.0).ledger
    assert (
        str(Ledger()).split()
        == "step site timestep sigma reader <- donor K hits V hits K change V change".split()
    )


# --- other ways to run


@pytest.mark.parametrize("name", ["sdxl", "if"])
def test_a_bank_is_watched_as_every_step_is(name):
    """A bank has the ledger of making keys and values for every row at every step, to 1e-12."""
    rows = make_rows((0, 1, 2))
    plan = Plan([Swap((0, 2), "a", "b", steps=(1, 2)), Swap(1, "c", "a", heads=(1,), part="k")])
    stepwise = unet(name)
    banked = unet(name)
    stepwise.denoiser.text_is_static = False
    a, b = (
        sample(pipeline, rows, plan, steps=3, guidance=4.5).ledger
        for pipeline in (stepwise, banked)
    )
    assert len(a.entries) == 2 * 2 + 3 and a.silent == b.silent == ()
    for one, other in zip(a.entries, b.entries, strict=True):
        assert replace(one, change_k=0, change_v=0) == replace(other, change_k=0, change_v=0)
        assert (one.change_k, one.change_v) == pytest.approx(
            (other.change_k, other.change_v), rel=1e-12
        )
    for pipeline in (stepwise, banked):
        audited(pipeline, rows, plan, 3, 4.5).require()


@pytest.mark.long
def test_a_compiled_model_runs_unwatched(monkeypatch):
    """Compiled code gets no hook, and the ledger has the same hits, with None for changes.

    A hook would not run, or would break the graph.  The latents are the same.

    By default test_bank.py compiles a model once for every plan.
    """
    case = fixed_case()
    plan = Plan([Swap(1, "a", "b")])
    plain = sample(case.pipeline, case.rows, plan, steps=2, guidance=4.5)
    case.model.compile(backend="eager")
    monkeypatch.setattr(bookkeeping, "at_text", None)
    made = sample(case.pipeline, case.rows, plan, steps=2, guidance=4.5)
    assert all(torch.equal(made.latents[name], plain.latents[name]) for name in plain.latents)
    unwatched = [replace(entry, change_k=None, change_v=None) for entry in plain.ledger.entries]
    assert list(made.ledger.entries) == unwatched and made.ledger.silent == ()
    assert "unwatched" in str(made.ledger)


class Shared(torch.nn.Module):
    """A model of which one module makes keys and values of picture and text together."""

    def __init__(self):
        super().__init__()
        self.kv = torch.nn.Linear(3, 8)
        taps = Tap("kv", (0, 4)), Tap("kv", (4, 8))
        self.sites = (Site(0, "block", "single", 2, 2, 32, taps=taps, span=Span("last", "text")),)

    def forward(self, x, text):
        return self.kv(torch.cat([x, text], dim=1))


def test_keys_and_values_of_one_module_are_watched_apart():
    """The text's tokens and the tap's channels are entered, and nothing of the picture's."""
    model = Shared()
    seen = {}
    recorder = Recorder(
        SimpleNamespace(denoiser=model),
        make_rows((0, 1)),
        Plan([Swap(0, "a", "b")]),
        1,
        SimpleNamespace(bank=None),
    )
    watch = SimpleNamespace(made=lambda site, part, kv: seen.update({part: kv}))
    with recorder._observing(watch):
        output = model(torch.randn(2, 5, 3), torch.randn(2, 4, 3))
    assert seen.keys() == {"k", "v"}
    assert torch.equal(seen["k"], output[:, 5:, :4]) and torch.equal(seen["v"], output[:, 5:, 4:])


# --- print and parse


def test_a_long_ledger_is_cut():
    """Titles, LINES entries, the number left out."""
    case = fixed_case()
    entry = sample(
        case.pipeline, case.rows, Plan([Swap(1, "a", "b")]), steps=2, guidance=1
    ).ledger.entries[0]
    many = tuple(replace(entry, step=step) for step in range(LINES + 5))
    lines = str(Ledger(many)).splitlines()
    fitting = str(Ledger(many[:LINES])).splitlines()
    assert fitting == lines[: LINES + 1] and lines[LINES + 1 :] == ["... and 5 more"]
    assert lines[1].split()[:2] == ["0", "1"] and "a <- b" in lines[1]


NO_ENTRY = '{"schema_version": 1, "entries": [{}], "silent": []}'


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema_version": 2}', NO_ENTRY, pytest.param(NESTED, id="nested")],
)
def test_what_is_no_ledger_is_refused(text):
    """Text that to_json did not write raises PatchError."""
    with pytest.raises(PatchError, match="ledger"):
        Ledger.from_json(text)
