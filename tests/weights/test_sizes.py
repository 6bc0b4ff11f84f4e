"""A configuration that asks for more than its file holds is refused before anything is made of it."""

import json
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from support.costs import require_cheap
from support.planting import plant
from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDXLConfig
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights import sizes
from textpatch.weights.building import Builder
from textpatch.weights.folders import Folder
from textpatch.weights.loading import find, load_denoiser
from textpatch.weights.sizes import require_held

HUGE = 10**9
# what reading a configuration and the header of a small file may take, with much room
MEGABYTES = 40
COMPONENTS = [
    ("tiny-mmdit", "transformer"),
    ("tiny-mmdit", "text_encoder"),
    ("tiny-mmdit", "text_encoder_3"),
    ("tiny-sdxl", "unet"),
    ("tiny-if", "unet"),
    ("tiny-if-ii", "unet"),
]
PRODUCTS = {  # each number alone is no more than the file has tensors
    "layers and blocks": (
        "tiny-sdxl",
        "unet",
        dict(layers_per_block=508, transformer_layers_per_block=[508] * 4),
    ),
    "layers of each level": (
        "tiny-sdxl",
        "unet",
        dict(layers_per_block=20, transformer_layers_per_block=[100] * 4),
    ),
    "layers of IF": ("tiny-if", "unet", dict(layers_per_block=400)),
    "levels of SDXL": (
        "tiny-sdxl",
        "unet",
        dict(
            block_out_channels=[16] * 2000,
            down_block_types=["CrossAttnDownBlock2D"] * 2000,
            attention_head_dim=[1] * 2000,
            up_block_types=["CrossAttnUpBlock2D"] * 2000,
            transformer_layers_per_block=[1] * 2000,
            norm_num_groups=1,
        ),
    ),
    "levels of IF": (
        "tiny-if",
        "unet",
        dict(
            block_out_channels=[16] * 2000,
            down_block_types=["SimpleCrossAttnDownBlock2D"] * 2000,
            layers_per_block=1,
            up_block_types=["SimpleCrossAttnUpBlock2D"] * 2000,
            norm_num_groups=1,
            attention_head_dim=16,
        ),
    ),
    "blocks of each transformer": (
        "tiny-sdxl",
        "unet",
        dict(layers_per_block=1, transformer_layers_per_block=[300] * 3 + [1]),
    ),
}


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The classes of all modules made from now on."""
    classes, init = [], nn.Module.__init__

    def counted(self, *args, **kwargs):
        classes.append(type(self).__name__)
        init(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__init__", counted)
    return classes


def copied(model: str, component: str, folder: Path, **changed) -> Path:
    """A copy of a shipped model with entries of one component's configuration changed."""
    shutil.copytree(find(model), folder)
    config = folder / component / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    return folder


def build(folder: Path, component: str) -> None:
    """Make one component as `load` does."""
    builder = Builder(Folder(folder), torch.device("cpu"), torch.float32)
    if component in ("unet", "transformer"):
        load_denoiser(folder / component)
    elif component == "text_encoder_3":
        builder.t5(component)
    else:
        builder.projecting_clip(component)


def refused(folder: Path, component: str) -> tuple[str, float]:
    """What is said of a component that cannot be made, and the megabytes that Python held meanwhile."""
    tracemalloc.start()
    try:
        with pytest.raises(PatchError) as refusal:
            build(folder, component)
        return str(refusal.value), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_of_sizes_is_refused_before_anything_is_made(case, tmp_path, made):
    """Layers x blocks x levels beyond the file: one line with both numbers, no module made, little memory."""
    model, component, changed = PRODUCTS[case]
    said, megabytes = refused(copied(model, component, tmp_path / "copy", **changed), component)
    assert "tensors or more, and its file holds" in said
    assert not made and megabytes < MEGABYTES and len(said) < 1000 and "\n" not in said


@pytest.mark.long
@pytest.mark.parametrize("case", PRODUCTS)
def test_a_refusal_of_products_is_cheap(case, tmp_path):
    """Long, since it is timed; test_a_product_of_sizes_is_refused_before_anything_is_made counts modules."""
    model, component, changed = PRODUCTS[case]
    require_cheap(build, copied(model, component, tmp_path / "copy", **changed), component)


def test_a_dual_layer_that_is_none_is_not_looked_for(tmp_path, made):
    """Half a block is none of a billion, which is known without counting them."""
    folder = copied(
        "tiny-mmdit", "transformer", tmp_path / "copy", num_layers=HUGE, dual_attention_layers=[0.5]
    )
    said, megabytes = refused(folder, "transformer")
    assert "dual_attention_layers has 0.5; the blocks of this MMDiT are 0..999999999" in said
    assert not made and megabytes < MEGABYTES


def fields(model: str, component: str) -> dict[str, object]:
    """Each whole number of a configuration as a huge one, and each list of them huge throughout."""
    config = json.loads((find(model) / component / "config.json").read_text())
    numbers = {name: HUGE for name, value in config.items() if type(value) is int}
    lists = {
        name: [HUGE] * len(value)
        for name, value in config.items()
        if isinstance(value, list) and type(value[0]) is int
    }
    return numbers | lists


USUAL: dict[tuple[str, str], int] = {}  # modules of each intact component, counted once
# by default a field that U-Nets share is asked of DeepFloyd IF's, which is the smaller
EVERY_FIELD = [
    pytest.param(
        *place,
        name,
        marks=[pytest.mark.long]
        * (
            place[0] == "tiny-if-ii"
            or place == ("tiny-sdxl", "unet")
            and name in fields("tiny-if", "unet")
        ),
    )
    for place in COMPONENTS
    for name in fields(*place)
]


@pytest.mark.parametrize("model, component, name", EVERY_FIELD)
def test_no_field_however_huge_makes_more_than_a_model(model, component, name, tmp_path, made):
    """A billion in any one field makes no more modules than the intact model has, and takes little memory.

    Fields that no tensor depends on (a token's number, a picture's size) load as they are.
    """
    if (model, component) not in USUAL:
        build(find(model), component)
        USUAL[model, component] = len(made)
        made.clear()
    usual = USUAL[model, component]
    folder = copied(model, component, tmp_path / "copy", **{name: fields(model, component)[name]})
    tracemalloc.start()
    try:
        build(folder, component)
    except PatchError as error:
        assert "\n" not in str(error)
    finally:
        megabytes = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    assert len(made) <= usual and megabytes < MEGABYTES


def on_meta(model, config) -> int:
    with torch.device("meta"):
        return len(model(config).state_dict())


SMALL_CLIP = dict(
    num_hidden_layers=5, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=9
)
SMALL_T5 = dict(num_layers=5, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=9)
LEVELS = dict(
    block_out_channels=(32, 32),
    down_block_types=("DownBlock2D",) * 2,
    up_block_types=("UpBlock2D",) * 2,
    transformer_layers_per_block=(9, 1),
    attention_head_dim=(1, 1),
)
COUNTS = {
    "SDXL": (SDXL, SDXLConfig()),
    "SDXL without sites beside the middle": (SDXL, SDXLConfig(**LEVELS)),
    "IF": (DeepFloydIF, IFConfig()),
    "SD3": (MMDiT, MMDiTConfig()),
    "SD3.5": (MMDiT, MMDiTConfig(qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))),
    "a VAE": (VAE, VAEConfig()),
}


@pytest.mark.parametrize("case", COUNTS)
def test_no_model_has_fewer_tensors_than_are_counted(case):
    """The count is at most the model's own number of tensors, and at least a quarter of it."""
    model, config = COUNTS[case]
    counted = sizes.FEWEST[type(config)](config)
    assert counted <= on_meta(model, config) <= 4 * counted


@pytest.mark.parametrize("gated", [False, True])
def test_no_encoder_has_fewer_tensors_than_are_counted(gated):
    """The same of CLIP, and of T5 with either feed-forward."""
    clip, t5 = (
        CLIPTextConfig(**SMALL_CLIP),
        T5Config(**SMALL_T5, feed_forward_proj="gated-gelu" if gated else "relu"),
    )
    assert (
        sizes.fewest_of_encoder(SMALL_CLIP)
        <= on_meta(CLIPTextModel, clip)
        <= 2 * sizes.fewest_of_encoder(SMALL_CLIP)
    )
    assert (
        sizes.fewest_of_encoder(SMALL_T5)
        <= on_meta(T5EncoderModel, t5)
        <= 2 * sizes.fewest_of_encoder(SMALL_T5)
    )


def test_empty_tensors_hold_no_layers():
    """20,000 tensors without elements are none; and levels of a VAE are counted."""
    part = SimpleNamespace(
        shapes=lambda: {f"transformer_blocks.{i}.x": (0, 4) for i in range(20_000)}
    )
    with pytest.raises(
        WeightsError,
        match="says num_layers 20000, which is 440000 tensors or more, and its file holds 0",
    ):
        require_held(Path("here"), MMDiTConfig(num_layers=20_000), part)
    with pytest.raises(
        WeightsError,
        match=r"block_out_channels \(32, 32, 32, 32, ... 2000 of them\), layers_per_block 1",
    ):
        require_held(
            Path("here"), VAEConfig(block_out_channels=(32,) * 2000, layers_per_block=1), part
        )


FAULTS = {
    "blocks are not multiplied": (
        "fewest_of_sdxl",
        "n * layers for",
        "layers for",
        "blocks of each transformer",
    ),
    "levels are not added": ("fewest_of_if", "sum(2 * layers", "max(2 * layers", "levels of IF"),
    "nothing is refused": ("require_held", "asked > max(held, FEW)", "False", "layers of IF"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_count_is_seen(fault, tmp_path, monkeypatch):
    """With the fault a model is made of what the file does not hold."""
    name, old, new, case = FAULTS[fault]
    plant(monkeypatch, sizes, name, old, new)
    model, component, changed = PRODUCTS[case]
    monkeypatch.setattr(nn.ModuleList, "__init__", stopped)
    with pytest.raises(BuildStarted):
        build(copied(model, component, tmp_path / "copy", **changed), component)


class BuildStarted(BaseException):
    """A module was about to be made."""


def stopped(*args, **kwargs):
    raise BuildStarted
