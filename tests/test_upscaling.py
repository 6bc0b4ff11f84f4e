"""Stage II: pictures drawn larger, after one prompt and one seed, whatever was swapped in the small ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small import PROMPTS, small_pipeline
from strategies import randomize

from textpatch import capture, cli, edit, load, patch
from textpatch.edit import upscaled
from textpatch.errors import PatchError
from textpatch.metrics import Tesseract
from textpatch.reference_models.pipeline import Defaults, Pipeline, pixels
from textpatch.weights import evaluate
from textpatch.weights import train as training
from textpatch.weights.recipes import RECIPES
from textpatch.weights.signs import SignFormat
from textpatch.weights.words import TEST

SOURCE, TARGET = PROMPTS
OTHER = 'a green badge that says "TIGER" in serif on a striped yellow wall'


@pytest.fixture(scope="module")
def stage_i():
    return small_pipeline()


@pytest.fixture(scope="module")
def stage_ii() -> Pipeline:
    """A random stage II with the shipped one's parts, at smaller widths."""
    recipe = RECIPES["tiny-if-ii"]
    recipe = replace(recipe, denoiser=replace(recipe.denoiser, block_out_channels=(16, 32, 32)))
    made = randomize(training.Trainee(recipe), 0)
    defaults = Defaults(64, 192, 2, 1.0, recipe.signs.text_box)
    return Pipeline(made.encoders, made.denoiser, recipe.schedule, pixels, defaults, "second").eval()


@pytest.fixture
def folder(stage_ii, tmp_path):
    """The same as a folder that `load` reads."""
    recipe, parts = RECIPES["tiny-if-ii"], (stage_ii.denoiser, stage_ii.encoders, stage_ii.schedule)
    training.save_pipeline(tmp_path / "second", *parts, replace(stage_ii.defaults), {"seed": recipe.seed})
    return tmp_path / "second"


def large(made) -> list[bytes]:
    return [picture.tobytes() for picture in (made.image, made.source, made.target)]


def test_an_edit_is_upscaled_by_its_source_prompt_alone(stage_i, stage_ii):
    """Stage II's pictures are functions of the small picture, the source's prompt and the seed: edits with other targets
    and sites have the same large source, and each large picture is the upscaling of its small one."""
    edits = [edit(stage_i, SOURCE, target, sites=sites, seed=3) for target, sites in ((TARGET, 0), (OTHER, [0, 1]))]
    one, other = (upscaled(made, stage_ii) for made in edits)
    assert one.source.size == (192, 64) and one.source.tobytes() == other.source.tobytes()
    small = [edits[0].image, edits[0].source, edits[0].target]
    alone = [stage_ii.upscale([picture], [SOURCE], seeds=[3])[0] for picture in small]
    assert max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(
        alone, (one.image, one.source, one.target))) <= 1  # another batch moves the last bits
    assert large(one) != large(upscaled(replace(edits[0], seed=4), stage_ii))
    by_target = replace(edits[0], pair=replace(edits[0].pair, source=TARGET))
    assert large(one) != large(upscaled(by_target, stage_ii))


def test_stage_ii_reads_no_swap(stage_i, stage_ii):
    """Inside a block that patches every site of stage I, stage II draws the same, bit for bit."""
    made = edit(stage_i, SOURCE, TARGET, sites=0)
    text, x, t = stage_i.encode([SOURCE, TARGET]), stage_i.noise([0, 0]), torch.tensor(500.0)
    with capture(stage_i.denoiser, "all", rows=["source", "target"]) as cache:
        stage_i.denoiser(x, t, text)
    with patch(stage_i.denoiser, cache, "all", rows=["target", "source"]):
        stage_i.denoiser(x, t, text)
        inside = upscaled(made, stage_ii)
    assert large(inside) == large(upscaled(made, stage_ii))


def test_picture_prompt_seed_and_level_all_matter(stage_ii):
    """Each of the four moves the large picture, and the same four make it again."""
    flat, ramp = (Image.fromarray(np.full((32, 96, 3), 80 + ramp * np.arange(96)[:, None], np.uint8)) for ramp in (0, 1))
    asked = [(flat, SOURCE, 0, 250), (ramp, SOURCE, 0, 250), (flat, TARGET, 0, 250), (flat, SOURCE, 1, 250), (flat, SOURCE, 0, 9)]
    made = [stage_ii.upscale([p], [prompt], seeds=[seed], level=level)[0].tobytes() for p, prompt, seed, level in asked]
    again = stage_ii.upscale([flat], [SOURCE], seeds=[0])[0].tobytes()
    assert made[0] == again and len(set(made)) == len(made)


def test_the_shipped_stage_ii_draws_what_it_is_given(long):
    """Of drawings of 6 held-out words, --long all 283: read as well as clean ones, and less than half as far from
    the large drawings as bicubic enlargements; a model that is not trained draws neither."""
    pipeline, fmt = load("tiny-if-ii"), SignFormat()
    signs, large = evaluate.held_out_signs(len(TEST) if long else 6, fmt), fmt.enlarged(2)
    small, truth = (evaluate.clean_pictures(signs, size) for size in (fmt, large))
    made, reader = evaluate.generated_pictures(pipeline, signs, small), Tesseract(scale=1)
    assert evaluate.reading_accuracy(made, signs, large, reader).mean() >= 0.95
    assert evaluate.mean_square(made, truth) < 0.5 * evaluate.mean_square(evaluate.bicubic(small, large), truth)
    randomize(pipeline.denoiser, 0)
    noise = evaluate.generated_pictures(pipeline, signs, small, steps=2)
    assert evaluate.reading_accuracy(noise, signs, large, reader).mean() == 0


def test_each_stage_is_asked_for_what_it_does(stage_i, stage_ii):
    """Stage II does not draw from nothing and stage I not from pictures; numbers and sizes must agree: PatchErrors."""
    flat, wide = Image.new("RGB", (96, 32)), Image.new("RGB", (128, 32))
    with pytest.raises(PatchError, match="second draws small pictures larger; give it some"):
        stage_ii.generate(SOURCE, seeds=0)
    with pytest.raises(PatchError, match="small draws pictures from noise alone; a stage II is needed"):
        stage_i.upscale([flat], [SOURCE], seeds=[0])
    with pytest.raises(PatchError, match="1 pictures, 2 prompts, 1 seeds"):
        stage_ii.upscale([flat], PROMPTS, seeds=[0])
    with pytest.raises(PatchError, match=r"pictures of sizes \[\(96, 32\), \(128, 32\)\]"):
        stage_ii.upscale([flat, wide], PROMPTS, seeds=[0, 0])
    with pytest.raises(PatchError, match="has no effect at guidance 1"):
        stage_ii.upscale([flat], [SOURCE], seeds=[0], negative="a")
    with pytest.raises(PatchError, match="timestep 1000; the model was trained on 0..999"):
        stage_ii.upscale([flat], [SOURCE], seeds=[0], level=1000)


def test_the_command_line_upscales(folder, tmp_path, capsys):
    """generate and edit with --upscale write pictures of the large size; a stage I given for it is refused."""
    asked = ["generate", "planted-mmdit", SOURCE, "--steps", "1", "--out", str(tmp_path / "made")]
    assert cli.main([*asked, "--upscale", str(folder)]) == 0
    assert {Image.open(path).size for path in (tmp_path / "made/images").iterdir()} == {(192, 64)}
    asked = ["edit", "planted-mmdit", "--source", SOURCE, "--target", TARGET, "--steps", "1", "--out", str(tmp_path / "e")]
    assert cli.main([*asked, "--upscale", str(folder)]) == 0
    assert {Image.open(path).size for path in (tmp_path / "e/images").iterdir()} == {(192, 64)}
    assert cli.main([*asked, "--upscale", "planted-mmdit"]) == 2
    assert "--upscale planted-mmdit: that model draws pictures from noise alone" in capsys.readouterr().err
