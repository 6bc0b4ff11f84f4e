"""Schedules of any settings: noise levels to the last bit, runs to 1e-12, beside diffusers' schedulers."""

import random
from collections import Counter

import mpmath
import pytest
import torch

from support.planting import plant
from support.schedule_grid import (
    GRID,
    denoiser,
    normals,
    our_run,
    some,
    their_run,
    their_scheduler,
)
from textpatch.errors import PatchError
from textpatch.reference_models import schedules
from textpatch.reference_models.schedules import euler, flow, levels, pndm
from textpatch.reference_models.schedules.published import config_of, schedule_of

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers tells of its own future
TOLERANCE = 1e-12  # in float64, of the largest number
# What is refused though diffusers runs: it makes numbers that are none, or another number of steps.
REFUSED = (
    "log_linear levels with continuous timesteps",
    "begins in noise alone, of which a prediction of the noise says nothing",
    "one step begins in noise alone, and shift_terminal",
    "trailing spacing has",
    "cannot read a flow_prediction",
    "has the solver_order 1 or 2",
)


def require_equal(name: str, options: dict, steps: int, seed: int = 0) -> str:
    """Tables are diffusers' to the last bit, and every latent of a run is its to 1e-12.

    Returns what became of it, "equal" or why it was refused.
    """
    kind, _ = GRID[name]
    try:
        ours = kind(**options)
        timesteps = ours.timesteps(steps)
    except PatchError as error:
        return require_reason(name, options, steps, error)
    theirs = their_scheduler(name, options, steps)
    assert timesteps.dtype == torch.float32 and torch.equal(timesteps, theirs.timesteps.float())
    if hasattr(theirs, "sigmas"):
        # log-linear levels have one more, at which no step lands
        assert torch.equal(ours.sigmas(steps), theirs.sigmas[: steps + 1])
    noises = normals(steps, seed)
    predict = denoiser(4 if ours.reads_variance else 2, seed)
    try:
        made = our_run(ours, predict, noises, steps)
    except PatchError as error:
        assert any(reason in str(error) for reason in REFUSED), error
        return str(error)
    expected = their_run(theirs, predict, noises, options)
    if not expected.isfinite().all():
        assert not made.isfinite().all()
        return "no numbers"
    most = expected.abs().amax(dim=(1, 2, 3, 4)).clamp(min=1)
    assert ((made - expected).abs().amax(dim=(1, 2, 3, 4)) <= TOLERANCE * most).all()
    return "equal"


def require_reason(name: str, options: dict, steps: int, error: PatchError) -> str:
    """What is refused before it runs is refused by diffusers, too, or among REFUSED."""
    if not any(reason in str(error) for reason in REFUSED):
        with pytest.raises(Exception):  # noqa: B017 as diffusers has it
            their_scheduler(name, options, steps)
    return str(error)


def numbers_of_steps(name: str, options: dict, draw: random.Random) -> int:
    """A number of steps that a run can have."""
    steps = draw.choice([1, 3, 4, 5, 7, 16, 25])
    if not options.get("skip_prk_steps", True):
        return steps + 12
    return min(steps, options.get("original_inference_steps", steps))


def compare(name: str, count: int) -> Counter:
    """What became of some configurations of a scheduler, in which every value of every option is there."""
    draw = random.Random(name)
    chosen = list(some(GRID[name][1], count))
    for option, values in GRID[name][1].items():
        assert {str(one[option]) for one in chosen} == {str(value) for value in values}, option
    became: Counter = Counter()
    for place, options in enumerate(chosen):
        became[require_equal(name, options, numbers_of_steps(name, options, draw), place)] += 1
    return became


@pytest.mark.parametrize("name", GRID)
def test_any_settings_equal_diffusers(diffusers, name):
    """All options of a scheduler's configuration, each value beside random others."""
    became = compare(name, 24)
    assert became["equal"] >= 12, became


@pytest.mark.long
@pytest.mark.parametrize("name", GRID)
def test_many_settings_equal_diffusers(diffusers, name):
    """The same with more combinations than the default run takes time for."""
    assert compare(name, 2000)["equal"] >= 1000


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 1 / 3, 0.49999, 0.5001, 0.9, 0.999])
def test_quantiles_of_the_beta_distribution(share):
    """Its integral up to a quantile is the share, to 1e-15 of the quantile."""
    found = levels.beta_quantile(share)
    with mpmath.workdps(30):
        integral = mpmath.betainc(0.6, 0.6, 0, found, regularized=True)
        density = (mpmath.mpf(found) * (1 - mpmath.mpf(found))) ** -0.4 / mpmath.beta(0.6, 0.6)
        assert abs(integral - mpmath.mpf(share)) <= 1e-15 * found * density
    assert [levels.beta_quantile(end) for end in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", GRID)
def test_configurations_are_written_and_read(diffusers, name):
    """A schedule's configuration is that schedule again, here and as diffusers reads it."""
    for options in some(GRID[name][1], 3):
        try:
            made = GRID[name][0](**options)
        except PatchError:
            continue
        config = config_of(made)
        assert schedule_of(config) == made
        theirs = getattr(diffusers, name)
        if not options.get("use_beta_sigmas"):  # which needs scipy there
            read = dict(theirs.from_config(config).config)
            # a tuple is a list in a configuration
            assert {key: read[key] for key in options if key in read} == {
                key: value for key, value in options.items() if key in read
            }


DPM = "DPMSolverMultistepScheduler"
FAULTS = {
    "Karras of another power": (
        "EulerDiscreteScheduler",
        dict(use_karras_sigmas=True),
        levels,
        "karras",
        "last = least ** (1 / RHO)",
        "last = least ** (1 / 6.0)",
    ),
    "velocity of unscaled latents": (
        "EulerDiscreteScheduler",
        dict(prediction_type="v_prediction"),
        euler.InSigma,
        "slope",
        "x / (sigma**2 + 1)",
        "x",
    ),
    "zero terminal SNR with an infinite sigma": (
        "EulerDiscreteScheduler",
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        schedules.diffusion,
        "trained_abars",
        "schedule.LAST_ABAR is not None",
        "False",
    ),
    "ancestral noise of the level now": (
        "EulerAncestralDiscreteScheduler",
        {},
        euler.EulerAncestral,
        "step",
        "(now**2 - after**2) / now**2",
        "(now**2 - after**2) / after**2",
    ),
    "landing on the next timestep": (
        "DDIMScheduler",
        dict(timestep_spacing="linspace"),
        schedules.DDIM,
        "landings",
        "torch.tensor(self._whole(steps)) - apart",
        "torch.tensor([*self._whole(steps)[1:], -1])",
    ),
    "larger variance": (
        "DDPMScheduler",
        dict(variance_type="fixed_small"),
        schedules.DDPM,
        "deviation",
        "return least.sqrt()",
        "return most.sqrt()",
    ),
    "older output forgotten": (
        DPM,
        dict(solver_order=2),
        schedules.DPMSolver,
        "advance",
        "kept = [made, *older]",
        "kept = [*older, made]",
    ),
    "order kept to the end": (
        DPM,
        dict(solver_order=3, final_sigmas_type="sigma_min", lower_order_final=True),
        schedules.DPMSolver,
        "_most",
        "steps < FEW_STEPS",
        "steps < 3",
    ),
    "noise of the picture's algorithm": (
        DPM,
        dict(algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"),
        schedules.DPMSolver,
        "_deviation",
        "torch.exp(2 * h) - 1.0",
        "1.0 - torch.exp(-2 * h)",
    ),
    "first output counted twice": (
        "PNDMScheduler",
        {},
        schedules.PNDM,
        "_multistep",
        'return (output + first) / 2, memory, memory["start"]',
        'return (output + first) / 2, _remembered(memory, output, x), memory["start"]',
    ),
    "Runge-Kutta with equal weights": (
        "PNDMScheduler",
        dict(skip_prk_steps=False),
        pndm,
        "_runge_kutta",
        "1 / 6 if step % 4 == 0 else 1 / 3",
        "1 / 4",
    ),
    "boundary of another deviation": (
        "LCMScheduler",
        dict(timestep_scaling=1.0),
        schedules.LCM,
        "step",
        "skip = DATA**2 / (scaled**2 + DATA**2)",
        "skip = DATA / (scaled**2 + DATA**2)",
    ),
    "shifted by the number itself": (
        "FlowMatchEulerDiscreteScheduler",
        dict(use_dynamic_shifting=True, image_seq_len=1024),
        flow.FlowMatchEuler,
        "_shifted",
        "factor = math.exp(factor)",
        "pass",
    ),
    "stretched before it is shifted": (
        "FlowMatchEulerDiscreteScheduler",
        dict(shift_terminal=0.02),
        flow.FlowMatchEuler,
        "_stretched",
        "(1 - self.shift_terminal)",
        "(1 + self.shift_terminal)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(diffusers, fault, monkeypatch):
    """One configuration is diffusers' before the fault is planted, and not after."""
    name, changes, owner, function, text, other = FAULTS[fault]
    plain = {option: values[0] for option, values in GRID[name][1].items()}
    plain |= dict(timestep_spacing="trailing") if "timestep_spacing" in plain else {}
    steps = 16 if changes.get("skip_prk_steps") is False else 7
    options = plain | dict(skip_prk_steps=True) | changes
    options = {option: value for option, value in options.items() if option in GRID[name][1]}
    assert require_equal(name, options, steps) == "equal"
    plant(monkeypatch, owner, function, text, other)
    for table in (euler._tables, schedules.dpm_solver._tables, schedules.trained_abars):
        table.cache_clear()
    with pytest.raises(AssertionError):
        require_equal(name, options, steps)
    for table in (euler._tables, schedules.dpm_solver._tables):
        table.cache_clear()
