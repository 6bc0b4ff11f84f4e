"""Messages speak of the one thing that is wrong, and a misspelt name has the right one beside it.

One string is one name.
"""

import re
import subprocess
import sys
from functools import partial
from types import MappingProxyType

import pytest
import torch

import textpatch
from support.small_models import PROMPTS, small_pipeline
from textpatch import HookRegistry, PatchError, Row, Swap, capture, localize, patch
from textpatch.pipelines import sized
from textpatch.reference_models.pipeline import Defaults

PIPELINE = small_pipeline()
MODEL = PIPELINE.denoiser
PAIR = PROMPTS[0], PROMPTS[0].replace("HELLO", "WORLD")
FINE = dict(height=32, width=96, steps=8, guidance=1.0)


def patching(cache=MappingProxyType({}), **fields):
    with patch(MODEL, cache, "all", rows=["source"], **fields):
        pass


def capturing(sites):
    with capture(MODEL, sites, rows=["source"]):
        pass


# name -> what is done; what the message says; what it must not speak of
FAULTS = {
    "no pairs": (
        lambda: localize(PIPELINE, []),
        "no prompt pair was given; give at least one",
        ["seed", "start"],
    ),
    "no seeds": (
        lambda: localize(PIPELINE, [PAIR], seeds=[]),
        "no seed was given; give at least one",
        ["pair", "start"],
    ),
    "start outside": (
        lambda: localize(PIPELINE, [PAIR], start=2),
        "start is 2 of 2 steps",
        ["seed", "pair"],
    ),
    "one pair": (
        lambda: localize(PIPELINE, [PAIR], mode="staged"),
        "given to mode 'staged': 1; an interval",
        ["first"],
    ),
    "first of one": (
        lambda: localize(PIPELINE, [PAIR] * 2, mode="staged", first=1),
        "first is 1, so",
        ["given"],
    ),
    "a swap of no site": (lambda: Swap([], "a", "b"), "sites is empty in", []),
    "a swap of no reader": (lambda: Swap(0, [], "b"), "readers is empty in", []),
    "a swap of no step": (lambda: Swap(0, "a", "b", steps=[]), "steps is empty in", []),
    "a swap of no head": (lambda: Swap(0, "a", "b", heads=[]), "heads is empty in", []),
    "a swap of no token": (lambda: Swap(0, "a", "b", tokens=[]), "tokens is empty in", []),
    "a misspelt part": (
        lambda: patching(part="q"),
        "part is 'q'; give 'kv', 'k' or 'v'",
        ["steps", "heads", "tokens"],
    ),
    "patching no head": (lambda: patching(heads=[]), "heads is empty", ["steps", "tokens", "part"]),
    "patching from no cache": (
        lambda: patching(cache=None),
        "a cache that is a NoneType; give what capture yields",
        ["steps", "row"],
    ),
    "capturing at no site": (
        lambda: capturing(None),
        "sites hold None, which is no index, name or glob",
        ["row"],
    ),
    "hooks on no model": (lambda: HookRegistry(None, "a"), "of a NoneType were asked for", []),
    "hooks on a number": (lambda: HookRegistry(MODEL, 5), "hooks on 5 of a MMDiT", []),
    "a side in words": (
        lambda: sized(PIPELINE, "64", None),
        "a side of '64' pixels was asked for; give a whole number",
        ["96", "multiples"],
    ),
    "a side of a half": (lambda: sized(PIPELINE, None, 64.5), "a side of 64.5 pixels", ["mult"]),
    "a height of a half": (
        lambda: Defaults(**FINE | {"height": 0.5}),
        "height is 0.5",
        ["text_box", "micro", "sites"],
    ),
    "a box of three": (
        lambda: Defaults(**FINE, text_box=(1, 2, 3)),
        "text_box is (1, 2, 3)",
        ["micro", "height"],
    ),
    "a level between two timesteps": (
        lambda: Defaults(**FINE, level=250.5),
        "level is 250.5 among what a model is run with; give a timestep, a whole number",
        ["finite", "trained"],
    ),
    "an endless guidance": (
        lambda: Defaults(**FINE | {"guidance": float("inf")}),
        "give a finite number",
        ["whole"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_message_speaks_of_one_fault(name):
    """A message names the value that is wrong, and nothing that is right."""
    work, says, silent = FAULTS[name]
    with pytest.raises(PatchError, match=re.escape(says)) as refused:
        work()
    assert [word for word in silent if word in str(refused.value)] == []


def test_every_default_has_its_own_words():
    """A message says what a field of Defaults must be, whatever words it is given."""
    from textpatch.reference_models.defaults import WANTED

    assert WANTED.keys() == Defaults.__dataclass_fields__.keys()
    for field, wanted in WANTED.items():
        with pytest.raises(PatchError, match=f"{field} is 'x' .*; give {wanted}$"):
            Defaults(**FINE | {field: "x"})


def run_model() -> None:
    MODEL(PIPELINE.noise([0]), torch.tensor(500.0), PIPELINE.encode(PROMPTS[:1]))


def test_one_string_is_one_module():
    """HookRegistry(model, "pos_embed") watches that module, as a list of it does."""
    with HookRegistry(MODEL, "pos_embed").observe(lambda name, output: None) as registry:
        run_model()
    assert registry.names == ("pos_embed",) and registry.calls["pos_embed"] == 1
    with pytest.raises(PatchError, match="no module 'pos_embd' in MMDiT; closest: pos_embed"):
        HookRegistry(MODEL, "pos_embd")


def test_the_root_is_not_among_the_known_modules():
    """A message lists known modules where no name is near, and the root has no name."""
    with pytest.raises(PatchError, match=r"no module '0123456789' in MMDiT; known: \w"):
        HookRegistry(MODEL, "0123456789")


def test_one_string_is_one_row():
    """capture(rows="source") and patch(rows="source") speak of one row of that label, not of six."""
    with capture(MODEL, "all", rows="source") as cache:
        run_model()
    with capture(MODEL, "all", rows=["source"]) as listed:
        run_model()
    assert cache.keys() == listed.keys() and {label for _, _, label, _ in cache} == {("source",)}
    with patch(MODEL, cache, "all", rows="source"):
        run_model()


def test_one_row_is_one_row():
    """capture(rows=row) is of one row, and a tuple of two texts of two rows, as each list of them is."""
    row = Row("source", PROMPTS[0])
    with capture(MODEL, "all", rows=row) as cache:
        run_model()
    assert {label for _, _, label, _ in cache} == {row.label}
    with patch(MODEL, cache, "all", rows=row):
        run_model()
    with (
        pytest.raises(PatchError, match="batch of 1 rows, but 2 rows were labelled"),
        capture(MODEL, "all", rows=row.label),
    ):
        run_model()


@pytest.mark.parametrize("rows", [None, 3, {"source": 0}, iter(["source"])])
@pytest.mark.parametrize("block", [capture, partial(patch, cache={})])
def test_rows_that_are_no_sequence_are_refused(block, rows):
    """A number, a dictionary and an iterator have no rows in an order that can be asked for twice."""
    with (
        pytest.raises(PatchError, match="; give a list with one Row or label per batch row"),
        block(MODEL, sites="all", rows=rows),
    ):
        pass


MISSPELT = "import textpatch; textpatch.localise"


def test_a_misspelt_name_suggests_the_right_one():
    """An error about `textpatch.localise` names what is close.

    It knows name and module, so that Python itself asks.
    """
    with pytest.raises(AttributeError, match="'localise'; closest: localize") as refused:
        textpatch.localise  # noqa: B018
    assert refused.value.name == "localise" and refused.value.obj is textpatch
    told = subprocess.run([sys.executable, "-c", MISSPELT], capture_output=True, text=True).stderr
    assert "Did you mean: 'localize'?" in told
    assert not hasattr(textpatch, "qqqq")
