"""Weights: exact round trips, a one-line refusal of every damage, nothing unpickled."""

import ast
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import textpatch
from support.signs import all_signs, parse
from support.small_models import PROMPTS, save_small, small_pipeline
from textpatch.errors import PatchError, PromptError, WeightsError
from textpatch.prompts.pairs import Pair
from textpatch.weights import load, load_denoiser, shipped_models
from textpatch.weights.fingerprint import model_sha256
from textpatch.weights.loading import SHIPPED, find
from textpatch.weights.reading.files import CONFIG_BYTES
from textpatch.weights.signs import drawing as signs_module
from textpatch.weights.signs.drawing import LETTERS, SAYINGS, Sign, SignFormat, draw_sign
from textpatch.weights.signs.pairs import sign_pairs
from textpatch.weights.signs.tokens import LENGTH, word_tokenizer
from textpatch.weights.signs.words import TEST, VALIDATION

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


PACKAGE_FOLDERS = [Path(textpatch.__file__).parent, SHIPPED, SHIPPED.parent / "reference_models"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small random model on disk; only to be read."""
    return save_small(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_round_trip_is_exact(tmp_path):
    """load(save(pipeline)) holds every tensor as it was in float16, and the same defaults and schedule."""
    made = small_pipeline(3)
    back = load(save_small(tmp_path / "some-name", made), dtype=torch.float16)
    before, after = made.half().state_dict(), back.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert (back.defaults, back.schedule, back.name) == (made.defaults, made.schedule, "some-name")
    assert back.denoiser.config == made.denoiser.config
    assert not any(p.requires_grad for p in back.parameters()) and not back.training


def test_a_loaded_model_makes_the_same_pictures(tmp_path):
    """Through save and load in 16 bit, a model of 16-bit weights makes the same pictures bit for bit."""
    made = small_pipeline(3).half().float()
    back = load(save_small(tmp_path / "model", made))
    a, b = (
        made.generate(PROMPTS, seeds=5, guidance=2.0),
        back.generate(PROMPTS, seeds=5, guidance=2.0),
    )
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


def test_the_bare_denoiser_is_the_pipelines(saved):
    """load_denoiser(folder/transformer) = load(folder).denoiser."""
    whole, bare = (
        load(saved).denoiser.state_dict(),
        load_denoiser(saved / "transformer").state_dict(),
    )
    assert whole.keys() == bare.keys() and all(
        torch.equal(whole[name], bare[name]) for name in whole
    )


def test_saved_files_are_read_by_transformers_4_and_5(saved):
    """Tokenizers name the class both know, which is the one model_index.json announces."""
    announced = json.loads((saved / "model_index.json").read_text())["tokenizer"][1]
    for path in [
        *saved.glob("tokenizer*/tokenizer_config.json"),
        *SHIPPED.glob("*/tokenizer*/tokenizer_config.json"),
    ]:
        assert json.loads(path.read_text())["tokenizer_class"] == announced, path


def edit_json(name, **entries):
    def edit(folder):
        body = json.loads((folder / name).read_text()) | entries
        (folder / name).write_text(
            json.dumps({key: value for key, value in body.items() if value is not ...})
        )

    return edit


def write(name, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def remove(name):
    return lambda folder: (
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    )


def truncate(name, keep: float):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(keep * (folder / name).stat().st_size)]
    )


def link_out(name):
    def link(folder):
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return link


def wrong_tensors(folder):
    tensors = load_file(folder / TRANSFORMER)
    tensors["stranger"] = tensors.pop("proj_out.bias")
    tensors["proj_out.weight"] = tensors["proj_out.weight"][:-1].contiguous()
    save_file(tensors, folder / TRANSFORMER)


DAMAGES = {
    "no weights": (
        remove(TRANSFORMER),
        "no file 'diffusion_pytorch_model.safetensors' in .*; the folder is incomplete",
    ),
    "no encoder": (remove("text_encoder_3"), "no folder 'text_encoder_3' in .*; fetch it, or take"),
    "no index and no denoiser": (
        lambda folder: (remove("model_index.json")(folder), remove("transformer")(folder)),
        "no file 'model_index.json' in .*, and no denoiser of ours",
    ),
    "no tokenizer": (
        remove("tokenizer_2"),
        "no folder 'tokenizer_2' in .*; fetch it, a few small files",
    ),
    "empty tokenizer": (
        write("tokenizer/tokenizer.json", b""),
        "tokenizer holds no tokenizer transformers can read",
    ),
    "half a tokenizer": (
        truncate("tokenizer/tokenizer.json", 0.5),
        "tokenizer holds no tokenizer transformers can read",
    ),
    "half a file": (
        truncate(TRANSFORMER, 0.5),
        "is damaged or no safetensors file .*; fetch it again",
    ),
    "empty file": (
        truncate("text_encoder/model.safetensors", 0),
        "is damaged or no safetensors file",
    ),
    "no safetensors": (
        write(TRANSFORMER, b"\x80\x04pickled" * 99),
        "is damaged or no safetensors file",
    ),
    "other tensors": (
        wrong_tensors,
        "missing 1: proj_out.bias; unexpected 1: stranger; "
        "of another shape 1: proj_out.weight .*closest known model is sd3",
    ),
    "no JSON": (write("transformer/config.json", b"{oops"), "config.json cannot be read as JSON"),
    "no object": (write("transformer/config.json", b"[]"), "config.json holds no JSON object"),
    "not text": (
        write("transformer/config.json", b"\xff\xfe{}"),
        "config.json cannot be read as JSON",
    ),
    "huge JSON": (
        write("transformer/config.json", b" " * (CONFIG_BYTES + 1)),
        f"at most {CONFIG_BYTES} bytes",
    ),
    "linked file": (link_out(TRANSFORMER), "leads out of its folder to .*; copy the file itself"),
    "linked folder": (
        link_out("transformer"),
        "transformer leads out of its folder to .*; copy it",
    ),
    "linked tokenizer": (
        link_out("tokenizer_2"),
        "tokenizer_2 leads out of its folder to .*; copy it",
    ),
    "other pipeline": (
        lambda folder: (
            edit_json("model_index.json", _class_name="AuraFlowPipeline")(folder),
            edit_json("transformer/config.json", _class_name="AuraFlowTransformer2DModel")(folder),
        ),
        "holds a 'AuraFlowPipeline'; known: StableDiffusionPipeline",
    ),
    "other denoiser": (
        edit_json("transformer/config.json", _class_name="UNet"),
        "no denoiser for UNet .*; known: SD3Transformer2DModel",
    ),
    "dual attention": (
        edit_json("transformer/config.json", dual_attention_layers=[0, 1]),
        "missing 20: transformer_blocks.0.attn2.norm_k.weight",
    ),
    "a VAE": (lambda folder: (folder / "vae").mkdir(), "no file 'config.json' in .*vae"),
    "nested config": (
        edit_json("transformer/config.json", num_layers={"a": 1}),
        "num_layers is {'a': 1}; expected numbers",
    ),
    "other sizes": (
        edit_json("transformer/config.json", num_layers=3),
        "does not fit its configuration; missing 32: transformer_blocks.1.attn.to_add_out.bias",
    ),
    "words for numbers": (
        edit_json("transformer/config.json", num_layers="two"),
        "transformer/config.json: num_layers has 'two'; give whole numbers of 1 or more",
    ),
    "words in CLIP": (
        edit_json("text_encoder/config.json", hidden_size="two"),
        "text_encoder/config.json: hidden_size has 'two'; give whole numbers",
    ),
    "a norm without a number": (
        edit_json("text_encoder/config.json", layer_norm_eps=None),
        "text_encoder/config.json: layer_norm_eps is None; give a small positive number",
    ),
    "distances of 400 digits": (
        edit_json("text_encoder_3/config.json", relative_attention_max_distance=10**400),
        "relative_attention_max_distance 1000.*give four buckets",
    ),
    "unknown act": (
        edit_json("text_encoder_3/config.json", feed_forward_proj="gated-nothing"),
        "text_encoder_3/config.json .*nothing",
    ),
    "no height": (
        edit_json("textpatch.json", height=...),
        "textpatch.json describes no model that can be built .*height",
    ),
    "a million layers": (
        edit_json("transformer/config.json", num_layers=10**6),
        "transformer says num_layers 1000000, which is 22000000 tensors or more, and its file holds",
    ),
    "a million layers of T5": (
        edit_json("text_encoder_3/config.json", num_layers=10**6),
        "text_encoder_3 says num_layers 1000000",
    ),
    "a million layers of CLIP": (
        edit_json("text_encoder/config.json", num_hidden_layers=10**6),
        "text_encoder says num_hidden_layers 1000000",
    ),
    "a height in words": (
        edit_json("textpatch.json", height="32"),
        "textpatch.json: height is '32' among",
    ),
    "a name mistyped": (
        edit_json("textpatch.json", heigth=32),
        "textpatch.json says 'heigth', which nothing reads; closest: height",
    ),
    "a schedule of words": (
        edit_json("scheduler/scheduler_config.json", shift="3"),
        "scheduler_config.json.* shift is '3'; give",
    ),
    "another model's schedule": (
        edit_json(
            "scheduler/scheduler_config.json",
            _class_name="DDIMScheduler",
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        ),
        "with the schedule DDIM; its denoiser is sampled by FlowMatchEuler",
    ),
    "no VAE": (
        remove("textpatch.json"),
        "holds a StableDiffusion3Pipeline without a VAE, and no textpatch.json; fetch",
    ),
    "no size": (
        lambda folder: (
            remove("textpatch.json")(folder),
            edit_json("transformer/config.json", sample_size=None)(folder),
        ),
        "has sample_size None in its denoiser's config.json, and no textpatch.json; write",
    ),
    "other prediction": (
        edit_json("scheduler/scheduler_config.json", prediction="noise"),
        "prediction is 'noise'",
    ),
}


def test_latents_without_a_vae_are_no_pixels(tmp_path):
    """A model of four channels without a VAE is refused, defaults of its own or not: pixels have three."""
    with pytest.raises(
        PatchError, match="a StableDiffusion3Pipeline of 4 latent channels without a VAE; fetch"
    ):
        load(save_small(tmp_path / "latent", small_pipeline(in_channels=4, out_channels=4)))


@pytest.mark.parametrize("damage, says", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_refused_in_one_line(folder, damage, says):
    """Whatever is wrong with a model's files, the answer is one line naming the file and the fault."""
    damage(folder)
    with pytest.raises(PatchError, match=says) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000


def test_an_unknown_name_is_answered_with_the_closest():
    """A name that is neither shipped nor a folder is refused, the closest shipped names first."""
    with pytest.raises(
        WeightsError, match="no model 'tiny-mmdti': neither a shipped name, .*; closest: tiny-mmdit"
    ):
        load("tiny-mmdti")


@pytest.mark.parametrize("name", ["a" * 5000, "/" + "a" * 5000, "org/" + "a" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name):
    """Too long for any file system, or with a zero in it: WeightsError with the name, no error of the
    system's."""
    with pytest.raises(
        WeightsError, match="neither a shipped name, nor a folder|is no model's name"
    ):
        load(name)


def test_sdxl_without_its_vae_is_refused(tmp_path):
    """SDXL is told its picture's size, which is the VAE's times the latents': without either a
    WeightsError."""
    folder = Path(shutil.copytree(find("tiny-sdxl"), tmp_path / "model"))
    (folder / "textpatch.json").unlink()
    with pytest.raises(
        WeightsError, match="holds a StableDiffusionXLPipeline without a VAE, and no textpatch.json"
    ):
        load(folder)


def test_a_fingerprint_tells_files_apart(folder, saved):
    """The same files have the same fingerprint, one other byte another."""
    assert model_sha256(folder) == model_sha256(saved)
    (folder / "textpatch.json").write_bytes((folder / "textpatch.json").read_bytes() + b" ")
    assert model_sha256(folder) != model_sha256(saved)


FORBIDDEN = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "cloudpickle",
    "eval",
    "exec",
    "compile",
    "__import__",
}


def test_nothing_unpickles_or_evaluates():
    """No source file calls eval, exec or torch.load, or imports anything that unpickles."""
    for path in [path for folder in PACKAGE_FOLDERS for path in folder.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name.split(".")[0] for alias in node.names} | {
                    (getattr(node, "module", "") or "").split(".")[0]
                }
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id}
            else:
                names = set()
            assert not names & FORBIDDEN, f"{path}:{node.lineno}"
            loads = (
                isinstance(node, ast.Attribute)
                and node.attr == "load"
                and getattr(node.value, "id", "") == "torch"
            )
            assert not loads, f"{path}:{node.lineno}"


def size(name: str) -> int:
    return sum(path.stat().st_size for path in find(name).rglob("*") if path.is_file())


def test_the_shipped_models_are_small():
    """All shipped models together take less than 60 MB, none more than 6, a planted one less than 4, in 16
    or 8 bits."""
    names = shipped_models()
    planted = {"planted-mmdit", "planted-sdxl", "planted-if"}
    assert {"tiny-mmdit", "tiny-sdxl", "tiny-if", *planted} <= set(names)
    assert (
        sum(map(size, names)) < 60e6
        and max(map(size, names)) < 6e6
        and max(map(size, planted)) < 4e6
    )
    for path in SHIPPED.glob("*/*/*.safetensors"):
        with safe_open(path, "pt") as file:
            names = file.keys()
            assert {file.get_slice(name).get_dtype() for name in names} <= {
                "F16",
                "BF16",
                "F8_E4M3",
            }, path


# signs


@given(all_signs, st.sampled_from(SAYINGS))
def test_every_prompt_is_in_the_vocabulary(sign, saying):
    """No token of a prompt is unknown, and none is cut off: after the end token there is only padding."""
    for begin in (True, False):
        tokenizer = word_tokenizer(begin=begin)
        ids = tokenizer(sign.prompt(saying)).input_ids
        assert (
            tokenizer.unk_token_id not in ids
            and len(ids) <= LENGTH
            and ids[-1] == tokenizer.eos_token_id
        )


@pytest.mark.parametrize(
    "prompt", ["a red sign", 'a sign that says ""', 'a sign that says "A" and "B', '"']
)
def test_a_prompt_without_a_quoted_word_is_refused(prompt):
    """No quotes, nothing between them, or one left open: a PromptError showing how to write one."""
    with pytest.raises(PromptError, match="no quoted word .* write the word .* in double quotes"):
        Pair(prompt, 'a sign that says "B"').words  # noqa: B018


@pytest.mark.parametrize("word", ["", "SEVENTY", "lower", "A B", "Ä"])
def test_words_that_do_not_fit_are_not_drawn(word):
    """Signs hold 1 to 6 capitals; anything else is a PatchError."""
    with pytest.raises(PatchError, match="cannot draw .*: signs hold 1 to 6 capitals A to Z"):
        draw_sign(Sign(word), SignFormat(), random.Random(0))


@pytest.mark.parametrize(
    "what, value, says",
    [
        ("colour", "grey", "green"),
        ("shape", "arrows", "arrow"),
        ("wall", "rred", "red"),
        ("pattern", "stripes", "striped"),
        ("style", "italics", "italic"),
    ],
)
def test_an_unknown_factor_is_named(what, value, says):
    """A sign of a colour, shape, wall, pattern or style that nobody can draw is a PatchError with the
    closest."""
    with pytest.raises(PatchError, match=f"signs have no {what} '{value}'; closest: {says}"):
        Sign("A", **{what: value})


@pytest.mark.parametrize(
    "fmt, times",
    [(SignFormat(), 0), (SignFormat(), 3), (SignFormat(), 16), (SignFormat().enlarged(4), 4)],
)
def test_signs_are_drawn_as_large_as_their_masks_allow(fmt, times):
    """Letters are drawn 8 times as large and reduced, so that only 2, 4 and 8 times are exact; others are
    PatchErrors."""
    for right in (2, 4, 8):
        assert draw_sign(Sign("A"), SignFormat().enlarged(right), random.Random(0)).shape == (
            32 * right,
            96 * right,
            3,
        )
    with pytest.raises(
        PatchError, match=f"1, 2, 4 or 8 times as large, not {fmt.unit * times}; give one of these"
    ):
        fmt.enlarged(times)


def test_without_fonts_drawing_says_what_to_install(monkeypatch):
    """Without matplotlib, whose fonts the signs use, the answer is one line with the extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    signs_module._letters.cache_clear()
    with pytest.raises(PatchError, match=r"needs the fonts in matplotlib .*pip install matplotlib"):
        draw_sign(Sign("A"), SignFormat(), random.Random(0))


@given(all_signs, st.integers(0, 9))
def test_a_drawing_is_a_function_of_sign_and_dice(sign, seed):
    """draw_sign gives finite float32 in -1..1, the same for the same dice."""
    a, b = (draw_sign(sign, SignFormat(), random.Random(seed)) for _ in range(2))
    assert (
        a.dtype == np.float32
        and a.shape == (32, 96, 3)
        and np.abs(a).max() <= 1
        and np.array_equal(a, b)
    )


@given(all_signs, st.integers(0, 9))
def test_an_enlarged_drawing_is_the_same_sign(sign, seed):
    """Reduced to the small size, a drawing of twice the size is the small drawing: 0.02 of the range -1..1
    apart in the mean square but at the edges of stripes, which the small one cannot draw."""
    small, fmt = SignFormat(), SignFormat().enlarged(2)
    a, b = (draw_sign(sign, f, random.Random(seed)) for f in (small, fmt))
    reduced = b.reshape(32, 2, 96, 2, 3).mean(axis=(1, 3))
    left, top, right, bottom = box = small.text_box
    assert fmt.text_box == tuple(2 * side for side in box) and fmt.plate == tuple(
        2 * side for side in small.plate
    )
    inside = (
        (slice(None),) * 2 if sign.pattern != "striped" else (slice(top, bottom), slice(left, -20))
    )
    assert np.square(a - reduced)[inside].mean() < 0.02**2


@given(st.integers(1, 40), st.sampled_from(["validation", "test"]), st.integers(0, 9))
def test_pairs_use_each_word_once_and_differ_as_asked(n, split, seed):
    """Words come from the split, none twice; one scene differs in the word alone, two in all four factors."""
    for same_scene in (True, False):
        pairs = [
            (parse(a), parse(b))
            for a, b in sign_pairs(n, split=split, seed=seed, same_scene=same_scene)
        ]
        words = [sign.word for pair in pairs for sign in pair]
        assert len(set(words)) == 2 * n and set(words) <= set(
            VALIDATION if split == "validation" else TEST
        )
        for a, b in pairs:
            changed = {
                f for f in ("colour", "shape", "wall", "pattern") if getattr(a, f) != getattr(b, f)
            }
            assert len(changed) == (0 if same_scene else 4) and (
                a.style == b.style or not same_scene
            )


def test_pairs_that_cannot_be_made_are_refused():
    """No pairs, more than the words make, and an unknown split are PatchErrors."""
    for arguments, says in [
        ((0,), "asked for 0 pairs"),
        ((999,), "asked for 999 pairs; the validation words make 1 to"),
    ]:
        with pytest.raises(PatchError, match=says):
            sign_pairs(*arguments)
    with pytest.raises(PatchError, match="no split 'tests'; closest: test"):
        sign_pairs(1, split="tests")


def test_held_out_words_can_be_drawn():
    """Both lists hold words of 4 to 6 capitals, and share none."""
    assert not set(TEST) & set(VALIDATION) and len(TEST) >= 200
    assert all(4 <= len(word) <= 6 and set(word) <= set(LETTERS) for word in TEST + VALIDATION)
