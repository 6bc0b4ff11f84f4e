"""What people hold at a prompt: short to read, compared without an error, and sent to another process."""

import copy
import multiprocessing
import pickle

import pytest
import torch

from support.planting import plant
from textpatch import Plan, Row, Swap, capture, load, sample
from textpatch.reference_models import text_encoders

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a red sign that says "TIGER" on a blue wall'
ROWS = [Row("source", SOURCE), Row("target", TARGET)]
PLAN = Plan([Swap(1, "source", "target")])
MOST = 8  # lines


def drawn(pipeline) -> bytes:
    """The picture of a prompt, as bytes."""
    return pipeline(SOURCE, steps=1)[0].tobytes()


@pytest.fixture(scope="module")
def pipeline():
    return load("tiny-mmdit")


@pytest.fixture(scope="module")
def held(pipeline):
    """Everything that a first session has in its hands, by name."""
    samples = sample(pipeline, ROWS, PLAN, steps=2, guidance=0)
    denoiser = pipeline.denoiser
    with capture(denoiser, "all", rows=["source", "target"]) as cache:
        denoiser(pipeline.noise([0, 0]), torch.tensor(1000.0), pipeline.encode([SOURCE, TARGET]))
    pictures = pipeline(SOURCE, steps=1)
    things = dict(pipeline=pipeline, samples=samples, ledger=samples.ledger, cache=cache)
    return things | dict(sites=denoiser.sites, pictures=pictures)


SAYS = {
    "pipeline": [
        "tiny-mmdit, of the family Stable Diffusion 3",
        "MMDiT",
        "6 joint",
        "8 steps",
        "float32 on cpu",
        "note: ",
    ],
    "samples": ["2 rows, 2 steps", "HOUSE", "TIGER", "swaps: 1"],
    "ledger": ["source <- target", "K change"],
    "cache": ["24 tensors", "270,336 bytes", "transformer_blocks.5.attn", "target"],
    "sites": ["6 sites: 6 joint", "transformer_blocks.4.attn", "and 1 more"],
    "pictures": ["PIL"],
}


@pytest.mark.parametrize("name", SAYS)
def test_a_thing_shows_itself(held, name):
    """In at most eight lines at a prompt, and as HTML in a notebook."""
    shown = repr(held[name])
    assert len(shown.splitlines()) <= MOST and all(phrase in shown for phrase in SAYS[name])
    assert held[name]._repr_html_().startswith("<div") and max(map(len, shown.splitlines())) < 200


def test_equal_runs_are_equal(pipeline, held):
    """Samples and caches are compared number by number, and with anything else without an error."""
    again = sample(pipeline, ROWS, PLAN, steps=2, guidance=0)
    assert again == held["samples"] and again != sample(pipeline, ROWS, steps=2, guidance=0)
    cache = held["cache"]
    moved = cache.to(torch.float64)
    changed = cache.to(torch.float32)
    changed[next(iter(changed))] = -changed[next(iter(changed))]
    assert cache == cache.to(torch.float32) and cache != moved and cache != changed
    assert again != 1 and cache != 1 and cache != {}


def require_picklable(pipeline):
    """Require that a pipeline goes through a pickle after its use, and draws the same picture."""
    before = drawn(pipeline)
    try:
        other = pickle.loads(pickle.dumps(pipeline))
    except AttributeError as error:
        raise AssertionError(error) from None
    assert drawn(other) == before == drawn(copy.deepcopy(pipeline)) == drawn(pipeline)


def test_a_used_pipeline_is_pickled_and_copied(pipeline):
    """And the pipeline that was used goes on."""
    require_picklable(pipeline)


def test_hooks_that_stay_are_noticed(pipeline, monkeypatch):
    """Fault: hooks of transformers are taken along."""
    wrong = ('startswith("transformers.")', 'startswith("another.")')
    plant(monkeypatch, text_encoders, "_is_recorder", *wrong)
    with pytest.raises(AssertionError, match="pickle"):
        require_picklable(pipeline)


@pytest.mark.long  # test_a_used_pipeline_is_pickled_and_copied holds the pickle that travels
def test_a_spawned_worker_draws(pipeline):
    """The same picture."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(drawn, (pipeline,)) == drawn(pipeline)


def test_each_step_calls_back(pipeline):
    """With its number and the latents entering it, and once more at the end."""
    steps = []
    pipeline.generate(SOURCE, steps=2, on_step=lambda step, x: steps.append((step, len(x))))
    assert steps == [(0, 1), (1, 1), (2, 1)]
