"""All runs recorded with the authors' code on SDXL, IF and SD3: in one batch by a plan, by cache, by
injection.
"""

from contextlib import ExitStack

import pytest
import torch

from support.recorded_runs import (
    RECORDINGS,
    TOLERANCE,
    agrees,
    by_capture,
    by_injection,
    distance,
    in_one_batch,
)
from textpatch import Plan, Row, patch, sample
from textpatch.reference_models.layers import timestep_sinusoids
from textpatch.reference_models.schedules import DDPM

DOUBLE = pytest.param(torch.float64, id="float64")
SINGLE = pytest.param(torch.float32, id="float32")
# float64 proves what is computed; in float32 all runs of one negative at once are enough, and the others
# are --long
mostly_double = pytest.mark.parametrize(
    "dtype", [DOUBLE, pytest.param(*SINGLE.values, id="float32", marks=pytest.mark.long)]
)
every_family = pytest.mark.parametrize("family", RECORDINGS)


def wanted_runs(wanted) -> list[tuple[str, str]]:
    """(family, run) of all runs that are wanted."""
    return [
        (family, name)
        for family, recording in RECORDINGS.items()
        for name, run in recording.runs.items()
        if wanted(run)
    ]


def parametrized(chosen: list[tuple[str, str]], by_default: set[tuple[str, str]]):
    """A test of each chosen run; those not held by default are --long."""
    cases = [
        pytest.param(*case, id="-".join(case), marks=[pytest.mark.long] * (case not in by_default))
        for case in chosen
    ]
    return pytest.mark.parametrize("family, name", cases)


def each_fifth(wanted):
    """A test of all runs that are wanted, by default of one in five.

    By default test_in_one_batch and test_all_runs_of_one_negative_at_once hold every run to what was
    recorded, and tests/core/test_laws.py says that the ways are one intervention.
    """
    chosen = wanted_runs(wanted)
    return parametrized(chosen, {*chosen[::5]})


def not_held_at_once():
    """A test of all runs, by default of those that test_all_runs_of_one_negative_at_once leaves out."""
    others = wanted_runs(lambda run: run["negative"] != "empty")
    return parametrized(wanted_runs(lambda run: True), {*others})


@every_family
def test_the_schedule(family):
    """Timesteps, and noise levels where they are recorded, are the recorded ones, bit for bit."""
    recording = RECORDINGS[family]
    schedule, inputs = recording.pipeline(torch.float32).schedule, recording.inputs
    assert torch.equal(schedule.timesteps(recording.steps), inputs["timesteps"].float())
    if "sigmas" in inputs:
        assert torch.equal(schedule.sigmas(recording.steps), inputs["sigmas"])


@every_family
def test_the_sinusoids(family):
    """Those of this machine lie within what float32 leaves open: t times an ulp of a frequency, and one
    of the cosine.
    """
    inputs = RECORDINGS[family].inputs
    times, expected = inputs["timesteps"].float(), inputs["t_emb"].double()
    made = timestep_sinusoids(times, expected.shape[-1]).double()
    assert (
        (made - expected).abs() <= (times[:, None] + 1) * 2 * torch.finfo(torch.float32).eps
    ).all()


def test_the_factors_of_ddpm():
    """Those of this machine are the recorded ones to two ulps of float32: a root, and what is divided by
    it.
    """
    recording = RECORDINGS["if"]
    recorded = recording.pipeline(torch.float64).schedule
    for step in range(recording.steps):
        made, expected = (
            schedule.factors(step, recording.steps) for schedule in (DDPM(), recorded)
        )
        for ours, theirs in zip(made, expected, strict=True):
            assert (
                abs(ours.double() - theirs.double())
                <= 2 * torch.finfo(torch.float32).eps * theirs.double()
            )


@every_family
def test_the_sites(family):
    """Names, heads and order of the sites are those the authors' code patched by number."""
    recording = RECORDINGS[family]
    sites = [(s.index, s.name, s.heads) for s in recording.pipeline(torch.float64).denoiser.sites]
    assert sites == [(s["index"], s["name"], s["heads"]) for s in recording.meta["sites"]]


@mostly_double
@not_held_at_once()
def test_in_one_batch(family, name, dtype):
    """Source and donor rows in lock-step, the plan as slots = recorded."""
    in_one_batch(family, name, dtype)


@mostly_double
@each_fifth(lambda run: run["layers"] and not run["heads"])
def test_capture_then_patch(family, name, dtype):
    """The donor's run captured, the source's run patched from the start step on = recorded."""
    by_capture(family, name, dtype)


@mostly_double
@pytest.mark.parametrize("family, name", wanted_runs(lambda run: run.get("heads")))
def test_capture_then_patch_heads(family, name, dtype):
    """The named heads of every site, put in from the same cache by nested patches = recorded."""
    recording = RECORDINGS[family]
    run, rows = recording.runs[name], recording.batch(name, "donor")
    kept, late = (
        recording.donor_cache(dtype, name, run["layers"]),
        range(run["start"], recording.steps),
    )
    with ExitStack() as stack:
        for site, heads in run["heads"].items():
            model = recording.pipeline(dtype).denoiser
            stack.enter_context(patch(model, kept, int(site), rows=rows, steps=late, heads=heads))
        made = recording.latents(dtype, recording.batch(name, "source"))
    assert agrees(made, family, name, dtype)


@mostly_double
@each_fifth(lambda run: run["layers"] and run["start"] == 0 and not run["heads"] and "donor" in run)
def test_injection(family, name, dtype):
    """Text fed to the projections of the sites, no cache = recorded.

    Refused where the text stream evolves.
    """
    by_injection(family, name, dtype)


@mostly_double
@pytest.mark.parametrize("group", ["", "neg_", "nocfg_"])
@every_family
def test_captured_keys_and_values(family, group, dtype):
    """KVCache of run B at one site: every step, row and head = what the authors' code cached."""
    recording = RECORDINGS[family]
    name, site = f"{group}patch_{recording.site}", recording.meta["sites"][recording.site]["name"]
    kept, rows = recording.donor_cache(dtype, name, recording.site), recording.batch(name, "donor")
    for part in "kv":
        stored = recording.recorded[f"cache.{group.replace('_', '.')}{part}.{recording.site}"]
        stored = stored.transpose(2, 3).flatten(3)  # (N or 1 where the text is static, R, T, W)
        for step in range(recording.steps):
            made = torch.stack([kept[site, step, row.label, part] for row in rows])
            assert distance(made, stored[min(step, len(stored) - 1)]) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    "dtype", [pytest.param(*DOUBLE.values, id="float64", marks=pytest.mark.long), SINGLE]
)
@every_family
def test_all_runs_of_one_negative_at_once(family, dtype):
    """sample(): every run with the empty negative as rows of one plan, the donor rows shared = recorded.

    By default in float32, because the tests above hold each run in float64.
    """
    recording = RECORDINGS[family]
    chosen = [name for name, run in recording.runs.items() if run["negative"] == "empty"]
    rows = [
        Row(f"{name}:{p}", f"{recording.runs[name]['source']}{p}", p)
        for name in chosen
        for p in range(recording.prompts)
    ]
    plan = sum((recording.plan(name, f"{name}:", "B:") for name in chosen), Plan())
    with recording.recorded_sinusoids():
        made = sample(
            recording.pipeline(dtype), rows, plan, negative="empty0", keep_trajectory=True
        )
    for name in chosen:
        paths = [torch.stack(made.trajectory[f"{name}:{p}"][1:]) for p in range(recording.prompts)]
        assert agrees(torch.stack(paths, dim=1), family, name, dtype)
