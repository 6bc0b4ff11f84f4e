"""Every pipeline with a recipe is wrapped as it is, swaps exactly, and is localised and edited."""

import numpy as np
import pytest

import textpatch
from support.localizing import PixelReader
from support.planting import plant
from textpatch import Plan, Row, Swap
from textpatch.errors import PatchError
from textpatch.foreign.recipes import RECIPES, CalledPipe

pytest.importorskip("diffusers")
SOURCE = 'a red sign that says "HOUSE" on a blue wall'
LONGER = 'a green badge that says "TIGER" in serif on a striped yellow wall'
ALIKE = 'a blue sign that says "TIGER" on a red wall'
# those whose calls are unlike the others': a start drawn for each prompt, and lyrics for each
DEFAULT = ("GlmImagePipeline", "AceStepPipeline")
# the last bits of a float32 sound depend on its place in the batch
SOUNDS = {"AudioLDM2Pipeline": 1e-6, "StableAudioPipeline": 1e-6, "AceStepPipeline": 1e-6}
# texts without their padding, before the picture
PACKED = ("Lumina2Pipeline",)


def wrapped(name, **more):
    """A small pipeline of a class, wrapped by its recipe alone."""
    from support.pipelines_with_recipes import made

    pipe, options = made(name)
    return textpatch.wrap(pipe, steps=2, **options | more)


def distance(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


def require_whole_swap(name):
    """A row that reads another's text at all sites is that row, and those that are read are as they were."""
    pipeline = wrapped(name)
    target = ALIKE if name in PACKED else LONGER
    rows = [Row("source", SOURCE), Row("target", target), Row("edited", SOURCE)]
    plain = textpatch.sample(pipeline, rows).images
    swapped = textpatch.sample(pipeline, rows, Plan([Swap("all", "edited", "target")])).images
    bits = SOUNDS.get(name, 0)
    assert distance(swapped["edited"], plain["target"]) <= bits
    assert distance(plain["edited"], plain["target"]) > 1e3 * bits
    assert all(distance(swapped[row], plain[row]) <= bits for row in ("source", "target"))
    return pipeline


@pytest.mark.parametrize("name", DEFAULT)
def test_all_sites_swapped_is_the_donor(name):
    """For those whose calls are unlike the others'."""
    require_whole_swap(name)


@pytest.mark.long  # by default two classes, and beside them FLUX.1 and Qwen-Image in the pages
@pytest.mark.parametrize("name", RECIPES)
def test_every_pipeline_is_taken_as_it_is(name):
    """Sampled, localised and edited, with what it calls for itself."""
    pipeline = require_whole_swap(name)
    reader = (lambda made: ["x"] * len(made)) if name in SOUNDS else PixelReader()
    found = textpatch.localize(pipeline, [(SOURCE, ALIKE)], reader=reader, background=None)
    assert len(found.ranked) == len(pipeline.sites)
    edited = textpatch.edit(pipeline, SOURCE, ALIKE, sites=0)
    assert distance(edited.image, edited.source) > 0 and not edited.ledger.silent


@pytest.mark.long  # by default such a text is refused by `swap`
def test_packed_texts_of_two_lengths_are_refused():
    """Lumina 2 lays a picture right behind its own text."""
    with pytest.raises(PatchError, match="so give texts of equal length"):
        textpatch.edit(wrapped("Lumina2Pipeline"), SOURCE, LONGER, sites="all")


def test_a_start_needs_a_size():
    """GLM-Image draws picture tokens before anything else, as many as the size asks for."""
    with pytest.raises(PatchError, match="height=1024"):
        textpatch.edit(wrapped("GlmImagePipeline", width=None), SOURCE, LONGER, sites="all")


def require_a_start_of_its_own_seed():
    """A picture is the one of its prompt and seed, whoever is drawn beside it."""
    pipeline = wrapped("GlmImagePipeline")
    _, beside = pipeline.generate([SOURCE, SOURCE], seeds=[0, 1])
    (alone,) = pipeline.generate(SOURCE, seeds=1)
    assert distance(beside, alone) <= 1


def test_a_start_drawn_by_the_first_seed_is_noticed(monkeypatch):
    """Fault: the picture tokens of all prompts are drawn by the first one's seed, as GLM-Image does."""
    require_a_start_of_its_own_seed()
    plant(monkeypatch, CalledPipe, "_prior", "manual_seed(seed)", "manual_seed(seeds[0])")
    with pytest.raises(AssertionError):
        require_a_start_of_its_own_seed()
