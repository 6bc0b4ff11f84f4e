"""Options of the command line: what is asked about, of pictures of which size, and what may differ
from a stored run.
"""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.by_default import taking
from support.localizing import by_pixels
from support.small_models import (
    DEFAULTS,
    PROMPTS,
    save_small,
    small_denoiser,
    small_encoders,
    small_pipeline,
)
from support.strategies import randomize
from textpatch import cli, load, metrics
from textpatch.auditing import finished
from textpatch.disk import read_json
from textpatch.errors import PatchError, StoreError
from textpatch.metrics.readers import named
from textpatch.pipelines import picture_size, sized
from textpatch.reference_models.decoders import LatentPixels
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import FlowMatchEuler
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.runs.folder import Run
from textpatch.weights import shipped_models
from textpatch.weights.signs.pairs import ATTRIBUTES, attribute_pairs

SOURCE, TARGET = PROMPTS[0], PROMPTS[0].replace("HELLO", "WORLD")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("options") / "small"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    by_pixels(monkeypatch)
    return tmp_path


def refused(here, capfd, arguments, *says: str) -> None:
    """Exit code 2, one line on stderr that says all of `says`, and not one file more than before."""
    before = sorted(here.rglob("*"))
    capfd.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert (
        out == "" and err.count("\n") == 1 and [word for word in says if word not in err] == []
    ), err
    assert sorted(here.rglob("*")) == before


def request_of(folder: Path) -> dict:
    return read_json(folder / "manifest.json")["request"]


EXAMPLES = [shlex.split(line)[1:] for line in cli.EXAMPLES.splitlines()[1:]]


# --- what the pairs differ in


@pytest.mark.long
def test_the_example_of_what_finds_the_site(here, capfd):
    """As --help shows it: site 1 of tiny-mmdit carries the style; table, report and audit are of
    the style.

    By default test_attributes.py searches for attributes.
    """
    (example,) = [words for words in EXAMPLES if "--what" in words]
    assert cli.main([*example, "--out", "run"]) == 0
    assert "Site 1 (transformer_blocks.1.attn) carries the style." in capfd.readouterr().out
    result, request = read_json(here / "run/results.json"), request_of(here / "run")
    assert (
        result["what"] == request["what"] == "style"
        and result["ocr"]["engine"] == "nearest drawing"
    )
    pairs = attribute_pairs("style", 4)
    assert request["pairs"] == [[pair.source, pair.target] for pair in pairs]
    assert [(p["word"], p["target_word"]) for p in result["pairs_list"]] == [
        pair.words for pair in pairs
    ]
    text = " ".join(re.sub("<[^>]+>", "", (here / "run/report.html").read_text()).split())
    for said in (
        "carries the style.",
        "carry the style?",
        "asks for another style",
        "styles read by",
        "nearest drawing",
    ):
        assert said in text
    assert "target's word" not in text and "word passes" not in text
    assert cli.main(["audit", "run"]) == 0 and "36 of 36 checks passed" in capfd.readouterr().out


def test_a_word_is_what_it_was(model, here, capfd):
    """--what word is the default: the same folder, whose request has the entries it had before
    there was a choice.
    """
    command = ["localize", model, "--pairs", "1", "--steps", "1"]
    assert cli.main(command) == 0 and cli.main([*command, "--what", "word"]) == 0
    (folder,) = (here / "runs").iterdir()
    assert request_of(folder).keys() == {
        "model",
        "weights",
        "dtype",
        "command",
        "pairs",
        "seeds",
        "sites",
        "sets",
        "steps",
        "guidance",
        "start",
        "branch",
        "ocr",
    }
    assert "what" not in read_json(folder / "results.json")


def test_help_names_every_attribute_and_model(capsys):
    """`localize --help` lists what --what can be, and the shipped models."""
    with pytest.raises(SystemExit):
        cli.main(["localize", "--help"])
    help_ = capsys.readouterr().out
    (told,) = re.findall(r"\n  --what ATTRIBUTE(.*?)\n  --", help_, re.DOTALL)
    assert (
        [name for name in ATTRIBUTES if name not in told]
        == [name for name in shipped_models() if name not in help_]
        == []
    )


@pytest.mark.parametrize(
    "beside",
    [
        ["--prompts", "pairs.tsv"],
        ["--bench", "simple"],
        ["--limit", "1"],
        ["--strict"],
        ["--same-scene"],
        ["--mode", "contribution"],
    ],
    ids=" ".join,
)
def test_options_for_words_are_refused_beside_another_attribute(beside, model, here, capfd):
    """They would have no effect on pairs that differ in a colour: one line that names both, nothing
    written.
    """
    option = "--mode contribution" if "--mode" in beside else beside[0]
    refused(
        here,
        capfd,
        ["localize", model, "--what", "colour", *beside],
        f"--what colour was given with {option}, which",
    )


def test_attributes_that_cannot_be_asked_about(model, here, capfd):
    """An unknown one, more pairs than words, and pictures of another size than signs are read from."""
    refused(
        here, capfd, ["localize", model, "--what", "colours"], "no 'colours'", "closest: colour"
    )
    refused(
        here, capfd, ["localize", model, "--what", "wall", "--pairs", "999"], "asked for 999 pairs"
    )
    refused(
        here,
        capfd,
        ["localize", model, "--what", "wall", "--height", "64"],
        "signs of 32x96 pixels",
        "are 64x96",
    )


def test_words_that_the_reader_cannot_spell(model, here, capfd, monkeypatch):
    """Refused in one line before the run folder is opened; the reader's alphabet is that of the
    words asked for.
    """
    monkeypatch.setattr(named, "alphabet_of", lambda words: asked.extend(words) or "XYZ")
    monkeypatch.setattr(metrics.Tesseract, "self_test", lambda self: None)
    asked = []
    refused(
        here,
        capfd,
        ["localize", model, "--pairs", "1"],
        "the word ",
        "Tesseract answers with 'XYZ' alone",
    )
    assert len(asked) == 2


# --- sizes


def test_pictures_of_another_size(model, here, capfd):
    """generate --height H --width W = the pipeline at that size, bit for bit; the request holds
    what was given alone.
    """
    command = ["generate", model, SOURCE, "--seed", "3"]
    assert cli.main([*command, "--out", "own"]) == 0
    assert cli.main([*command, "--height", "64", "--width", "48", "--out", "both"]) == 0
    assert cli.main([*command, "--width", "48", "--out", "one"]) == 0
    pictures = {
        name: Image.open(next((here / name / "images").iterdir()))
        for name in ("own", "both", "one")
    }
    assert [pictures[name].size for name in pictures] == [(96, 32), (48, 64), (48, 32)]
    assert (
        pictures["both"].tobytes() == load(model).at(64, 48).generate(SOURCE, seeds=3)[0].tobytes()
    )
    own = request_of(here / "own")
    assert request_of(here / "both") == own | {"height": 64, "width": 48} and request_of(
        here / "one"
    ) == own | {"width": 48}


RUNS = {
    "edit": ["--source", SOURCE, "--target", TARGET, "--sites", "1", "--steps", "2"],
    "localize": ["--pairs", "1", "--steps", "2"],
}


@pytest.mark.parametrize("command", RUNS)
def test_swaps_at_another_size_are_audited_there(command, model, here, monkeypatch, capfd):
    """All pictures of a run have the size asked for, and its audit calls the denoiser on latents of
    that size alone.
    """
    assert (
        cli.main(
            [command, model, *RUNS[command], "--height", "64", "--width", "48", "--out", "run"]
        )
        == 0
    )
    assert {Image.open(path).size for path in (here / "run/images").iterdir()} == {(48, 64)}
    audit, seen = finished.audit, []
    monkeypatch.setattr(
        finished,
        "audit",
        lambda pipeline, *a, **k: seen.append(pipeline) or audit(pipeline, *a, **k),
    )
    assert cli.main(["audit", "run", "--model", model]) == 0
    assert {tuple(pipeline.noise([0]).shape) for pipeline in seen} == {(1, 3, 64, 48)}


@pytest.mark.parametrize(
    "size, says",
    taking(
        lambda case: case[0][1] in ("33", "0"),
        [
            (["--height", "33"], "do not divide into patches of 4x4"),
            (["--height", "4000"], "position table holds 24x24"),
            (["--width", "0"], "give a height and a width of 1 or more"),
            (["--width", "-4"], "give a height and a width of 1 or more"),
        ],
    ),
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["generate", *RUNS])
def test_sizes_that_a_model_cannot_take(command, size, says, model, here, capfd):
    """Refused by every command before it makes a picture or a folder; by default one of each kind."""
    refused(here, capfd, [command, model, *RUNS.get(command, [SOURCE]), *size], says)


def test_pictures_too_small_to_compare(model, here, capfd):
    """Backgrounds are compared in windows of 11 x 11: what has none is refused before anything is made."""
    small = ["localize", model, *RUNS["localize"], "--height", "8"]
    refused(
        here, capfd, small, "pictures of 8x96 pixels", "windows of 11x11", "ask for 11 at least"
    )


def test_a_size_beside_a_second_stage_is_refused(model, here, capfd):
    """--upscale draws at its own size, so that --height would not be that of the pictures."""
    refused(
        here,
        capfd,
        ["generate", model, SOURCE, "--height", "64", "--upscale", model],
        "--upscale",
        "--height",
        "leave one",
    )


@pytest.fixture(scope="module")
def latent():
    """A small pipeline whose latents are half as high and wide as its pictures."""
    vae = randomize(
        VAE(VAEConfig(block_out_channels=(32, 64), layers_per_block=1)), seed=1
    ).requires_grad_(False)
    denoiser = small_denoiser(in_channels=4, out_channels=4)
    parts = small_encoders(), denoiser, FlowMatchEuler(), LatentPixels(vae)
    return Pipeline(*parts, Defaults(height=16, width=24, steps=1, guidance=1.0), "latent").eval()


@settings(max_examples=4)
@given(st.integers(1, 12), st.integers(1, 12))
def test_sizes_are_pixels(latent, high, wide):
    """Behind a VAE that halves each side, too: the picture has the pixels asked for, of patches of 8."""
    other = sized(latent, 8 * high, 8 * wide)
    (picture,) = other.generate(SOURCE, seeds=0)
    assert picture.size == (8 * wide, 8 * high) == picture_size(other)[::-1] and picture_size(
        latent
    ) == (32, 48)


def test_pixels_between_latents_are_refused(latent):
    """No latents make 33 pixels, and none are rounded to."""
    with pytest.raises(
        PatchError, match=r"33x48 pixels \(height x width\).* latent .* multiples of 2"
    ):
        sized(latent, 33, None)


def test_the_own_size_is_the_model_itself():
    """Asked for or not: the same pipeline, which knows where its letters stand."""
    pipeline = small_pipeline()
    assert sized(pipeline, None, None) is sized(pipeline, DEFAULTS.height, None) is pipeline
    assert sized(pipeline, 64, None).defaults.text_box is None


# --- what may differ


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_what_is_made_anew_is_not_gone_on_with(command, model, here, capfd):
    """generate and edit make all their pictures each time: another request in a run's folder is
    refused, --allow is no option.
    """
    asked = [command, model, *RUNS.get(command, [SOURCE]), "--out", "run"]
    assert cli.main(asked) == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    capfd.readouterr()
    assert cli.main([*asked, "--seed", "1"]) == 2
    assert (
        capfd.readouterr()
        .err.rstrip()
        .endswith("stored 0, asked 1); give another --out, ask for the same")
    )
    with pytest.raises(SystemExit):
        cli.main([*asked, "--allow", "seed"])
    assert before == {
        path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()
    }


def test_allowing_in_a_new_folder_is_refused(model, here, capfd):
    """--allow has nothing to allow where there is no run: one line says so, and no folder is made."""
    asked = ["localize", model, *RUNS["localize"], "--allow", "weights", "ocr.version"]
    refused(
        here,
        capfd,
        [*asked, "--out", "new"],
        "weights, ocr.version may differ, but new holds no run yet",
        "leave out --allow",
    )
    refused(here, capfd, asked, "holds no run yet")


def test_allowing_needs_a_stored_request(tmp_path):
    """The same of a run folder opened in Python: a new one, an empty one, one of other things; then
    of a stored one it may.
    """
    asked = {"request": {"steps": 1}}
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("x")
    for name in ("new", "empty", "other"):
        with pytest.raises(StoreError, match="steps may differ, but .* holds no run yet"):
            Run.open(tmp_path / name, asked, allow=["steps"])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "other", "thesis.tex"]
    stored = Run.open(tmp_path / "new", asked)
    assert Run.open(stored.folder, {"request": {"steps": 2}}, allow=["steps"]).changed == {
        "request.steps": (1, 2)
    }


# --- guidance


@pytest.mark.parametrize("command", RUNS)
def test_a_branch_without_another_is_refused(command, model, here, capfd):
    """Guidance 0 is none, as the cards of few-step models write it: a swap in one of two branches is none."""
    asked = [command, model, *RUNS[command], "--guidance", "0", "--branch", "cond"]
    refused(here, capfd, asked, "branch is 'cond' at guidance 0", "leave it out")
