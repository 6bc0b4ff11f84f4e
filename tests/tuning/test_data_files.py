"""Data sets in files come back as written, and one that is not whole is refused by a file's name."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from support.patched_calls import refused
from support.planting import plant
from support.small_models import PROMPTS, small_pipeline
from support.strategies import fixed_case
from textpatch.errors import StoreError
from textpatch.reference_models.pipeline import Pipeline
from textpatch.tuning import data_files
from textpatch.tuning.data_files import read_data, write_folder, write_latents
from textpatch.tuning.training_data import examples
from textpatch.weights.signs.drawing import Sign, SignFormat
from textpatch.weights.signs.examples import HELD_OUT, STYLES, drawn, sign_examples

COLOURS_BY_CAPTION = {PROMPTS[0]: (255, 0, 0), PROMPTS[1]: (0, 128, 0), "two\nlines": (0, 0, 255)}


def pairs() -> list:
    return [(text, Image.new("RGB", (96, 32), rgb)) for text, rgb in COLOURS_BY_CAPTION.items()]


def law_captions_stay_with_their_pictures(folder: Path) -> None:
    """Whatever the order of names, a caption comes back with the picture that it is of."""
    found = read_data(folder)
    assert len(found) == len(COLOURS_BY_CAPTION)
    assert {text: picture.getpixel((0, 0)) for text, picture in found} == COLOURS_BY_CAPTION


def beside(folder: Path) -> Path:
    """A folder with a caption beside each picture, of several formats."""
    folder.mkdir()
    for (text, picture), name in zip(pairs(), ["z.png", "a.bmp", "m.webp"], strict=True):
        picture.save(folder / name, lossless=True)
        (folder / name).with_suffix(".txt").write_text(f"{text}\n", "utf-8")
    return folder


def test_captions_stay_with_their_pictures(tmp_path):
    """Beside the pictures, and in metadata.jsonl, a folder is read back as it was written."""
    law_captions_stay_with_their_pictures(beside(tmp_path / "beside"))
    write_folder(tmp_path / "written", pairs())
    law_captions_stay_with_their_pictures(tmp_path / "written")


def test_a_data_set_is_replaced_and_nothing_else(tmp_path):
    """A data set is written anew in the place of another; whatever else is there stays, and is named."""
    folder = tmp_path / "written"
    write_folder(folder, pairs())
    write_folder(folder, pairs()[:1])
    assert len(read_data(folder)) == 1
    (folder / "notes.txt").write_text("mine")
    with refused("holds notes.txt"):
        write_folder(folder, pairs())
    with refused("of no pairs"):
        write_folder(tmp_path / "none", [])
    assert (folder / "notes.txt").read_text() == "mine"


def test_planted_another_order_is_noticed(tmp_path, monkeypatch):
    """Fault: captions in the order of their own names."""
    folder = beside(tmp_path / "beside")
    plant(monkeypatch, data_files, "_captions_beside", "captions[name] =", "captions[names[-1]] =")
    with pytest.raises(AssertionError):
        law_captions_stay_with_their_pictures(folder)


def metadata(folder: Path, text: str) -> None:
    (folder / "metadata.jsonl").write_text(text, "utf-8")


def truncated(folder: Path) -> None:
    path = folder / "z.png"
    noise = np.random.default_rng(0).integers(0, 255, (32, 96, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


ONE = json.dumps({"file_name": "z.png", "text": "a"}) + "\n"
BAD = {
    "no caption": (
        lambda folder: (folder / "z.txt").unlink(),
        "z.png has no caption, z.txt beside it",
    ),
    "no picture": (
        lambda folder: (folder / "z.png").unlink(),
        "z.txt is the caption of no picture",
    ),
    "truncated": (truncated, "z.png"),
    "no pixels": (lambda folder: (folder / "z.png").write_text("x"), "z.png is no picture"),
    "latin": (lambda folder: (folder / "z.txt").write_bytes(b"\xe4"), "z.txt is no UTF-8 text"),
    "no line": (lambda folder: metadata(folder, ONE), "a.bmp has no line in metadata.jsonl"),
    "twice": (lambda folder: metadata(folder, 2 * ONE), "line 2: 'z.png' has a line already"),
    "no text": (
        lambda folder: metadata(folder, '{"file_name": "z.png", "label": 1}'),
        "the keys file_name",
    ),
    "no object": (lambda folder: metadata(folder, "[]"), "give an object with file_name and text"),
    "no JSON": (lambda folder: metadata(folder, ONE + "{"), "line 2 is no JSON"),
    "another": (
        lambda folder: metadata(folder, "".join(ONE.replace("z.png", name) for name in NAMES)),
        "names 'y.png', and",
    ),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no picture"),
}
NAMES = "z.png", "a.bmp", "m.webp", "y.png"


@pytest.mark.parametrize("bad", BAD)
def test_folders_that_are_not_whole_are_refused(bad, tmp_path):
    """The file is named, and what to do with it."""
    folder = beside(tmp_path / "beside")
    damage, says = BAD[bad]
    damage(folder)
    with refused(says):
        read_data(folder)


def test_latents_are_read_as_they_were_written(tmp_path):
    """Latents keep their bits and captions; a file of something else is refused."""
    latents = torch.randn(3, 2, 4, 8, dtype=torch.float64)
    write_latents(tmp_path / "data.safetensors", list("abc"), latents)
    found = read_data(tmp_path / "data.safetensors")
    assert [caption for caption, _ in found] == list("abc")
    assert torch.equal(torch.stack([each for _, each in found]), latents)
    write_latents(tmp_path / "few.safetensors", list("ab"), latents)
    with refused("latents (3, 2, 4, 8) and 2 captions"):
        read_data(tmp_path / "few.safetensors")
    save_file({"x": latents}, tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="other.safetensors is no data set"):
        read_data(tmp_path / "other.safetensors")
    with refused("no data at"):
        read_data(tmp_path / "nowhere")


def test_data_are_a_place_a_list_or_whatever_ends(tmp_path):
    """A folder, a list and a generator of the same pictures are the same examples."""
    pipeline = small_pipeline()
    some = pairs()[:2]
    write_folder(tmp_path / "written", some)
    hashes = {
        examples(pipeline, data, 2).sha256
        for data in (some, (pair for pair in some), str(tmp_path / "written"))
    }
    assert len(hashes) == 1
    write_folder(tmp_path / "sizes", [some[0], (PROMPTS[1], Image.new("RGB", (64, 32)))])
    with refused("000001.png is (3, 32, 64)"):
        examples(pipeline, tmp_path / "sizes", 1)
    with refused("the data are a int"):
        examples(pipeline, 3, 1)
    with refused("give more, or a smaller batch"):
        examples(pipeline, some[:1], 2)


def test_pictures_for_a_model_of_latents_are_encoded():
    """The latents are the mean of the VAE's posterior, and a picture of another size is refused by name."""

    class Halving(torch.nn.Module):
        """A VAE that keeps the red of every second pixel, twice."""

        config = SimpleNamespace(downsampling=2)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, pixels):
            return pixels[:, :1, ::2, ::2].repeat(1, 2, 1, 1)

    made = fixed_case("sdxl").pipeline
    decoder = SimpleNamespace(vae=Halving())
    pipeline = Pipeline(
        made.encoders, made.denoiser, made.schedule, decoder, made.defaults, "small"
    )
    height, width = made.defaults.height, made.defaults.width
    picture = Image.new("RGB", (2 * width, 2 * height), (255, 0, 0))
    own = examples(pipeline, [("a", picture)], 1)
    assert torch.equal(own.latents, torch.ones(1, 2, height, width, dtype=made.dtype))
    with refused(f"example 0 has {width} x {height} pixels"):
        examples(pipeline, [("a", picture.resize((width, height)))], 1)


def test_signs_to_learn_from():
    """Words are of nobody's test, with a letter asked for; faded signs have less colour and no pattern."""
    found = sign_examples(30, letters="AE")
    words = [caption.split('"')[1] for caption, _ in found]
    assert all({*word} & {*"AE"} and word not in HELD_OUT for word in words)
    assert found[0][0] == sign_examples(1, letters="AE")[0][0]
    fmt = SignFormat()
    sign = Sign("HOUSE", "red", "badge", "blue", "striped")
    plain, faded = (
        np.asarray(drawn(sign, style, fmt, random.Random(0)), float) for style in STYLES
    )
    assert np.ptp(faded[0], 0).max() < 1 < np.ptp(plain[0], 0).max()  # a bare wall
    assert np.ptp(faded, 2).mean() < 0.5 * np.ptp(plain, 2).mean()
    with refused("known: plain, faded"):
        sign_examples(1, style="x")
