"""Saving: a folder is there whole or as it was, holds what was given, and nothing that it cannot hold."""

import os
from pathlib import Path

import pytest
import torch

from support.disks import files, no_file_beyond, resource
from support.small_models import save_small, small_pipeline
from textpatch.disk import placed, writing
from textpatch.errors import DiskError, PatchError, StoreError, WeightsError
from textpatch.exits import guarded
from textpatch.reference_models.decoders import LatentPixels
from textpatch.reference_models.pipeline import Pipeline
from textpatch.reference_models.text_encoders import SD3TextEncoders
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights import load, saving


@pytest.mark.skipif(resource is None, reason="resource limits")
@pytest.mark.parametrize("size", [500, 5_000, 300_000])
def test_a_full_disk_leaves_the_model_that_was_there(tmp_path, capsys, size):
    """No file may grow beyond a size, so that a config, a tokenizer or the weights cannot be written: exit
    74, and the folder has the first model's bytes, every one, with nothing beside it."""
    folder, other = save_small(tmp_path / "model"), small_pipeline(1)
    before = files(tmp_path)
    with no_file_beyond(size):
        code = guarded(save_small, folder, other)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        code == 74
        and f"cannot write {folder}: File too large; check path, permissions and free space" in line
    )
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "error, kind",
    [
        (OSError(28, "No space left on device"), DiskError),
        (OSError(13, "Permission denied"), StoreError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DiskError),
        (KeyError("os error 28"), KeyError),
    ],
)
def test_a_fault_on_the_way_leaves_the_model_that_was_there(tmp_path, monkeypatch, error, kind):
    """Whatever stops the second file: the old folder, byte by byte, and an error of the family if it is the
    system's."""
    folder, written, real = save_small(tmp_path / "model"), [], saving.save_file
    before = files(tmp_path)

    def failing(*arguments, **options):
        written.append(arguments)
        if len(written) == 2:
            raise error
        real(*arguments, **options)

    monkeypatch.setattr(saving, "save_file", failing)
    with pytest.raises(kind) as raised:
        save_small(folder, small_pipeline(1))
    assert type(raised.value) is kind and files(tmp_path) == before


def test_a_shorter_pipeline_replaces_a_longer_one(tmp_path):
    """SD3 without T5, saved where one with T5 was, is read back without: nothing of the old one is left."""
    made = small_pipeline()
    encoders = made.encoders
    two = SD3TextEncoders(
        encoders.text_encoder, encoders.text_encoder_2, None, encoders.tokenizers[:2], width=128
    )
    shorter = Pipeline(two, made.denoiser, made.schedule, made.decoder, made.defaults, "shorter")
    folder = save_small(save_small(tmp_path / "model", made), shorter)
    assert load(folder).encoders.text_encoder_3 is None
    assert (
        files(folder) == files(save_small(tmp_path / "alone", shorter))
        and len(list(tmp_path.iterdir())) == 2
    )


def test_other_things_are_not_replaced(tmp_path):
    """A folder with something in it and no pipeline stays as it is; an empty one is filled; a file is
    none."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    with pytest.raises(
        StoreError, match="thesis holds something and no pipeline; give a new folder"
    ):
        save_small(tmp_path / "thesis")
    assert files(tmp_path) == {"thesis/chapter.txt": b"one"}
    with pytest.raises(StoreError, match="cannot write .*chapter.txt: .*check path"):
        save_small(tmp_path / "thesis" / "chapter.txt")
    (tmp_path / "empty").mkdir()
    load(save_small(tmp_path / "empty"))


@pytest.mark.parametrize(
    "name, value, matrices",
    [
        ("proj_out.weight", 1e5, torch.float16),
        ("proj_out.bias", 7e4, torch.float8_e4m3fn),
        ("proj_out.weight", 500.0, torch.float8_e4m3fn),
        ("proj_out.weight", float("nan"), torch.float32),
    ],
)
def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path, name, value, matrices):
    """Beyond 65504 in float16, 448 in float8 (where torch would store 448), or none at all: the tensor is
    named."""
    made = small_pipeline()
    with torch.no_grad():
        made.denoiser.get_parameter(name).view(-1)[1] = value
    dtype = "float16" if "bias" in name else str(matrices).removeprefix("torch.")
    with pytest.raises(
        WeightsError,
        match=f"tensor '{name}' has magnitudes up to {value:.6g}, torch.{dtype} holds ",
    ):
        saving.save_pipeline(tmp_path / "model", made, {}, matrices=matrices)
    assert files(tmp_path) == {}


def test_a_model_of_latents_is_refused(tmp_path):
    """Its VAE would not be written, and what is read back would take latents for pictures."""
    made = small_pipeline(in_channels=4, out_channels=4)
    made.decoder = LatentPixels(VAE(VAEConfig(block_out_channels=(32, 32), layers_per_block=1)))
    with pytest.raises(
        PatchError, match="small has LatentPixels for a decoder, .*models of pixels alone"
    ):
        save_small(tmp_path / "model", made)
    assert files(tmp_path) == {}


def test_a_folder_that_cannot_be_put_in_place_is_put_back(tmp_path, monkeypatch):
    """The new folder cannot be renamed once the old one is aside: the old one is back, and nothing else is
    left."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    real = os.replace

    def replace(a, b):
        if ".old" not in (a.suffix, b.suffix):
            raise OSError(5, "Input/output error")
        real(a, b)

    with (
        pytest.raises(DiskError, match="cannot write .*model: Input/output error"),
        monkeypatch.context() as patched,
    ):
        patched.setattr(os, "replace", replace)
        with placed(tmp_path / "model") as temporary:
            temporary.mkdir()
    assert files(tmp_path) == {"model/old": b"old"}


def test_what_is_no_fault_of_the_system_passes():
    """An error without the system's number is raised as it is."""
    with pytest.raises(ZeroDivisionError), writing(Path("x")):
        1 / 0  # noqa: B018
