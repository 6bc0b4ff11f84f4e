"""CLIP-T and CLIP-I by a tiny random CLIP in a folder, beside the model's own heads called one at a time."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from support.clips import SIZE, WINDOW, a_clip
from support.planting import plant
from textpatch import metrics
from textpatch.errors import PatchError, PromptError, WeightsError
from textpatch.metrics import clip_scores

PROMPTS = ["a cat", "dog", "bird of", "the sea"]


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [noise(i, 40 + i, 50 - 3 * i) for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return a_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return metrics.CLIP(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def vectors(clip, picture, prompt) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of one picture and one prompt by the model's own forward, which normalises them."""
    values = torch.from_numpy(clip_scores.prepared(picture, SIZE))[None]
    ids = clip.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = clip.model(input_ids=ids, pixel_values=values)
    return made.image_embeds[0].double().numpy(), made.text_embeds[0].double().numpy()


def require_scores_of_the_model(clip):
    """CLIP-T, its chance level and CLIP-I are 2.5 max(cos, 0) of what the model says of each alone."""
    pairs = [vectors(clip, *pair) for pair in zip(PICTURES, PROMPTS, strict=True)]
    table = np.array([[2.5 * max(picture @ text, 0) for _, text in pairs] for picture, _ in pairs])
    found = clip.text_scores(PICTURES, PROMPTS)
    assert found == pytest.approx(table.diagonal(), abs=1e-5)
    others = table[~np.eye(4, dtype=bool)]
    assert clip.text_chance(PICTURES, PROMPTS) == pytest.approx(others.mean(), abs=1e-5)
    likeness = [2.5 * max(a @ b, 0) for (a, _), (b, _) in zip(pairs, pairs[::-1], strict=True)]
    assert clip.image_scores(PICTURES, PICTURES[::-1]) == pytest.approx(likeness, abs=1e-5)
    assert table.min() == 0 and table.max() > 0.1  # both sides of the maximum are seen


def test_scores_are_those_of_the_model(clip):
    """Of pictures of four sizes and prompts of other lengths, in one batch."""
    require_scores_of_the_model(clip)


def test_batches_change_nothing(clip, monkeypatch):
    """Batches of one and of all are the same to rounding."""
    found = clip.picture_features(PICTURES)
    texts = clip.text_features(PROMPTS)
    monkeypatch.setattr(clip_scores, "BATCH", 1)
    assert clip.picture_features(PICTURES) == pytest.approx(found, abs=1e-6)
    assert clip.text_features(PROMPTS) == pytest.approx(texts, abs=1e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4))


@pytest.mark.parametrize("size", [(40, 50), (33, 97), (97, 33), (32, 32), (20, 31), (224, 225)])
def test_pictures_are_prepared_as_transformers_does(size):
    """Its processor that needs no torchvision gives the same numbers, up to the last bits of float32."""
    pil = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = pil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    picture = noise(1, *size)
    wanted = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    assert clip_scores.prepared(picture, SIZE) == pytest.approx(np.asarray(wanted), abs=1e-5)
    assert (
        clip_scores.prepared(Image.fromarray(picture), SIZE) == clip_scores.prepared(picture, SIZE)
    ).all()


def test_older_versions_return_vectors(clip, monkeypatch):
    """transformers 4 gives tensors, and 5 an object with them in it."""
    found = clip.text_scores(PICTURES, PROMPTS)
    for name in ("get_image_features", "get_text_features"):
        own = getattr(clip.model, name)

        def bare(own=own, **given):
            return getattr(own(**given), "pooler_output", None)

        monkeypatch.setattr(clip.model, name, bare)
    assert (clip.text_scores(PICTURES, PROMPTS) == found).all()


def test_long_prompts_are_refused_or_cut(clip):
    """The window has room for ten letters between begin and end."""
    fits = "abcdefghij"
    assert len(clip.tokenizer(fits)["input_ids"]) == WINDOW
    clip.text_features([fits])
    with pytest.raises(
        PromptError, match="a prompt of 13 tokens begins 'abcdefghijk', and this CLIP reads 12"
    ):
        clip.text_features(["a", fits + "k"])
    with pytest.raises(PromptError, match="a prompt of 5000 letters"):
        clip.text_features(["a" * 5000])
    cut = clip.text_features(["ab cd ef gh ij kl", "ab cd ef gh ij mn"], cut=True)
    assert cut[0] == pytest.approx(cut[1])


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda clip: clip.text_scores(PICTURES, PROMPTS[:3]), "4 pictures and 3 prompts"),
        (lambda clip: clip.text_scores(PICTURES[:1], "cat"), "1 pictures and 3 prompts"),
        (lambda clip: clip.image_scores(PICTURES, PICTURES[:1]), "4 pictures and 1 other pictures"),
        (lambda clip: clip.text_features("cat"), "give a list of prompts"),
        (lambda clip: clip.picture_features([]), "no pictures were given"),
        (lambda clip: clip.text_chance(PICTURES[:1], PROMPTS[:1]), "chance level of one picture"),
        (lambda clip: clip.picture_features([np.zeros((8, 8, 3))]), "found float64"),
        (lambda clip: clip.picture_features([noise(0, 1, 40_000)]), "becomes 1280000 x 32 before"),
    ],
)
def test_refusals(clip, ask, message):
    """What does not belong together, and what is no picture."""
    with pytest.raises(PatchError, match=message):
        ask(clip)


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def changed(name: str, **entries):
    """A change of some entries of a JSON file."""

    def change(folder):
        path = folder / name
        body = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(body | entries))

    return change


def other_end(folder):
    body = json.loads((folder / "config.json").read_text())
    body["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "vocab.json").unlink(), "has no tokenizer.json or vocab.json"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x02"),
            "cannot read the CLIP",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no entries by name"),
        (changed("config.json", model_type="t5"), "holds a model of type 't5'"),
        (changed("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]), "takes another mean"),
        (without_a_tensor, "lacks 1 tensors of its model, first visual_projection.weight"),
        (other_end, "ends texts with token 53, and the model waits for 7"),
    ],
)
def test_damaged_folders_are_refused(copy, damage, message):
    """What transformers would fill with random numbers, or read as an empty vocabulary, among them."""
    damage(copy)
    with pytest.raises(WeightsError, match=message):
        metrics.CLIP(copy)


def test_unknown_tokens_are_refused(clip, monkeypatch):
    """A tokenizer of another model, whose numbers the embedding lacks."""
    config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=10))
    monkeypatch.setattr(clip, "model", SimpleNamespace(config=config, device="cpu"))
    with pytest.raises(WeightsError, match="gives token 53 and the model knows 10"):
        clip.text_features(["cat"])


def test_opening_shows_no_bar(folder, capfd):
    """Nothing is printed, and bars are as they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    metrics.CLIP(folder)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == shown


@pytest.mark.parametrize(
    "owner, function, old, new",
    [
        (clip_scores, "_weighted", "np.maximum(cosines, 0)", "cosines"),
        (clip_scores, "_in_batches", "/ np.linalg.norm(vectors, axis=1, keepdims=True)", "/ 2"),
        (clip_scores.CLIP, "text_chance", "- np.trace(table)", ""),
    ],
)
def test_planted_faults_are_noticed(monkeypatch, clip, owner, function, old, new):
    """Cosines below 0, vectors of any length, and own prompts as others'."""
    plant(monkeypatch, owner, function, old, new)
    with pytest.raises(AssertionError):
        require_scores_of_the_model(clip)


@pytest.mark.parametrize(
    "old, new",
    [
        ("Image.Resampling.BICUBIC", "Image.Resampling.BILINEAR"),
        ("(width - size) // 2", "0"),
        ("np.float32(STD)", "np.float32(MEAN)"),
    ],
)
def test_planted_faults_of_preparing_are_noticed(monkeypatch, old, new):
    """Another interpolation, another part of the picture, and other channels."""
    plant(monkeypatch, clip_scores, "prepared", old, new)
    with pytest.raises(AssertionError):
        test_pictures_are_prepared_as_transformers_does((33, 97))
