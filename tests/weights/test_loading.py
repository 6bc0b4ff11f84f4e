"""Loading from every place weights live in: original single files, shards, the Hugging Face cache; and
nothing else."""

import hashlib
import json
import socket
import threading
import time
import weakref
from dataclasses import asdict, replace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from support.originals import originals, write_shards
from support.planting import plant
from support.small_denoisers import SMALL, small
from support.small_models import PROMPTS, save_small, small_pipeline
from support.strategies import randomize
from textpatch import load, load_denoiser
from textpatch.errors import WeightsError
from textpatch.reference_models.schedules import Euler
from textpatch.reference_models.sdxl import StableDiffusion
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights import fill, loading, locating
from textpatch.weights.building import Builder
from textpatch.weights.configs import REFINER, denoiser_from_config
from textpatch.weights.fill import Part, fill_module
from textpatch.weights.fingerprint import model_sha256
from textpatch.weights.folders import Folder
from textpatch.weights.loading import outline
from textpatch.weights.locating import NOT_RUN
from textpatch.weights.reading import files
from textpatch.weights.signs.tokens import word_tokenizer


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


@pytest.mark.parametrize(
    "kind, component",
    [
        ("SD1", "unet"),
        ("SDXL", "unet"),
        ("SD3", "transformer"),
        ("FLUX.1", "transformer"),
        ("IF-I", "unet"),
    ],
)
def test_an_original_file_is_the_same_denoiser(tmp_path, kind, component):
    """load_denoiser(original names, fused rows, swapped halves) = the model, every tensor; sizes from the
    shapes."""
    model = small(kind)
    save_file(originals(kind, component, model.state_dict()), tmp_path / "one.safetensors")
    loaded = load_denoiser(tmp_path / "one.safetensors")
    assert equal(loaded, model) and loaded.config == model.config


def require_read_ahead(monkeypatch, tmp_path):
    """Tensors that threads read are those of the file, each read once."""
    monkeypatch.setattr(fill, "LARGE", 1)
    model = small("SD3")
    save_file(originals("SD3", "transformer", model.state_dict()), tmp_path / "one.safetensors")
    names, read = [], Part.read

    def counted(self, key, room=None):
        names.append((key, threading.current_thread() is threading.main_thread()))
        return read(self, key, room)

    monkeypatch.setattr(Part, "read", counted)
    assert equal(load_denoiser(tmp_path / "one.safetensors"), model)
    keys = [key for key, _ in names]
    assert len(keys) == len({*keys}) and not all(in_main for _, in_main in names)


def test_large_tensors_are_read_by_threads(monkeypatch, tmp_path):
    """Views of what is read stay as they are, and swapped halves are read here."""
    require_read_ahead(monkeypatch, tmp_path)


READ_AHEAD_FAULTS = {
    "read twice": ("reading.pop(key).result()", "part.read(key)"),
    "another tensor": ("reading.pop(key).result()", "reading.popitem()[1].result()"),
    "nothing ahead": ("staying(part, dtype, exact, large)", "()"),
}


@pytest.mark.parametrize("fault", READ_AHEAD_FAULTS)
def test_a_fault_in_reading_ahead_is_noticed(monkeypatch, tmp_path, fault):
    plant(monkeypatch, fill, "fill_module", *READ_AHEAD_FAULTS[fault])
    monkeypatch.setattr(loading, "fill_module", fill.fill_module)
    with pytest.raises((AssertionError, WeightsError, RuntimeError)):
        require_read_ahead(monkeypatch, tmp_path)


def test_a_read_that_fails_ends_those_that_wait(monkeypatch, tmp_path):
    """The error of a thread is that of `load`, and few of the other tensors are read after it."""
    monkeypatch.setattr(fill, "LARGE", 1)
    save_file(small("SD3").state_dict(), tmp_path / "one.safetensors")
    begun = []

    def failing(self, key, room=None):
        begun.append(key)
        time.sleep(0.01)
        raise WeightsError(f"{key} changed")

    monkeypatch.setattr(Part, "read", failing)
    with pytest.raises(WeightsError, match="changed"):
        load_denoiser(tmp_path / "one.safetensors")
    assert len(begun) <= 3 * fill.READERS


# by default a U-Net and a transformer; the sizes of the others come from original files above
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.long] * (kind not in ("SD2", "SD3"))) for kind in SMALL],
)
def test_a_file_in_diffusers_layout_needs_no_config(tmp_path, kind):
    """Without config.json beside it the sizes come from the shapes, too."""
    model = small(kind)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert equal(load_denoiser(tmp_path / "model.safetensors"), model)


def test_shards_are_the_same_model(tmp_path):
    """A component's folder with an index, the index itself, and a whole pipeline of shards = the pipeline."""
    pipeline = small_pipeline()
    folder = save_small(tmp_path / "model", pipeline)
    for component, stem in (
        ("transformer", "diffusion_pytorch_model"),
        ("text_encoder_3", "model"),
    ):
        path = folder / component / f"{stem}.safetensors"
        state = {name: tensor for name, tensor in files.open_tensors(path).items()}
        state = {name: files.open_tensors(path).read(name) for name in state}
        path.unlink()
        write_shards(folder / component, stem, state)
    assert equal(load(folder, dtype=torch.float16), pipeline.half())
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert equal(load_denoiser(index), load_denoiser(folder / "transformer"))
    assert equal(load_denoiser(folder), load_denoiser(index))


def test_the_hugging_face_cache_is_read_offline(tmp_path, monkeypatch):
    """load("org/name") finds refs/main -> snapshots/<commit>, whose files link into blobs, without any
    network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    made, commit = save_small(tmp_path / "made"), "a" * 40
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in made.rglob("*") if p.is_file())):
        link = repository / "snapshots" / commit / path.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(repository / "blobs" / str(number))
        link.symlink_to(repository / "blobs" / str(number))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert equal(load("org/name", dtype=torch.float16), small_pipeline().half())
    with pytest.raises(WeightsError, match="org/other .*is not in .*hf download org/other"):
        load("org/other")


SMALL_CLIP = dict(
    vocab_size=len(word_tokenizer(begin=True)),
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=2,
    eos_token_id=3,
    pad_token_id=1,
)


def clip_of(kind, width: int, act: str = "quick_gelu"):
    """A small CLIP, and its sizes."""
    sizes = SMALL_CLIP | dict(hidden_size=width, projection_dim=width, hidden_act=act)
    return kind(kind.config_class(**sizes)), sizes


def single_file(folder, kind: str, parts: dict):
    """A whole small pipeline in one original file, the tokenizers of its encoders beside it."""
    state = {}
    for seed, (component, module) in enumerate(parts.items()):
        tensors = {
            k: v
            for k, v in randomize(module, seed).state_dict().items()
            if not k.endswith("position_ids")
        }
        if type(module) is CLIPTextModel:
            tensors = {
                k if k.startswith("text_model.") else f"text_model.{k}": v
                for k, v in tensors.items()
            }
        state |= originals(kind, component, tensors)
        if component.startswith("text_encoder"):
            tokenizer = component.replace("text_encoder", "tokenizer")
            word_tokenizer(begin=True).save_pretrained(folder / tokenizer)
    path = folder / "one.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def small_vae() -> VAE:
    return VAE(VAEConfig(block_out_channels=(32, 32, 64, 64)))


@pytest.fixture
def sdxl_file(tmp_path, monkeypatch):
    """A whole small SDXL in one original file; the sizes of its encoders made known."""
    first, sizes = clip_of(CLIPTextModel, 64)
    second, sizes_2 = clip_of(CLIPTextModelWithProjection, 32, "gelu")
    known = {"text_encoder": sizes, "text_encoder_2": sizes_2}
    monkeypatch.setattr(locating, "ENCODER_SIZES", known)
    parts = {
        "unet": small("SDXL"),
        "vae": small_vae(),
        "text_encoder": first,
        "text_encoder_2": second,
    }
    return single_file(tmp_path, "SDXL", parts), parts


@pytest.mark.parametrize("kind", ["SD1", "SD2"])
def test_a_single_file_is_a_stable_diffusion(kind, tmp_path, monkeypatch):
    """Both versions, told by their CLIPs: all parts are the ones put in, with the published defaults."""
    clip, sizes = clip_of(CLIPTextModel, 24, {"SD1": "quick_gelu", "SD2": "gelu"}[kind])
    monkeypatch.setattr(locating, "ENCODER_SIZES", {"text_encoder": sizes})
    monkeypatch.setattr(locating, "CLIP_H", sizes)
    parts = {"unet": small(kind), "vae": small_vae(), "text_encoder": clip}
    made = load(single_file(tmp_path, kind, parts))
    loaded = made.denoiser, made.decoder.vae, made.encoders.text_encoder
    assert all(equal(a, b) for a, b in zip(loaded, parts.values(), strict=True))
    assert made.decoder.vae.scale == 0.18215
    side, predicted = {"SD1": (64, "epsilon"), "SD2": (96, "v_prediction")}[kind]
    assert (made.defaults.steps, made.defaults.guidance, made.defaults.height) == (50, 7.5, side)
    assert made.schedule.prediction_type == predicted
    assert any("predicts v" in note for note in made.notes) == (kind == "SD2")


def relabelled(folder, name: str):
    """A saved folder whose index names another class."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    return folder


def refiner(folder):
    """The first tensors of SDXL's refiner, by the names of its single file."""
    keys = [f"model.diffusion_model.{key}" for key in locating.REFINER_KEYS]
    save_file({key: torch.zeros(1) for key in keys}, folder / "refiner.safetensors")
    return folder / "refiner.safetensors"


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_pipeline_that_starts_from_a_picture_is_refused(tmp_path, name):
    """Inpainting and redrawing: one sentence with the class, and what can still be read."""
    folder = relabelled(save_small(tmp_path / "model"), name)
    with pytest.raises(WeightsError, match=f"holds a {name}, which .* load_denoiser reads its"):
        load(folder)


def test_a_unet_that_reads_a_picture_is_refused_and_its_denoiser_is_not(tmp_path):
    """Nine channels in a plain pipeline: refused when it is loaded, before any tensor is read."""
    model = StableDiffusion(replace(small("SD1").config, in_channels=9))
    config = {"_class_name": "UNet2DConditionModel", **asdict(model.config)}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    save_file(model.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    builder = Builder(Folder(tmp_path), torch.device("cpu"), torch.float32)
    with pytest.raises(
        WeightsError, match="reads 9 channels and gives 4, as U-Nets do that change"
    ):
        builder.denoiser("unet")
    assert load_denoiser(tmp_path / "unet").config == model.config


def test_the_refiner_is_recognised(tmp_path):
    """By the keys of its single file, and by the sizes of its configuration."""
    for read in (load, load_denoiser):
        with pytest.raises(WeightsError, match="holds SDXL's refiner, which redraws a given"):
            read(refiner(tmp_path))
    with pytest.raises(WeightsError, match="these are the sizes of SDXL's refiner"):
        denoiser_from_config({"_class_name": "UNet2DConditionModel", **REFINER})


def test_a_single_file_is_a_pipeline(sdxl_file):
    """load(SDXL's single file): U-Net, VAE and both CLIPs are the ones put in, and it draws."""
    path, parts = sdxl_file
    made = load(path)
    loaded = {
        "unet": made.denoiser,
        "vae": made.decoder.vae,
        "text_encoder": made.encoders.text_encoder,
        "text_encoder_2": made.encoders.text_encoder_2,
    }
    assert all(equal(loaded[name], parts[name]) for name in parts)
    assert (made.defaults.steps, made.defaults.guidance, made.defaults.micro) == (
        50,
        5.0,
        (1024, 1024, 0, 0, 1024, 1024),
    )


def test_a_single_file_of_velocities_is_heard(sdxl_file):
    """A whole SDXL with the keys of a model of velocities: they are dropped, and its schedule has them."""
    path, _ = sdxl_file
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(load_file(path) | marks, path)
    made = load(path)
    assert made.schedule == Euler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert "as the key 'v_pred' says" in " ".join(made.notes)


def test_a_single_file_without_tokenizers_says_where_they_go(sdxl_file, tmp_path, monkeypatch):
    """Single files hold no tokenizers: without them beside it or in the cache, the message names both
    places."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    path, _ = sdxl_file
    (tmp_path / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(
        WeightsError, match="put the folder 'tokenizer' of stabilityai/.* beside it"
    ):
        load(path)


def sha256(*files) -> str:
    """Of names and contents, each the way manifests have it."""
    both = (
        f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest() for name, path in files
    )
    return hashlib.sha256(b"".join(both)).hexdigest()


def test_the_fingerprint_of_a_file_is_of_all_that_is_read_beside_it(sdxl_file, tmp_path):
    """fingerprint = sha256 over the file, under ".", and the tokenizers beside it; they decide what a
    prompt is."""
    path, _ = sdxl_file
    read = [f for name in ("tokenizer", "tokenizer_2") for f in sorted((tmp_path / name).iterdir())]
    assert model_sha256(path) == sha256((".", path), *((f.relative_to(tmp_path), f) for f in read))
    (tmp_path / "alone").mkdir()
    alone = path.rename(tmp_path / "alone" / path.name)
    assert model_sha256(alone) == sha256((".", alone))


def test_the_fingerprint_of_a_file_is_of_tokenizers_in_the_cache(sdxl_file, tmp_path, monkeypatch):
    """Those that `load` finds in the cache, where none lie beside the file, count as those beside it do."""
    path, _ = sdxl_file
    beside = model_sha256(path)
    (tmp_path / "cache").mkdir()
    for name in ("tokenizer", "tokenizer_2"):
        cached = (tmp_path / name).rename(tmp_path / "cache" / name)
    monkeypatch.setattr(locating, "cached_snapshot", lambda home: tmp_path / "cache")
    assert model_sha256(path) == beside
    next(file for file in sorted(cached.iterdir()) if file.suffix == ".json").write_text("{}")
    assert model_sha256(path) != beside


def test_the_fingerprint_of_a_folder_is_of_linked_folders_too(tmp_path):
    """A part that is a link to one of two folders beside it; a link to the folder itself is no way without
    end."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    (tmp_path / "part").symlink_to("a")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    first = model_sha256(tmp_path)
    (tmp_path / "part").unlink()
    (tmp_path / "part").symlink_to("b")
    assert model_sha256(tmp_path) != first


def test_the_fingerprint_of_an_index_is_of_its_shards(tmp_path):
    """One other number in any shard is another fingerprint; a file that the index does not name is none."""
    state = {name: torch.zeros(2) for name in "abc"}
    write_shards(tmp_path, "model", state)
    index, found = tmp_path / "model.safetensors.index.json", set()
    for name in ("", *state):
        write_shards(tmp_path, "model", state | ({name: torch.ones(2)} if name else {}))
        found.add(model_sha256(index))
    assert len(found) == 4
    (tmp_path / "README.md").write_text("a stranger")
    assert model_sha256(index) in found


def test_loading_holds_one_raw_tensor_at_a_time(tmp_path, monkeypatch):
    """While float32 files become a float16 model, one tensor of the file is alive beside the model, always
    in the same bytes."""
    save_file(small("SDXL").state_dict(), tmp_path / "model.safetensors")
    read, alive, most, places = files.Tensors.read, weakref.WeakSet(), [], set()

    def counted(self, name, room=None):
        tensor = read(self, name, room)
        alive.add(tensor)
        most.append(len(alive))
        places.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(files.Tensors, "read", counted)
    load_denoiser(tmp_path / "model.safetensors", dtype=torch.float16)
    assert len(most) > 100 and max(most) == 1 and len(places) == 1


def test_bytes_are_read_over_only_where_nothing_of_them_is_kept(tmp_path, monkeypatch):
    """A file of both precisions, in either.   Fault: all tensors are read into the same bytes."""
    state = small("SDXL").state_dict()
    for name in list(state)[::2]:
        state[name] = state[name].half()
    save_file(state, tmp_path / "model.safetensors")

    def require_equal(dtype):
        found = load_denoiser(tmp_path / "model.safetensors", dtype=dtype).state_dict()
        assert all(torch.equal(found[name], state[name].to(dtype)) for name in state)

    require_equal(torch.float32)
    require_equal(torch.float16)
    plant(monkeypatch, fill, "_is_copied", "read not in kept", "True")
    with pytest.raises(AssertionError):
        require_equal(torch.float32)


def test_a_place_in_the_users_home_is_found(tmp_path, monkeypatch):
    """`~` stands for it, in the place of a model and of one whose parts are taken."""
    monkeypatch.setenv("HOME", str(tmp_path))
    save_small(tmp_path / "model")
    made = load("~/model", text_encoders="~/model")
    assert equal(made.denoiser, load_denoiser(tmp_path / "model"))


def test_an_outline_reads_no_data(tmp_path, monkeypatch):
    """outline = the denoiser on the meta device, from the header alone."""
    save_file(small("SDXL").state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(files.Tensors, "read", lambda *_: pytest.fail("data was read"))
    made = outline(tmp_path / "model.safetensors")
    assert made.config == SMALL["SDXL"][1] and all(p.is_meta for p in made.parameters())


def wrong(model: str, change):
    def make(folder):
        state = small(model).state_dict()
        save_file(change(state), folder / "model.safetensors")
        return folder / "model.safetensors"

    return make


def lora(state):
    down = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    return {down: torch.zeros(4, 96), down.replace("lora_A", "lora_B"): torch.zeros(64, 4)}


WRONG = {
    "a LoRA": (wrong("SDXL", lora), "none of our denoisers: .*2 tensors of a LoRA of rank"),
    "a pruned file": (
        wrong(
            "SDXL", lambda s: {k: v for k, v in s.items() if "up_blocks.1.attentions.1" not in k}
        ),
        r"missing .*up_blocks.1.attentions.1.*the closest known model is sd\S+.unet.diffusers",
    ),
    "an added tensor": (
        wrong("SD3", lambda s: s | {"ema.extra": torch.zeros(1)}),
        "unexpected 1: ema.extra",
    ),
    "another shape": (
        wrong("SD3", lambda s: s | {"context_embedder.bias": torch.zeros(7)}),
        r"of another shape 1: context_embedder.bias \(7,\) for \(64,\)",
    ),
    "a VAE": (
        wrong("SDXL", lambda s: VAE(VAEConfig(block_out_channels=(32, 32, 64, 64))).state_dict()),
        "none of our denoisers: .*vae",
    ),
}


@pytest.mark.parametrize("make, says", WRONG.values(), ids=WRONG)
def test_another_file_is_refused_in_one_line(tmp_path, make, says):
    """What the file is instead is said in one line, at most ten names of a list, and no model comes of it."""
    with pytest.raises(WeightsError, match=says) as refusal:
        load_denoiser(make(tmp_path))
    assert "\n" not in str(refusal.value) and str(refusal.value).count(".weight") <= 31


def test_a_refused_file_leaves_the_model_untouched(tmp_path):
    """fill writes all or nothing: after a refusal the module is as it was, bit for bit."""
    model = small("SD3")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = wrong("SD3", lambda s: {k: v + 1 for k, v in s.items() if k != "proj_out.bias"})(
        tmp_path
    )
    tensors = files.open_tensors(path)
    with pytest.raises(WeightsError, match="missing 1: proj_out.bias"):
        fill_module(model, Part(tensors, {name: name for name in tensors}), dtype=torch.float32)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_t5_keeps_wo_in_float32(tmp_path):
    """float16 overflows in T5's `wo`: it stays float32, all else is float16, and text is still encoded."""
    made = load(save_small(tmp_path / "model"), dtype=torch.float16)
    dtypes = {
        name.rsplit(".", 2)[-2]: p.dtype
        for name, p in made.encoders.text_encoder_3.named_parameters()
    }
    assert dtypes.pop("wo") == torch.float32 and set(dtypes.values()) == {torch.float16}
    assert made.encode(PROMPTS).tokens.dtype == torch.float16
