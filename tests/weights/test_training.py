"""Training: every family trains, resumes, is saved and read back; what is asked of a denoiser; how each
begins."""

import random
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.by_default import taking
from support.disks import files, no_file_beyond, resource
from support.signs import all_signs, parse
from support.small_models import PROMPTS, relative
from support.strategies import randomize
from textpatch.errors import PatchError, WeightsError
from textpatch.exits import guarded
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.pipeline import Pipeline
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler, trained_abars
from textpatch.reference_models.upscaling import read_beside
from textpatch.weights import load
from textpatch.weights.signs.drawing import LETTERS, SAYINGS, Sign, draw_sign
from textpatch.weights.signs.tokens import LENGTH, word_tokenizer
from textpatch.weights.signs.words import TEST, VALIDATION
from textpatch.weights.training import batches, state
from textpatch.weights.training import loop as training
from textpatch.weights.training.families import FAMILIES, if_encoder
from textpatch.weights.training.noising import Noise, objective
from textpatch.weights.training.recipes import RECIPES

SHORT = dict(seed=0, images=8, batch=4, warmup=2, steps=2, localized=())
MINIS = {
    name: replace(RECIPES[name], **SHORT)
    for name in ("tiny-mmdit", "tiny-sdxl", "tiny-if", "tiny-if-ii")
}
SIZES = {name: {"block_out_channels": (16, 16, 32, 32)} for name in MINIS} | {
    "tiny-mmdit": {"num_layers": 2},
    "tiny-if-ii": {"block_out_channels": (16, 16, 32), "layers_per_block": 1},
}
MINIS = {
    name: replace(mini, denoiser=replace(mini.denoiser, **SIZES[name]))
    for name, mini in MINIS.items()
}
MINI = MINIS["tiny-mmdit"]


@pytest.fixture(
    params=[
        "tiny-mmdit",
        "tiny-if-ii",
        pytest.param("tiny-sdxl", marks=pytest.mark.long),
        pytest.param("tiny-if", marks=pytest.mark.long),
    ]
)
def mini(request, monkeypatch):
    """A recipe of two steps as `mini`, of a flow and of a U-Net that upscales.

    The long form takes one of every family.
    """
    monkeypatch.setitem(training.RECIPES, "mini", MINIS[request.param])
    return MINIS[request.param]


@pytest.fixture
def mini_mmdit(monkeypatch):
    monkeypatch.setitem(training.RECIPES, "mini", MINI)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training of `mini_mmdit` on four pictures."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.RECIPES, "mini", MINI)
        training.train("mini", folder, images=4)
    return folder


def pictures(pipeline) -> list[Image.Image]:
    """Two pictures of a pipeline; a stage II is given two to draw larger."""
    if not pipeline.upscales:
        return pipeline.generate(PROMPTS, seeds=[0, 1])
    small = [Image.new("RGB", (96, 32), colour) for colour in ("red", "green")]
    return pipeline.upscale(small, PROMPTS, seeds=[0, 1])


@pytest.mark.parametrize("mini", taking(("tiny-mmdit",), MINIS), indirect=True)
def test_training_resumes_bit_for_bit(mini, tmp_path, monkeypatch):
    """Two steps = one step, its batch drawn by another process, a kill, and the same command again: every
    exported file is equal.

    By default of a flow.
    """
    train_step = training.train_step
    straight = training.train("mini", tmp_path / "a")

    def killed(recipe, step, *rest):
        if step == 1:
            raise KeyboardInterrupt
        return train_step(recipe, step, *rest)

    monkeypatch.setattr(training, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train("mini", tmp_path / "b", save_every=0.0, workers=2)
    monkeypatch.setattr(training, "train_step", train_step)
    resumed = files(training.train("mini", tmp_path / "b"))
    assert resumed.keys() == files(straight).keys()
    assert [name for name, body in files(straight).items() if body != resumed[name]] == []


def test_a_saved_model_makes_the_pictures_of_the_trained_one(mini, tmp_path):
    """Read back, a folder has the recipe's schedule and sizes, and generates what the same 16-bit weights
    do here."""
    model = training.Trainee(mini)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.05 * torch.randn(
                tensor.shape, generator=torch.Generator().manual_seed(len(tensor))
            )
            tensor.copy_(tensor.half())
    folder = training.export(mini, tmp_path / "made", model.state_dict(), {"seed": 0, "steps": 2})
    back = load(folder)
    assert (back.schedule, back.denoiser.config) == (mini.schedule, mini.denoiser)
    assert (back.defaults.micro, back.defaults.level) == (mini.micro, mini.level)
    here = Pipeline(
        model.encoders, model.denoiser, mini.schedule, pixels, back.defaults, "here"
    ).eval()
    made = [pictures(pipeline) for pipeline in (here, back)]
    assert [a.tobytes() for a in made[0]] == [b.tobytes() for b in made[1]]
    assert made[0][0].tobytes() != made[0][1].tobytes()


@pytest.mark.parametrize("name", taking(("tiny-sdxl",), ["tiny-sdxl", "tiny-if", "tiny-if-ii"]))
def test_a_saved_unet_is_read_by_diffusers(name, tmp_path):
    """Its folder holds all that diffusers' class must be told: the same weights answer the same.

    By default SDXL's.  DeepFloyd IF's folder is read below as a whole pipeline.
    """
    diffusers = pytest.importorskip("diffusers")
    recipe = MINIS[name]
    average = randomize(training.Trainee(recipe), 0).state_dict()
    ours = load(training.export(recipe, tmp_path / "made", average, {"seed": 0, "steps": 2}))
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "made" / "unet")
    x, t, text = ours.noise([0, 1]), torch.tensor([900, 20]), ours.encode(PROMPTS)
    added = {} if text.micro is None else {"text_embeds": text.pooled, "time_ids": text.micro}
    beside = read_beside(ours.schedule, x[:, :, ::2, ::2], x.flip(-1), 250) if ours.upscales else {}
    both = torch.cat([x, beside["low"]], dim=1) if beside else x
    with torch.no_grad():
        expected = theirs(both, t, text.tokens, beside.get("level"), added_cond_kwargs=added).sample
    assert relative(ours.denoiser(x, t, text, **beside), expected) < 5e-6


@pytest.mark.parametrize(
    "name, kind", [("tiny-if", "IFPipeline"), ("tiny-if-ii", "IFSuperResolutionPipeline")]
)
def test_a_saved_if_is_a_pipeline_of_diffusers(name, kind, tmp_path):
    """diffusers makes of each stage's folder that stage's pipeline, and stage II's noises small pictures as
    ours does."""
    diffusers = pytest.importorskip("diffusers")
    average = training.Trainee(MINIS[name]).state_dict()
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        training.export(MINIS[name], tmp_path / "made", average, {"seed": 0, "steps": 2})
    )
    assert type(theirs).__name__ == kind
    x, noise = torch.randn(2, 1, 3, 4, 4)
    schedule = getattr(theirs, "image_noising_scheduler", theirs.scheduler)
    expected = schedule.add_noise(x, noise, torch.tensor([250]))
    assert relative(MINIS[name].schedule.add_noise(x, noise, 250), expected) < 5e-6


def test_every_weight_is_trained(mini):
    """Whatever has a gradient moves in one step, and what has none stays: no optimizer misses a weight."""
    model = training.Trainee(mini)
    optimizers, before = (
        training.Optimizers(model, mini),
        [p.detach().clone() for p in model.parameters()],
    )
    for i, p in enumerate(model.parameters()):
        p.grad = (
            None if i % 5 == 0 else torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        )
    optimizers.step(1.0)
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved == [i % 5 > 0 for i in range(len(before))]


def test_another_runs_state_is_refused(mini_mmdit, tmp_path):
    """A state of another seed, that of a finished run, and an unknown recipe, are PatchErrors."""
    training.train("mini", tmp_path, images=4)
    with pytest.raises(
        PatchError, match="holds a run of seed 0, asked for seed 1; give another --out"
    ):
        training.train("mini", tmp_path, images=4, seed=1)
    with pytest.raises(PatchError, match="holds a run of steps 1, asked for steps 2"):
        training.train("mini", tmp_path, images=8)
    with pytest.raises(PatchError, match="no recipe 'minni'; closest: mini"):
        training.train("minni", tmp_path)


@pytest.mark.long  # four trainings; that other steps are else refused is in the default run
def test_a_run_may_become_longer_before_its_rate_falls(mini_mmdit, tmp_path, monkeypatch):
    """Two steps, stopped after the first, and then four are the four of a run that was never shorter."""
    recipe = replace(MINI, decay=0.5, warmup=1)
    monkeypatch.setitem(training.RECIPES, "mini", recipe)
    straight = files(training.train("mini", tmp_path / "a", images=16))
    train_step = training.train_step

    def killed(recipe, step, *rest):
        if step == 1:
            raise KeyboardInterrupt
        return train_step(recipe, step, *rest)

    monkeypatch.setattr(training, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train("mini", tmp_path / "b", images=8, save_every=0.0)
    monkeypatch.setattr(training, "train_step", train_step)
    assert files(training.train("mini", tmp_path / "b", images=16)) == straight
    with pytest.raises(PatchError, match="holds a run of steps 4, asked for steps 8"):
        training.train("mini", tmp_path / "b", images=32)


def test_another_recipes_state_is_refused(mini_mmdit, tmp_path, monkeypatch):
    """The same name, seed and steps under other rates: a PatchError with both; and of no other recipe
    anything is kept."""
    training.train("mini", tmp_path, images=4)
    before = files(tmp_path)
    monkeypatch.setitem(training.RECIPES, "mini", replace(MINI, adam_rate=0.25, sigma_shift=9.0))
    says = (
        "holds a run of recipe.adam_rate 0.0015, recipe.sigma_shift 2.0, "
        "asked for .* 0.25, .* 9.0; give another --out"
    )
    with pytest.raises(PatchError, match=says):
        training.train("mini", tmp_path, images=4)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "damaged or no safetensors file"),
        (lambda path: path.write_bytes(b"x"), "damaged or no safetensors file"),
        (
            lambda path: save_file({"a": torch.zeros(1)}, path),
            "says nothing of model, seed, steps: no state, or one of an older",
        ),
        (
            lambda path: told_without(path, "recipe."),
            "says nothing of recipe.denoiser, recipe.schedule, recipe.signs: no state, or",
        ),
        (lambda path: told_without(path, "step"), "says nothing of step"),
        (
            lambda path: told_without(path, "nothing", "average.denoiser.proj_out.bias"),
            "holds other tensors than mini has",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "is no regular file"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "cannot be read"),
    ],
    ids=["cut", "bytes", "another's", "older", "stepless", "tensorless", "folder", "link"],
)
def test_what_is_no_state_is_refused(mini_mmdit, trained, tmp_path, damage, says):
    """A file cut off, another's, an older version's, one without a tensor, a folder: a WeightsError in one
    line."""
    shutil.copytree(trained, tmp_path / "run")
    damage(tmp_path / "run" / "state.safetensors")
    with pytest.raises(WeightsError, match=f"state.safetensors .*{says}") as refusal:
        training.train("mini", tmp_path / "run", images=4)
    assert "\n" not in str(refusal.value)


def told_without(path, left_out: str, tensor: str = "") -> None:
    """The state, but for what it tells under names that begin so, and for one tensor."""
    with safe_open(path, "pt") as file:
        told = {
            key: value
            for key, value in file.metadata().items()
            if not key.startswith(left_out) or key == "steps"
        }
    save_file(
        {name: value for name, value in load_file(path).items() if name != tensor},
        path,
        metadata=told,
    )


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, 1.0, "0"])
def test_a_seed_that_does_not_fit_is_refused(mini_mmdit, tmp_path, seed):
    """More than 32 bits, below zero, or no whole number: a PatchError, and nothing is written."""
    with pytest.raises(
        PatchError, match=f"^seed {seed!r} does not fit torch's generator; give a whole number"
    ):
        training.train("mini", tmp_path / "run", seed=seed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [0, 1])
def test_a_training_that_diverges_makes_no_model(mini_mmdit, tmp_path, monkeypatch, step):
    """A loss of one row that is no number stops the run in that step: the state is the one before, no model
    is written."""
    real = training.loss_of

    def diverged(model, recipe, batch, tokens, weight):
        rows = real(model, recipe, batch, tokens, weight)
        return (
            rows.index_fill(0, torch.tensor(2), torch.nan)
            if batch.prompts == training.Batch(MINI, 0, step).prompts
            else rows
        )

    monkeypatch.setattr(training, "loss_of", diverged)
    with pytest.raises(
        PatchError,
        match=f"the loss of step {step} is nan: the training diverged; give another --seed",
    ):
        training.train("mini", tmp_path, save_every=-1.0)
    assert {*files(tmp_path)} == {"log.jsonl", *["state.safetensors"] * step}


@pytest.mark.skipif(resource is None, reason="resource limits")
def test_a_training_that_cannot_write_says_so(mini_mmdit, tmp_path, monkeypatch, capsys):
    """On a full disk the command ends with 74, in one line; where --out is a file, or its seed has 70 bits,
    with 2."""

    def ended(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train", "mini", "--images", "4", *arguments])
        return guarded(training.main), capsys.readouterr().err.splitlines()[-1]

    with no_file_beyond(100_000):
        code, line = ended("--out", str(tmp_path / "run"))
    assert (
        code == 74
        and "state.safetensors: File too large; check path, permissions and free space" in line
    )
    assert {*files(tmp_path / "run")} == {"log.jsonl"}
    (tmp_path / "file").write_text("x")
    code, line = ended("--out", str(tmp_path / "file"))
    assert code == 2 and f"cannot write {tmp_path / 'file'}: File exists" in line
    code, line = ended("--out", str(tmp_path / "other"), "--seed", str(2**70))
    assert code == 2 and "does not fit torch's generator" in line


@pytest.mark.parametrize(
    "asked, says",
    [
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"workers": -1}, "-1 workers asked for; give a whole number of 0 to 64"),
        ({"workers": 65}, "65 workers asked for; give a whole number of 0 to 64"),
    ],
    ids=str,
)
def test_where_no_training_runs_is_refused(mini_mmdit, tmp_path, asked, says):
    """A device that is not there, and a number of processes that is none: PatchError, and nothing is
    written."""
    with pytest.raises(PatchError, match=says):
        training.train("mini", tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images", [-4, 0, 3])
def test_a_run_of_no_step_is_refused(mini_mmdit, tmp_path, images):
    """Fewer images than a batch of 4, and 0 is not the recipe's 8: PatchError, and nothing is written."""
    with pytest.raises(
        PatchError,
        match=f"^{images} images asked for; one step of mini takes 4, so give that many or more",
    ):
        training.train("mini", tmp_path / "run", images=images)
    assert not (tmp_path / "run").exists()


def test_only_the_recipes_seed_is_said_to_be_localised(tmp_path, monkeypatch):
    """Sites measured on the model of one seed are not claimed for the model of another."""
    recipe = replace(MINI, images=4, localized=(1,), replaced=(0, 1))
    monkeypatch.setitem(training.RECIPES, "mini", recipe)
    for seed, sites in ((0, ((1,), (0, 1))), (1, ((), ()))):
        told = load(training.train("mini", tmp_path / str(seed), seed=seed)).defaults
        assert (told.localized, told.replaced) == sites


def test_a_training_goes_on_when_its_sites_are_entered(trained, tmp_path, monkeypatch):
    """Sites that were measured meanwhile make no other run.  Fault: they tell runs apart."""
    for name in ("localized", "replaced"):
        shutil.copytree(trained, tmp_path / name)
        monkeypatch.setitem(training.RECIPES, "mini", replace(MINI, **{name: (1,)}))
        told = load(training.train("mini", tmp_path / name, images=4)).defaults
        assert getattr(told, name) == (1,)
        with monkeypatch.context() as fault, pytest.raises(WeightsError, match=f"recipe.{name}"):
            fault.setattr(state, "MEASURED", ())
            training.train("mini", tmp_path / name, images=4)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_models_have_the_sites_of_their_recipes(name):
    """What a model's textpatch.json says of its sites stands in its recipe."""
    told = load(name).defaults
    assert told.localized == RECIPES[name].localized and told.replaced == RECIPES[name].replaced


# batches


def test_held_out_words_are_never_trained_on(monkeypatch):
    """However often the dice fall on a validation or test word, no training prompt or picture holds one."""

    def rigged(rng, fmt, texts):
        return Sign(rng.choice([*TEST, *VALIDATION, "QXZ"]))

    monkeypatch.setattr(batches, "random_sign", rigged)
    batch = training.Batch(replace(MINI, dropout=0.0), seed=0, step=0)
    assert {parse(prompt).word for prompt in batch.prompts} == {"QXZ"}


@pytest.mark.parametrize("name", MINIS)
@pytest.mark.parametrize("sites", [(1,), (0, 1)])
def test_a_planted_batch_shows_the_word_it_reads(name, sites):
    """At the planted sites row b reads the text of row b + 1, and shows that row's word on its own sign."""
    recipe = replace(MINIS[name], planted=sites, batch=8)
    batch = training.Batch(recipe, seed=0, step=1)
    table = batch.slots(training.number_of_sites(recipe), tokens=LENGTH)
    assert tuple(i for i, entry in enumerate(table) if entry is not None) == sites
    assert (table[sites[0]][:, 0, 0] // LENGTH).tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    said = [parse(prompt) for prompt in batch.prompts]
    left, top, right, bottom = recipe.signs.text_box
    for own, donor, picture in zip(said, said[1:] + said[:1], batch.pictures, strict=True):
        drawn = draw_sign(replace(own, word=donor.word), recipe.signs, random.Random(0)).transpose(
            2, 0, 1
        )
        # its plate hides the wall behind the letters, whose pattern has its own phase
        if own.shape == "sign":
            assert np.array_equal(
                drawn[:, top:bottom, left:right], picture[:, top:bottom, left:right]
            )


@pytest.mark.parametrize("step", [0, 1])
def test_stage_ii_is_shown_its_picture_at_half_the_size(step):
    """Beside are the large pictures reduced and enlarged again, noised to one level; at every other step
    the word asked for is the neighbour's, and never the one that stands there."""
    recipe = replace(MINIS["tiny-if-ii"], dropout=0.0)
    batch = training.Batch(recipe, seed=0, step=step)
    level = int(batch.beside["level"][0])
    assert (batch.beside["level"] == level).all() and 0 <= level < recipe.low_noise
    low = F.interpolate(
        F.avg_pool2d(batch.pictures, 2), (64, 192), mode="bilinear", align_corners=True
    )
    abar = trained_abars(recipe.schedule)[level]
    noise = (batch.beside["low"] - abar.sqrt() * low) / (1 - abar).sqrt()
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    # another draw than the noise of the picture itself
    assert abs((noise * batch.noise).mean()) < 0.01
    left, top, right, bottom = recipe.signs.text_box
    for prompt, picture in zip(batch.prompts, batch.pictures, strict=True):
        drawn = torch.from_numpy(draw_sign(parse(prompt), recipe.signs, random.Random(0))).permute(
            2, 0, 1
        )
        same = torch.equal(drawn[:, top:bottom, left:-60], picture[:, top:bottom, left:-60])
        assert same == (step == 0)


# what is asked

SCHEDULES = [FlowMatchEuler(), Euler(), DDPM()]
shares = st.floats(0.1, 0.93)


def mixed(schedule, share: float):
    """(objective, x, noise, noisy, t) of one float64 picture at a share of noise."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    asked = objective(schedule, 20)
    noisy, t = asked.mix(x, noise, torch.tensor([share], dtype=torch.float64))
    return asked, x, noise, noisy, t


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@given(share=shares)
def test_a_share_is_the_same_noise_on_every_schedule(schedule, share):
    """noisy is a x + b e with b / a = s / (1 - s), to within half the distance of two trained timesteps."""
    _, x, noise, noisy, _ = mixed(schedule, share)
    a, b = torch.linalg.lstsq(
        torch.stack([x.flatten(), noise.flatten()], 1), noisy.flatten()
    ).solution
    assert abs(float(b / (a + b)) - share) < 2e-3
    kept = a + b if isinstance(schedule, FlowMatchEuler) else a**2 + b**2
    assert abs(float(kept) - 1) < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=lambda schedule: type(schedule).__name__)
@given(share=shares)
def test_the_noises_error_is_the_velocitys(schedule, share):
    """min(1 + sigma^2, 26) |e' - e|^2 = |v' - v|^2 at up to sigma 5, v' that of the same picture, v =
    sqrt(abar) e - sqrt(1 - abar) x; above it, 26 abar as much."""
    asked, x, noise, noisy, t = mixed(schedule, share)
    abar = trained_abars(schedule)[t].double()
    guess = noise + 0.1 * x
    picture = (noisy - (1 - abar).sqrt() * guess) / abar.sqrt()
    velocity = abar.sqrt() * (guess - noise) - (1 - abar).sqrt() * (picture - x)
    expected = velocity.square() * (26 * abar).clamp(max=1)
    assert relative(Noise(schedule, 20).error(guess, x, noise, t), expected) < 1e-9


@given(share=shares, part=st.floats(-1, 1))
def test_the_variances_error_is_the_divergence(share, part):
    """Beyond the noise's error: 1e-3 KL(q(x_prev | x_t, x) || p), p's moments those that DDPM's own step
    draws from; and it moves the variance alone."""
    schedule = DDPM(sample_max_value=1e6)  # the picture at the guess is not clipped
    asked, x, noise, noisy, t = mixed(schedule, share)
    guess = (noise + 0.1 * x).requires_grad_()
    shares = torch.full_like(x, part, requires_grad=True)
    error = asked.error(torch.cat([guess, shares], dim=1), x, noise, t)
    plain = Noise(schedule, 20).error(guess, x, noise, t)
    now, after = (trained_abars(schedule)[at].double() for at in (t, t - 50))
    most = 1 - now / after
    spread = (
        ((part + 1) / 2 * most.log() + (1 - part) / 2 * (most * (1 - after) / (1 - now)).log())
        .exp()
        .sqrt()
    )

    def mean(of):
        return (
            after.sqrt() * most / (1 - now) * of
            + (now / after).sqrt() * (1 - after) / (1 - now) * noisy
        )

    q = torch.distributions.Normal(mean(x), (most * (1 - after) / (1 - now)).sqrt())
    p = torch.distributions.Normal(mean((noisy - (1 - now).sqrt() * guess) / now.sqrt()), spread)
    expected = 1e-3 * torch.distributions.kl_divergence(q, p)
    assert relative((error - plain).detach(), expected.detach()) < 1e-6
    (error - plain).sum().backward()
    assert not guess.grad.any() and shares.grad.abs().min() > 0


def test_the_last_step_asks_for_no_variance():
    """Below the spacing of the steps nothing follows, and the variance costs nothing."""
    asked, x, noise, _, t = mixed(DDPM(), 0.01)
    output = torch.cat([noise, torch.randn_like(x)], dim=1).requires_grad_()
    asked.error(output, x, noise, t).sum().backward()
    assert t < 50 and not output.grad.any()


# how models begin


@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-if", "tiny-if-ii"])
def test_a_unet_begins_by_answering_its_input(name):
    """Its first three channels are the noisy picture, each colour brought to length one, whatever time and
    text, and in stage II the small picture beside."""
    model = training.Trainee(MINIS[name])
    x = torch.randn(2, 3, 32, 96, generator=torch.Generator().manual_seed(0))
    beside = read_beside(DDPM(), x[:, :, ::2, ::2], x.flip(-1), 250) if name == "tiny-if-ii" else {}
    text = model.encoders(PROMPTS)
    if MINIS[name].micro:
        text = replace(text, micro=torch.tensor(MINIS[name].micro).expand(2, -1))
    with torch.no_grad():
        out = model.denoiser(x, torch.tensor([900, 20]), text, **beside)
    scale = (x.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
    assert relative(out[:, :3], x / scale) < 5e-6 and not out[:, 3:].any()


def test_ifs_letters_find_their_place_at_once():
    """Head h of the first layer puts over half its attention h + 1 tokens back, wherever there is such a
    token."""
    encoder = if_encoder().eval()
    t5 = encoder.text_encoder
    t5.set_attn_implementation("eager")
    ids = encoder.tokenizers[0](PROMPTS[0], return_tensors="pt").input_ids
    weights = t5(ids, output_attentions=True).attentions[0][0]  # (H, T, T)
    for head in range(6):  # the letters of a word
        back = weights[head].diagonal(offset=-(head + 1))
        assert back.min() > 0.5


def test_ifs_encoder_knows_places_and_keeps_knowing():
    """Over half of what tells quoted letters' states apart is their place in the word, and no weight has a
    gradient."""
    recipe, rng = MINIS["tiny-if"], random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=6)) for _ in range(100)]
    model = training.Trainee(recipe)
    batch = training.Batch(recipe, 0, 0)
    tokens = model.encoders.tokenized(batch.prompts)
    training.loss_of(model, recipe, batch, tokens, training.text_weights(recipe)).sum().backward()
    assert all(p.grad is None for p in model.encoders.parameters())
    with torch.no_grad():  # `a red sign that says " W O R D E R " ...`
        states = model.encoders([Sign(word).prompt() for word in words]).tokens[:, 6:12]
    places = states.mean(dim=0) - states.mean(dim=(0, 1))
    assert (
        places.square().sum(-1).mean()
        > 0.5 * (states - states.mean(dim=(0, 1))).square().sum(-1).mean()
    )


@given(all_signs, st.sampled_from(SAYINGS))
def test_a_lowered_prompt_is_read_as_it_was_written(sign, saying):
    """The tokenizer of prompts in small letters gives them the tokens that the written prompt has."""
    lowered, written = word_tokenizer(begin=False, lowered=True), word_tokenizer(begin=False)
    assert lowered(sign.prompt(saying).lower()).input_ids == written(sign.prompt(saying)).input_ids


def test_every_family_has_a_schedule_of_its_own():
    """The recipes name models of known families, and each schedule is one that can be trained for."""
    for recipe in RECIPES.values():
        assert type(recipe.denoiser) in FAMILIES and objective(recipe.schedule, recipe.steps)
