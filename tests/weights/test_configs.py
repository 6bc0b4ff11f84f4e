"""Configurations from config.json and from tensors agree with the published ones and with each other."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux, FluxConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDConfig, SDXLConfig, StableDiffusion
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights import configs
from textpatch.weights.configs import denoiser_from_config, vae_from_config
from textpatch.weights.inferring import (
    flux_config,
    if_config,
    mmdit_config,
    sd_config,
    sdxl_config,
    vae_config,
)
from textpatch.weights.manifests import manifest
from textpatch.weights.published import DENOISERS

GOLDEN = Path(__file__).parents[1] / "golden"
UNETS = {
    family: json.loads((GOLDEN / family / "config.json").read_text()) for family in ("sdxl", "if")
}
# what the published configurations hold beyond their class's defaults
PUBLISHED_SDXL = dict(
    _class_name="UNet2DConditionModel",
    _diffusers_version="0.19.0.dev0",
    sample_size=128,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    cross_attention_dim=2048,
    projection_class_embeddings_input_dim=2816,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    upcast_attention=None,
    transformer_layers_per_block=[1, 2, 10],
    use_linear_projection=True,
)
PUBLISHED_IF = dict(
    _class_name="UNet2DConditionModel",
    sample_size=64,
    act_fn="gelu",
    addition_embed_type="text",
    addition_embed_type_num_heads=64,
    attention_head_dim=64,
    block_out_channels=[704, 1408, 2112, 2816],
    cross_attention_dim=2816,
    cross_attention_norm="group_norm",
    encoder_hid_dim=4096,
    in_channels=3,
    out_channels=6,
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    layers_per_block=3,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_time_scale_shift="scale_shift",
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
)
PUBLISHED_SD3 = dict(
    _class_name="SD3Transformer2DModel",
    num_layers=24,
    num_attention_heads=24,
    caption_projection_dim=1536,
    pos_embed_max_size=192,
)
PUBLISHED_FLUX = dict(
    _class_name="FluxTransformer2DModel",
    attention_head_dim=128,
    guidance_embeds=True,
    in_channels=64,
    joint_attention_dim=4096,
    num_attention_heads=24,
    num_layers=19,
    num_single_layers=38,
    patch_size=1,
    pooled_projection_dim=768,
)
PUBLISHED_SD1 = dict(
    _class_name="UNet2DConditionModel",
    sample_size=64,
    act_fn="silu",
    attention_head_dim=8,
    block_out_channels=[320, 640, 1280, 1280],
    cross_attention_dim=768,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)
PUBLISHED_SD2 = PUBLISHED_SD1 | dict(
    sample_size=96,
    attention_head_dim=[5, 10, 20, 20],
    cross_attention_dim=1024,
    upcast_attention=True,
    use_linear_projection=True,
)
PUBLISHED_VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    scaling_factor=0.13025,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    sample_size=1024,
)
WIDE_VAE = dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)


@pytest.mark.parametrize(
    "published, model, config",
    [
        (PUBLISHED_SDXL, SDXL, SDXLConfig()),
        (PUBLISHED_IF, DeepFloydIF, IFConfig()),
        (PUBLISHED_SD3, MMDiT, MMDiTConfig()),
        (PUBLISHED_FLUX, Flux, FluxConfig()),
        (PUBLISHED_SD1, StableDiffusion, SDConfig()),
        (PUBLISHED_SD2, *DENOISERS["sd-2.1"]),
    ],
    ids=["SDXL", "IF-I-XL", "SD3-medium", "FLUX.1-dev", "SD-1.5", "SD-2.1"],
)
def test_published_denoisers_are_our_defaults(published, model, config):
    """config.json of each published denoiser gives its class with its configuration, mostly the default."""
    assert denoiser_from_config(published) == (model, config)


def test_published_vaes_are_read():
    """SDXL's config.json, which says nothing of a shift, is our default; SD3's differs in channels and
    scale."""
    assert vae_from_config(PUBLISHED_VAE) == VAEConfig(shift_factor=None)
    sd3 = PUBLISHED_VAE | WIDE_VAE | dict(scaling_factor=1.5305, shift_factor=0.0609)
    assert vae_from_config(sd3) == VAEConfig(scaling_factor=1.5305, shift_factor=0.0609, **WIDE_VAE)


def test_configurations_from_shapes_are_the_published_ones():
    """Every published denoiser's tensors, names and shapes alone, give the published configuration."""

    def shapes(name):
        return manifest(f"{name}.diffusers").shapes

    rms = {"qk_norm": "rms_norm"}
    assert sdxl_config(shapes("sdxl-base-1.0.unet")) == SDXLConfig()
    for name in ("sd-1.5", "sd-2.1"):
        assert sd_config(shapes(f"{name}.unet")) == DENOISERS[name][1]
    assert flux_config(shapes("flux.1-dev.transformer")) == FluxConfig()
    assert mmdit_config(shapes("sd3-medium.transformer")) == MMDiTConfig()
    assert mmdit_config(shapes("sd3.5-medium.transformer")) == MMDiTConfig(
        pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), **rms
    )
    assert mmdit_config(shapes("sd3.5-large.transformer")) == MMDiTConfig(
        num_layers=38, num_attention_heads=38, caption_projection_dim=2432, **rms
    )
    for name, width in {"xl": 704, "l": 320, "m": 192}.items():
        widths = tuple(width * n for n in (1, 2, 3, 4))
        expected = IFConfig(block_out_channels=widths, cross_attention_dim=4 * width)
        assert if_config(shapes(f"if-i-{name}.unet")) == expected


@pytest.mark.parametrize(
    "name, family, scale, shift",
    [
        ("sd3-medium", "SD3", 1.5305, 0.0609),
        ("flux.1-dev", "FLUX.1", 0.3611, 0.1159),
    ],
)
def test_the_family_gives_a_vae_its_scale(name, family, scale, shift):
    """16 channels are SD3's or FLUX's with the same tensors, so that the caller must say which."""
    shapes = manifest(f"{name}.vae.diffusers").shapes
    assert vae_config(shapes, family) == VAEConfig(
        scaling_factor=scale, shift_factor=shift, **WIDE_VAE
    )
    with pytest.raises(
        WeightsError, match="16 latent channels .* family None.*; say one of SD, SDXL, SD3, FLUX.1"
    ):
        vae_config(shapes)


def test_sdxls_vae_needs_no_family():
    """Four channels are SDXL's."""
    assert vae_config(manifest("sdxl-base-1.0.vae.diffusers").shapes) == VAEConfig()


STAGE_TWO = IFConfig(
    sample_size=None,
    in_channels=6,
    block_out_channels=(64, 128, 192, 256, 320),
    layers_per_block=(2, 2, 3, 5, 5),
    down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",) * 2,
    up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 3,
    cross_attention_dim=320,
    class_embed_type="timestep",
    only_cross_attention=True,
    resnet_skip_time_act=True,
    time_embedding_dim=320,
    time_embedding_act_fn="gelu",
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
)
SMALL = [
    pytest.param(if_config, DeepFloydIF, STAGE_TWO, id="IF-II"),
    pytest.param(
        if_config,
        DeepFloydIF,
        replace(STAGE_TWO, time_embedding_dim=None, layers_per_block=1),
        id="even",
    ),
    pytest.param(
        sdxl_config,
        SDXL,
        SDXLConfig(
            block_out_channels=(96, 128),
            attention_head_dim=(1, 2),
            layers_per_block=3,
            cross_attention_dim=32,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=1552,
        ),
        id="SDXL",
    ),
    pytest.param(
        mmdit_config,
        MMDiT,
        MMDiTConfig(
            patch_size=4,
            in_channels=3,
            out_channels=5,
            num_layers=3,
            num_attention_heads=3,
            attention_head_dim=32,
            joint_attention_dim=8,
            pooled_projection_dim=9,
            caption_projection_dim=96,
            pos_embed_max_size=7,
            qk_norm="rms_norm",
            dual_attention_layers=(0, 2),
        ),
        id="SD3.5",
    ),
    pytest.param(
        vae_config,
        VAE,
        VAEConfig(
            in_channels=4,
            out_channels=2,
            block_out_channels=(32, 64, 96),
            layers_per_block=1,
            use_quant_conv=False,
            mid_block_add_attention=False,
        ),
        id="VAE",
    ),
]


@pytest.mark.parametrize("infer, model, config", SMALL)
def test_shapes_give_back_the_configuration(infer, model, config):
    """Stage II, uneven depths, few attentions: the shapes of a model's tensors say how it was configured."""
    with torch.device("meta"):
        state = model(config).state_dict()
    assert infer({name: tuple(tensor.shape) for name, tensor in state.items()}) == config


def test_heads_that_tensors_do_not_tell_are_not_guessed():
    """A width that 64 does not divide is refused; norms of the queries say how wide a head is."""
    shapes = manifest("sd3-medium.transformer.diffusers").shapes | {
        "pos_embed.proj.weight": (96, 16, 2, 2)
    }
    narrow = {"x_embedder.weight": (64, 16), "transformer_blocks.0.attn.norm_q.weight": (32,)}
    with pytest.raises(WeightsError, match="heads of 32, and no shape says .* load it with its"):
        flux_config(narrow)
    with pytest.raises(
        WeightsError, match="a width of 96 holds no whole heads of 64; load it with its"
    ):
        mmdit_config(shapes)
    assert (
        mmdit_config(
            shapes | {"transformer_blocks.0.attn.norm_q.weight": (32,)}
        ).num_attention_heads
        == 3
    )


@pytest.mark.parametrize(
    "infer", [mmdit_config, flux_config, if_config, sdxl_config, sd_config, vae_config]
)
def test_an_incomplete_file_is_named(infer):
    """A shape that is needed and missing is a WeightsError."""
    with pytest.raises(WeightsError, match=r"no tensor '[\w.]+' among 1; the file is incomplete"):
        infer({"other.weight": (1,)})


def test_defaults_are_those_of_diffusers():
    """What a configuration leaves out means what it means to diffusers, field by field."""
    diffusers = pytest.importorskip("diffusers")
    for name, defaults in [
        ("SD3Transformer2DModel", configs.SD3_DEFAULTS),
        ("FluxTransformer2DModel", configs.FLUX_DEFAULTS),
        ("UNet2DConditionModel", configs.UNET_DEFAULTS),
        ("AutoencoderKL", configs.VAE_DEFAULTS),
    ]:
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        assert {key: p.default for key, p in parameters.items() if key != "self"} == defaults


@pytest.mark.parametrize(
    "published, changed, says",
    [
        (
            PUBLISHED_SDXL,
            dict(dual_cross_attention=True),
            "dual_cross_attention True; SDXL is .* with False",
        ),
        (PUBLISHED_SDXL, dict(act_fn="gelu"), "act_fn 'gelu'; SDXL is .* with 'silu'"),
        (PUBLISHED_SDXL, dict(norm_eps=1e-6), "norm_eps 1e-06; SDXL is .* with 1e-05"),
        (PUBLISHED_SDXL, dict(a_new_field=3), "a_new_field 3; SDXL is .* with None"),
        (PUBLISHED_IF, dict(act_fn="silu"), "act_fn 'silu'; DeepFloydIF is .* with 'gelu'"),
        (
            PUBLISHED_IF,
            dict(encoder_hid_dim_type="image_proj"),
            "'image_proj'; DeepFloydIF is .* with 'text_proj'",
        ),
        (
            PUBLISHED_IF,
            dict(flip_sin_to_cos=False),
            "flip_sin_to_cos False; DeepFloydIF is .* with True",
        ),
        # with the tensors of a picture beside the latents
        (PUBLISHED_FLUX, dict(out_channels=64), "out_channels 64; Flux is .* with None"),
        (PUBLISHED_SD3, dict(a_new_field=[1, 2]), r"a_new_field \(1, 2\); MMDiT is .* with None"),
        (
            PUBLISHED_SD3,
            dict(quantization_config={"bits": 4}),
            "quantization_config {'bits': 4}; MMDiT is",
        ),
        (
            PUBLISHED_SD3,
            dict(_class_name="DiTTransformer2DModel"),
            "for DiTTransformer2DModel .*; known: SD3",
        ),
        (
            PUBLISHED_IF,
            dict(addition_embed_type="image"),
            "type 'image'; known: .* with 'text_time', .* 'text'$",
        ),
    ],
)
def test_what_is_not_published_is_refused(published, changed, says):
    """A value that would change the arithmetic is refused with both values, an unknown class with the
    known."""
    with pytest.raises(WeightsError, match=says):
        denoiser_from_config(published | changed)


@pytest.mark.parametrize(
    "changed, says",
    [
        (
            dict(down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
            "with 'DownEncoderBlock2D'",
        ),
        (dict(act_fn="gelu"), "act_fn 'gelu'; VAE is the published one, with 'silu'"),
        (
            dict(latents_mean=[0.0]),
            "latents_mean and latents_std have 1 and 0 numbers, and there are 4",
        ),
        (dict(_class_name="AutoencoderTiny"), "no VAE for AutoencoderTiny; known: AutoencoderKL"),
    ],
)
def test_another_vae_is_refused(changed, says):
    """As with denoisers."""
    with pytest.raises(PatchError, match=says):
        vae_from_config(PUBLISHED_VAE | changed)


@pytest.mark.parametrize(
    "published, name, values, says",
    [
        (PUBLISHED_VAE, "scaling_factor", ["8", None, [8], True, 0, 10**400], "other than 0"),
        (PUBLISHED_VAE, "shift_factor", ["8", [8], 10**400, float("nan")], "number, or null"),
        (
            PUBLISHED_VAE,
            "latents_std",
            ["8", 1, [1, 1, 1, "a"], [1, 1, 1, None]],
            "numbers, or null",
        ),
        (PUBLISHED_VAE, "use_quant_conv", ["no", None, [True], 8], "true or false"),
        (PUBLISHED_VAE, "force_upcast", ["no", None, 0.5], "true or false"),
        (PUBLISHED_IF, "mid_block_scale_factor", ["8", None, [8], 0, 10**400], "other than 0"),
    ],
)
def test_numbers_and_flags_that_are_none_are_refused(published, name, values, says):
    """Text, null, lists and what no float holds, where a factor, a shift or a flag belongs."""
    read = vae_from_config if published is PUBLISHED_VAE else denoiser_from_config
    read(published)
    for value in values:
        with pytest.raises(WeightsError, match=f"^{name} is .*; give .*{says}$"):
            read(published | {name: value})


@pytest.mark.parametrize("changed", [dict(block_out_channels=None), dict(norm_num_groups=0)])
def test_sizes_that_are_none_are_refused(changed):
    """Null or zero where a size belongs is one line, not Python's own error."""
    with pytest.raises(WeightsError, match="has (None|0); give whole numbers of 1 or more there"):
        denoiser_from_config(PUBLISHED_IF | changed)


def test_a_field_left_out_is_diffusers_default():
    """IF without its activation would be SiLU in diffusers, and is refused, not taken for GELU."""
    with pytest.raises(WeightsError, match="act_fn 'silu'"):
        denoiser_from_config(
            {name: value for name, value in PUBLISHED_IF.items() if name != "act_fn"}
        )


@pytest.mark.parametrize("family", UNETS)
def test_small_configurations_written_by_diffusers_are_read(family):
    """All fields that diffusers writes are known; the sizes arrive."""
    model, config = denoiser_from_config(UNETS[family])
    assert model is {"sdxl": SDXL, "if": DeepFloydIF}[family]
    for name in ("block_out_channels", "cross_attention_dim", "norm_num_groups", "sample_size"):
        value = UNETS[family][name]
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
