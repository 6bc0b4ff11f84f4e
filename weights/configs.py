"""Configurations of our models, made from published ones.

The models take the sizes.  Every other field of diffusers' classes is compared with the published value, and
a field left out has diffusers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from textpatch.errors import WeightsError
from textpatch.finite import is_finite
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux, FluxConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDConfig, SDXLConfig, StableDiffusion
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights.reading.files import shown

SD3_DEFAULTS = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=18,
    attention_head_dim=64,
    num_attention_heads=18,
    joint_attention_dim=4096,
    caption_projection_dim=1152,
    pooled_projection_dim=2048,
    pos_embed_max_size=96,
    dual_attention_layers=(),
    qk_norm=None,
)
FLUX_DEFAULTS = dict(
    patch_size=1,
    in_channels=64,
    out_channels=None,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=False,
    axes_dims_rope=(16, 56, 56),
)
UNET_DEFAULTS = dict(
    sample_size=None,
    in_channels=4,
    out_channels=4,
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    only_cross_attention=False,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    downsample_padding=1,
    mid_block_scale_factor=1,
    dropout=0.0,
    act_fn="silu",
    norm_num_groups=32,
    norm_eps=1e-5,
    cross_attention_dim=1280,
    transformer_layers_per_block=1,
    reverse_transformer_layers_per_block=None,
    encoder_hid_dim=None,
    encoder_hid_dim_type=None,
    attention_head_dim=8,
    num_attention_heads=None,
    dual_cross_attention=False,
    use_linear_projection=False,
    class_embed_type=None,
    addition_embed_type=None,
    addition_time_embed_dim=None,
    num_class_embeds=None,
    upcast_attention=False,
    resnet_time_scale_shift="default",
    resnet_skip_time_act=False,
    resnet_out_scale_factor=1.0,
    time_embedding_type="positional",
    time_embedding_dim=None,
    time_embedding_act_fn=None,
    timestep_post_act=None,
    time_cond_proj_dim=None,
    conv_in_kernel=3,
    conv_out_kernel=3,
    projection_class_embeddings_input_dim=None,
    attention_type="default",
    class_embeddings_concat=False,
    mid_block_only_cross_attention=None,
    cross_attention_norm=None,
    addition_embed_type_num_heads=64,
)
VAE_DEFAULTS = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(64,),
    layers_per_block=1,
    act_fn="silu",
    latent_channels=4,
    norm_num_groups=32,
    sample_size=32,
    scaling_factor=0.18215,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    force_upcast=True,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
)
# fields of all configurations that are sizes or counts
SIZES = set(
    "in_channels out_channels latent_channels block_out_channels layers_per_block norm_num_groups "
    "attention_head_dim num_attention_heads transformer_layers_per_block cross_attention_dim "
    "encoder_hid_dim addition_embed_type_num_heads projection_class_embeddings_input_dim "
    "addition_time_embed_dim time_embedding_dim patch_size num_layers num_single_layers "
    "joint_attention_dim caption_projection_dim pooled_projection_dim pos_embed_max_size "
    "vocab_size hidden_size intermediate_size num_hidden_layers projection_dim max_position_embeddings "
    "d_model d_kv d_ff num_heads relative_attention_num_buckets relative_attention_max_distance".split()
)
# the side of the pictures where the caller names none
WITHOUT_EFFECT = {"sample_size"}


@dataclass(frozen=True)
class Kind:
    """Kind of model, with the values that a published configuration must have for it.

    defaults  diffusers' default of every field
    fixed     values that our model implements where they are not the default, as a tuple of all that mean
              the same
    """

    model: type[nn.Module]
    config: type
    defaults: dict[str, Any]
    fixed: dict[str, tuple] = field(default_factory=dict)


SD3 = Kind(MMDiT, MMDiTConfig, SD3_DEFAULTS)
FLUX = Kind(Flux, FluxConfig, FLUX_DEFAULTS)
# `upcast_attention` takes the softmax in float32, as the attention here does in every dtype
SD_UNET = Kind(StableDiffusion, SDConfig, UNET_DEFAULTS, dict(upcast_attention=(False, None, True)))
SDXL_UNET = Kind(
    SDXL,
    SDXLConfig,
    UNET_DEFAULTS,
    dict(addition_embed_type=("text_time",), upcast_attention=(False, None, True)),
)
IF_UNET = Kind(
    DeepFloydIF,
    IFConfig,
    UNET_DEFAULTS,
    dict(
        addition_embed_type=("text",),
        act_fn=("gelu",),
        mid_block_type=("UNetMidBlock2DSimpleCrossAttn",),
        cross_attention_norm=("group_norm",),
        resnet_time_scale_shift=("scale_shift",),
        encoder_hid_dim_type=("text_proj", None),
        upcast_attention=(False, None),
    ),
)
KL_VAE = Kind(VAE, VAEConfig, VAE_DEFAULTS)

# sizes that SDXL's refiner alone has together
REFINER = dict(
    addition_embed_type="text_time",
    cross_attention_dim=1280,
    projection_class_embeddings_input_dim=2560,
)
DENOISER_KINDS = {
    ("SD3Transformer2DModel", None): SD3,
    ("FluxTransformer2DModel", None): FLUX,
    ("UNet2DConditionModel", None): SD_UNET,
    ("UNet2DConditionModel", "text_time"): SDXL_UNET,
    ("UNet2DConditionModel", "text"): IF_UNET,
}


def denoiser_from_config(config: Mapping[str, Any]) -> tuple[type[nn.Module], Any]:
    """Model class, and its configuration, that a denoiser's config.json describes.

    Raises WeightsError for a class or a value that none of our models has, with both values, and PatchError
    for sizes that do not fit each other.
    """
    kind = denoiser_kind(config)
    if kind is None:
        known = [f"{name} with {embed!r}" if embed else name for name, embed in DENOISER_KINDS]
        raise WeightsError(
            f"no denoiser for {config.get('_class_name')} "
            f"with addition_embed_type {config.get('addition_embed_type')!r}; known: {', '.join(known)}"
        )
    if all(config.get(name) == size for name, size in REFINER.items()):
        raise WeightsError(
            "these are the sizes of SDXL's refiner, which redraws a given picture by an aesthetic score that "
            "no text gives; load the base model"
        )
    return kind.model, _built(config, kind)


def denoiser_kind(config: Mapping[str, Any]) -> Kind | None:
    """Kind of the denoiser of a config.json, by its class alone, None for one that we have not."""
    asked = config.get("_class_name"), config.get("addition_embed_type")
    # anything may stand there, and lists cannot be looked up
    return next((kind for known, kind in DENOISER_KINDS.items() if known == asked), None)


def vae_from_config(config: Mapping[str, Any]) -> VAEConfig:
    """VAEConfig of a VAE's config.json.   Raises WeightsError as `denoiser_from_config` does."""
    if config.get("_class_name") != "AutoencoderKL":
        raise WeightsError(f"no VAE for {config.get('_class_name')}; known: AutoencoderKL")
    return _built(config, KL_VAE)


def _built(config: Mapping[str, Any], kind: Kind):
    """Configuration of our model, after every other field is found to have a published value."""
    settings = _settings(config, kind)
    sizes = {
        size.name: settings[size.name] for size in fields(kind.config) if size.name in settings
    }
    for name in sorted(settings.keys() - sizes.keys() - WITHOUT_EFFECT):
        published = kind.fixed.get(name) or _items(kind.defaults.get(name))
        if not all(item in published for item in _items(settings[name])):
            raise WeightsError(
                f"{config['_class_name']} with {name} {shown(settings[name])}; "
                f"{kind.model.__name__} is the published one, with {published[0]!r}"
            )
    require_sizes(sizes, kind.defaults)
    _require_numbers(kind.config, settings)
    try:
        return kind.config(**sizes)
    # null, text or zero where a size belongs
    except (TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(
            f"this {config['_class_name']} configuration builds nothing ({error})"
        ) from None


def _settings(config: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Fields of a configuration, with diffusers' defaults for those left out, and tuples for lists."""
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in {**kind.defaults, **given}.items()
    }
    if issubclass(kind.config, SDConfig):
        return settings | _of_each_depth(settings)
    return settings


def require_sizes(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise WeightsError for a size that is no whole number of 1 or more.

    defaults  None here allows null
    """
    for name in sorted(SIZES & settings.keys()):
        value = settings[name]
        if value is None and defaults.get(name, 1) is None:
            continue
        wrong = [item for item in _items(value) if type(item) is not int or item < 1]
        if wrong:
            raise WeightsError(
                f"{name} has {shown(wrong[0])}; give whole numbers of 1 or more there", "bad-size"
            )


def _require_numbers(config: type, settings: Mapping[str, Any]) -> None:
    """Raise WeightsError for what no factor, shift, list of numbers or flag of our configuration can be."""
    for field_ in fields(config):
        if field_.type not in NUMBERS or field_.name not in settings:
            continue
        fits, wanted = NUMBERS[field_.type]
        value = settings[field_.name]
        if not fits(value):
            raise WeightsError(f"{field_.name} is {shown(value)}; give {wanted}", "bad-number")


def _is_factor(value: Any) -> bool:
    return is_finite(value) and value != 0


def _is_shift(value: Any) -> bool:
    return value is None or is_finite(value)


def _is_flag(value: Any) -> bool:
    return type(value) in (bool, int) and value in (0, 1)


def _are_numbers(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and all(map(is_finite, value)))


# by the type of a field: what its value must pass, and how it is asked for
NUMBERS = {
    "float": (_is_factor, "a finite number other than 0"),
    "float | None": (_is_shift, "a finite number, or null"),
    "bool": (_is_flag, "true or false"),
    "tuple[float, ...] | None": (_are_numbers, "finite numbers, or null"),
}


def _of_each_depth(settings: dict[str, Any]) -> dict[str, tuple]:
    """Fields of `SDConfig` that hold one entry per depth, where one number alone stands for all depths."""
    depths = len(_items(settings["block_out_channels"]))
    spelled = {}
    for name in ("transformer_layers_per_block", "attention_head_dim"):
        value = settings[name]
        spelled[name] = value if isinstance(value, tuple) else (value,) * depths
    return spelled


def _items(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)
