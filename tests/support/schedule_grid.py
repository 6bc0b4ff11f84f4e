"""Configurations of every scheduler, and a run of one by diffusers beside ours."""

import itertools
import random
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from textpatch.reference_models import schedules
from textpatch.reference_models.schedules.levels import beta_quantile

# rows of a denoiser's stand-in, small because all that is compared is arithmetic
SHAPE = (2, 2, 2, 3)
TRAINED = 50
BETAS = dict(
    num_train_timesteps=[TRAINED, 1000],
    beta_start=[0.00085, 0.01],
    beta_end=[0.012, 0.05],
    beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2"],
    trained_betas=[None, None, tuple(np.linspace(0.001, 0.2, TRAINED).tolist())],
    prediction_type=["epsilon", "v_prediction", "sample"],
    timestep_spacing=["leading", "trailing", "linspace"],
    steps_offset=[0, 1],
    rescale_betas_zero_snr=[False, True],
)
LIMITS = dict(
    clip_sample=[False, True],
    clip_sample_range=[1.0, 0.7],
    thresholding=[False, True],
    dynamic_thresholding_ratio=[0.995, 0.5],
    sample_max_value=[1.0, 1.5],
)
FORM = dict(
    use_karras_sigmas=[False, True],
    use_exponential_sigmas=[False, True],
    use_beta_sigmas=[False, True],
)
# diffusers' name: our class, and the values of each option
GRID = {
    "EulerDiscreteScheduler": (
        schedules.Euler,
        BETAS
        | FORM
        | dict(
            interpolation_type=["linear", "log_linear"],
            sigma_min=[None, 0.05],
            sigma_max=[None, 9.0],
            timestep_type=["discrete", "continuous"],
            final_sigmas_type=["zero", "sigma_min"],
        ),
    ),
    "EulerAncestralDiscreteScheduler": (
        schedules.EulerAncestral,
        BETAS | dict(prediction_type=["epsilon", "v_prediction"]),
    ),
    "DDIMScheduler": (
        schedules.DDIM,
        BETAS
        | LIMITS
        | dict(
            set_alpha_to_one=[False, True],
            eta=[0.0, 0.5, 1.0],
            use_clipped_model_output=[False, True],
        ),
    ),
    "DDPMScheduler": (
        schedules.DDPM,
        BETAS
        | LIMITS
        | dict(
            beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"],
            variance_type=[
                "fixed_small",
                "fixed_small_log",
                "fixed_large",
                "learned",
                "learned_range",
            ],
        ),
    ),
    "DPMSolverMultistepScheduler": (
        schedules.DPMSolver,
        BETAS
        | FORM
        | {key: LIMITS[key] for key in list(LIMITS)[2:]}
        | dict(
            prediction_type=["epsilon", "v_prediction", "sample", "flow_prediction"],
            solver_order=[1, 2, 3],
            algorithm_type=["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"],
            solver_type=["midpoint", "heun"],
            lower_order_final=[False, True],
            euler_at_final=[False, True],
            use_lu_lambdas=[False, True],
            use_flow_sigmas=[False, True],
            flow_shift=[1.0, 3.0],
            final_sigmas_type=["zero", "sigma_min"],
            lambda_min_clipped=[-float("inf"), -1.5],
        ),
    ),
    "PNDMScheduler": (
        schedules.PNDM,
        {key: BETAS[key] for key in list(BETAS)[:-1]}
        | dict(
            prediction_type=["epsilon", "v_prediction"],
            skip_prk_steps=[False, True],
            set_alpha_to_one=[False, True],
        ),
    ),
    "LCMScheduler": (
        schedules.LCM,
        {
            key: value
            for key, value in BETAS.items()
            if key not in ("timestep_spacing", "steps_offset")
        }
        | LIMITS
        | dict(original_inference_steps=[50, 20], timestep_scaling=[10.0, 1.0]),
    ),
    "FlowMatchEulerDiscreteScheduler": (
        schedules.FlowMatchEuler,
        FORM
        | dict(
            num_train_timesteps=[TRAINED, 1000],
            shift=[1.0, 3.0],
            use_dynamic_shifting=[False, True],
            base_shift=[0.5, 0.2],
            max_shift=[1.15, 2.0],
            base_image_seq_len=[256, 64],
            max_image_seq_len=[4096, 8192],
            time_shift_type=["exponential", "linear"],
            shift_terminal=[None, 0.02],
            stochastic_sampling=[False, True],
            spacing=["trained", "steps"],
            image_seq_len=[1024],
        ),
    ),
}
OURS = {"eta", "use_clipped_model_output", "spacing", "image_seq_len"}


def every(options: dict[str, list]):
    """All combinations of some options."""
    return (
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    )


def some(options: dict[str, list], count: int, seed: int = 0):
    """Combinations of some options drawn at random, at most one form of noise levels in each."""
    draw = random.Random(seed)
    forms = [name for name in (*FORM, "use_lu_lambdas", "use_flow_sigmas") if name in options]
    for _ in range(count):
        chosen = {name: draw.choice(values) for name, values in options.items()}
        if forms:
            form = draw.choice([None, *forms])
            chosen |= {name: name == form for name in forms}
        if chosen.get("trained_betas") is not None:
            chosen["num_train_timesteps"] = TRAINED
        yield chosen


# what diffusers takes of scipy, with our quantiles, which are compared with mpmath's elsewhere
SCIPY = SimpleNamespace(
    stats=SimpleNamespace(beta=SimpleNamespace(ppf=lambda share, a, b: beta_quantile(float(share))))
)


class Unrounded:
    """torch, but for float32: several of diffusers' schedulers round x to it in each step."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def their_scheduler(name: str, options: dict, steps: int):
    """diffusers' scheduler after set_timesteps.   Raises what it raises."""
    import diffusers

    kind = getattr(diffusers, name)
    module = sys.modules[kind.__module__]
    given = {key: value for key, value in options.items() if key not in OURS}
    if given.get("trained_betas") is not None:
        given["trained_betas"] = list(given["trained_betas"])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(module, "is_scipy_available"):
            patch.setattr(module, "is_scipy_available", lambda: True)
            patch.setattr(module, "scipy", SCIPY, raising=False)
        made = kind(**given)
        made.set_timesteps(_their_steps(options, steps), **_asked(options, steps))
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)
    return made


def _their_steps(options: dict, steps: int) -> int | None:
    if "skip_prk_steps" in options:
        fewer = 1 if options["skip_prk_steps"] else 9
        return max(steps - fewer, 1)
    return None if options.get("spacing") == "steps" else steps


def _asked(options: dict, steps: int) -> dict:
    """Arguments of set_timesteps that a pipeline gives."""
    asked = {}
    if options.get("use_dynamic_shifting"):
        # what the pipelines of FLUX and Stable Diffusion 3 give, a line through two points
        first, last = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (last - first)
        asked["mu"] = options["image_seq_len"] * slope + (options["base_shift"] - slope * first)
    if options.get("spacing") == "steps":
        asked["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    return asked


def their_run(theirs, predict, noises, options: dict) -> torch.Tensor:
    """Latents after each step of diffusers' scheduler, unrounded, which draws our noises."""
    module = sys.modules[type(theirs).__module__]
    x = noises[0] * getattr(theirs, "init_noise_sigma", 1.0)
    how = {key: options[key] for key in ("eta", "use_clipped_model_output") if key in options}
    seen = []
    for t, noise in zip(theirs.timesteps, noises[1:], strict=True):
        scaled = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
        output = predict(scaled, t)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(module, "randn_tensor", lambda *shape, **how: noise, raising=False)  # noqa: B023
            patch.setattr(module, "torch", Unrounded())
            x = theirs.step(output, t, x, return_dict=False, **how)[0]
        seen.append(x)
    return torch.stack(seen)


def our_run(schedule, predict, noises, steps: int) -> torch.Tensor:
    """Latents after each step of ours."""
    x = schedule.start(noises[0], steps)
    memory = schedule.begin(x)
    seen = []
    for i, t in enumerate(schedule.timesteps(steps)):
        output = predict(schedule.model_input(x, i, steps), t)
        x, memory = schedule.advance(x, output, i, steps, noises[i + 1], memory)
        seen.append(x)
    return torch.stack(seen)


def denoiser(channels: int, seed: int):
    """A stand-in that is smooth in x and t, with a positive variance after the prediction."""
    mix = torch.randn(channels, 2, generator=torch.Generator().manual_seed(seed)).double()

    def predict(x, t):
        made = torch.tanh(torch.einsum("oc,bchw->bohw", mix, x.double())) + torch.sin(
            t.double() / 9
        )
        made[:, 2:] = made[:, 2:].abs()
        return made

    return predict


def normals(steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps + 1, *SHAPE, generator=generator).double()
