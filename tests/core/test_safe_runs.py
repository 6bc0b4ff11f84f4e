"""Whole runs of safe guidance, beside the latents that published code came to."""

from dataclasses import replace

import pytest

from support import recorded_safety
from support.by_default import taking
from support.planting import plant
from support.recorded_runs import distance
from support.recorded_safety import RUNS, SAID, TOLERANCE, guidance_of, latents_of
from textpatch.bank import Texts
from textpatch.guidance import SafeLatentDiffusion
from textpatch.reference_models import predictions

PORTS = [name for name in SAID if name.startswith("official_")]
SDXL = "official_sdxl/custom_from_2"
IF = "official_if/custom_from_2"
SD3 = "official_sd3/custom_from_2"
CARRIED = "presets/strong_near"


def require_latents(name: str) -> None:
    """Law of the latents after every step, which are the recorded ones."""
    assert distance(latents_of(name), RUNS[f"{name}.latents"]) <= TOLERANCE


@pytest.mark.parametrize("name", taking((SDXL, IF, SD3, CARRIED), SAID))
def test_whole_runs(name):
    """Latents after every step of a run in float64 are those of published code, 1e-10 of the largest.

    The official ports on SDXL, IF and SD3, and the four presets by diffusers' perform_safety_guidance.
    """
    require_latents(name)


COMBINE = SafeLatentDiffusion, "combine"
NEAR = SafeLatentDiffusion, "_near"
FAULTS = {
    "i > delta": (SD3, *COMBINE, "at.step >= safety.warmup", "at.step > safety.warmup"),
    "away from the prompt": (SD3, *COMBINE, "(c - w)) * (w - u)", "(w - c)) * (w - u)"),
    "towards the concept": (SD3, *COMBINE, "guidance - gamma", "guidance + gamma"),
    "gamma of the prompt": (SD3, *COMBINE, "* (w - u)", "* (w - c)"),
    "no scale": (SD3, *COMBINE, "u + self.scale * guidance", "u + guidance"),
    "no strength": (SD3, *NEAR, "self.safety.scale * difference", "difference"),
    "|d| < lambda": (SD3, *NEAR, "where(difference <", "where(difference.abs() <"),
    "no lambda": (SD3, *NEAR, "difference < self.safety.threshold", "difference < 1e9"),
    "at least 1 for at most 1": (SD3, *NEAR, "clamp(max=1.0)", "clamp(min=1.0)"),
    "the prompt for the concept": (
        SD3,
        SafeLatentDiffusion,
        "prompt",
        "return self.concept",
        "return row.prompt",
    ),
    "the prompt's pooled vector": (
        SD3,
        Texts,
        "of",
        "self.place[row.pooled_prompt]",
        "self.place['0' if row.branch == 'safety' else row.pooled_prompt]",
    ),
    "variance of the concept": (
        IF,
        predictions,
        "guided",
        "predictions[CONDITIONAL]",
        "predictions['safety']",
    ),
    "nothing remembered": (CARRIED, *COMBINE, "safety.momentum * (momentum", "0 * (momentum"),
    "all of the past": (CARRIED, *COMBINE, "safety.beta * momentum", "momentum"),
    "nothing remembered in the warm-up": (
        CARRIED,
        *COMBINE,
        "(1 - safety.beta) *",
        "(at.step >= safety.warmup) * (1 - safety.beta) *",
    ),
    "the stored momentum without its own share": (
        CARRIED,
        *COMBINE,
        "(units * gamma)",
        "(gamma - safety.momentum * momentum)",
    ),
}
AT_ONCE = [name for name, (run, *_) in FAULTS.items() if run != CARRIED]


@pytest.mark.parametrize("fault", taking(AT_ONCE, FAULTS))
def test_a_fault_is_noticed(fault, monkeypatch):
    """With the fault in place the latents are others.

    Those of the momentum are noticed by default in single steps, in test_safe_guidance.py.
    """
    run, *planted = FAULTS[fault]
    plant(monkeypatch, *planted)
    with pytest.raises(AssertionError):
        require_latents(run)


OTHERS = [
    (SD3, {"momentum": "carried"}),
    (SD3, {"units": "noise"}),
    (CARRIED, {"momentum": "reset"}),
]


@pytest.mark.parametrize("name, other", taking(lambda case: case[0] == SD3, OTHERS))
def test_another_form_is_another_run(name, other, monkeypatch):
    """Momentum and units of the other kind are 0.01 and more away."""
    guidance = replace(guidance_of(name), **other)
    monkeypatch.setattr(recorded_safety, "guidance_of", lambda run: guidance)
    assert distance(latents_of(name), RUNS[f"{name}.latents"]) > 0.01
