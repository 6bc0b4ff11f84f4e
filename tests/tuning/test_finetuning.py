"""Fine-tuning trains the named projections alone, and goes on to the same bits after any stop."""

import os
import signal

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.patched_calls import anatomy, refused
from support.planting import plant
from support.small_models import small_pipeline
from support.strategies import fixed_case
from textpatch import finetune
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler
from textpatch.tuning import training, training_data
from textpatch.tuning.targets import target_names
from textpatch.weights.training.noising import objective

FAMILIES = "mmdit", "sdxl", "if-i"


def data_of(pipeline, count: int = 6) -> list:
    """Latents that follow their captions: a level for each word, and little noise."""
    shape = pipeline.noise([0]).shape[1:]
    generator = torch.Generator().manual_seed(0)
    small = [0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    return [("abc"[i % 3], small[i] + (i % 3) - 1) for i in range(count)]


def trained(architecture: str, pipeline=None, **options):
    """(adapter, losses) of a short run at sites 0 and 1."""
    pipeline = pipeline or fixed_case(architecture).pipeline
    losses = []
    settings = {"sites": [0, 1], "steps": 3, "rate": 0.02, "targets": "all"} | options
    adapter = finetune(
        pipeline, data_of(pipeline), on_step=lambda step, loss: losses.append(loss), **settings
    )
    return adapter, losses


def law_a_run_goes_on_to_the_same_bits(architecture: str, folder) -> None:
    """Three steps at once, and two and one with the state in a file between, are one adapter."""
    whole, losses = trained(architecture)
    trained(architecture, steps=2, folder=folder, every=1)
    again, rest = trained(architecture, folder=folder)
    assert again.sha256 == whole.sha256 and rest == losses[2:]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_run_goes_on_to_the_same_bits(architecture, tmp_path):
    """Resuming is exact on every architecture."""
    law_a_run_goes_on_to_the_same_bits(architecture, tmp_path)


FAULTS = {
    "optimizer forgotten": (training.Training, "read", '{"state": state,', '{"state": {},'),
    "step forgotten": (
        training.Training,
        "read",
        "self.losses = losses",
        "self.losses = losses[1:]",
    ),
    "factors forgotten": (
        training.Training,
        "read",
        'factor.copy_(tensors[f"factor.{i}"])',
        "pass",
    ),
    "noise of nobody": (
        training_data,
        "_generator",
        'torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))',
        "torch.default_generator",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_notices(fault, tmp_path, monkeypatch):
    """A run that forgets something in its file ends elsewhere."""
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises(AssertionError):
        law_a_run_goes_on_to_the_same_bits("mmdit", tmp_path)


def losses_of_the_base(pipeline, steps: range) -> list:
    """Losses of the model as it is on the batches of some steps of `trained`."""
    own = training_data.examples(pipeline, data_of(pipeline), 4)
    losses = []
    for step in steps:
        drawn = training_data.batch_of(own, step, batch=4, seed=0, dropout=0.0, times="uniform")
        x, t, target = pipeline.schedule.noised(drawn.latents, drawn.noise, drawn.share)
        with torch.no_grad():
            output = pipeline.denoiser(x, t, drawn.text)[:, : target.shape[1]]
        losses.append(float((output - target).square().mean()))
    return losses


@pytest.mark.parametrize("architecture", FAMILIES)
def test_only_the_adapter_is_trained(architecture):
    """The loss falls below the base's on the same batches, and the base is the same bits, without a trace."""
    case = fixed_case(architecture)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    parts = anatomy(case.model)
    adapter, losses = trained(architecture, case.pipeline, steps=8, rate=0.1)
    own = losses_of_the_base(case.pipeline, range(8))
    assert losses[0] == pytest.approx(own[0], rel=1e-6) and sum(losses[4:]) < sum(own[4:])
    assert all(torch.equal(x, before[name]) for name, x in case.model.state_dict().items())
    assert all(x.grad is None for x in case.model.parameters()) and anatomy(case.model) == parts
    assert all(change.up.any() for change in adapter.changes.values())
    assert {*adapter.sites} == {site.name for site in case.model.sites[:2]}


@pytest.mark.parametrize(
    "schedule", [Euler(), DDPM(), FlowMatchEuler(), FlowMatchEuler(prediction="sample")]
)
def test_noised_pictures_are_those_that_trained_the_shipped_models(schedule):
    """Of one timestep, the mixture is that of the recipe, and its own target has no error."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 3, 2, 4, 4, generator=generator).double()
    share = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    mixed, t, target = schedule.noised(x, noise, share)
    if isinstance(schedule, FlowMatchEuler):
        wanted, times = objective(schedule, 4).mix(x, noise, share)
        assert torch.equal(target, x if schedule.prediction == "sample" else noise - x)
    else:
        abars = torch.tensor([0.0]) + schedule_abars(schedule)
        level = (1 / abars[t] - 1).sqrt()
        wanted, times = objective(schedule, 4).mix(x, noise, level / (1 + level))
        assert torch.equal(target, noise)
    assert torch.equal(times.to(t), t) and torch.allclose(mixed, wanted, rtol=1e-6, atol=1e-6)


def schedule_abars(schedule):
    from textpatch.reference_models.schedules import trained_abars

    return trained_abars(schedule)


@pytest.mark.parametrize(
    "architecture, counts",
    [("sdxl", (2, 4, 2, 4)), ("if-i", (2, 4, 2, 6)), ("mmdit", (2, 4, 4, 8))],
)
def test_targets_are_named_in_full(architecture, counts):
    """Each kind of target means the projections it says, of the named site alone."""
    model = fixed_case(architecture).model
    kinds = "text_kv", "qkvo", "text_all", "all"
    names = [target_names(model, model.sites[1:2], kind) for kind in kinds]
    assert tuple(map(len, names)) == counts
    assert all(name.startswith(f"{model.sites[1].name}.") for own in names for name in own)
    if architecture == "mmdit":
        last = target_names(model, model.sites[-1:], "all")
        assert len(last) == 7  # without the text's way out


def test_captions_are_dropped_and_times_drawn():
    """With dropout 1 every caption is none; logit-normal times gather in the middle."""
    pipeline = fixed_case("sdxl").pipeline
    own = training_data.examples(pipeline, data_of(pipeline), 4)
    drawn = training_data.batch_of(own, 0, batch=4, seed=0, dropout=1.0, times="uniform")
    assert torch.equal(drawn.text.tokens, pipeline.encode([None] * 4).tokens)
    spread = {}
    for times in training_data.TIMES:
        share = torch.cat(
            [
                training_data.batch_of(own, step, batch=4, seed=0, dropout=0, times=times).share
                for step in range(200)
            ]
        )
        assert share.min() >= 0 and share.max() <= 1
        spread[times] = float(share.std())
    assert 0.27 < spread["uniform"] < 0.31 and 0.19 < spread["logit_normal"] < 0.23


def test_an_epoch_shows_every_example_once():
    """Batches of four go through six examples in an order of each epoch's own."""
    places = [training_data._place(0, drawn, 6) for drawn in range(18)]
    epochs = [places[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and epochs[0] != epochs[1]


def test_ctrl_c_keeps_the_step(tmp_path):
    """A Ctrl-C in the middle of a step is heard behind it, and its state is there."""
    pipeline = fixed_case("sdxl").pipeline
    whole, _ = trained("sdxl")

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    handle = pipeline.denoiser.conv_in.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained("sdxl", pipeline, folder=tmp_path)
    handle.remove()
    again, losses = trained("sdxl", pipeline, folder=tmp_path)
    assert again.sha256 == whole.sha256 and len(losses) == 2


def test_pictures_of_a_model_of_pixels():
    """PIL pictures of the model's size are its latents, -1 to 1."""
    pipeline = small_pipeline()
    picture = Image.new("RGB", (96, 32), (255, 0, 0))
    prompt = 'a red sign that says "HELLO" on a blue wall'
    own = training_data.examples(pipeline, [(prompt, picture)], 1)
    assert torch.equal(own.latents[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    with refused("takes (3, 32, 96)"):
        training_data.examples(pipeline, [(prompt, picture.resize((64, 32)))], 1)


BAD = {
    "targets": ({"targets": "text"}, "closest: text_kv"),
    "times": ({"times": "unifrm"}, "closest: uniform"),
    "rank": ({"rank": 0}, "rank is 0"),
    "rank above the width": ({"rank": 99}, "at most the layer's width"),
    "alpha": ({"alpha": 0}, "alpha is 0"),
    "rate": ({"rate": -1}, "rate is -1"),
    "steps": ({"steps": True}, "steps is True"),
    "dropout": ({"dropout": 2}, "dropout is 2"),
    "batch above the data": ({"batch": 7}, "the data are 6"),
    "sites": ({"sites": 99}, "no site"),
    "diverged": ({"rate": 1e30, "steps": 9}, "is nan"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_requests_are_refused(bad):
    """What cannot be trained is one line, and the model is the base."""
    options, says = BAD[bad]
    case = fixed_case("sdxl")
    parts = anatomy(case.model)
    with refused(says):
        trained("sdxl", case.pipeline, **options)
    assert anatomy(case.model) == parts


def test_bad_data_and_other_runs_are_refused(tmp_path):
    """Captions that are none, NaN, another size, a folder of another run, a damaged state."""
    pipeline = fixed_case("sdxl").pipeline
    good = data_of(pipeline)
    for item, says in [
        (("a", torch.full_like(good[0][1], torch.nan)), "holds NaN"),
        ((None, good[0][1]), "give (caption, picture)"),
        (("a", good[0][1][:1]), "takes (2, 4, 8)"),
    ]:
        with refused(says):
            finetune(pipeline, [*good, item], sites=0, steps=1)
    trained("sdxl", pipeline, folder=tmp_path)
    with refused("rate 0.02, and 0.5 was asked for"):
        trained("sdxl", pipeline, folder=tmp_path, rate=0.5)
    with refused("holds 3 steps, and 2 were asked for"):
        trained("sdxl", pipeline, folder=tmp_path, steps=2)
    state = tmp_path / "training.safetensors"
    with safe_open(state, "pt") as file:
        said = file.metadata()
    tensors = load_file(state)
    save_file({name: tensors[name] for name in tensors if name != "step.1"}, state, said)
    with refused("lacks step.1"):
        trained("sdxl", pipeline, folder=tmp_path)
    state.write_bytes(b"x")
    with refused("damaged or not ours"):
        trained("sdxl", pipeline, folder=tmp_path)
    pipeline.denoiser.half()
    with refused("vanish in float16"):
        trained("sdxl", pipeline)
