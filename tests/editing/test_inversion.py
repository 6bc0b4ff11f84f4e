"""Inversion is that of published code, run by run, and each method keeps the identities that define it."""

from functools import partial

import pytest
import torch

from support.by_default import taking
from support.planting import plant
from support.recorded_inversions import (
    INPUTS,
    RUNS,
    TOLERANCE,
    RecordedDDIM,
    RecordedEuler,
    RecordedFlow,
    RecordedIF,
    RecordedIFToZero,
    inverts,
    moved,
    moves,
    pipeline_of,
    recorded,
    samples,
    source,
)
from support.recorded_runs import distance
from textpatch.editing import inverting as methods
from textpatch.editing import solvers, velocities
from textpatch.editing.inversion import inverted
from textpatch.errors import PatchError
from textpatch.reference_models import schedules

FLOW = schedules.FlowMatchEuler()
CLOCKS = methods.RFInversionTwoClocks
FADING = CLOCKS(gamma=0.3, eta=1.0, start=0.25, stop=0.75, decay=2.0)
ON_SDXL = partial(samples, "ddim_sdxl", schedule=RecordedDDIM(), method=methods.DDIM())
ON_IF = partial(samples, "ddim_if", schedule=RecordedIF(), method=methods.DDIM())
OFFICIAL = partial(
    samples, "official_sdxl", schedule=RecordedDDIM(), method=methods.ReNoise(), guidance=6.0
)
ON_FLOW = partial(samples, "flow_sd3", prompt="B", guidance=4.5)
DDIM_INVERSION = partial(
    inverts, "ddim_sdxl", "invert", schedule=RecordedDDIM(), method=methods.DDIM()
)
RENOISE = partial(inverts, "official_sdxl", schedule=RecordedDDIM())
RF_INVERSION = partial(
    inverts,
    "flow_sd3",
    "rf_inversion_invert",
    schedule=RecordedFlow(),
    method=CLOCKS(gamma=0.5),
    noise=INPUTS["flow_sd3/rf_inversion.y1"],
)
RF_EDIT = partial(
    ON_FLOW,
    "rf_inversion_edit_B",
    schedule=RecordedFlow(),
    method=CLOCKS(stop=0.5),
    begun="rf_inversion_invert",
)
FLOWEDIT = partial(moves, "flowedit", methods.FlowEdit(last=6 / 8, source_guidance=3.5), 7.5)

SOLVERS = {
    "euler": methods.Euler(),
    "midpoint": methods.Midpoint(),
    "rf_solver": methods.RFSolver(),
    "fireflow": methods.FireFlow(),
}
# name -> function of no arguments that gives the distance from a recorded run
RECORDINGS = {
    "ddim_sdxl": DDIM_INVERSION,
    "ddim_if": partial(inverts, "ddim_if", "invert", RecordedIF(), methods.DDIM()),
    "other_abar_sdxl": partial(
        inverts,
        "ddim_sdxl",
        "invert_other_final_alpha",
        RecordedDDIM(set_alpha_to_one=True),
        methods.DDIM(),
    ),
    "other_abar_if": partial(
        inverts, "ddim_if", "invert_other_final_alpha", RecordedIFToZero(), methods.DDIM()
    ),
    "official_ddim": partial(RENOISE, "ddim", method=methods.DDIM()),
    "renoise_K1": partial(RENOISE, "renoise_K1", method=methods.ReNoise(1)),
    "renoise_K3": partial(RENOISE, "renoise_K3", method=methods.ReNoise(3)),
    "again_sdxl": partial(ON_SDXL, "regenerate_A", begun="invert"),
    "again_if": partial(ON_IF, "regenerate_A", begun="invert"),
    "guided_sdxl": partial(ON_SDXL, "regenerate_A_guided", begun="invert", guidance=4.0),
    "guided_if": partial(ON_IF, "regenerate_B_guided", begun="invert", prompt="B", guidance=4.0),
    "guided_target_sdxl": partial(
        ON_SDXL, "regenerate_B_guided", begun="invert", prompt="B", guidance=4.0
    ),
    "guided_source_if": partial(ON_IF, "regenerate_A_guided", begun="invert", guidance=4.0),
    "official_source": partial(OFFICIAL, "edit_A", begun="renoise_K1"),
    "official_edit": partial(OFFICIAL, "edit_patched", begun="renoise_K1", sites=(13, 14)),
    "official_edit_late": partial(
        OFFICIAL, "edit_patched_start2", begun="renoise_K1", sites=(13, 14), first=2
    ),
    "official_target": partial(OFFICIAL, "edit_B", begun="renoise_K1", prompt="B"),
    **{
        f"{name}_invert": partial(inverts, "flow_sd3", f"{name}_invert", FLOW, method)
        for name, method in SOLVERS.items()
    },
    **{
        f"{name}_edit": partial(
            ON_FLOW, f"{name}_edit_B", schedule=FLOW, method=method, begun=f"{name}_invert"
        )
        for name, method in SOLVERS.items()
    },
    **{
        f"{name}_again": partial(
            samples,
            "flow_sd3",
            f"{name}_regenerate_A",
            schedule=FLOW,
            method=SOLVERS[name],
            begun=f"{name}_invert",
        )
        for name in ("euler", "midpoint", "fireflow")
    },
    "rf_inversion": RF_INVERSION,
    "rf_inversion_pulled_less": partial(
        inverts,
        "flow_sd3",
        "rf_inversion_decay_invert",
        schedule=RecordedFlow(),
        method=FADING,
        noise=INPUTS["flow_sd3/rf_inversion.y1"],
    ),
    "rf_inversion_edit": RF_EDIT,
    "rf_inversion_fading": partial(
        ON_FLOW,
        "rf_inversion_decay_edit_B",
        schedule=RecordedFlow(),
        method=FADING,
        begun="rf_inversion_decay_invert",
    ),
    "flowedit": FLOWEDIT,
    "flowedit_averaged": partial(
        moves, "flowedit_avg2", methods.FlowEdit(last=1, averages=2, source_guidance=1.5), 4.0
    ),
}


# Their functions are held by others in the default run: DDIM's by both families, sampling under guidance by
# DeepFloyd IF's, the official edit by its late start, flow solvers' edits by the midpoint's.
MORE = (
    "official_ddim again_sdxl again_if guided_sdxl official_edit official_target renoise_K3 "
    "euler_edit rf_solver_edit fireflow_edit rf_inversion_fading flowedit_averaged "
    "other_abar_sdxl other_abar_if guided_target_sdxl guided_source_if official_source "
    "euler_again midpoint_again fireflow_again rf_inversion_pulled_less"
).split()
IN_TURN = [
    pytest.param(name, marks=[pytest.mark.long] if name in MORE else []) for name in RECORDINGS
]


@pytest.mark.parametrize("name", IN_TURN)
def test_a_recorded_run_comes_out_the_same(name):
    """Inversions at every step, and edits at the last, to 1e-10 of what published code has made."""
    assert RECORDINGS[name]() <= TOLERANCE


def run_of(check: partial) -> str:
    """Folder and name of the recorded run that a check is about."""
    folder, run, *_ = check.args
    return f"{folder}/{run}" if isinstance(run, str) else f"flow_sd3/{folder}"


def test_every_recorded_run_is_asked_for():
    """FlowEdit's of one prompt stays where it is, which is held bit for bit below."""
    runs = {name.removesuffix(".latents") for name in RUNS}
    assert runs - set(map(run_of, RECORDINGS.values())) == {"flow_sd3/flowedit_same_prompt"}


LONGEST_TO_REPLAY = {"renoise_K1"}
FAULTS = {
    "predicted at the cleaner end": (
        "ddim_sdxl",
        velocities.Prediction,
        "_in_step",
        "self.timesteps[step]",
        "self.timesteps[min(step + 1, self.steps - 1)]",
    ),
    "another last abar": (
        "ddim_sdxl",
        schedules.DDIM,
        "_last",
        "trained_abars(self)[0]",
        "torch.tensor(1.0)",
    ),
    "variance read as noise": (
        "ddim_if",
        schedules.DeterministicDDPM,
        "invert_step",
        "output[:, : x.shape[1]]",
        "output[:, : x.shape[1]].flip(1)",
    ),
    "no average below 250": (
        "renoise_K1",
        solvers,
        "renoise",
        "predictions[EARLY] if average",
        "[] if average",
    ),
    "one prediction more": (
        "renoise_K1",
        solvers,
        "renoise",
        "range(iterations)",
        "range(iterations + 1)",
    ),
    "level of the whole step": (
        "midpoint_invert",
        solvers,
        "midpoint",
        "velocity(middle, now + h / 2)",
        "velocity(middle, after)",
    ),
    "no velocity reused": (
        "fireflow_invert",
        methods.FireFlow,
        "go",
        'memory.get("velocity")',
        "None",
    ),
    "one clock": (
        "rf_inversion",
        methods.RFInversionTwoClocks,
        "invert",
        "torch.tensor(i / (predict.steps + 1), dtype=torch.float64)",
        "predict.sigmas[step + 1]",
    ),
    "pull a step longer": (
        "rf_inversion_edit",
        methods.RFInversion,
        "pull",
        "< int(self.stop * steps)",
        "<= int(self.stop * steps)",
    ),
    "target noised by itself": (
        "flowedit",
        solvers,
        "noised",
        "(1 - now) * picture + now * noise + (x - picture)",
        "(1 - now) * x + now * noise",
    ),
}


@pytest.mark.parametrize(
    "fault", taking(lambda fault: FAULTS[fault][0] not in LONGEST_TO_REPLAY, FAULTS)
)
def test_a_fault_is_far_from_the_recording(fault, monkeypatch):
    """Each is one that published code or its readers have made.

    By default those whose recording is short.
    """
    name, *change = FAULTS[fault]
    plant(monkeypatch, *change)
    assert RECORDINGS[name]() > 100 * TOLERANCE


def test_euler_of_sdxl_is_ddim_in_other_units():
    """The pipeline's own schedule, in x / sqrt(abar), inverts as DDIM does whose last abar is 1."""
    schedule = RecordedEuler()
    pipeline = pipeline_of("ddim_sdxl", schedule)
    path, _ = inverted(pipeline, source("ddim_sdxl"), ["A0", "A1"], methods.DDIM(), 8)
    expected = recorded("ddim_sdxl", "invert_other_final_alpha")[-1]
    assert distance(path[0] * schedule.abars(8)[0].sqrt(), expected) <= TOLERANCE


# --- identities, on a smooth flow


def curved(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """A smooth velocity that no solver follows exactly."""
    return torch.sin(2 * x + 3 * level) - x * level


PICTURE = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
NOISE = torch.linspace(2, -1, 12, dtype=torch.float64).view(1, 1, 3, 4)


def followed(step, levels: torch.Tensor, x: torch.Tensor = PICTURE) -> torch.Tensor:
    """Latents after steps from level to level.   Whatever a step gives beside them is given to the next."""
    beside: tuple = ()
    for now, after in zip(levels, levels[1:], strict=False):
        made = step(x, curved, now, after, *beside)
        x, beside = (made[0], made[1:]) if isinstance(made, tuple) else (made, ())
    return x


def levels(steps: int) -> torch.Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def require_identity_along_a_fixed_point() -> None:
    """Sampling takes a solved inversion back to the picture, to what the last iteration left."""
    x = PICTURE
    up = levels(16)
    for now, after in zip(up, up[1:], strict=False):
        h = after - now

        def undo(y, velocity, h=h):
            return y + h * velocity

        predict = partial(curved, level=after)
        x = solvers.fixed_point(x, predict(x), predict, undo, iterations=40, tolerance=1e-13)
    assert float((followed(solvers.euler, up.flip(0), x) - PICTURE).abs().max()) < 1e-11


def test_sampling_along_a_fixed_point_is_the_identity(monkeypatch):
    """Fault: every iteration predicts for the cleaner latents."""
    require_identity_along_a_fixed_point()
    plant(
        monkeypatch,
        solvers,
        "fixed_point",
        "newer = undo(x, predict(y))",
        "newer = undo(x, predict(x))",
    )
    with pytest.raises(AssertionError):
        require_identity_along_a_fixed_point()


def require_midpoint_is_rf_solver() -> None:
    """RF-Solver's Taylor form is the midpoint rule, to rounding."""
    up = levels(10)
    both = followed(solvers.midpoint, up), followed(solvers.rf_solver, up)
    assert float((both[0] - both[1]).abs().max()) < 1e-15 * len(up)


def test_midpoint_is_rf_solver(monkeypatch):
    """Fault: the slope of half a step is taken for that of a whole."""
    require_midpoint_is_rf_solver()
    plant(monkeypatch, solvers, "rf_solver", "- v) / (h / 2)", "- v) / h")
    with pytest.raises(AssertionError):
        require_midpoint_is_rf_solver()


def require_order(step, order: int) -> None:
    """Halving the steps divides the error by 2^order, to a fifth of an order."""
    exact = followed(solvers.midpoint, levels(2048))
    errors = [
        float((followed(step, levels(steps)) - exact).square().mean().sqrt()) for steps in (40, 80)
    ]
    slope = torch.tensor(errors[0] / errors[1]).log2()
    assert abs(float(slope) - order) < 0.2


@pytest.mark.parametrize(
    "name, order, wrong",
    [
        ("euler", 1, ("velocity(x, now)", "velocity(x, now - 1)")),
        pytest.param(
            "midpoint",
            2,
            ("velocity(middle, now + h / 2)", "velocity(middle, now)"),
            marks=pytest.mark.long,
        ),
        pytest.param("rf_solver", 2, ("now + h / 2) - v)", "now) - v)"), marks=pytest.mark.long),
        ("fireflow", 2, ("+ h / 2 * before, now + h / 2)", "+ h / 2 * before, now)")),
    ],
)
def test_orders_of_convergence(name, order, wrong, monkeypatch):
    """Fault: the velocity is asked for at another level.

    By default one solver of each order.  The others' recordings are replayed above.
    """
    require_order(getattr(solvers, name), order)
    plant(monkeypatch, solvers, name, *wrong)
    with pytest.raises(AssertionError):
        require_order(getattr(solvers, name), order)


def require_the_noise(clocks) -> None:
    """Inverting with gamma 1 ends on the noise."""
    method = clocks(gamma=1.0)
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)).double()
    pipeline = pipeline_of("flow_sd3", FLOW, noise=noise)
    path, _ = inverted(pipeline, source("flow_sd3")[:1], ["A0"], method, 4)
    assert float((path[0] - noise).abs().max()) < 1e-14


def test_gamma_1_ends_on_the_noise():
    """Fault: two clocks, as released."""
    require_the_noise(methods.RFInversion)
    with pytest.raises(AssertionError):
        require_the_noise(CLOCKS)


def require_unmoved() -> None:
    """FlowEdit with the same prompt on both sides leaves the picture as it is, bit for bit."""
    made = moved("flowedit", methods.FlowEdit(6 / 8, source_guidance=3.0), 3.0, "A")
    assert torch.equal(made[-1], source("flow_sd3"))


def test_the_same_prompt_moves_nothing(monkeypatch):
    """Fault: the published order of the sum, which leaves rounding."""
    require_unmoved()
    plant(
        monkeypatch,
        solvers,
        "noised",
        "(1 - now) * picture + now * noise + (x - picture)",
        "torch.cat([(z := (1 - now) * picture + now * noise)[:1], (x + z - picture)[1:]])",
    )
    with pytest.raises(AssertionError):
        require_unmoved()


def require_published_means() -> None:
    """Of ten predictions the last two are averaged, and below timestep 250 the first five."""

    def undo(x, output):
        return x + output

    def predict(y):
        return y.cos() / 2

    guesses = [PICTURE]
    for _ in range(9):
        guesses.append(predict(undo(PICTURE, guesses[-1])))
    for average, chosen in ((False, guesses[8:]), (True, guesses[:5])):
        made = solvers.renoise(PICTURE, PICTURE, predict, undo, iterations=9, average=average)
        assert torch.allclose(made, PICTURE + sum(chosen) / len(chosen), rtol=0, atol=1e-15)


def test_long_renoise_averages_what_has_settled(monkeypatch):
    """Fault: the last prediction alone."""
    require_published_means()
    plant(monkeypatch, solvers, "renoise", "else predictions[SETTLED]", "else []")
    with pytest.raises(AssertionError):
        require_published_means()


@pytest.mark.parametrize("iterations", [2, 10])
def test_iterations_that_do_not_come_to_rest_are_stopped(iterations):
    """A map that stretches every difference, or turns it around, has no end, and one that shrinks it has."""

    def undo(x, output):
        return x + output

    with pytest.raises(PatchError, match="do not come to rest"):
        solvers.fixed_point(PICTURE, PICTURE, lambda y: -2 * y, undo, iterations=iterations)
    with pytest.raises(PatchError, match="do not come to rest"):
        solvers.fixed_point(PICTURE, PICTURE, lambda y: -y, undo, iterations=iterations)
    rest = solvers.fixed_point(PICTURE, PICTURE, lambda y: -0.5 * y, undo, iterations=60)
    assert torch.allclose(rest, PICTURE / 1.5)
