"""Schedules from published configurations, where a field left out has diffusers' default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from textpatch.errors import WeightsError
from textpatch.reference_models.schedules import DDIM, DDPM, Euler, FlowMatchEuler, Schedule

BETAS = dict(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", steps_offset=0
)
SCHEDULES = {
    "EulerDiscreteScheduler": (Euler, BETAS | {"timestep_spacing": "linspace"}),
    "DDIMScheduler": (DDIM, BETAS | {"set_alpha_to_one": True, "clip_sample": True}),
    "DDPMScheduler": (
        DDPM,
        BETAS
        | dict(
            variance_type="fixed_small",
            thresholding=False,
            sample_max_value=1.0,
            dynamic_thresholding_ratio=0.995,
        ),
    ),
    "FlowMatchEulerDiscreteScheduler": (FlowMatchEuler, dict(num_train_timesteps=1000, shift=1.0)),
}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Schedule that a scheduler_config.json describes.

    Raises WeightsError for a class or a value that none of our schedules has, with both values.
    """
    name = config.get("_class_name")
    if name not in SCHEDULES:
        raise WeightsError(f"no schedule for {name}; known: {', '.join(SCHEDULES)}")
    schedule, defaults = SCHEDULES[name]
    settings = {**defaults, **config}
    for key, published in schedule.FIXED.items():
        if settings.get(key, published) != published:
            raise WeightsError(
                f"{name} with {key} {settings[key]!r}; {schedule.__name__} has {published!r}"
            )
    return schedule(**{f.name: settings[f.name] for f in fields(schedule) if f.name in settings})
