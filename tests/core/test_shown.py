"""What people hold at a prompt: short to read, compared without an error, and sent to another process."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from transformers.utils import output_capturing

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


def require_drawing_elsewhere(pipeline, monkeypatch):
    """Require that a pickle draws where transformers has made no model, as in a spawned process."""
    sent = pickle.dumps(pipeline)
    before = drawn(pipeline)
    monkeypatch.setattr(text_encoders, "_MADE", set())
    known = dict(output_capturing._CAN_RECORD_REGISTRY)
    output_capturing._CAN_RECORD_REGISTRY.clear()
    try:
        assert drawn(pickle.loads(sent)) == before
    except TypeError as error:
        raise AssertionError(error) from None
    finally:
        output_capturing._CAN_RECORD_REGISTRY.update(known)


def test_a_process_that_made_no_model_draws(pipeline, monkeypatch):
    """Though transformers knows what to record of those models alone that were made there."""
    require_drawing_elsewhere(pipeline, monkeypatch)


def test_a_class_that_stays_unknown_is_noticed(pipeline, monkeypatch):
    """Fault: no model is made."""
    plant(monkeypatch, text_encoders, "_make_once", "kind not in _MADE", "kind in _MADE")
    with pytest.raises(AssertionError):
        require_drawing_elsewhere(pipeline, monkeypatch)


class Drawn(torch.utils.data.Dataset):
    """Pictures of a prompt, each made where it is asked for."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return drawn(self.pipeline)


# test_a_process_that_made_no_model_draws holds what differs in such a process
@pytest.mark.long
def test_spawned_processes_draw(pipeline):
    """The same picture, in a pool and in the workers of a DataLoader."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(drawn, (pipeline,)) == drawn(pipeline)
    loader = torch.utils.data.DataLoader(
        Drawn(pipeline), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert [*loader] == [drawn(pipeline)] * 2


def test_each_step_calls_back(pipeline):
    """With its number and the latents entering it, and once more at the end."""
    steps = []
    pipeline.generate(SOURCE, steps=2, on_step=lambda step, x: steps.append((step, len(x))))
    assert steps == [(0, 1), (1, 1), (2, 1)]
