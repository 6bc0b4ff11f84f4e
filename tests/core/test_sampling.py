"""Rows that start from latents of their own, or join later as copies of another row."""

from dataclasses import replace

import pytest
import torch

from support.by_default import taking
from support.planting import plant
from support.strategies import ARCHITECTURES, fixed_case
from textpatch import lockstep
from textpatch.checks import require_rows
from textpatch.errors import PatchError
from textpatch.plan import Plan, Row, Swap
from textpatch.sampling import sample

STOCHASTIC_AND_NOT = "if-i", "mmdit"


def run(case, rows, plan=Plan(), **options):
    return sample(
        case.pipeline, rows, plan, steps=4, guidance=case.guidance, keep_trajectory=True, **options
    )


def require_the_rest_of_a_run(case) -> None:
    """A row given the latents of another run at step s goes on as that run does.

    Its noise goes on, too.
    """
    whole = run(case, case.rows[:2], Plan([Swap(1, "a", "b", steps=range(2, 4))]))
    given = whole.trajectory["a"]
    for joins in range(4):
        late = replace(case.rows[0], name="late", joins=joins, latents=given[joins])
        plan = Plan(
            [
                Swap(1, name, "b", steps=range(max(2, first), 4))
                for name, first in (("a", 2), ("late", joins))
            ]
        )
        made = run(case, [*case.rows[:2], late], plan)
        assert len(made.trajectory["late"]) == 5 - joins
        for x, expected in zip(made.trajectory["late"], given[joins:], strict=True):
            assert torch.allclose(x, expected, rtol=1e-10, atol=1e-10)
        assert {entry.step for entry in made.ledger.entries if entry.reader == "late"} == {
            *range(max(2, joins), 4)
        }
    alone = run(case, case.rows[:1]).trajectory["a"]
    begun = run(case, [replace(case.rows[0], joins=2, latents=alone[2])])
    assert torch.allclose(begun.latents["a"], alone[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", taking(STOCHASTIC_AND_NOT, ARCHITECTURES))
def test_latents_of_its_own(architecture):
    """A row goes on from any step, on every architecture, noise of stochastic steps included.

    By default on one whose steps draw noise, and on one whose steps do not.
    """
    require_the_rest_of_a_run(fixed_case(architecture))


def test_a_run_that_begins_late():
    """Steps 0 and 1 are not run when all rows join at step 2."""
    case = fixed_case()
    given = run(case, case.rows[:1]).trajectory["a"]
    calls = []
    handle = case.model.register_forward_pre_hook(lambda module, args: calls.append(args[1]))
    made = run(case, [replace(case.rows[0], joins=2, latents=given[2])])
    handle.remove()
    assert len(calls) == 2 and torch.equal(made.latents["a"], given[-1])


FAULTS = {
    "noise of the first step": ("for _ in range(bounds[0])", "for _ in range(0)"),
    "steps begun anew": ("range(first, stop), noises", "range(first, stop), iter(())"),
    "rows of another place": ("zip(names, x, strict=True)", "zip(names, x.flip(0), strict=True)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """A planted fault makes the check fail, on the stochastic schedule of DeepFloyd IF."""
    case = fixed_case("if-i")
    plant(monkeypatch, lockstep.Loop, "_in_parts", *FAULTS[fault])
    with pytest.raises((AssertionError, StopIteration)):
        require_the_rest_of_a_run(case)


X = torch.zeros(2, 8, 8)
A = Row("a", "x")
B = Row("b", "y")


@pytest.mark.parametrize(
    "rows, swaps, says",
    [
        ([A, Row("c", "x", joins=1)], [], "with neither latents and copies"),
        ([A, Row("c", "x", joins=1, latents=X, copies="a")], [], "with both latents and copies"),
        ([A, Row("c", "x", joins=4, copies="a")], [], "joins at step 4; this run has steps 0..3"),
        ([A, Row("c", "x", joins=1, copies="q")], [], "copies 'q', which is no row here"),
        (
            [A, Row("d", "x", joins=2, copies="a"), Row("c", "x", joins=1, copies="d")],
            [],
            "joins at step 2; copy one",
        ),
        (
            [A, Row("c", "x", latents=X[:1])],
            [],
            r"of shape \(1, 8, 8\); this model's are \(2, 8, 8\)",
        ),
        (
            [A, Row("c", "x", latents=X, sampled=False)],
            [Swap(0, "a", "c")],
            "not sampled, and so starts from nothing",
        ),
        (
            [A, Row("c", "x", pooled="y", sampled=False)],
            [Swap(0, "a", "c")],
            "row 'c' is not sampled, and its pooled prompt 'y' modulates nothing",
        ),
        (
            [A, Row("c", "x", joins=2, copies="a")],
            [Swap(0, "c", "a", steps=(1, 2))],
            "names it from step 1 on",
        ),
        (
            [A, B, Row("c", "x", joins=2, copies="a")],
            [Swap(0, "b", "c")],
            "joins at step 2, and a swap names it from step 0",
        ),
    ],
)
def test_what_cannot_start_is_refused(rows, swaps, says):
    """A message says before anything runs what row, at what step, and what to do."""
    with pytest.raises(PatchError, match=says):
        run(fixed_case(), rows, Plan(swaps))


@pytest.mark.parametrize(
    "rows, says",
    [
        (Row("a", "x"), r"the rows of a run are Row\(name='a'.*; give a list"),
        ("a prompt", "the rows of a run are 'a prompt'; give a list"),
        (None, "the rows of a run are None; give a list"),
        (["a prompt"], r"a row of a run is 'a prompt'; give Row\(name, prompt\)"),
        ([Row(None, "x")], "a row's name is None, no text"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(rows, says):
    """A row, a text, or a list of anything but named rows is refused in a sentence."""
    with pytest.raises(PatchError, match=says):
        require_rows(rows)
    with pytest.raises(PatchError, match=says):
        sample(fixed_case().pipeline, rows)


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(joins=1.0, copies="a"), "row 'c' joins at step 1.0; give a whole number"),
        (dict(joins="1", copies="a"), "row 'c' joins at step '1'; give a whole number"),
        (dict(joins=True, copies="a"), "row 'c' joins at step True; give a whole number"),
        (dict(joins=1, copies=["a"]), r"row 'c' copies \['a'\]; give the name of a row"),
        (dict(latents=X.numpy()), "latents of type ndarray; give a torch.Tensor"),
        (dict(latents=X * float("nan")), "of which 128 of 128 are NaN or infinite"),
    ],
)
def test_a_start_of_another_kind_is_refused(fields, says):
    """Steps that are no whole numbers, names that are no texts and latents that are no finite tensor."""
    with pytest.raises(PatchError, match=says):
        run(fixed_case(), [A, Row("c", "x", **fields)])


@pytest.mark.parametrize("wrong", ["4", 2.5, True, None, 0])
def test_a_micro_batch_of_another_kind_is_refused(wrong):
    """Rows of a forward pass are counted in whole numbers from 1."""
    case = fixed_case()
    with pytest.raises(PatchError, match=f"micro_batch is {wrong!r}; give a whole number"):
        sample(case.pipeline, case.rows, steps=1, micro_batch=wrong)


def test_hashes_of_rows():
    """Rows of version 0.1 keep their hash, and latents count by their values."""
    assert Row("a", "x").data == {
        "name": "a",
        "prompt": "x",
        "seed": 0,
        "branch": "cond",
        "pooled": None,
        "sampled": True,
    }
    assert Row("a", "x", joins=2, copies="b").data.items() >= {"joins": 2, "copies": "b"}.items()
    one, two = (Row("a", "x", latents=x).data for x in (X, X + 1))
    assert one["latents_sha256"] != two["latents_sha256"]


def require_a_path_to_hold(case) -> None:
    """A row goes along its path, whatever it predicts, and the others do not notice."""
    rows = case.rows[:2]
    plan = Plan([Swap(1, "a", "b", steps=range(1, 4))])
    free = run(case, rows, plan)
    path = torch.stack(free.trajectory["b"]) + 0.5
    held = run(case, [rows[0], replace(rows[1], path=path)])
    assert torch.equal(torch.stack(held.trajectory["b"]), path)
    plain = run(case, rows)
    assert torch.allclose(held.latents["a"], plain.latents["a"], rtol=1e-10, atol=1e-10)
    copy = replace(rows[0], name="copy", joins=2, copies="b")
    later = run(case, [rows[0], replace(rows[1], path=path), copy])
    assert torch.equal(later.trajectory["copy"][0], path[2])


@pytest.mark.parametrize("architecture", taking(STOCHASTIC_AND_NOT, ARCHITECTURES))
def test_a_row_that_is_held_to_a_path(architecture):
    """On every architecture, by default on two."""
    require_a_path_to_hold(fixed_case(architecture))


def test_a_path_left_after_the_first_step_is_noticed(monkeypatch):
    """Fault: the row is put on its path once."""
    plant(
        monkeypatch,
        lockstep,
        "_put_on_paths",
        "if row.path is not None",
        "if row.path is not None and step == 0",
    )
    with pytest.raises(AssertionError):
        require_a_path_to_hold(fixed_case())


def test_paths_that_hold_nothing_are_refused():
    """A path of another length, with NaNs, or beside another start."""
    case = fixed_case()
    path = torch.stack(run(case, case.rows[:1]).trajectory["a"])
    for fields, says in (
        (dict(path=path[1:]), "a run of 4 steps has a path of 5 latents"),
        (dict(path=path * torch.nan), "is held to a path of which"),
        (dict(path=[1]), "is held to a path of type list"),
        (dict(path=path, joins=1), "says where it starts"),
        (dict(path=path, latents=path[0]), "says where it starts"),
        (dict(path=path[..., 1:]), "starts from latents of shape"),
    ):
        with pytest.raises(PatchError, match=says):
            run(case, [replace(case.rows[0], **fields)])
    assert replace(case.rows[0], path=path).data["path_sha256"]
