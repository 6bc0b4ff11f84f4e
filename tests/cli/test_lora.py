"""`generate --lora` draws with an adapter, in a run folder of its own, or says why it cannot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.adapters import random_adapter
from support.small_models import PROMPTS, save_small
from textpatch import cli, load


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("lora") / "small")


def drawn(model, capfd, *options) -> np.ndarray:
    """The sheet that a command leaves."""
    assert cli.main(["generate", str(model), PROMPTS[0], "--steps", "1", "-q", *options]) == 0
    return np.asarray(Image.open(capfd.readouterr().out.strip()))


def test_an_adapter_changes_the_picture_by_its_scale(model, tmp_path, monkeypatch, capfd):
    """With the adapter another picture is drawn, at scale 0 the plain one, each in its own folder."""
    monkeypatch.chdir(tmp_path)
    random_adapter(load(model).denoiser, sites=(0, 1)).save("a.safetensors", "kohya")
    plain = drawn(model, capfd)
    adapted = drawn(model, capfd, "--lora", "a.safetensors")
    off = drawn(model, capfd, "--lora", "a.safetensors", "--lora-scale", "0")
    assert np.array_equal(plain, off) and not np.array_equal(plain, adapted)
    assert len(list(Path("runs").iterdir())) == 3


def test_a_run_folder_is_taken_for_its_adapter(model, tmp_path, monkeypatch, capfd):
    """The folder of a finished run draws what its file does, and one without the file is one line."""
    monkeypatch.chdir(tmp_path)
    Path("tuned").mkdir()
    command = ["generate", str(model), PROMPTS[0], "--lora", "tuned"]
    assert cli.main(command) == 2
    told = capfd.readouterr().err
    assert "tuned has neither peft's adapter_config.json nor adapter.safetensors" in told
    assert not Path("runs").exists()
    random_adapter(load(model).denoiser, sites=(0, 1)).save("tuned/adapter.safetensors")
    of_folder = drawn(model, capfd, "--lora", "tuned")
    of_file = drawn(model, capfd, "--lora", "tuned/adapter.safetensors")
    assert np.array_equal(of_folder, of_file)
    assert not np.array_equal(of_folder, drawn(model, capfd))


def test_an_adapter_of_another_model_draws_nothing(model, tmp_path, monkeypatch, capfd):
    """An adapter whose sites the model does not have is one line, and no folder is left."""
    monkeypatch.chdir(tmp_path)
    random_adapter(load("tiny-mmdit").denoiser, sites=(5,)).save("other.safetensors")
    command = ["generate", str(model), PROMPTS[0], "--lora", "other.safetensors"]
    assert cli.main(command) == 2
    assert "0 of 4 projections" in capfd.readouterr().err and not Path("runs").exists()
