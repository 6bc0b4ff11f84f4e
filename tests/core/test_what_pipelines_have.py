"""Applications ask a pipeline for parts, which are checked at the door, and never for a class."""

from types import SimpleNamespace

import pytest
from torch import nn

import textpatch
from support.localizing import Parrot
from support.small_models import PROMPTS, small_pipeline
from textpatch import pipelines
from textpatch.errors import PatchError
from textpatch.localization.layers import localize
from textpatch.pipelines import require_parts

PARTS = [part for name, part in vars(pipelines).items() if name.startswith("Supports")]
PAIR = [tuple(PROMPTS)]


class Facade:
    """Another's object with some members of a pipeline, and nothing else."""

    def __init__(self, pipeline, leave_out=()):
        names = {name for part in PARTS for name in pipelines._members(part)} - set(leave_out)
        vars(self).update({name: getattr(pipeline, name) for name in names})


def test_our_pipeline_has_every_part():
    """A pipeline of ours has every part, and an object with these members alone gives the same latents."""
    pipeline = small_pipeline()
    require_parts(pipeline, "this test", *PARTS)
    rows = [textpatch.Row("a", PROMPTS[0]), textpatch.Row("b", PROMPTS[1])]
    plan = textpatch.Plan([textpatch.Swap(1, "a", "b")])
    ours, theirs = (
        textpatch.sample(each, rows, plan).latents for each in (pipeline, Facade(pipeline))
    )
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_part_that_lacks_is_named(part):
    """A message names the member that is not there, and what to do."""
    for name in pipelines._members(part):
        with pytest.raises(
            PatchError,
            match=f"textpatch.pipelines.{part.__name__}.*has no {name}; a pipeline comes",
        ):
            require_parts(Facade(small_pipeline(), [name]), "this test", part)


APPLICATIONS = {
    "sample": lambda given: textpatch.sample(given, [textpatch.Row("a", PROMPTS[0])]),
    "edit": lambda given: textpatch.edit(given, *PROMPTS),
    "localize": lambda given: localize(given, PAIR),
    "trial": lambda given: textpatch.Trials(given, PAIR),
}


@pytest.mark.parametrize("application", APPLICATIONS)
def test_others_objects_are_told_what_to_do(application):
    """Pipelines of diffusers, bare models and names of models get one sentence with the cure."""
    ask = APPLICATIONS[application]
    theirs = SimpleNamespace(transformer=nn.Linear(1, 1), scheduler=None)
    for given, says in (
        (theirs, r"wrapped first: textpatch\.wrap\(pipe\)"),
        (nn.Linear(1, 1), "a model alone takes"),
        ("tiny-mmdit", r"load\('tiny-mmdit'\)"),
        (None, "a pipeline comes from load"),
    ):
        with pytest.raises(PatchError, match=says):
            ask(given)


def test_later_rows_need_partial_runs():
    """A pipeline that can only run whole serves, but for rows that join later, and is told so."""
    whole = Facade(small_pipeline(), ["advance"])
    rows = [textpatch.Row("a", PROMPTS[0]), textpatch.Row("b", PROMPTS[1], joins=1, copies="a")]
    assert textpatch.sample(whole, rows[:1]).latents
    with pytest.raises(
        PatchError, match="a row with latents, or that joins later, needs .* no advance"
    ):
        textpatch.sample(whole, rows)
    with pytest.raises(PatchError, match="a start curve needs .* no advance"):
        localize(whole, PAIR, ocr=Parrot(), starts=True)
