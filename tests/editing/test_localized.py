"""Editing by a swap at the localised sites keeps the picture and writes the target's word."""

import pytest

from support.localizing import PAIR, planted_site
from support.small_models import small_pipeline
from textpatch import PatchError, edit, load
from textpatch.errors import PromptError
from textpatch.localization import scores
from textpatch.metrics import Tesseract, mse


@pytest.fixture(scope="module")
def planted():
    return load("planted-mmdit")


def test_an_edit_keeps_the_picture_and_writes_the_word(planted):
    """At the localised site the edit reads as the target, outside the letters it is the source."""
    made, box = edit(planted, *PAIR, seed=3), planted.defaults.text_box
    readings = Tesseract().read([made.source, made.image, made.target], [box] * 3)
    words = [reading.text for reading in readings]
    kept, other = (
        scores.picture_scores(x, made.source, [box])["mse"] for x in (made.image, made.target)
    )
    assert words == ["HOUSE", "TIGER", "TIGER"] and kept < other / 20
    assert made.plan.swaps[0].sites == planted.defaults.localized == (planted_site(),)


def test_an_edit_from_the_last_step_on_changes_less(planted):
    """The later the start, the nearer to the source."""
    whole = [edit(planted, *PAIR, start=s) for s in (0, planted.defaults.steps - 1)]
    early, late = (mse(made.image, made.source) for made in whole)
    assert late < early / 4


def test_an_edit_needs_sites_and_words():
    """One clear error where no sites are known and none given, and for a prompt without a word."""
    with pytest.raises(PatchError, match="run localize first"):
        edit(small_pipeline(), *PAIR)
    with pytest.raises(PromptError, match="no quoted word"):
        edit(small_pipeline(), "a red sign on a blue wall", PAIR[1], sites=0)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(start="0"), "start is '0' of 2 steps"),
        (dict(start=2), "start is 2 of 2 steps"),
        (dict(branch="cond"), "there is no other branch"),
    ],
)
def test_an_edit_that_would_be_none_is_refused(options, says):
    """PatchError for a start that is no step of the run, and for one branch where there is one alone."""
    with pytest.raises(PatchError, match=says):
        edit(small_pipeline(), *PAIR, sites=0, **options)


def test_an_edit_that_changed_nothing_is_an_error():
    """A swap at a site that makes no keys and values of the text is named.

    No picture is returned as edited.
    """
    pipeline = small_pipeline()
    assert edit(pipeline, *PAIR, sites=0).ledger.entries
    site = pipeline.denoiser.transformer_blocks[0].attn
    for projection in (site.add_k_proj, site.add_v_proj):
        for parameter in projection.parameters():
            parameter.data.zero_()
    with pytest.raises(PatchError, match="changed nothing|no effect"):
        edit(pipeline, *PAIR, sites=0)
