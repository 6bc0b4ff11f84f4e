"""Schedules by the names and settings of published configurations.

A setting left out has diffusers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from textpatch.errors import PatchError, closest
from textpatch.reference_models.schedules.base import Schedule
from textpatch.reference_models.schedules.ddim import DDIM
from textpatch.reference_models.schedules.ddpm import DDPM, DeterministicDDPM
from textpatch.reference_models.schedules.dpm_solver import DPMSolver
from textpatch.reference_models.schedules.euler import Euler, EulerAncestral
from textpatch.reference_models.schedules.flow import FlowMatchEuler
from textpatch.reference_models.schedules.lcm import LCM
from textpatch.reference_models.schedules.levels import LEVELS
from textpatch.reference_models.schedules.pndm import PNDM

BETAS = dict(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", steps_offset=0
)
LINSPACE = BETAS | dict(timestep_spacing="linspace")
# Name of a published class: ours, and its defaults where they are others than ours.
SCHEDULES = {
    "EulerDiscreteScheduler": (Euler, LINSPACE),
    "EulerAncestralDiscreteScheduler": (EulerAncestral, LINSPACE),
    "DDIMScheduler": (DDIM, BETAS | dict(set_alpha_to_one=True, clip_sample=True)),
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
    "DPMSolverMultistepScheduler": (DPMSolver, LINSPACE),
    "PNDMScheduler": (PNDM, BETAS | dict(skip_prk_steps=False)),
    "LCMScheduler": (LCM, {}),
    "FlowMatchEulerDiscreteScheduler": (FlowMatchEuler, dict(shift=1.0)),
}
# Settings that a published configuration may have at one value alone, because nothing else is implemented.
FIXED = {
    "DPMSolverMultistepScheduler": {"use_dynamic_shifting": False},
    "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": False},
}
# Values that diffusers reads as another one.
SPELLINGS = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    "prediction_type": {"original_sample": "sample"},
}
# Settings that the published class does not read, whatever its configuration says.
IGNORED = {
    "PNDMScheduler": {"rescale_betas_zero_snr"},
    "LCMScheduler": {"timestep_spacing", "steps_offset"},
}
# Short names, each with the published class and what it asks of its settings.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="dpmsolver++", solver_order=2),
    ),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="sde-dpmsolver++", solver_order=2),
    ),
    "pndm": ("PNDMScheduler", dict(skip_prk_steps=True)),
    "lcm": ("LCMScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
}
# What Stable Diffusion's and SDXL's configurations say where the published defaults are others.
OF_LATENTS = dict(clip_sample=False, set_alpha_to_one=False)
NOT_SETTINGS = ("_class_name", "_diffusers_version")


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Schedule that a published configuration describes.

    Raises PatchError for a class or a value that none of our schedules has, with both values.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULES:
        raise PatchError(
            f"no schedule for {name}; known: {', '.join(SCHEDULES)}; "
            f"load(..., schedule=NAME) takes one of {', '.join(NAMES)} in its place"
        )
    kind, defaults = SCHEDULES[name]
    settings = {**defaults, **{key: _read(key, value) for key, value in config.items()}}
    for key, published in FIXED.get(name, {}).items():
        if settings.get(key, published) != published:
            raise PatchError(
                f"{name} with {key} {settings[key]!r}; {kind.__name__} has {published!r}"
            )
    return kind(**{key: settings[key] for key in _fields(name) if key in settings})


def unread(config: Mapping[str, Any]) -> list[str]:
    """Settings of a published configuration that its schedule does not read."""
    name = config["_class_name"]
    read = {*_fields(name), *FIXED.get(name, {}), *NOT_SETTINGS}
    return sorted(config.keys() - read)


def named(name: str, config: Mapping[str, Any]) -> Schedule:
    """Schedule of a name that takes the settings of a published configuration, of whatever class it is.

    name    one of NAMES, which may end on "_karras", "_exponential" or "_beta" for levels of that form,
            or the name of a published class
    Raises PatchError for an unknown name.
    """
    published, asked = _asked(name)
    return schedule_of({**config, **asked, "_class_name": published})


def changed(name: str, schedule: Schedule) -> Schedule:
    """Schedule of a name that takes the settings of another schedule, where both have them.

    Raises PatchError for an unknown name.
    """
    return named(name, OF_LATENTS | asdict(schedule))


def chosen(asked: Schedule | str, own: Schedule) -> Schedule:
    """Schedule that is asked for in the place of another one, by name or as an object.

    Raises PatchError as `changed` does, for what is no schedule, and for a diffusion in place of a flow or a
    flow in place of a diffusion.
    """
    if isinstance(asked, str):
        asked = changed(asked, own)
    if not isinstance(asked, Schedule):
        raise PatchError(
            f"schedule is {asked!r}; give a name, or an object of textpatch.reference_models.schedules"
        )
    if asked.flows != own.flows:
        raise PatchError(
            f"the model is sampled by {own!r}, and {asked!r} was asked for; "
            "a flow and a diffusion read different predictions, so give one of the same kind"
        )
    return asked


def config_of(schedule: Schedule) -> dict[str, Any]:
    """Published configuration of a schedule.   What is only ours is left out where it has its default."""
    kind = DDPM if isinstance(schedule, DeterministicDDPM) else type(schedule)
    (name,) = (name for name, (ours, _) in SCHEDULES.items() if ours is kind)
    settings = asdict(schedule)
    for field in fields(schedule):
        if field.name in OURS and settings[field.name] == field.default:
            del settings[field.name]
    return {"_class_name": name, **settings}


# settings that no published configuration has, because a pipeline gives them
OURS = ("eta", "use_clipped_model_output", "prediction", "spacing", "image_seq_len")


def _fields(name: str) -> list[str]:
    kind, _ = SCHEDULES[name]
    return [field.name for field in fields(kind) if field.name not in IGNORED.get(name, ())]


def _read(key: str, value: Any) -> Any:
    """Value of a setting, in our spelling."""
    if isinstance(value, list):
        return tuple(value)
    if key in LEVELS and value is None:
        return False
    if isinstance(value, str):
        return SPELLINGS.get(key, {}).get(value, value)
    return value


def _asked(name: str) -> tuple[str, dict[str, Any]]:
    """Published class of a name, and what the name asks of its settings."""
    if name in SCHEDULES:
        return name, {}
    if name in NAMES:
        return NAMES[name]
    base, _, form = str(name).rpartition("_")
    if base in NAMES and f"use_{form}_sigmas" in LEVELS:
        published, asked = NAMES[base]
        flags = {flag: flag == f"use_{form}_sigmas" for flag in LEVELS}
        if flags.keys() <= {*_fields(published)}:
            return published, asked | flags
    raise PatchError(
        f"no schedule {name!r}{closest(name, [*NAMES, *SCHEDULES])}; known: {', '.join(NAMES)}, those whose "
        "levels may have another form as dpmpp_2m_karras, _exponential, _beta, and the published classes"
    )
