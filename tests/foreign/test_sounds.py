"""Sounds are localised as pictures are: two texts, a score like CLAP's, and a page that shows waves."""

import json

import numpy as np
import pytest

import textpatch
from support.planting import plant
from textpatch import Plan, Row, Swap
from textpatch.errors import OCRError, PatchError, PromptError
from textpatch.localization import scores
from textpatch.metrics import Nearest
from textpatch.prompts.labels import read_labelled_pairs
from textpatch.prompts.pairs import LabelledPair
from textpatch.report.page import publish
from textpatch.runs.folder import Run
from textpatch.sounds import as_picture

VIOLIN = "a red sign"
PIANO = "a green badge on a striped yellow wall"
PAIR = LabelledPair(VIOLIN, PIANO, ("violin", "piano"), "instrument")


@pytest.fixture(scope="module")
def sounding():
    """A wrapped AudioLDM2, and a reader that tells by the nearest of the plain sounds what is heard."""
    pytest.importorskip("diffusers")
    from support.foreign_sounds import audioldm2

    pipeline = textpatch.wrap(audioldm2(), audio_length_in_s=0.01, steps=2)
    plain = pipeline.generate([VIOLIN, PIANO], seeds=0)

    def similarities(sounds, labels):
        known = dict(zip(PAIR.labels, plain, strict=True))
        return [[-np.abs(sound - known[label]).sum() for label in labels] for sound in sounds]

    return pipeline, Nearest(similarities)


def test_all_sites_of_both_texts_are_the_donor(sounding):
    """Texts of five and of nine tokens are read from another row at their own sites."""
    pipeline, _ = sounding
    rows = [Row("source", VIOLIN), Row("target", PIANO), Row("edited", VIOLIN)]
    made = textpatch.sample(pipeline, rows, Plan([Swap("all", "edited", "target")]))
    np.testing.assert_array_equal(made.images["edited"], made.images["target"])
    assert {entry.hits_k for entry in made.ledger.entries} == {5 * 2 * 4, 9 * 2 * 4}


def require_background_of_its_own(found):
    """A function's number stands beside the word's scores, and is 0 for the source itself."""
    assert found.result["baselines"]["source"]["background"]["value"] == 0
    assert found.result["baselines"]["target"]["background"]["value"] > 0
    assert "ssim" not in found.result["baselines"]["target"]


def moved(sound, source):
    return np.abs(sound - source).mean()


def test_an_instrument_is_localised(sounding, tmp_path):
    """Plain sounds are heard as what was asked for, and so is the target's text at all sites together."""
    pipeline, reader = sounding
    run = Run.open(tmp_path / "run", {"request": "instruments"})
    groups = [[0], [1], list(range(len(pipeline.sites)))]
    found = textpatch.localize(
        pipeline, [PAIR], groups=groups, reader=reader, background=moved, run=run
    )
    heard = {name: one["read"] for name, one in found.records[0]["pictures"].items()}
    assert heard["source"] == "violin" and heard["target"] == "piano"
    assert heard["site-0+1+2+3+4+5+6+7"] == "piano"
    assert found.result["what"] == "instrument" and found.result["ocr"]["labels"] == [
        "violin",
        "piano",
    ]
    require_background_of_its_own(found)
    publish(run, found.result, found.records)
    assert (run.folder / "heatmap.png").exists()
    assert (
        json.loads((run.folder / "results.json").read_text())["sites"][0]["background"]["value"] > 0
    )


def test_a_background_that_is_not_asked_is_noticed(monkeypatch, sounding):
    """Fault: a function of the background is taken for none."""
    plant(monkeypatch, scores.Background, "scores", "if self.score is None:", "if True:")
    pipeline, reader = sounding
    found = textpatch.localize(
        pipeline, [PAIR], sites=[0], reader=reader, background=moved, steps=1
    )
    with pytest.raises(KeyError):
        require_background_of_its_own(found)


REFUSED = {
    "no reader": (dict(), OCRError, r"makes sounds; give textpatch.metrics.Nearest\(score\)"),
    "a reader of words": (dict(reader="ppocr"), OCRError, "makes sounds"),
    "two readers": (dict(reader="ppocr", ocr="ppocr"), OCRError, "are the same argument"),
    "no background": (
        dict(reader=len, background="loud"),
        PatchError,
        "give a function of what is drawn and of its source's",
    ),
    "scores of another shape": (
        dict(reader=Nearest(lambda sounds, labels: [0] * len(sounds))),
        OCRError,
        r"scores of shape \(3,\)",
    ),
    "texts of another number": (dict(reader=lambda sounds: []), OCRError, "a text for each"),
    "a background of no number": (
        dict(reader=lambda sounds: ["x"] * len(sounds), background=lambda a, b: np.nan),
        PatchError,
        "gives a finite number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_heard_is_refused(sounding, case):
    """Readers and backgrounds that answer otherwise than they must, in a sentence."""
    pipeline, _ = sounding
    asked, error, says = REFUSED[case]
    with pytest.raises(error, match=says):
        textpatch.localize(pipeline, [PAIR], sites=[0], steps=1, **asked)


def test_pairs_with_names_are_read_from_a_file(tmp_path):
    """Two prompts and two names a line; a line of another form is named."""
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{VIOLIN}\t{PIANO}\tviolin\tpiano\n\n")
    assert read_labelled_pairs(path, "instrument") == [PAIR]
    path.write_text(f"{VIOLIN}\t{PIANO}\tviolin\n")
    with pytest.raises(PromptError, match="line 1: expected .*name in the target"):
        read_labelled_pairs(path, "instrument")
    path.write_text("\n")
    with pytest.raises(PromptError, match="found none"):
        read_labelled_pairs(path, "instrument")


def test_a_sound_is_shown_by_its_wave():
    """Loud parts are tall, silence is a line, and a picture stays as it is."""
    wave = np.concatenate([np.zeros(500), np.sin(np.arange(500))])
    heights = (np.asarray(as_picture(wave))[..., 0] < 128).sum(axis=0)
    assert heights[0] == 1 and heights[-1] > 40
    assert (np.asarray(as_picture(np.zeros((2, 9)))) < 128).any()
    assert as_picture(as_picture(wave)).size == as_picture(wave).size
