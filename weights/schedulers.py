"""Schedules from published configurations, and from what single files say of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.schedules import Diffusion, FlowMatchEuler, Schedule
from textpatch.reference_models.schedules.published import schedule_of
from textpatch.weights.reading.header import said_in_header
from textpatch.weights.reading.tensors import Tensors
from textpatch.weights.reading.terms import Terms

# Keys of tensors that say by being there what is predicted, and that the last timestep is noise alone.
VELOCITY = "v_pred"
NOTHING_LEFT = "ztsnr"
PREDICTION = "modelspec.prediction_type"
SPELLINGS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
# Step at which Stable Diffusion 2 base, alone of its family, was published.  It predicts the noise.
BASE_STEP = 875_000
# published schedules of FLUX.1, whose pipelines give the levels before they are shifted
FLUX_DEV = FlowMatchEuler(use_dynamic_shifting=True, spacing="steps")
FLUX_SCHNELL = FlowMatchEuler(shift=1.0, spacing="steps")


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Schedule that a scheduler_config.json describes.

    Raises WeightsError for a class or a value that none of our schedules has, with both values.
    """
    try:
        return schedule_of(config)
    except PatchError as error:
        raise WeightsError(str(error)) from None


def heard(schedule: Schedule, tensors: Tensors, kind: str | None, terms: Terms) -> Schedule:
    """Schedule of a single file with what the file itself says of it, noted.

    A key `v_pred` and the header's `modelspec.prediction_type` say what the model predicts, and a key `ztsnr`
    that nothing of the picture is left at the last timestep.  Files of Stable Diffusion 2 that say nothing
    are taken for velocities, as diffusers does.

    schedule  published one of the file's family
    kind      kind of the original file
    Raises WeightsError for a key and a header that contradict each other.
    """
    if not isinstance(schedule, Diffusion):
        return schedule
    prediction = _prediction(tensors, terms)
    if prediction is None and kind == "SD2":
        prediction = _of_stable_diffusion_2(tensors, terms)
    if prediction is not None:
        schedule = replace(schedule, prediction_type=prediction)
    if NOTHING_LEFT in tensors:
        terms.note(f"zero terminal SNR, as the key {NOTHING_LEFT!r} says")
        schedule = replace(schedule, rescale_betas_zero_snr=True)
    return schedule


def _prediction(tensors: Tensors, terms: Terms) -> str | None:
    """What a file says that its model predicts, None if it says nothing that is known."""
    by_header = None
    said = said_in_header(tensors.files[0], PREDICTION)
    if said is not None:
        by_header = SPELLINGS.get(said.lower())
        if by_header is None:
            terms.note(f"the header's {PREDICTION} {said!r} is not known and not read")
    if VELOCITY in tensors:
        if by_header == "epsilon":
            raise WeightsError(
                f"{tensors.files[0]} has the key {VELOCITY!r}, and its header says {PREDICTION} {said!r}; "
                "one of them is wrong, so say which schedule: schedule=..."
            )
        terms.note(f"predicts velocities, as the key {VELOCITY!r} says")
        return "v_prediction"
    if by_header is not None:
        terms.note(f"prediction_type {by_header!r}, as the header's {PREDICTION} says")
    return by_header


def _of_stable_diffusion_2(tensors: Tensors, terms: Terms) -> str:
    """Prediction of a file of Stable Diffusion 2, by the step at which its training stopped."""
    if "global_step" in tensors and int(tensors.read("global_step")) == BASE_STEP:
        return "epsilon"
    terms.note(
        "taken for a Stable Diffusion 2 that predicts v on latents of 96x96, as 2.1 does; "
        "base models of 64x64 predict noise: pipeline.at(64, 64).with_schedule(DDIM())"
    )
    return "v_prediction"
