"""The schedules are the published ones: tables bit for bit, and whole runs equal to diffusers' schedulers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.planting import plant
from support.small_models import relative
from textpatch.errors import PatchError
from textpatch.reference_models.schedules import (
    DDIM,
    DDPM,
    LCM,
    PNDM,
    DPMSolver,
    Euler,
    EulerAncestral,
    FlowMatchEuler,
    base,
    diffusion,
)
from textpatch.reference_models.schedules.published import config_of, schedule_of, unread

# diffusers' Euler scheduler under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "schedules.json").read_text())
SCHEDULES = {
    "sdxl_euler": Euler(),
    "sdxl_ddim": DDIM(),
    "if_ddpm": DDPM(),
    "sd3_flow": FlowMatchEuler(),
}
PUBLISHED = [(name, int(steps)) for name in SCHEDULES for steps in GOLDEN[name]]
UNREAD = {
    "sdxl_euler": ["clip_sample", "sample_max_value", "set_alpha_to_one", "skip_prk_steps"],
    "if_ddpm": [],
    "sd3_flow": [],
}
# SDXL's Euler step is written in another order of operations than diffusers', the rest in the same.
ULP = torch.finfo(torch.float32).eps
CLOSE = {torch.float32: 5e-6, torch.float64: 1e-10}


def reference(diffusers, schedule, steps, name=None):
    """diffusers' scheduler of the same configuration."""
    config = config_of(schedule)
    made = getattr(diffusers, name or config["_class_name"]).from_config(config)
    made.set_timesteps(steps)
    return made


def float32(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("name", GOLDEN["configs"])
def test_defaults_are_the_published_configurations(name):
    """A published configuration is our class's defaults; what no step reads of it is told."""
    config = {"_class_name": config_of(SCHEDULES[name])["_class_name"], **GOLDEN["configs"][name]}
    assert schedule_of(config) == SCHEDULES[name]
    assert unread(config) == UNREAD[name]


@pytest.mark.parametrize("name, steps", PUBLISHED)
def test_tables_are_the_published_ones(name, steps):
    """timesteps(n) to the last float32 bit, sigmas(n) and the scale of the starting noise to an ulp a root.

    Square roots in float32 differ in the last bit from CPU to CPU, and a published table was made on one.
    """
    schedule, run = SCHEDULES[name], GOLDEN[name][str(steps)]
    assert torch.equal(schedule.timesteps(steps), float32(run["timesteps"]))
    if "sigmas" in run:
        published = float32(run["sigmas"])
        assert ((schedule.sigmas(steps) - published).abs() <= ULP * published).all()
    if "init_noise_sigma" in run:
        published = float32(run["init_noise_sigma"])
        assert abs(schedule.start(float32(1.0), steps) - published) <= 2 * ULP * published
    if "final_alpha_cumprod" in run:
        assert schedule.abars(steps)[-1] == float32(run["final_alpha_cumprod"])


@pytest.mark.parametrize("model, schedule", [("sdxl", Euler()), ("sdxl", DDIM()), ("if", DDPM())])
def test_training_tables_are_the_published_ones(model, schedule):
    """abar and beta at the recorded timesteps, to the last float32 bit."""
    most = schedule.num_train_timesteps - schedule.steps_offset  # N steps visit every timestep
    # abars has one more, where the last step lands
    abars = dict(zip(schedule.timesteps(most).tolist(), schedule.abars(most), strict=False))
    table = GOLDEN["tables"][model]
    found = {t: value for t, value in table["alphas_cumprod"].items() if int(t) in abars}
    assert len(found) >= 4 and all(abars[int(t)] == float32(value) for t, value in found.items())
    for t, value in table.get("betas", {}).items():
        assert schedule.betas()[int(t)] == float32(value)


@settings(max_examples=30)
@given(schedule=st.sampled_from(list(SCHEDULES.values())), steps=st.integers(1, 999))
@example(schedule=DDPM(), steps=1000)
@example(schedule=FlowMatchEuler(), steps=1000)
def test_tables_equal_diffusers_for_any_number_of_steps(diffusers, schedule, steps):
    """Timesteps and noise levels are diffusers' bit for bit; DDIM and DDPM have theirs from its abar."""
    theirs = reference(diffusers, schedule, steps)
    assert schedule.timesteps(steps).dtype == schedule.sigmas(steps).dtype == torch.float32
    assert torch.equal(schedule.timesteps(steps), theirs.timesteps.float())
    if hasattr(theirs, "sigmas"):
        assert torch.equal(schedule.sigmas(steps), theirs.sigmas)
    else:
        abars = theirs.alphas_cumprod[theirs.timesteps]
        assert torch.equal(schedule.sigmas(steps)[:-1], ((1 - abars) / abars) ** 0.5)
        landing = getattr(theirs, "final_alpha_cumprod", torch.tensor(1.0))
        assert schedule.sigmas(steps)[-1] == ((1 - landing) / landing) ** 0.5


def denoiser(channels: int, dtype, seed: int):
    """A stand-in that is smooth in x and t: output (B, channels, H, W) = tanh(mix x) + sin(t)."""
    mix = torch.randn(channels, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return lambda x, t: (
        torch.tanh(torch.einsum("oc,bchw->bohw", mix, x)) + torch.sin(t.to(dtype) / 100)
    )


def normal(seed: int, dtype, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def our_run(schedule, predict, noises, steps):
    """Latents after each step, (steps, B, C, H, W), from noises[0] and with the rest added step by step."""
    x, seen = schedule.start(noises[0], steps), []
    for i, t in enumerate(schedule.timesteps(steps)):
        x = schedule.step(x, predict(schedule.model_input(x, i, steps), t), i, steps, noises[i + 1])
        seen.append(x)
    return torch.stack(seen)


class Unrounded:
    """torch, but for float32: diffusers' Euler schedulers round x to it in each step, in float64 runs too."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def their_run(theirs, predict, noises):
    """The same with diffusers' scheduler, unrounded in float64 and drawing our noises."""
    x, seen, module = (
        noises[0] * getattr(theirs, "init_noise_sigma", 1.0),
        [],
        sys.modules[theirs.__module__],
    )
    for t, noise in zip(theirs.timesteps, noises[1:], strict=False):
        model_input = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
        output = predict(model_input, t)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *shape, noise=noise, **options: noise)
            if x.dtype == torch.float64:
                patch.setattr(module, "torch", Unrounded())
            x = theirs.step(output, t, x, return_dict=False)[0]
        seen.append(x)
    return torch.stack(seen)


@settings(max_examples=20)
@given(
    schedule=st.sampled_from(
        [*SCHEDULES.values(), DDPM(sample_max_value=1.0), FlowMatchEuler(shift=1.0)]
    ),
    steps=st.one_of(st.sampled_from([1, 2, 3]), st.integers(1, 40)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 999),
)
def test_whole_runs_equal_diffusers(diffusers, schedule, steps, dtype, seed):
    """Every latent of a run is diffusers' scheduler's, from the same noise and denoiser; see `Unrounded`.

    Bit for bit but for SDXL's Euler step, there written as  x + (x - (x - s e)) / s ds.
    """
    noises = [normal(seed + i, dtype, 2, 3, 4, 6) for i in range(steps + 1)]
    predict = denoiser(6 if schedule.stochastic else 3, dtype, seed)
    ours = our_run(schedule, predict, noises, steps)
    theirs = their_run(reference(diffusers, schedule, steps), predict, noises)
    assert ours.dtype == theirs.dtype == dtype
    if isinstance(schedule, Euler):
        assert relative(ours, theirs) <= CLOSE[dtype]
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), FlowMatchEuler(prediction="sample")])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_per_step(schedule, half):
    """A step of half-precision latents is float32's, rounded at the end; so are noising and inversion."""
    channels = 6 if schedule.stochastic else 3
    x, output, noise = (
        normal(i, torch.float32, 2, c, 8, 8).to(half) for i, c in enumerate((3, channels, 3))
    )
    calls = [lambda *given, i=i: schedule.step(*given[:2], i, 5, given[2]) for i in range(5)]
    if isinstance(schedule, DDIM):
        calls.append(lambda *given: schedule.invert_step(*given[:2], 2, 5))
    if isinstance(schedule, DDPM):
        calls.append(lambda *given: schedule.add_noise(given[0], given[2], 250))
    for call in calls:
        made = call(x, output, noise)
        assert made.dtype == half
        assert torch.equal(made, call(x.float(), output.float(), noise.float()).to(half))


@settings(max_examples=10)
@given(
    steps=st.integers(1, 60),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_inversion_equals_diffusers(diffusers, steps, dtype, seed):
    """DDIM run backwards is diffusers.DDIMInverseScheduler, bit for bit, at every step."""
    x, predict = normal(seed, dtype, 2, 3, 4, 6), denoiser(3, dtype, seed)
    theirs, other = reference(diffusers, DDIM(), steps, "DDIMInverseScheduler"), x
    timesteps = DDIM().timesteps(steps)
    assert torch.equal(timesteps.flip(0), theirs.timesteps.float())
    for i, t in zip(reversed(range(steps)), theirs.timesteps, strict=True):
        x = DDIM().invert_step(x, predict(x, timesteps[i]), i, steps)
        other = theirs.step(predict(other, t), t, other, return_dict=False)[0]
        assert torch.equal(x, other)


UNDONE = [
    DDIM(),
    DDIM(prediction_type="v_prediction", eta=0.5, clip_sample=True, timestep_spacing="linspace"),
    DDIM(prediction_type="sample"),
    DDPM(),
    DDPM(prediction_type="v_prediction"),
    Euler(timestep_spacing="trailing"),
    Euler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    Euler(prediction_type="sample", final_sigmas_type="sigma_min"),
    EulerAncestral(),
    DPMSolver(use_karras_sigmas=True),
    DPMSolver(prediction_type="v_prediction", algorithm_type="sde-dpmsolver++"),
    DPMSolver(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    PNDM(),
    LCM(),
    FlowMatchEuler(stochastic_sampling=True),
]


def require_undone(schedule) -> None:
    """step(invert_step(x, o_i), o_i) = x for any outputs o_i that do not depend on x, over a whole run."""
    schedule, steps = schedule.deterministic(), 7
    picture = x = normal(1, torch.float64, 2, 3, 4, 6)
    outputs = [normal(2 + i, torch.float64, 2, 3, 4, 6) for i in range(steps)]
    for i in reversed(range(steps)):
        x = schedule.invert_step(x, outputs[i], i, steps)
    assert relative(x, picture) > 1e-3
    for i in range(steps):
        x = schedule.step(x, outputs[i], i, steps)
    assert relative(x, picture) <= 1e-10


@pytest.mark.parametrize("schedule", UNDONE, ids=repr)
def test_sampling_undoes_inversion(schedule):
    """Every schedule has a deterministic one of its levels, whose steps are undone."""
    require_undone(schedule)


@pytest.mark.parametrize(
    "schedule, owner, function, text, other",
    [
        (Euler(), Euler, "invert_step", "(after - now) * output", "(now - after) * output"),
        (DDIM(), diffusion, "back", "output, after, now", "output, now, after"),
        (DPMSolver(), base, "undone", "wide - of_output * output", "wide + of_output * output"),
    ],
    ids=repr,
)
def test_a_step_that_is_not_undone_is_noticed(schedule, owner, function, text, other, monkeypatch):
    """A fault in what undoes a step."""
    plant(monkeypatch, owner, function, text, other)
    with pytest.raises(AssertionError):
        require_undone(schedule)


def test_steps_that_end_on_the_output_cannot_be_undone():
    """The last step of a prediction of the sample lands on it, whatever it began with."""
    x = normal(0, torch.float64, 1, 3, 4, 4)
    for schedule in (Euler(prediction_type="sample"), DPMSolver(prediction_type="sample")):
        with pytest.raises(PatchError, match="it cannot be undone"):
            schedule.deterministic().invert_step(x, x, 4, 5)
    with pytest.raises(PatchError, match="cannot be undone; those of deterministic"):
        DDIM(eta=1.0).invert_step(x, x, 4, 5)


@settings(max_examples=20)
@given(steps=st.integers(1, 50), seed=st.integers(0, 99))
def test_sample_prediction_is_velocity_rewritten(steps, seed):
    """A step from x0 = x - s v is the step from v."""
    x, v = normal(seed, torch.float64, 2, 3, 4, 4), normal(seed + 1, torch.float64, 2, 3, 4, 4)
    for i, sigma in enumerate(FlowMatchEuler().sigmas(steps)[:-1]):
        by_sample = FlowMatchEuler(prediction="sample").step(x, x - sigma * v, i, steps)
        assert relative(by_sample, FlowMatchEuler().step(x, v, i, steps)) <= 1e-13


@settings(max_examples=40)
@given(
    scale=st.floats(0.1, 4), ratio=st.floats(0, 1), most=st.floats(1, 2), seed=st.integers(0, 999)
)
def test_dynamic_threshold(scale, ratio, most, seed):
    """Each picture is clip(x / s, -1, 1), s its own quantile of |x| in 1..most, whatever is beside it."""
    batch = (
        normal(seed, torch.float64, 3, 3, 5, 4) * torch.tensor([0.3, 1, 3]).view(3, 1, 1, 1) * scale
    )
    schedule = DDPM(dynamic_thresholding_ratio=ratio, sample_max_value=most)
    for x, made in zip(batch, schedule.threshold(batch), strict=True):
        bound = np.clip(np.quantile(x.abs().numpy(), ratio), 1, most)
        assert relative(made, (x / bound).clip(-1, 1)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_added_noise_equals_diffusers(diffusers, dtype):
    """add_noise(x, e, t) = sqrt(abar_t) x + sqrt(1 - abar_t) e at every timestep, bit for bit diffusers'."""
    theirs = reference(diffusers, DDPM(), 1)
    x, noise = normal(0, dtype, 1, 3, 2, 2), normal(1, dtype, 1, 3, 2, 2)
    for t in range(1000):
        assert torch.equal(
            DDPM().add_noise(x, noise, t), theirs.add_noise(x, noise, torch.tensor([t]))
        )


def test_only_the_last_stochastic_step_needs_no_noise():
    """DDPM refuses a step without noise, and takes none at t = 0; the others never read it."""
    x, output = normal(0, torch.float64, 1, 3, 4, 4), normal(1, torch.float64, 1, 6, 4, 4)
    with pytest.raises(PatchError, match="step 2 of 4 adds noise and was given none"):
        DDPM().step(x, output, 2, 4)
    unread = torch.full_like(x, torch.nan)
    assert torch.equal(DDPM().step(x, output, 3, 4), DDPM().step(x, output, 3, 4, unread))
    for schedule in (Euler(), DDIM(), FlowMatchEuler()):
        assert schedule.step(x, output[:, :3], 0, 4, unread).isfinite().all()


def test_what_a_schedule_gives_away_is_the_callers():
    """Writing into a returned table changes no later one."""
    for schedule in SCHEDULES.values():
        for table in (schedule.timesteps, schedule.sigmas):
            before = table(5).clone()
            table(5).zero_()
            assert torch.equal(table(5), before)


@pytest.mark.parametrize(
    "schedule, steps, most",
    [
        *((schedule, 0, "1 to") for schedule in SCHEDULES.values()),
        (Euler(), 1000, "1 to 999"),
        (DDIM(), 1000, "1 to 999"),
        (Euler(num_train_timesteps=10), 10, "1 to 9"),
        (DDPM(), 1001, "1 to 1000"),
        (FlowMatchEuler(), 1001, "1 to 1000"),
    ],
)
def test_numbers_of_steps_that_cannot_be_are_refused(schedule, steps, most):
    """Fewer than one step, and more than there are trained timesteps above the offset, are PatchErrors."""
    for table in (schedule.timesteps, schedule.sigmas):
        with pytest.raises(PatchError, match=f"asked for {steps} steps; this schedule has {most}"):
            table(steps)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: FlowMatchEuler(prediction="noise"), "prediction is 'noise'"),
        (lambda: Euler(beta_start=0.0), "betas from 0.0 to 0.012"),
        (lambda: DDIM(beta_end=12.0), "betas from 0.00085 to 12.0"),
        (lambda: Euler(steps_offset=-2), "steps_offset is -2"),
        (lambda: DDPM(dynamic_thresholding_ratio=95.0), "quantile 95.0"),
        (lambda: DDPM(sample_max_value=0.5), "at most 0.5"),
        (
            lambda: DDPM().step(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), 0, 2),
            "3 channels predicted for 3",
        ),
        (lambda: DDPM().add_noise(torch.ones(1), torch.ones(1), 1000), "timestep 1000; .* 0..999"),
        (lambda: DDPM().add_noise(torch.ones(1), torch.ones(1), -1), "timestep -1"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    """Values no published configuration has, and outputs and timesteps that fit nothing, are PatchErrors."""
    with pytest.raises(PatchError, match=says):
        make()
