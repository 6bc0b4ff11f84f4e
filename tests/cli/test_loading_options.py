"""How a model is loaded is said on the command line as in Python, and a run and its audit know it."""

import inspect
import re
from pathlib import Path

import pytest

from support.small_models import PROMPTS, save_small, small_pipeline
from textpatch import cli, load
from textpatch.cli import models
from textpatch.cli.options import LOADING, READING
from textpatch.cli.parser import command_parser
from textpatch.disk import read_json
from textpatch.weights.fingerprint import model_sha256
from textpatch.weights.loading import load_denoiser

# the verbs that open a model, and the options of how it is loaded that each has
VERBS = dict.fromkeys("generate localize edit sanitize finetune rewrite doctor".split(), LOADING)
VERBS |= dict.fromkeys(["sites", "export"], READING)
VERBS |= {"audit": ("text_encoders", "vae", "follow_links")}  # its run says the others
SCHEDULE = "flow_euler_karras"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two small models whose texts are read otherwise, and a run of edit with parts of both."""
    here = tmp_path_factory.mktemp("loading")
    save_small(here / "small")
    save_small(here / "other", small_pipeline(1))
    target = PROMPTS[0].replace("HELLO", "WORLD")
    options = ["--source", PROMPTS[0], "--target", target, "--sites", "1", "--steps", "1"]
    asked = ["--text-encoders", "other", "--schedule", SCHEDULE]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        assert cli.main(["edit", "small", *options, *asked]) == 0
    return here


@pytest.mark.parametrize("verb", VERBS)
def test_options_have_the_names_of_the_arguments(verb):
    """Every verb that opens a model takes them; `load` and `load_denoiser` have no others.

    But for where tensors lie: a process that ends after one command gains nothing from leaving them in files.
    """
    held = {action.dest for action in command_parser().verbs[verb]._actions}
    assert held & {*LOADING} == {*VERBS[verb]}
    for function, names in ((load, LOADING), (load_denoiser, READING)):
        arguments = inspect.signature(function).parameters.keys()
        assert arguments - {"where", "device", "dtype", "mapped"} == {*names}


def test_a_run_says_how_its_model_was_loaded(here, monkeypatch):
    """Its request has the schedule and the other's weights, its folder the model's name, its notes both."""
    monkeypatch.chdir(here)
    (folder,) = Path("runs").glob("edit-small-????????")
    manifest = read_json(folder / "manifest.json")
    request, notes = manifest["request"], manifest["loaded"]
    assert request["model"] == "small" and request["schedule"] == SCHEDULE
    assert request["text_encoders"] == model_sha256("other") != request["weights"]
    assert "text encoders and tokenizers of other" in notes and "karras" in notes[0]
    assert notes == list(load("small", text_encoders="other", schedule=SCHEDULE).notes)


def test_an_audit_takes_what_its_run_says(here, monkeypatch, capfd):
    """The schedule is the run's own; the other model must be named, and be the one of the run."""
    monkeypatch.chdir(here)
    (folder,) = Path("runs").glob("edit-*")
    command = ["audit", str(folder), "--model", "small"]
    assert cli.main(command) == 2
    assert "--text-encoders: " in (said := capfd.readouterr().err) and "the model's own" in said
    assert cli.main([*command, "--text-encoders", "other"]) == 0
    assert "2 of 2 checks passed" in capfd.readouterr().out


def test_prompts_are_read_as_asked(here, monkeypatch):
    """Long prompts and clip skip are in the request and the first note; the folder has the model's name."""
    monkeypatch.chdir(here)
    reading = ["--long-prompts", "2", "--clip-skip", "1"]
    assert cli.main(["generate", "tiny-sdxl", PROMPTS[0], "--steps", "1", *reading]) == 0
    (folder,) = Path("runs").glob("generate-tiny-sdxl-????????")
    manifest = read_json(folder / "manifest.json")
    request = manifest["request"]
    assert (request["model"], request["long_prompts"], request["clip_skip"]) == ("tiny-sdxl", 2, 1)
    assert manifest["loaded"][0].startswith("tiny-sdxl with clip skip 1 of 2 windows: ")
    pipeline = load("tiny-sdxl", clip_skip=1, schedule="ddim", long_prompts=2)
    again = pipeline.with_schedule("euler").with_long_prompts(1)
    assert re.fullmatch("tiny-sdxl with clip skip 1 sampled by Euler.*", again.name)


REFUSED = {
    "windows of a T5": (
        ["generate", "small", "x", "--long-prompts", "2"],
        "2 windows were asked of SD3TextEncoders",
    ),
    "a variant of nobody": (
        ["generate", "small", "x", "--variant", "fp16"],
        "no file of the variant",
    ),
    "no moving average": (["sites", "small", "--ema"], "no moving average"),
    "a published name": (["sites", "sdxl-base-1.0", "--variant", "fp16"], "no file of the variant"),
    "a diffusion": (["doctor", "small", "--schedule", "ddim"], "sampled by FlowMatchEuler"),
    "another VAE": (["doctor", "small", "--vae", "nowhere"], "no model 'nowhere'"),
    "readers": (["doctor", "--readers", "--ema"], "how a model is loaded"),
    "diffusers' class": (["sites", "--diffusers", "small", "--ema"], "--ema chooses among files"),
    "a function": (["generate", "os:getcwd", "x", "--follow-links"], "os:getcwd loads its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_so_is_refused(case, here, monkeypatch, capfd):
    """In the words of `load`, or because the option would have no effect."""
    command, says = REFUSED[case]
    monkeypatch.chdir(here)
    assert cli.main(command) == 2
    out, err = capfd.readouterr()
    assert says in out + err


def test_a_flag_that_is_not_passed_on_is_noticed(here, monkeypatch):
    """Fault: `load` is asked for the model alone."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(models, "LOADING", ())
    assert cli.main(["generate", "small", PROMPTS[0], "--steps", "1", "--variant", "fp16"]) == 0
