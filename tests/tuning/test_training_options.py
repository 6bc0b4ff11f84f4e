"""Options of fine-tuning do what their formulas say: weights of the loss, averages, precision, processes."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch

from support.patched_calls import refused
from support.planting import plant
from support.strategies import fixed_case
from textpatch import finetune
from textpatch.errors import DiskError
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler, trained_abars
from textpatch.tuning import processes, recomputing, training, weighting
from textpatch.tuning.finetuning import prepared
from textpatch.tuning.training_data import batch_of
from textpatch.tuning.weighting import GAMMA, signal_to_noise, weights

SETTINGS = {
    "rank": 2,
    "alpha": 2,
    "initial": "uniform",
    "rate": 0.02,
    "batch": 4,
    "dropout": 0.0,
    "times": "uniform",
    "weighting": "none",
    "average": None,
    "autocast": False,
    "seed": 0,
}


def data_of(pipeline) -> list:
    """Six random latents with captions of one letter."""
    shape = pipeline.noise([0]).shape[1:]
    generator = torch.Generator().manual_seed(0)
    return [("abc"[i % 3], torch.randn(shape, generator=generator)) for i in range(6)]


def training_of(architecture: str, *, checkpointing: bool = False, **more) -> training.Training:
    pipeline = fixed_case(architecture).pipeline
    return prepared(pipeline, data_of(pipeline), [0, 1], "all", SETTINGS | more, checkpointing)


def after_steps(made: training.Training, steps: int = 2) -> list:
    """Factors of a training after some steps."""
    made.run(steps, None, 1, None)
    return [factor.detach().clone() for factor in made._factors()]


# --- weights of the loss


@pytest.mark.parametrize("schedule", [Euler(), DDPM()])
def test_min_snr_is_its_formula(schedule):
    """min(snr, 5) / snr with snr = abar / (1 - abar) of the timestep that a share falls on."""
    t = torch.arange(0, 1000, 25)
    share = (t + 0.5) / 1000
    abar = trained_abars(schedule)[t].double()
    snr = abar / (1 - abar)
    assert torch.allclose(signal_to_noise(schedule, share.double()), snr, rtol=1e-5)
    wanted = snr.clamp(max=GAMMA) / snr
    assert torch.allclose(weights(schedule, "min_snr", share), wanted.float(), rtol=1e-5)
    assert weights(schedule, "none", share).eq(1).all()


def test_a_row_without_signal_weighs_one():
    """Where abar is 0, which makes 0 / 0 of the formula as it is printed, the weight is its limit."""
    level = type(
        "Level", (), {"noised": lambda self, x, noise, share: (0 * x + noise, None, None)}
    )()
    assert weights(level, "min_snr", torch.tensor([0.5])).tolist() == [1.0]


def test_weights_of_flows_are_their_formulas():
    """The velocity's error times sigma^2 is the error of the picture it implies; cosmap has mean 1."""
    flow = FlowMatchEuler()
    generator = torch.Generator().manual_seed(0)
    x, noise, off = torch.randn(3, 4, 2, 3, 3, generator=generator).double()
    share = torch.tensor([0.1, 0.4, 0.7, 0.95]).double()
    mixed, _, velocity = flow.noised(x, noise, share)
    implied = mixed - share[:, None, None, None] * (velocity + off)
    error = (implied - x).square().mean((1, 2, 3))
    assert torch.allclose(
        error, weights(flow, "sigma_squared", share) * off.square().mean((1, 2, 3))
    )
    even = (torch.arange(100_000).double() + 0.5) / 100_000
    assert math.isclose(float(weights(flow, "cosmap", even).mean()), 1, rel_tol=1e-6)


def test_weightings_of_the_other_kind_are_refused():
    """min_snr is a diffusion's, the others a flow's, and an unknown one has the nearest beside it."""
    for architecture, weighting_, says in [
        ("mmdit", "min_snr", "this schedule is a flow's"),
        ("sdxl", "cosmap", "this schedule is a diffusion's"),
        ("sdxl", "minsnr", "closest: min_snr"),
    ]:
        with refused(says):
            training_of(architecture, weighting=weighting_)


def law_the_loss_is_weighted() -> None:
    """The loss of a step is the weighted mean of its rows' errors, each of the model as it is."""
    made = training_of("sdxl", weighting="min_snr")
    drawn = batch_of(made.own, 0, batch=4, seed=0, dropout=0.0, times="uniform")
    schedule = made.pipeline.schedule
    x, t, target = schedule.noised(drawn.latents, drawn.noise, drawn.share)
    with torch.no_grad():
        each = (made.pipeline.denoiser(x, t, drawn.text) - target).square().mean((1, 2, 3))
    wanted = (weights(schedule, "min_snr", drawn.share) * each).mean()
    after_steps(made, 1)
    assert made.losses[0] == pytest.approx(float(wanted), rel=1e-6)


def test_the_loss_is_weighted():
    """min_snr acts in the loss."""
    law_the_loss_is_weighted()


# --- the average, first factors, precision, memory


def law_the_average_follows_the_factors() -> None:
    """After each step mean = k mean + (1 - k) factor, k = min(decay, (1 + n) / (10 + n)) after n steps."""
    made = training_of("sdxl", average=0.15)
    means = [factor.detach().clone() for factor in made._factors()]
    for step in (1, 2, 3):
        factors = after_steps(made, step)
        keep = min(0.15, (1 + step) / (10 + step))
        means = [keep * a + (1 - keep) * b for a, b in zip(means, factors, strict=True)]
    given = made.adapter().changes.values()
    for change, (down, up) in zip(given, zip(means[::2], means[1::2], strict=True), strict=True):
        assert torch.allclose(change.down, down, atol=1e-6)
        assert torch.allclose(change.up, up, atol=1e-6) and not torch.equal(change.up, factors[1])


def test_the_average_follows_the_factors():
    """The adapter is made of moving averages where these are asked for."""
    law_the_average_follows_the_factors()


def test_an_average_goes_on_to_the_same_bits(tmp_path):
    """The state in a file holds the averages, too."""
    pipeline = fixed_case("sdxl").pipeline
    options = {"sites": 0, "average": 0.9, "every": 1}
    whole = finetune(pipeline, data_of(pipeline), steps=3, **options)
    finetune(pipeline, data_of(pipeline), steps=2, folder=tmp_path, **options)
    again = finetune(pipeline, data_of(pipeline), steps=3, folder=tmp_path, **options)
    plain = finetune(pipeline, data_of(pipeline), sites=0, steps=3)
    assert again.sha256 == whole.sha256 != plain.sha256


def test_first_factors_have_the_spread_that_is_said():
    """A is uniform with variance 1 / (3 in), or normal with variance 1 / r, and B is zero."""
    for initial, wanted in (("uniform", 3**-0.5), ("gaussian", 2**-0.5)):
        made = training_of("sdxl", initial=initial)
        drawn = [made._first_down(4096, torch.Generator().manual_seed(0))]
        scale = 4096**0.5 if initial == "uniform" else 1.0
        assert math.isclose(float(drawn[0].std()) * scale, wanted, rel_tol=0.02)
        assert not any(change.up.any() for change in made.changes.values())


def test_autocast_and_half_weights_keep_float32_factors():
    """Under autocast and with weights in bfloat16, A and B are float32 and losses near the true ones."""
    whole = of_dtype(torch.float32)
    after_steps(whole)
    for made in (of_dtype(torch.float32, autocast=True), of_dtype(torch.bfloat16)):
        factors = after_steps(made)
        assert all(factor.dtype == torch.float32 and factor.any() for factor in factors)
        assert made.losses == pytest.approx(whole.losses, rel=0.03) and made.losses != whole.losses


def of_dtype(dtype: torch.dtype, **more) -> training.Training:
    """Training of a model whose weights have a dtype."""
    made = fixed_case("mmdit").pipeline.to(dtype)
    return prepared(made, data_of(made), [0, 1], "all", SETTINGS | more, False)


def law_recomputing_changes_no_bit(architecture: str) -> None:
    """The factors after two steps are the same bits, and the blocks are as they were."""
    made = training_of(architecture, checkpointing=True)
    assert all(map(torch.equal, after_steps(made), after_steps(training_of(architecture))))
    assert not [part for part in made.pipeline.denoiser.modules() if "forward" in vars(part)]


@pytest.mark.parametrize("architecture", ["sdxl", "if-i", "mmdit"])
def test_recomputing_changes_no_bit(architecture):
    """Blocks that run again give the gradients of blocks that ran once."""
    law_recomputing_changes_no_bit(architecture)


def numbers_kept(made: training.Training) -> int:
    """How many numbers wait for the backward pass in one step."""
    sizes: list[int] = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        after_steps(made, 1)
    return sum(sizes)


def test_recomputing_keeps_less():
    """Fewer numbers wait for the backward pass than without."""
    again, whole = (
        numbers_kept(training_of("mmdit", checkpointing=each)) for each in (True, False)
    )
    assert again < 0.5 * whole


def law_nothing_is_kept_before_the_first_trained_site(architecture: str) -> None:
    """Of the last site alone less than half as many numbers are kept as of the first alone."""
    pipeline = fixed_case(architecture).pipeline
    first, last = (
        numbers_kept(prepared(pipeline, data_of(pipeline), [site], "all", SETTINGS, False))
        for site in (0, len(pipeline.denoiser.sites) - 1)
    )
    assert last < 0.5 * first


@pytest.mark.parametrize("architecture", ["sdxl", "if-i", "mmdit"])
def test_nothing_is_kept_before_the_first_trained_site(architecture):
    """The backward pass begins at the first trained site."""
    law_nothing_is_kept_before_the_first_trained_site(architecture)


def test_a_model_without_known_blocks_is_not_recomputed():
    """Where no block's name is known the request is an error."""
    with refused("has no down_blocks"), recomputing.recomputed(torch.nn.Linear(1, 1)):
        pass


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    """The error says that the disk is full, and the same call goes on from the step before."""
    pipeline = fixed_case("sdxl").pipeline
    options = {"sites": 0, "folder": tmp_path, "every": 1}
    whole = finetune(pipeline, data_of(pipeline), sites=0, steps=2)
    finetune(pipeline, data_of(pipeline), steps=1, **options)
    before = (tmp_path / training.STATE).read_bytes()

    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(DiskError, match="No space left"):
        patched.setattr(training, "save_file", full)
        finetune(pipeline, data_of(pipeline), steps=2, **options)
    assert (tmp_path / training.STATE).read_bytes() == before
    assert finetune(pipeline, data_of(pipeline), steps=2, **options).sha256 == whole.sha256


# --- several processes


def law_parts_of_a_batch_are_the_batch(count: int) -> None:
    """The mean of the processes' gradients is that of the whole batch, to 1e-6 of the largest."""
    whole = training_of("sdxl")
    drawn = batch_of(whole.own, 0, batch=4, seed=0, dropout=0.3, times="uniform")
    wanted = gradients(whole, drawn)
    parts = []
    for rank in range(count):
        rows = processes.Processes(rank, count).rows(4)
        part = batch_of(whole.own, 0, batch=4, seed=0, dropout=0.3, times="uniform", rows=rows)
        parts.append(gradients(whole, part))
    for tensors, one in zip(zip(*parts, strict=True), wanted, strict=True):
        mean = torch.stack(tensors).mean(0)
        assert (mean - one).abs().max() <= 1e-6 * one.abs().max()


def gradients(made: training.Training, drawn) -> list:
    from textpatch.tuning.low_rank import Adapter

    with Adapter(made.changes).applied(made.pipeline.denoiser), torch.enable_grad():
        factors = [change.up for change in made.changes.values()]
        return list(torch.autograd.grad(made._loss(drawn), factors))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_a_batch_are_the_batch(count):
    """Whoever takes every n-th row of each batch takes part in the training of one process."""
    law_parts_of_a_batch_are_the_batch(count)


def test_a_batch_that_cannot_be_divided_is_refused():
    """Three processes take no batch of four."""
    with refused("a batch of 4 is no multiple of 3 processes"):
        processes.Processes(0, 3).rows(4)


# the default form is test_parts_of_a_batch_are_the_batch, without processes
@pytest.mark.long
def test_two_processes_train_what_one_does(tmp_path):
    """Two processes end with one adapter, near that of one process, and the first keeps the state."""
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
import torch
from torch import distributed
from support.strategies import fixed_case
from textpatch import finetune
from safetensors.torch import save_file
distributed.init_process_group("gloo")
pipeline = fixed_case("sdxl").pipeline
shape = pipeline.noise([0]).shape[1:]
generator = torch.Generator().manual_seed(0)
data = [("abc"[i % 3], torch.randn(shape, generator=generator)) for i in range(6)]
made = finetune(pipeline, data, sites=[0, 1], steps=3, batch=4, rate=0.02, folder={str(tmp_path)!r}, every=2)
rank = distributed.get_rank()
factors = {{name: change.up for name, change in made.changes.items()}}
save_file(factors, {str(tmp_path)!r} + f"/rank-{{rank}}.safetensors")
distributed.destroy_process_group()
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=common | {"RANK": str(rank)})
        for rank in range(2)
    ]
    assert [one.wait(timeout=120) for one in running] == [0, 0]
    from safetensors.torch import load_file

    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(2))
    pipeline = fixed_case("sdxl").pipeline
    whole = finetune(pipeline, data_of(pipeline), sites=[0, 1], steps=3, batch=4, rate=0.02)
    for name, change in whole.changes.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - change.up).abs().max() <= 1e-4 * change.up.abs().max()
    assert (tmp_path / training.STATE).exists()


FAULTS = {
    "weights left out": (
        law_the_loss_is_weighted,
        (training, "batch_loss", "* each).mean()", "** 0 * each).mean()"),
    ),
    "gradients of what is drawn": (
        lambda: law_nothing_is_kept_before_the_first_trained_site("sdxl"),
        (training, "batch_loss", "denoiser(x,", "denoiser(x.requires_grad_(),"),
    ),
    "average too slow": (
        law_the_average_follows_the_factors,
        (training.Training, "_follow", "1 - keep", "keep"),
    ),
    "average not given": (
        law_the_average_follows_the_factors,
        (training.Training, "adapter", "factors = self.average", "pass"),
    ),
    "blocks left wrapped": (
        lambda: law_recomputing_changes_no_bit("sdxl"),
        (recomputing, "recomputed", 'block.__dict__.pop("forward", None)', "pass"),
    ),
    "rows twice": (
        lambda: law_parts_of_a_batch_are_the_batch(2),
        (
            processes.Processes,
            "rows",
            "range(self.rank, batch, self.count)",
            "range(batch // self.count)",
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_laws_notice(fault, monkeypatch):
    """Each formula written otherwise breaks its law."""
    law, planted = FAULTS[fault]
    law()
    plant(monkeypatch, *planted)
    with pytest.raises(AssertionError):
        law()


def test_planted_another_gamma_is_noticed(monkeypatch):
    """Fault: the bound of min_snr is another."""
    plant(monkeypatch, weighting, "weights", "(GAMMA /", "(4 /")
    with pytest.raises(AssertionError):
        test_min_snr_is_its_formula(Euler())
