"""Plans say what each cell reads, and refuse what they cannot mean.

Their laws are in test_laws.py and test_mathematics.py.
"""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from support.patched_calls import cells
from support.planting import plant
from support.strategies import cases, fixed_case, make_rows
from textpatch import plan as plans
from textpatch import swaps
from textpatch.errors import PatchError
from textpatch.guidance import with_guidance
from textpatch.plan import Plan, Row, Swap, Window
from textpatch.reference_models.schedules import FlowMatchEuler
from textpatch.sites import Site, select_sites

SITES = tuple(
    Site(i, f"blocks.{i}.attn", "joint", heads=2, head_dim=4, parameters=0) for i in range(3)
)
ROWS = make_rows((0, 0, 0))


def test_swaps_add():
    """Plans add to Plan(a) + Plan(b) = Plan(a, b), in this order."""
    a = Swap(0, "a", "b")
    b = Swap(1, "a", "b")
    assert Plan([a]) + Plan([b]) == Plan([a, b]) != Plan([b, a])
    assert Plan([a, b]).sha256 != Plan([b, a]).sha256
    with pytest.raises(TypeError, match="unsupported operand"):
        Plan([a]) + [b]


def test_sites_by_any_name():
    """Index, name, glob, Site and "all" mean the same sites, and a Site is stored by name."""
    every = [
        Plan([Swap(s, "a", "b")]).slots(0, ROWS, SITES, tokens=2)
        for s in ("all", "blocks.*", range(3), SITES, ["blocks.0.attn", 1, SITES[2]])
    ]
    assert all(
        torch.equal(x, y) for entries in every for x, y in zip(entries, every[0], strict=True)
    )
    assert Swap(SITES[1], "a", "b") == Swap("blocks.1.attn", "a", "b")


def test_sites_and_steps_without_a_swap_have_no_table():
    """Entries are None where nothing is read from elsewhere."""
    plan = Plan([Swap(1, "a", "b", steps=range(1, 3))])
    assert [entry is None for entry in plan.slots(1, ROWS, SITES, tokens=2)] == [True, False, True]
    assert plan.slots(0, ROWS, SITES, tokens=2) is Plan().slots(0, ROWS, SITES, tokens=2) is None


def test_rows_read_the_donor_of_their_own_branch():
    """Rows (a, branch) read (b, branch), as whole rows of slots, int32 (B, 1, T)."""
    (table, _, _) = Plan([Swap(0, "a", "b")]).slots(0, with_guidance(ROWS), SITES, tokens=2)
    assert table.dtype == torch.int32 and table.shape == (6, 1, 2)
    assert (table[:, 0, 0] // 2).tolist() == [1, 1, 2, 4, 4, 5]


def test_branch_cond_leaves_the_other_branch():
    """Unconditional rows read themselves with branch="cond"."""
    (table, _, _) = Plan([Swap(0, "a", "b", branch="cond")]).slots(
        0, with_guidance(ROWS), SITES, tokens=2
    )
    assert (table[:, 0, 0] // 2).tolist() == [0, 1, 2, 4, 4, 5]


@pytest.mark.parametrize("part, changed", [("k", [True, False]), ("v", [False, True])])
def test_parts_are_pairs_of_tables(part, changed):
    """Slots are (k', v) for part "k" and (k, v') for part "v"."""
    (pair, _, _) = Plan([Swap(0, "a", "b", part=part)]).slots(0, ROWS, SITES, tokens=2)
    assert isinstance(pair, tuple) and [bool(table[0, 0, 0] == 2) for table in pair] == changed
    both = Plan([Swap(0, "a", "b", part="k"), Swap(0, "a", "b", part="v")]).slots(
        0, ROWS, SITES, tokens=2
    )
    assert torch.equal(both[0], Plan([Swap(0, "a", "b")]).slots(0, ROWS, SITES, tokens=2)[0])


def test_heads_and_tokens_have_their_cells():
    """Slots (B, H, T) name (b, t) at the heads and tokens of the swap, (a, t) elsewhere."""
    (table, _, _) = Plan([Swap(0, "a", "b", heads=(1,), tokens=(0, 2))]).slots(
        0, ROWS, SITES, tokens=3
    )
    assert table.tolist() == [[[0, 1, 2], [3, 1, 5]], [[3, 4, 5]] * 2, [[6, 7, 8]] * 2]


WRONG = {
    "site": (Swap(3, "a", "b"), "no site index 3"),
    "site name": (Swap("blocks.1.atn", "a", "b"), "closest: blocks.1.attn"),
    "reader": (Swap(0, "x", "b"), "no row 'x'"),
    "donor": (Swap(0, "a", "x"), "no row 'x'"),
    "step": (Swap(0, "a", "b", steps=(0, 5)), "no step 5"),
    "head": (Swap(0, "a", "b", heads=(2,)), "no head 2 at site 'blocks.0.attn'"),
    "token": (Swap(0, "a", "b", tokens=(7,)), "no token 7"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_plan_that_does_not_fit_the_run(wrong):
    """A swap that names what the run has not is refused, by name."""
    swap, says = WRONG[wrong]
    Plan([Swap(0, "a", "b", steps=(0,), heads=(1,), tokens=(2,))]).check(
        ROWS, SITES, steps=3, tokens=3
    )
    with pytest.raises(PatchError, match=says):
        Plan([swap]).check(ROWS, SITES, steps=3, tokens=3)


EMPTY = [{"sites": ()}, {"readers": ()}, {"steps": ()}, {"heads": []}, {"tokens": range(0)}]
ODD = [{"part": "q"}, {"branch": "uncond"}, {"steps": (0.5,)}, {"heads": "01"}, {"tokens": [None]}]
ODD += [{"steps": (-1, 2)}, {"heads": (-1,)}, {"tokens": (-1,)}]
ODD += [
    {"readers": None},
    {"readers": 3},
    {"readers": ("a", None)},
    {"donor": None},
    {"donor": ["b"]},
]


@pytest.mark.parametrize("field", EMPTY + ODD, ids=str)
def test_a_swap_that_cannot_mean_anything(field):
    """Empty selections, values of the wrong kind and negative numbers are refused when the swap is made."""
    with pytest.raises(PatchError):
        build(**field)


def test_numbers_of_any_integer_type_are_one_plan():
    """Steps as range, tensor or numpy integers give the same JSON."""
    kinds = (0, 1, 2), range(3), torch.arange(3), torch.arange(3).numpy()
    assert len({Plan([Swap(0, "a", "b", steps=steps)]).to_json() for steps in kinds}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 3},
        {"schema_version": 0},
        {"schema_version": None},
        {"swaps": 3},
        {"swaps": [{"sites": 0}]},
        {"swaps": None},
        {"swaps": [{"sites": 0, "readers": "a", "donor": "b", "colour": "red"}]},
        {"swaps": [{"sites": 0, "readers": "a", "donor": "b", "steps": ["x"]}]},
    ],
    ids=str,
)
def test_json_that_is_no_plan(change):
    """Missing, unknown or odd fields and another schema raise PatchError."""
    with pytest.raises(PatchError, match="plan|schema|steps"):
        Plan.from_json(json.dumps({"schema_version": 1, "swaps": []} | change))


@given(st.text() | st.sampled_from(["null", "[]", "3", '"plan"', "{}", '{"schema_version":1}']))
@example("[" * 100_000)
def test_text_that_is_no_plan(text):
    """Any other text raises PatchError, and never another error."""
    with pytest.raises(PatchError, match="not a plan"):
        Plan.from_json(text)


@given(cases(), st.randoms())
def test_the_order_of_fields_is_nothing(case, dice):
    """sha256(JSON with the fields of every object in another order) = sha256."""

    def shuffled(fields: dict) -> dict:
        return dict(dice.sample(list(fields.items()), len(fields)))

    text = json.dumps(json.loads(case.plan.to_json(), object_hook=shuffled), indent=1)
    assert Plan.from_json(text).sha256 == case.plan.sha256


def test_a_donor_outside_the_batch():
    """A donor that is not in the reader's branch is refused, not read from elsewhere."""
    with pytest.raises(PatchError, match="not in the batch in branch 'cond'; known: a$"):
        Plan([Swap(0, "a", "b")]).slots(
            0, [ROWS[0], Row("b", "p", branch="uncond")], SITES, tokens=2
        )


@pytest.mark.parametrize("wrong", ["site", "site name", "head", "token"])
@pytest.mark.parametrize("step", [0, 1])
def test_slots_refuse_what_is_not_there(wrong, step):
    """Sites, heads and tokens out of range are refused as by `check`, at steps without the swap too."""
    swap, says = WRONG[wrong]
    with pytest.raises(PatchError, match=says):
        Plan([replace(swap, steps=(0,))]).slots(step, ROWS, SITES, tokens=3)


def build(**fields) -> Swap:
    return Swap(**{"sites": 0, "readers": "a", "donor": "b"} | fields)


def read(**fields):
    return Plan([build(**fields)]).slots(0, ROWS, SITES, tokens=3)


FAULTS = {
    "negative numbers": (build, {"tokens": (-1,)}, swaps, "_counted", "numbers[0] < 0", "False"),
    "readers of any kind": (
        build,
        {"readers": None},
        swaps,
        "_names",
        "if isinstance(name, str)",
        "",
    ),
    "heads not looked at": (read, {"heads": (2,)}, Swap, "require_cells", "self.heads,", "None,"),
    "tokens not looked at": (
        read,
        {"tokens": (7,)},
        Swap,
        "require_cells",
        "self.tokens,",
        "None,",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_what_is_refused_is_seen(fault, monkeypatch):
    """Wrong fields raise PatchError, and with the fault none.

    The swap is then taken, or torch raises IndexError.
    """
    work, fields, *place = FAULTS[fault]
    with pytest.raises(PatchError):
        work(**fields)
    plant(monkeypatch, *place)
    with suppress(IndexError):
        work(**fields)


def test_slots_of_a_part_of_the_rows():
    """A batch without a swap's readers has no slots, because it may be a part of a run.

    `check` of all rows knows every name.
    """
    plan = Plan([Swap(0, "a", "b")])
    assert plan.slots(0, ROWS[1:], SITES, tokens=2) is None
    plan.check(ROWS, SITES, steps=1, tokens=2)


def test_sites_are_selected_once_for_each_swap(monkeypatch):
    """Slots of n sites take one selection for each swap, not n."""
    calls = []
    monkeypatch.setattr(
        plans, "select_sites", lambda *args: calls.append(args) or select_sites(*args)
    )
    Plan([Swap("all", "a", "b"), Swap(1, "a", "c")]).slots(0, ROWS, SITES, tokens=2)
    assert len(calls) == 2


@given(cases())
def test_winners_are_the_last_to_name_a_cell(case):
    """Winners hold the largest i whose swap names the cell, -1 if none does, at every step.

    So for keys and for values.
    """
    rows = case.branches(case.rows)
    sites = case.model.sites
    for step in range(case.steps):
        expected = torch.full_like(cells(case, case.plan.swaps[0], step), -1, dtype=torch.int32)
        for i, swap in enumerate(case.plan.swaps):
            expected[cells(case, swap, step)] = i
        found = case.plan.winners(step, rows, sites, tokens=case.tokens)
        for site in sites:
            for part, at in zip("kv", expected[site.index], strict=True):
                assert (
                    torch.equal(found[site][part].expand_as(at), at)
                    if site in found
                    else (at == -1).all()
                )


@given(cases())
def test_explain_names_sites_and_tensors(case):
    """explain(p) holds every site's name, donor, reader, and K', V' as swapped."""
    text = case.plan.explain(case.model.sites)
    for swap in case.plan.swaps:
        assert f"{', '.join(swap.readers)} <- {swap.donor}" in text
        assert all(case.model.sites[index].name in text for index in swap.sites)
        assert all(f"{part}' " in text or f"{part}']" in text for part in swap.part)
    assert Plan().explain(case.model.sites) == "no swap: identity"
    with pytest.raises(PatchError, match="no site"):
        Plan([Swap(99, "a", "b")]).explain(fixed_case().model.sites)


@pytest.mark.parametrize("run", [dict(schedule=FlowMatchEuler()), dict(steps=3)], ids=str)
def test_explain_wants_a_whole_run(run):
    """A schedule without steps is refused, and so are steps without a schedule."""
    plan = Plan([Swap(0, "a", "b", steps=Window("sigma", 0.5, 1))])
    with pytest.raises(
        PatchError, match="steps=(None and schedule FlowMatchEuler|3 and schedule None); give both"
    ):
        plan.explain(SITES, **run)
    assert "of sigma from 0.5 to 1.0 = 0" in plan.explain(SITES, schedule=FlowMatchEuler(), steps=3)
