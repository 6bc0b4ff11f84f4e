"""Safe Latent Diffusion as a guidance, beside recorded runs of its authors and of the official ports."""

import json
from dataclasses import replace

import pytest
import torch

from support.planting import plant
from support.recorded_safety import RUNS, STEPWISE, guidance_of
from support.strategies import build_pipeline, fixed_case, make_rows
from textpatch.errors import PatchError
from textpatch.guidance import (
    PRESETS,
    ClassifierFree,
    Moment,
    SafeLatentDiffusion,
    Safety,
    branch_rows,
)
from textpatch.plan import Plan, Swap
from textpatch.reference_models.schedules import Euler, FlowMatchEuler
from textpatch.sampling import sample


def replayed(name: str, guidance: SafeLatentDiffusion):
    """(guided, momentum) of every step, from the recorded outputs of the denoiser."""
    raw = RUNS[f"{name}.raw"]
    rows = raw.shape[1] // 3
    channels = RUNS.get(f"{name}.guided", raw).shape[2]
    state = guidance.begin(raw[0, :rows, :channels])
    for step, output in enumerate(raw):
        u, c, w = output[:, :channels].split(rows)  # the recorded order of the rows
        predictions = {"uncond": u, "safety": w, "cond": c}
        guided, state = guidance.combine(predictions, Moment(step), state)
        yield guided, state["momentum"]


def require_recorded(name: str) -> None:
    guidance = guidance_of(name)
    for step, (guided, momentum) in enumerate(replayed(name, guidance)):
        if f"{name}.guided" in RUNS:
            assert torch.equal(guided, RUNS[f"{name}.guided"][step])
            continue
        u = RUNS[f"{name}.raw"][step, :1]
        assert torch.equal(guided, u + guidance.scale * RUNS[f"{name}.guidance"][step])
        assert torch.equal(momentum, RUNS[f"{name}.momentum"][step])


@pytest.mark.parametrize("name", STEPWISE)
def test_recorded_runs(name):
    """Every step's guided prediction and momentum = recorded, to the last bit in float64."""
    require_recorded(name)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_ones(preset):
    """The four names mean the arguments of the recorded runs."""
    assert guidance_of(f"presets/{preset}_near").safety == PRESETS[preset]


COMBINE = SafeLatentDiffusion, "combine"
FAULTS = {
    "i > delta": (*COMBINE, "at.step >= safety.warmup", "at.step > safety.warmup"),
    "nothing remembered in the warm-up": (
        *COMBINE,
        "(1 - safety.beta) *",
        "(at.step >= safety.warmup) * (1 - safety.beta) *",
    ),
    "reset instead of carried": (*COMBINE, 'state["momentum"] if', "torch.zeros_like(u) if"),
    "the stored momentum without its own share": (
        *COMBINE,
        "(units * gamma)",
        "(gamma - safety.momentum * momentum)",
    ),
    "away from the prompt": (*COMBINE, "(c - w)) * (w - u)", "(w - c)) * (w - u)"),
    "|d| < lambda": (
        SafeLatentDiffusion,
        "_near",
        "where(difference <",
        "where(difference.abs() <",
    ),
    "at least 1 where at most 1 is meant": (
        SafeLatentDiffusion,
        "_near",
        "clamp(max=1.0)",
        "clamp(min=1.0)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """With the fault in place a recorded run is another."""
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises(AssertionError):
        for name in ("presets/medium_near", "presets/strong_near", "official_sdxl/custom_from_2"):
            require_recorded(name)


def test_units_of_noise_are_those_of_a_noise_prediction():
    """Guided velocities, turned into noise, = the guided noises, at every step, momentum included."""
    generator = torch.Generator().manual_seed(0)
    schedule, steps = FlowMatchEuler(), 6
    by_velocity = SafeLatentDiffusion(3, "x", Safety(2, 30, 0.05, 0.5, 0.7), units="noise")
    by_noise = SafeLatentDiffusion(3, "x", Safety(2, 30, 0.05, 0.5, 0.7))
    ours = theirs = by_noise.begin(torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    for step in range(1, steps):
        units = schedule.noise_units(step, steps)
        x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
        v = {
            b: 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            for b in by_noise.branches
        }
        e = {branch: x + units * prediction for branch, prediction in v.items()}
        made, ours = by_velocity.combine(v, Moment(step, units), ours)
        expected, theirs = by_noise.combine(e, Moment(step), theirs)
        assert torch.allclose(x + units * made, expected, rtol=0, atol=1e-13)
        assert torch.allclose(ours["momentum"], theirs["momentum"], rtol=0, atol=1e-13)


def test_what_a_unit_of_output_says_of_the_noise():
    """e = x_s + (1 - s) v and e = (x_s - (1 - s) x) / s; of a noise prediction it is the noise itself."""
    flow, clean = FlowMatchEuler(), FlowMatchEuler(prediction="sample")
    for step, sigma in enumerate(flow.sigmas(5).tolist()[:-1]):
        assert flow.noise_units(step, 5) == 1 - sigma
        assert clean.noise_units(step, 5) == pytest.approx((sigma - 1) / sigma)
    assert Euler().noise_units(2, 5) == 1


def test_three_branches_in_lock_step():
    """A safe run reads its concept in a branch of its own, and a swap acts in all branches."""
    case = fixed_case()
    rows = make_rows((0, 1))
    guidance = SafeLatentDiffusion(
        3, "what is kept away", Safety(1, 30, 0.05, 0.5, 0.7), negative="dull"
    )
    assert [row.prompt for row in branch_rows(rows, guidance)] == ["dull"] * 2 + [
        "what is kept away"
    ] * 2 + [row.prompt for row in rows]
    made = sample(case.pipeline, rows, Plan([Swap(1, "a", "b")]), guidance=guidance)
    assert made.ledger.entries[0].branches == ("cond", "safety", "uncond")
    plain = sample(case.pipeline, rows, Plan([Swap(1, "a", "b")]), guidance=3, negative="dull")
    assert not torch.equal(made.latents["a"], plain.latents["a"])
    pictures = build_pipeline().generate(["prompt a"], seeds=0, guidance=guidance)
    assert torch.allclose(
        pictures[0], sample(build_pipeline(), rows[:1], guidance=guidance).latents["a"]
    )


@pytest.mark.parametrize(
    "ask, says",
    [
        (lambda: SafeLatentDiffusion(3, " "), "give a text"),
        (lambda: SafeLatentDiffusion(3, "x", "middle"), "no preset 'middle'.*or give a Safety"),
        (lambda: SafeLatentDiffusion(3, "x", momentum="kept"), "give 'carried' or 'reset'"),
        (lambda: SafeLatentDiffusion(3, "x", units="velocity"), "give 'official' or 'noise'"),
        (lambda: SafeLatentDiffusion(1, "x"), "never reads its negative prompt"),
        (lambda: SafeLatentDiffusion(3, "x", ["weak"]), "no preset"),
        (lambda: Safety(10, 0, 0.01, 0.3, 0.4), "has no effect; give 1 or more"),
        (lambda: Safety(10, "20", 0.01, 0.3, 0.4), "scale of safety is '20'; give a finite number"),
        (lambda: Safety(10, 20, 0.01, float("nan"), 0.4), "momentum of safety is nan"),
        (lambda: Safety(2.5, 20, 0.01, 0.3, 0.4), "warmup of safety is 2.5; give a step"),
        (lambda: Safety(-1, 20, 0.01, 0.3, 0.4), "warmup of safety is -1; give a step"),
    ],
)
def test_what_has_no_effect_is_refused(ask, says):
    """What was given, and what to give."""
    with pytest.raises(PatchError, match=says):
        ask()


def test_a_run_that_ends_in_the_warm_up_is_refused():
    """Safety that begins at step 10 does nothing in a run of 10 steps, and something in one of 11."""
    pipeline, rows = build_pipeline(), make_rows((0,))
    guidance = SafeLatentDiffusion(3, "what is kept away", "medium")
    ask = {
        "sample": lambda steps: sample(pipeline, rows, steps=steps, guidance=guidance),
        "generate": lambda steps: pipeline.generate("a", seeds=0, steps=steps, guidance=guidance),
    }
    for make in ask.values():
        with pytest.raises(
            PatchError, match="acts from step 10 on, and this run has steps 0..9; give more"
        ):
            make(10)
        assert make(11)


def test_latents_alone_do_not_go_on_with_a_memory():
    """A row that joins later with latents lacks the momentum of its run; a copy, or step 0, does not."""
    case = fixed_case()
    rows = make_rows((0, 1))
    guidance = SafeLatentDiffusion(3, "what is kept away", Safety(0, 30, 0.05, 0.5, 0.7))
    given = sample(case.pipeline, rows, guidance=guidance, keep_trajectory=True).trajectory["a"]
    late = replace(rows[0], name="late", joins=2, latents=given[2])
    with pytest.raises(
        PatchError,
        match="with latents, and SafeLatentDiffusion remembers",
    ):
        sample(case.pipeline, [*rows, late], guidance=guidance)
    assert sample(case.pipeline, [*rows, late], guidance=3).latents["late"].isfinite().all()
    first = replace(late, joins=0, latents=given[0])
    copy = replace(late, latents=None, copies="a")
    for row in (first, copy):
        made = sample(case.pipeline, [*rows, row], guidance=guidance).latents
        assert torch.allclose(made["late"], made["a"], rtol=1e-10, atol=1e-12)


def test_plain_data():
    """What manifests hold of it."""
    said = SafeLatentDiffusion(3, "x", "weak").describe()
    assert json.loads(json.dumps(said)) == said and said["safety"]["warmup"] == 15
    assert said["guidance"] == ClassifierFree(3).describe()
