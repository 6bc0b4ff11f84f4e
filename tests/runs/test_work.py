"""A piece of work is done once, or found in the run folder, and is known again by what it was made of."""

import pytest
import torch
from torch import nn

from support.planting import plant
from textpatch.changes import LowRank
from textpatch.errors import StoreError
from textpatch.plan import Plan, Row, Swap
from textpatch.runs import work
from textpatch.runs.folder import Run
from textpatch.runs.work import Work, adapters_of, made_by
from textpatch.tuning.low_rank import Adapter

REQUEST = {"request": {"n": 1}}
ROWS = [Row("source", "a sign", 0), Row("target", "another sign", 0)]
MAKER = made_by(ROWS, Plan())


class Counted:
    """A piece of work that counts how often it is done."""

    def __init__(self):
        self.times = 0

    def __call__(self) -> dict:
        self.times += 1
        return {"result": self.times}


def once(run, make, maker=MAKER):
    return Work(run).once("0-0", (0, 0), maker, make)


def test_it_is_done_once_and_then_found(tmp_path):
    """A second worker on the folder finds the first one's record; what it says is the first one's."""
    make = Counted()
    first = once(Run.open(tmp_path / "run", REQUEST), make)
    assert first == {"id": "0-0", "pair": 0, "seed": 0, **MAKER, "result": 1}
    assert once(Run.open(tmp_path / "run", REQUEST), make) == first and make.times == 1


def test_without_a_folder_nothing_is_kept():
    """Without a run the piece is made whenever it is asked for."""
    make = Counted()
    pieces = Work(None)
    assert [pieces.once("0-0", (0, 0), MAKER, make)["result"] for _ in range(2)] == [1, 2]
    pieces.look_again()
    assert "0-0" not in pieces


def test_another_worker_is_seen_when_one_looks_again(tmp_path):
    """What others finished counts from the next look on."""
    pieces = Work(Run.open(tmp_path / "run", REQUEST))
    once(Run.open(tmp_path / "run", REQUEST, worker="1"), Counted())
    assert "0-0" not in pieces
    pieces.look_again()
    assert "0-0" in pieces


OTHERS = {
    "rows": made_by(ROWS[:1], Plan()),
    "plan": made_by(ROWS, Plan([Swap([0], "source", "target")])),
    "adapters": MAKER | {"adapters": "0123456789ab at scale 1.0"},
}


@pytest.mark.parametrize("maker", OTHERS)
def test_a_record_of_something_else_is_refused(maker, tmp_path):
    """Other rows or another plan: the message says which, and the piece is not done."""
    run = Run.open(tmp_path / "run", REQUEST)
    once(run, Counted())
    make = Counted()
    with pytest.raises(StoreError, match=f"record 0-0 of .* was made by {maker} "):
        once(run, make, OTHERS[maker])
    assert make.times == 0


def test_a_record_under_an_adapter_is_not_that_of_the_base(tmp_path):
    """What was made under an adapter is refused without it, and the names of both are said."""
    run = Run.open(tmp_path / "run", REQUEST)
    layer = nn.Sequential(nn.Linear(2, 2))
    adapter = Adapter({"0": LowRank(torch.ones(1, 2), torch.ones(2, 1), 1)})
    assert adapters_of(layer) == {}
    with adapter.merged(layer):
        under = adapters_of(layer)
    made = once(run, Counted(), MAKER | under)
    assert once(run, Counted(), MAKER | under) == made
    with pytest.raises(StoreError, match=r"was made by adapters '.* at scale 1.0'"):
        once(run, Counted())


FAULTS = {
    "found work is done again": ("self._found.get(id)", "None"),
    "nothing is kept": ("self.run is not None", "False"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, tmp_path, monkeypatch):
    """Fault: a record that is there is overlooked, or one that is made gets lost."""
    plant(monkeypatch, work.Work, "once", *FAULTS[fault])
    with pytest.raises(AssertionError):
        test_it_is_done_once_and_then_found(tmp_path)
