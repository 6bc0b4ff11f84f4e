"""Windows name the steps whose timestep or sigma lies inside, and are kept as written."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.planting import plant
from support.strategies import fixed_case
from textpatch import PatchError, Plan, Swap, sample, sampling
from textpatch.plan import Window
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler

SCHEDULES = {made.__name__: made() for made in (FlowMatchEuler, Euler, DDPM)}
UNITS = "timestep", "sigma"


def entering(schedule, unit: str, steps: int) -> list[float]:
    """The value of a unit as each step is entered, one step at a time."""
    return [float(getattr(schedule, unit + "s")(steps)[i]) for i in range(steps)]


def require_right(schedule, steps: int = 5) -> None:
    """Windows give the i with low <= value_i <= high, for ends on every value, between and open."""
    for unit in UNITS:
        values = entering(schedule, unit, steps)
        ends = sorted([*values, *((a + b) / 2 for a, b in pairwise(values))])
        for low, high in (
            (a, b) for a in [None, *ends] for b in [*ends, None] if (a, b) != (None, None)
        ):
            inside = [
                i
                for i, x in enumerate(values)
                if (low is None or x >= low) and (high is None or x <= high)
            ]
            if inside:
                plan = Plan(
                    [Swap(0, "a", "b", steps=Window(unit, low, high)), Swap(1, "a", "b", steps=[0])]
                )
                assert plan.at(schedule, steps) == Plan(
                    [Swap(0, "a", "b", steps=inside), plan.swaps[1]]
                )


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def test_windows_are_taken_in_the_schedule(schedule):
    """Windows become indices for every schedule and unit.

    Swaps without a window stay, and a second time changes nothing.
    """
    require_right(schedule)
    plan = Plan([Swap(0, "a", "b", steps=Window("sigma", 0.0))]).at(schedule, 4)
    assert plan.at(schedule, 4) == plan == Plan([Swap(0, "a", "b", steps=range(4))])


def ordered(low: float | None, high: float | None) -> bool:
    return (low, high) != (None, None) and (None in (low, high) or low <= high)


numbers = st.floats(-10, 10)


@given(
    st.tuples(st.none() | numbers, st.none() | numbers).filter(lambda ends: ordered(*ends)),
    st.lists(numbers, min_size=1),
)
def test_among_any_values(ends, values):
    """Indices are those inside, and none inside is an error."""
    low, high = (
        float(f"{sign}inf") if end is None else end for sign, end in zip("-+", ends, strict=True)
    )
    inside = tuple(i for i in range(len(values)) if low <= values[i] and values[i] <= high)
    if inside:
        assert Window("sigma", *ends).among(values) == inside
    else:
        with pytest.raises(PatchError, match=f"its {len(values)} are at"):
            Window("sigma", *ends).among(values)


def windowed(case) -> tuple[Plan, Plan]:
    """A plan of two windows that hold some steps and not others, and the same of indices."""
    values = {unit: entering(case.pipeline.schedule, unit, case.steps) for unit in UNITS}
    windows = (
        Window("sigma", high=values["sigma"][1]),
        Window("timestep", values["timestep"][1], 2000),
    )
    indices = range(1, case.steps), (0, 1)
    return tuple(
        Plan([Swap(1, "a", "b", steps=some[0]), Swap(2, "c", "b", steps=some[1])])
        for some in (windows, indices)
    )


def require_same_run(case) -> None:
    """Windows and indices give the same run, bit for bit, with one ledger.

    The samples name the plan as it was written.
    """
    made = [
        sample(case.pipeline, case.rows, plan, steps=case.steps, guidance=4.5)
        for plan in windowed(case)
    ]
    assert (
        made[0].ledger == made[1].ledger
        and len({(e.step, e.site) for e in made[0].ledger.entries}) == 4
    )
    assert all(torch.equal(x, made[1].latents[name]) for name, x in made[0].latents.items())
    assert [samples.plan for samples in made] == [*windowed(case)]


def test_runs_under_a_window():
    """A window acts as its steps do."""
    require_same_run(fixed_case())


FAULTS = {
    "lower end left out": (require_right, Window, "among", "low <= value", "low < value"),
    "upper end left out": (require_right, Window, "among", "value <= high", "value < high"),
    "sigmas for timesteps": (require_right, Window, "in_run", "[self.unit]", '["sigma"]'),
    "noise level after the step": (
        require_right,
        Window,
        "in_run",
        "values[:steps]",
        "values[-steps:]",
    ),
    "other swaps lost": (
        require_right,
        Plan,
        "at",
        "for swap in self.swaps",
        "for swap in self.swaps[:1]",
    ),
    "schedule of another length": (
        require_same_run,
        sampling,
        "sample_latents",
        "plan.at(pipeline.schedule, steps)",
        "plan.at(pipeline.schedule, steps + 1)",
    ),
    "windows not taken": (
        require_same_run,
        sampling,
        "sample_latents",
        "plan.at(pipeline.schedule, steps)",
        "plan",
    ),
    "written plan lost": (
        require_same_run,
        sampling,
        "sample_latents",
        "{}, plan, rows",
        "{}, run, rows",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_test_notices(fault, monkeypatch):
    """right(library), and not right(library with the fault)."""
    law, *place = FAULTS[fault]
    plant(monkeypatch, *place)
    with pytest.raises((AssertionError, PatchError, TypeError)):
        law(fixed_case() if law is require_same_run else SCHEDULES["FlowMatchEuler"])


# --- as data ---

ONE = (
    '{"schema_version":1,"swaps":[{"branch":"both","donor":"b","heads":null,"part":"kv","readers":["a"],'
    '"sites":[0],"steps":[1,2],"tokens":null}]}'
)


def test_version_one_stays():
    """A plan of indices is written and hashed as version 1 did, and read from either version."""
    plan = Plan([Swap(0, "a", "b", steps=(1, 2))])
    assert plan.to_json() == ONE
    assert Plan.from_json(ONE) == Plan.from_json(ONE.replace(":1,", ":2,", 1)) == plan
    assert plan.sha256 == "e059054a05dfe6efa07b886c9633b833656658eec2f312127808902369e612d2"


@given(st.sampled_from(UNITS), st.floats(0, 5), st.floats(0, 5))
def test_windows_survive_json(unit, low, length):
    """from_json(to_json(p)) = p with one sha256, in version 2, the ends as they were written."""
    plan = Plan(
        [
            Swap(0, "a", "b", steps=Window(unit, low, low + length)),
            Swap(0, "b", "a", steps=Window(unit, low)),
        ]
    )
    again = Plan.from_json(plan.to_json())
    body = json.loads(plan.to_json())
    ends = [{"unit": unit, "low": low, "high": high} for high in (low + length, None)]
    assert again == plan and again.sha256 == plan.sha256 and hash(again) == hash(plan)
    assert body["schema_version"] == 2 and [swap["steps"] for swap in body["swaps"]] == ends


def test_one_spelling():
    """Ends of any number type, and both zeros, are one window, while other ends and units are others."""
    spelled = (1, 2), (1.0, 2.0), (np.float32(1), np.int64(2))
    assert (
        len({Plan([Swap(0, "a", "b", steps=Window("sigma", *ends))]).sha256 for ends in spelled})
        == 1
    )
    assert Plan([Swap(0, "a", "b", steps=Window("sigma", -0.0))]).to_json().count('"low":0.0') == 1
    windows = [Window("sigma", *ends) for ends in ((1,), (None, 1), (1, 1), (2,))] + [
        Window("timestep", 1)
    ]
    assert len({Plan([Swap(0, "a", "b", steps=window)]).sha256 for window in windows}) == len(
        windows
    )


WRONG = [
    ("sigma",),
    ("sigma", 2, 1),
    ("sigmas", 1),
    ("step", 1),
    ("sigma", float("nan")),
    ("sigma", 0, float("inf")),
    ("sigma", "1"),
    (None, 1),
    ("sigma", [1]),
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_windows_that_cannot_mean_anything(fields):
    """Windows that cannot mean anything are refused, here and in JSON.

    That is another unit, ends out of order, both open, or no finite numbers.
    """
    with pytest.raises(PatchError, match="window of"):
        Window(*fields)
    steps = dict(zip(("unit", "low", "high"), fields, strict=False))
    body = json.loads(ONE) | {"schema_version": 2}
    body["swaps"][0]["steps"] = steps
    with pytest.raises(PatchError, match="window of"):
        Plan.from_json(json.dumps(body))


def test_an_empty_window_names_the_values():
    """A window between two steps is refused before anything runs.

    The message has the window and the values of all steps.
    """
    case = fixed_case()
    plan = Plan([Swap(0, "a", "b", steps=Window("sigma", 0.99, 0.995))])
    case.pipeline.denoise = None
    with pytest.raises(
        PatchError, match=r"lies in sigma from 0.99 to 0.995: its 3 are at 1, 0\.\d+, 0\.\d+; widen"
    ):
        sample(case.pipeline, case.rows, plan, steps=3)


def test_a_window_needs_a_run():
    """A window that no run has resolved is refused by slots and check, with what to call."""
    case = fixed_case()
    plan = Plan([Swap(0, "a", "b", steps=Window("sigma", 0.5, 1))])
    for work in (
        lambda: plan.slots(0, case.rows, case.model.sites, tokens=4),
        lambda: plan.check(case.rows, case.model.sites, 3, 4),
    ):
        with pytest.raises(
            PatchError, match=r"sigma from 0.5 to 1.0, .*; take plan.at\(schedule, steps\)"
        ):
            work()
