"""The manifests are the published files, and our models at their defaults are the manifests."""

import json
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDConfig
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights.layouts import CLIP
from textpatch.weights.manifests import expand, manifest, published
from textpatch.weights.published import DENOISERS

# (tensors, elements) of every published list
COUNTS = {
    "flux.1-dev.ae.single-file": (244, 83_819_683),
    "flux.1-dev.single-file": (780, 11_901_408_320),
    "flux.1-dev.transformer.diffusers": (1160, 11_901_408_320),
    "flux.1-dev.vae.diffusers": (244, 83_819_683),
    "if-i-l.unet.diffusers": (775, 935_365_830),
    "if-i-m.unet.diffusers": (775, 371_605_830),
    "if-i-xl.original": (643, 4_304_695_110),
    "if-i-xl.unet.diffusers": (775, 4_304_695_110),
    "sd-1.5.unet.diffusers": (686, 859_520_964),
    "sd-2.1.unet.diffusers": (686, 865_910_724),
    "sd3-medium.single-file": (735, 2_168_770_787),
    "sd3-medium.text_encoder.diffusers": (197, 123_650_304),
    "sd3-medium.text_encoder_2.diffusers": (517, 694_659_840),
    "sd3-medium.text_encoder_3.diffusers": (219, 4_762_310_656),
    "sd3-medium.transformer.diffusers": (683, 2_084_951_104),
    "sd3-medium.vae.diffusers": (244, 83_819_683),
    "sd3.5-large.single-file": (1167, 8_230_100_451),
    "sd3.5-large.transformer.diffusers": (1227, 8_146_280_768),
    "sd3.5-medium.single-file": (909, 2_553_483_619),
    "sd3.5-medium.transformer.diffusers": (909, 2_469_663_936),
    "sdxl-base-1.0.single-file": (2515, 3_468_837_945),
    "sdxl-base-1.0.text_encoder.diffusers": (196, 123_060_480),
    "sdxl-base-1.0.text_encoder_2.diffusers": (517, 694_659_840),
    "sdxl-base-1.0.unet.diffusers": (1680, 2_567_463_684),
    "sdxl-base-1.0.vae.diffusers": (248, 83_653_863),
}
# whole files in diffusers layout whose size in bytes is published
SIZED = [
    (name, file)
    for name in COUNTS
    if name.endswith(".diffusers")
    for file in manifest(name).files
    if manifest(name).files[file][1] and "-of-" not in file
]
BYTES = {"F16": 2, "BF16": 2, "F32": 4}


def on_meta(make, *args) -> torch.nn.Module:
    with torch.device("meta"):
        return make(*args)


def assert_is(model: torch.nn.Module, name: str):
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == manifest(name).shapes


def test_every_list_has_the_published_counts():
    """Tensors and elements of each."""
    assert {
        name: (len(manifest(name).tensors), manifest(name).n_elements) for name in published()
    } == COUNTS


@pytest.mark.parametrize("name, file", SIZED)
def test_a_list_makes_a_file_of_the_published_size(name, file):
    """A safetensors file of these names, shapes and dtype is as long as the published one, to the byte."""
    dtype, size = manifest(name).files[file]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in sorted(manifest(name).shapes.items()):
        start, end = end, end + BYTES[dtype] * prod(shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    written = len(json.dumps(header, separators=(",", ":")))
    assert 8 + written + -written % 8 + end == size


def test_dtypes_are_read_line_by_line():
    """All of a list in its common dtype but for CLIP's position numbers, which are whole."""
    tensors = manifest("sdxl-base-1.0.single-file").tensors
    others = {name: found for name, found in tensors.items() if found[0] != "F16"}
    assert others == {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": ("I64", (1, 77))
    }
    assert tensors["conditioner.embedders.1.model.logit_scale"] == ("F16", ())


def test_sd3_is_the_published_one():
    """SD3-medium is MMDiT's defaults; 3.5-medium and large differ in what their names say."""
    assert_is(on_meta(MMDiT), "sd3-medium.transformer.diffusers")
    norms = {"qk_norm": "rms_norm"}
    medium = MMDiTConfig(pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), **norms)
    large = MMDiTConfig(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, **norms)
    assert_is(on_meta(MMDiT, medium), "sd3.5-medium.transformer.diffusers")
    assert_is(on_meta(MMDiT, large), "sd3.5-large.transformer.diffusers")


def test_flux_is_the_published_one():
    """FLUX.1-dev is Flux's defaults; schnell lacks the embedding of the guidance alone."""
    assert_is(on_meta(Flux), "flux.1-dev.transformer.diffusers")
    schnell = on_meta(*DENOISERS["flux.1-schnell"]).state_dict()
    missing = manifest("flux.1-dev.transformer.diffusers").shapes.keys() - schnell.keys()
    assert len(missing) == 4 and all("guidance_embedder" in name for name in missing)


def test_sdxl_is_the_published_one():
    """SDXL base 1.0 is SDXL's defaults."""
    assert_is(on_meta(SDXL), "sdxl-base-1.0.unet.diffusers")


@pytest.mark.parametrize("name", ["sd-1.5", "sd-2.1"])
def test_stable_diffusion_is_the_published_one(name):
    """Version 1.5 is the defaults; 2.1 has Linears around its transformers and another text encoder."""
    model, config = DENOISERS[name]
    assert (config == SDConfig()) == (name == "sd-1.5")
    assert_is(on_meta(model, config), f"{name}.unet.diffusers")


@pytest.mark.parametrize("name, width", [("xl", 704), ("l", 320), ("m", 192)])
def test_if_is_the_published_one(name, width):
    """IF-I-XL is DeepFloydIF's defaults; L and M are narrower."""
    config = IFConfig(
        block_out_channels=tuple(width * n for n in (1, 2, 3, 4)), cross_attention_dim=4 * width
    )
    assert (config == IFConfig()) == (name == "xl")
    assert_is(on_meta(DeepFloydIF, config), f"if-i-{name}.unet.diffusers")


def test_vaes_are_the_published_ones():
    """SDXL's VAE is VAE's defaults; SD3's and FLUX's have 16 channels and no quant convolutions."""
    assert_is(on_meta(VAE), "sdxl-base-1.0.vae.diffusers")
    wider = on_meta(
        VAE, VAEConfig(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
    )
    assert_is(wider, "sd3-medium.vae.diffusers")
    assert_is(wider, "flux.1-dev.vae.diffusers")


@pytest.mark.parametrize(
    "name, make, sizes",
    [
        ("sdxl-base-1.0.text_encoder", CLIPTextModel, (768, 3072, 12, 12)),
        ("sd3-medium.text_encoder", CLIPTextModelWithProjection, (768, 3072, 12, 12)),
        ("sdxl-base-1.0.text_encoder_2", CLIPTextModelWithProjection, (1280, 5120, 32, 20)),
        ("sd3-medium.text_encoder_2", CLIPTextModelWithProjection, (1280, 5120, 32, 20)),
    ],
)
def test_clips_are_the_published_ones(name, make, sizes):
    """transformers' classes at the published sizes; their names, run through the layout, are the
    published."""
    width, inner, layers, heads = sizes
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
    )
    state = on_meta(make, config).state_dict()
    shapes = {target: tuple(x.shape) for key, x in state.items() for target, _ in CLIP.targets(key)}
    assert shapes == manifest(f"{name}.diffusers").shapes


def test_t5_is_the_published_one():
    """T5-XXL v1.1's encoder, whose embedding the class names a second time."""
    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    shapes = {
        key: tuple(x.shape) for key, x in on_meta(T5EncoderModel, config).state_dict().items()
    }
    assert shapes.pop("encoder.embed_tokens.weight") == shapes["shared.weight"]
    assert shapes == manifest("sd3-medium.text_encoder_3.diffusers").shapes


alternatives = st.lists(st.text("ab_1", max_size=2), min_size=1, max_size=3)


@given(st.lists(alternatives, max_size=3), st.integers(0, 12), st.integers(0, 12))
def test_braces_stand_for_every_combination(choices, first, last):
    """expand is the product of its alternatives in order, the last brace fastest; ranges count both ways."""
    braces = ["{" + ",".join(choice) + "}" for choice in choices]
    pattern = "x" + ".".join(braces) + f"{{{first}..{last}}}"
    names = ["x"]
    for i, choice in enumerate(choices):
        names = [f"{name}{'.' if i else ''}{item}" for name in names for item in choice]
    step = 1 if last >= first else -1
    assert expand(pattern) == [
        f"{name}{n}" for name in names for n in range(first, last + step, step)
    ]


def test_an_unknown_manifest_is_named():
    """A WeightsError with the closest."""
    with pytest.raises(
        WeightsError, match="'sdxl-base-1.0.unet'; closest: sdxl-base-1.0.unet.diffusers"
    ):
        manifest("sdxl-base-1.0.unet")
