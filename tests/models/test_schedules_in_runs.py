"""Schedules in whole runs: what they remember and the noise they add stay with the row, wherever it is."""

from dataclasses import replace

import pytest
import torch

from support.planting import plant
from support.strategies import fixed_case
from textpatch import Plan, Row, Swap, lockstep, sample
from textpatch.errors import PatchError
from textpatch.guidance import as_guidance
from textpatch.reference_models import pipeline as denoising
from textpatch.reference_models.schedules import (
    DDIM,
    LCM,
    PNDM,
    DPMSolver,
    EulerAncestral,
    FlowMatchEuler,
)

STEPS = 4
MULTISTEP = [DPMSolver(), DPMSolver(solver_order=3, use_karras_sigmas=True), PNDM()]
STOCHASTIC = [
    EulerAncestral(timestep_spacing="trailing"),
    DDIM(eta=0.7, timestep_spacing="linspace"),
    LCM(),
    DPMSolver(algorithm_type="sde-dpmsolver++", solver_order=1, final_sigmas_type="sigma_min"),
    FlowMatchEuler(stochastic_sampling=True),
]
BOTH = DPMSolver(algorithm_type="sde-dpmsolver++", prediction_type="v_prediction")
ROWS = [Row("a", "one prompt", 3), Row("b", "another", 4), Row("c", "a third", 5)]
PLAN = Plan([Swap(1, "a", "b", steps=range(2, STEPS))])


def with_schedule(schedule):
    """A small random model in float64 that is sampled by a schedule."""
    architecture = "mmdit" if schedule.flows else "sdxl"
    return fixed_case(architecture).pipeline.with_schedule(schedule)


def run(pipeline, rows, plan=PLAN, **options):
    return sample(pipeline, rows, plan, steps=STEPS, guidance=3.0, keep_trajectory=True, **options)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True where two runs of the same row differ by the place in the batch alone."""
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def require_its_own(schedule) -> None:
    """A row's latents are the same in lock-step, in another order and smaller batches, and alone."""
    pipeline = with_schedule(schedule)
    together = run(pipeline, ROWS).latents
    other = run(pipeline, ROWS[::-1], micro_batch=4).latents
    assert all(close(other[name], x) for name, x in together.items())
    alone = run(pipeline, ROWS[2:], Plan()).latents
    assert close(alone["c"], together["c"])


def require_copies(schedule) -> None:
    """A row that copies another at step s goes on as it, and with a swap from s on as the swapped run."""
    pipeline = with_schedule(schedule)
    plain = run(pipeline, ROWS[:2], Plan()).latents["a"]
    for joins in (1, 3):
        swap = Swap(1, "a", "b", steps=range(joins, STEPS))
        whole = run(pipeline, ROWS[:2], Plan([swap])).latents["a"]
        late = [
            replace(ROWS[0], name=name, joins=joins, copies="a") for name in ("same", "swapped")
        ]
        made = run(pipeline, [*ROWS[:2], *late], Plan([replace(swap, readers="swapped")])).latents
        assert close(made["same"], plain)
        assert close(made["swapped"], whole)
        assert not close(made["swapped"], plain)


def require_continued(schedule) -> None:
    """A run in two parts, of which the second is given the latents and the state, is the run, bit for bit."""
    pipeline = with_schedule(schedule)
    guidance = as_guidance(3.0)
    text = pipeline.encode([None, None, "one prompt", "another"])
    whole_noises = pipeline.noises([3, 4])
    whole = pipeline.denoise(
        next(whole_noises), text, steps=STEPS, guidance=guidance, noises=whole_noises
    )
    for first in (1, 3):
        noises = pipeline.noises([3, 4])
        x = pipeline.enter(next(noises), STEPS)
        state = pipeline.begin(x, guidance)
        for only in (range(first), range(first, STEPS)):
            x, state = pipeline.advance(
                x, text, state, only=only, steps=STEPS, guidance=guidance, noises=noises
            )
        assert torch.equal(x, whole)


def require_noise_of_seed_and_step(schedule) -> None:
    """The noise that a row's step adds depends on its seed and the step alone, wherever the row begins."""
    added = {}

    class Watched(type(schedule)):
        def advance(self, x, output, step, steps, noise, memory):
            if noise is not None:
                seen.append((step, noise))
            return super().advance(x, output, step, steps, noise, memory)

    pipeline = with_schedule(schedule)
    pipeline.schedule = Watched(**vars(pipeline.schedule))
    for rows in (ROWS, ROWS[1:], [replace(ROWS[1], joins=2, latents=pipeline.noise([9])[0])]):
        seen = []
        run(pipeline, rows, Plan())
        assert len(seen) == len({step for step, _ in seen}) >= STEPS - 3
        for step, noise in seen:
            for row, its in zip(rows, noise, strict=True):
                assert torch.equal(its, added.setdefault((row.seed, step), its))


@pytest.mark.parametrize("schedule", [*MULTISTEP[1:], STOCHASTIC[0], BOTH], ids=repr)
def test_a_row_is_its_own(schedule):
    """Memory and noise belong to a row, and not to its place."""
    require_its_own(schedule)


@pytest.mark.parametrize("schedule", [*MULTISTEP[1:], BOTH], ids=repr)
def test_a_copy_has_the_memory_of_its_origin(schedule):
    """Start curves are exact under a schedule that remembers."""
    require_copies(schedule)


@pytest.mark.parametrize("schedule", [MULTISTEP[1], PNDM(), STOCHASTIC[1], BOTH], ids=repr)
def test_a_run_in_two_parts_is_the_run(schedule):
    """The state holds all that a later step reads."""
    require_continued(schedule)


@pytest.mark.parametrize("schedule", STOCHASTIC, ids=repr)
def test_noise_is_a_function_of_seed_and_step(schedule):
    """Of all schedules that add some."""
    require_noise_of_seed_and_step(schedule)


FAULTS = {
    "memory of the row before": (
        require_its_own,
        DPMSolver(),
        DPMSolver,
        "advance",
        'older = [memory[f"output_{i}"]',
        'older = [memory[f"output_{i}"].roll(1, 0)',
    ),
    "noise of the row before": (
        require_its_own,
        EulerAncestral(),
        EulerAncestral,
        "step",
        "required_noise(noise, step, steps)",
        "required_noise(noise, step, steps).flip(0)",
    ),
    "copies that begin anew": (
        require_copies,
        DPMSolver(),
        lockstep.Loop,
        "_in_parts",
        "states[row.name] = states[row.copies]",
        "states[row.name] = self._first_state(now[row.name])",
    ),
    "state without the schedule's": (
        require_continued,
        PNDM(),
        denoising.Pipeline,
        "advance",
        "for name, value in memory.items()",
        "for name, value in self.schedule.begin(x).items()",
    ),
    "noise of the first step": (
        require_noise_of_seed_and_step,
        EulerAncestral(),
        lockstep.Loop,
        "_in_parts",
        "for _ in range(bounds[0])",
        "for _ in range(0)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """A planted fault breaks the law that forbids it."""
    law, schedule, *change = FAULTS[fault]
    plant(monkeypatch, *change)
    with pytest.raises(AssertionError):
        law(schedule)


@pytest.mark.parametrize("schedule", MULTISTEP, ids=repr)
def test_latents_alone_do_not_hold_the_memory(schedule):
    """A row may not join later with latents of its own, and a step without memory is refused."""
    pipeline = with_schedule(schedule)
    x = pipeline.noise([0])
    late = replace(ROWS[0], joins=2, latents=x[0])
    name = type(schedule).__name__
    with pytest.raises(PatchError, match=f"joins at step 2 with latents, and {name} remembers"):
        run(pipeline, [late], Plan())
    with pytest.raises(PatchError, match=f"a step of {name} reads the outputs of earlier ones"):
        schedule.step(x, x, 0, STEPS)


def test_a_schedule_by_name_takes_the_settings_of_the_other():
    """Betas, prediction and spacing stay; names may ask for levels of another form."""
    pipeline = fixed_case("sdxl").pipeline
    pipeline.schedule = replace(pipeline.schedule, prediction_type="v_prediction", beta_end=0.013)
    made = pipeline.with_schedule("dpmpp_2m_karras")
    assert made.schedule == DPMSolver(
        prediction_type="v_prediction", beta_end=0.013, use_karras_sigmas=True
    )
    assert made.denoiser is pipeline.denoiser and pipeline.schedule != made.schedule
    assert made.name == f"{pipeline.name} sampled by {made.schedule}"
    assert (
        made.with_schedule(pipeline.schedule).name
        == f"{pipeline.name} sampled by {pipeline.schedule}"
    )
    back = made.with_schedule("EulerDiscreteScheduler").schedule
    assert back == replace(pipeline.schedule, use_karras_sigmas=True)
    assert not pipeline.with_schedule("ddim").schedule.clip_sample


@pytest.mark.parametrize(
    "schedule, says",
    [
        ("heun", "no schedule 'heun'; known: euler, euler_ancestral"),
        ("eulr", "no schedule 'eulr'; closest: euler"),
        ("ddim_karras", "no schedule 'ddim_karras'"),
        ("flow_euler", "a flow and a diffusion read different predictions"),
        (FlowMatchEuler(), "a flow and a diffusion read different predictions"),
        (3, "schedule is 3; give a name"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule, says):
    """Unknown names, and schedules of another kind of model."""
    with pytest.raises(PatchError, match=says):
        fixed_case("sdxl").pipeline.with_schedule(schedule)


def test_dynamic_shifting_is_of_the_size():
    """A flow's levels follow the number of image tokens, in the pipeline and at another size."""
    schedule = FlowMatchEuler(use_dynamic_shifting=True)
    with pytest.raises(PatchError, match=r"ask schedule.for_image\(tokens\)"):
        schedule.sigmas(4)
    pipeline = fixed_case("mmdit").pipeline.with_schedule(schedule)
    side = pipeline.defaults.height * pipeline.defaults.width
    tokens = side // pipeline.denoiser.config.patch_size**2
    assert pipeline.schedule == schedule.for_image(tokens)
    assert pipeline.at(4, 4).schedule == schedule.for_image(
        16 // pipeline.denoiser.config.patch_size**2
    )
