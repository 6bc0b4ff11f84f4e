"""Configurations of our models, made from published ones or from the shapes of a file's tensors.

The models take the sizes.  Every other field of diffusers' classes is compared with the published value, and
a field left out has diffusers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isqrt
from typing import Any

from torch import nn

from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDXLConfig
from textpatch.reference_models.vae import VAE, VAEConfig

Shapes = Mapping[str, "tuple[int, ...]"]

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
# Width of a head in every published denoiser.  Shapes tell it only where queries have a norm of their own.
HEAD = 64
# a default size, and a dtype that the caller chooses
WITHOUT_EFFECT = {"sample_size", "force_upcast"}


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
SDXL_UNET = Kind(
    SDXL,
    SDXLConfig,
    UNET_DEFAULTS,
    dict(
        addition_embed_type=("text_time",),
        use_linear_projection=(True,),
        upcast_attention=(False, None),
    ),
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

DENOISER_KINDS = {
    ("SD3Transformer2DModel", None): SD3,
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
        known = [f"{name} with {kind!r}" if kind else name for name, kind in DENOISER_KINDS]
        raise WeightsError(
            f"no denoiser for {config.get('_class_name')} "
            f"with addition_embed_type {config.get('addition_embed_type')!r}; known: {', '.join(known)}"
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
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    settings = {**kind.defaults, **given}
    settings = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    if kind.config is SDXLConfig:
        settings |= _of_each_depth(settings)
    sizes = {f.name for f in fields(kind.config)}
    for name in sorted(settings.keys() - sizes - WITHOUT_EFFECT):
        published = kind.fixed.get(name) or _items(kind.defaults.get(name))
        if not all(item in published for item in _items(settings[name])):
            raise WeightsError(
                f"{config['_class_name']} with {name} {settings[name]!r}; "
                f"{kind.model.__name__} is the published one, with {published[0]!r}"
            )
    try:
        return kind.config(**{name: settings[name] for name in sizes & settings.keys()})
    # null, text or zero where a size belongs
    except (TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(
            f"this {config['_class_name']} configuration builds nothing ({error})"
        ) from None


def _of_each_depth(settings: dict[str, Any]) -> dict[str, tuple]:
    """Fields of SDXL that hold one entry per depth, where one number alone stands for all depths."""
    depths = len(_items(settings["block_out_channels"]))
    spelled = {}
    for name in ("transformer_layers_per_block", "attention_head_dim"):
        value = settings[name]
        spelled[name] = value if isinstance(value, tuple) else (value,) * depths
    return spelled


def _items(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


# configurations from shapes, by name in diffusers layout


def mmdit_config(shapes: Shapes) -> MMDiTConfig:
    """Configuration of an SD3 or SD3.5 transformer of these shapes.

    Raises WeightsError if one is missing, or the width holds no whole heads.
    """
    width, channels, patch, _ = _shape(shapes, "pos_embed.proj.weight")
    (head_dim,) = shapes.get("transformer_blocks.0.attn.norm_q.weight", (HEAD,))
    blocks = range(_count(shapes, "transformer_blocks"))
    dual = [i for i in blocks if f"transformer_blocks.{i}.attn2.to_q.weight" in shapes]
    qk_norm = None
    if "transformer_blocks.0.attn.norm_q.weight" in shapes:
        qk_norm = "rms_norm"
    return MMDiTConfig(
        patch_size=patch,
        in_channels=channels,
        out_channels=_shape(shapes, "proj_out.weight")[0] // patch**2,
        num_layers=len(blocks),
        num_attention_heads=_heads(width, head_dim),
        attention_head_dim=head_dim,
        joint_attention_dim=_shape(shapes, "context_embedder.weight")[1],
        pooled_projection_dim=_shape(shapes, "time_text_embed.text_embedder.linear_1.weight")[1],
        caption_projection_dim=width,
        pos_embed_max_size=isqrt(_shape(shapes, "pos_embed.pos_embed")[1]),
        qk_norm=qk_norm,
        dual_attention_layers=tuple(dual),
    )


def if_config(shapes: Shapes) -> IFConfig:
    """Configuration of a DeepFloyd IF U-Net, stage I or II, of these shapes.

    Stage II is the one with `class_embedding`.  Its scale factors, which no shape tells, are the published
    1 / 0.7071.  Raises WeightsError if a shape is missing.
    """
    levels = _levels(shapes, "SimpleCrossAttn{}Block2D", "Resnet{0}sampleBlock2D")
    embedding = _shape(shapes, "time_embedding.linear_1.weight")[0]
    if embedding == 4 * levels["block_out_channels"][0]:
        embedding = None  # the default
    text, raw_text = _shape(shapes, "encoder_hid_proj.weight")
    stage_ii = {}
    if "class_embedding.linear_1.weight" in shapes:
        stage_ii = dict(
            sample_size=None,
            class_embed_type="timestep",
            resnet_skip_time_act=True,
            time_embedding_act_fn="gelu",
            resnet_out_scale_factor=1 / 0.7071,
            mid_block_scale_factor=1 / 0.7071,
        )
    return IFConfig(
        **levels,
        cross_attention_dim=text,
        encoder_hid_dim=raw_text,
        only_cross_attention="mid_block.attentions.0.to_k.weight" not in shapes,
        time_embedding_dim=embedding,
        **stage_ii,
    )


def sdxl_config(shapes: Shapes) -> SDXLConfig:
    """Configuration of an SDXL U-Net of these shapes.

    Raises WeightsError if one is missing, or the width of a level with attention holds no whole heads.
    """
    levels = _levels(shapes, "CrossAttn{}Block2D", "{}Block2D")
    outer = [f"down_blocks.{i}" for i in range(len(levels["block_out_channels"]) - 1)]
    places = [*outer, "mid_block"]  # the middle is configured as the innermost level
    blocks = [_count(shapes, f"{place}.attentions.0.transformer_blocks") for place in places]
    heads = []
    # a broken file may have a middle and no levels
    for width, n in zip(levels["block_out_channels"], blocks, strict=False):
        # a level without attention may have a width that heads do not divide
        heads.append(1 if n == 0 and width % HEAD else _heads(width))
    middle = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    return SDXLConfig(
        **levels,
        transformer_layers_per_block=tuple(max(n, 1) for n in blocks),
        attention_head_dim=tuple(heads),
        cross_attention_dim=_shape(shapes, middle)[1],
        projection_class_embeddings_input_dim=_shape(shapes, "add_embedding.linear_1.weight")[1],
    )


def _levels(shapes: Shapes, attention: str, plain: str) -> dict[str, Any]:
    """Channels, widths, ResNets per level and types of blocks, which both U-Nets have.

    attention, plain  published names of the types with and without attention, `{}` standing for the side
    """
    downs = range(_count(shapes, "down_blocks"))
    ups = range(_count(shapes, "up_blocks"))
    layers = tuple(_count(shapes, f"down_blocks.{i}.resnets") for i in downs)

    def types(side: str, levels: range) -> tuple[str, ...]:
        attentions = [_count(shapes, f"{side}_blocks.{i}.attentions") for i in levels]
        return tuple((attention if n else plain).format(side.capitalize()) for n in attentions)

    widths = [_shape(shapes, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in downs]
    return dict(
        in_channels=_shape(shapes, "conv_in.weight")[1],
        out_channels=_shape(shapes, "conv_out.weight")[0],
        block_out_channels=tuple(widths),
        layers_per_block=layers[0] if len(set(layers)) == 1 else layers,
        down_block_types=types("down", downs),
        up_block_types=types("up", ups),
    )


LATENT_SCALES = {"SDXL": (0.13025, 0.0), "SD3": (1.5305, 0.0609), "FLUX.1": (0.3611, 0.1159)}


def vae_config(shapes: Shapes, family: str | None = None) -> VAEConfig:
    """Configuration of a VAE of these shapes.

    family  `SDXL`, `SD3` or `FLUX.1`, which scale and shift depend on; None is SDXL where the latents have 4
            channels
    Raises WeightsError for 16 channels of no family, and if a shape is missing.
    """
    channels = _shape(shapes, "decoder.conv_in.weight")[1]
    if family is None and channels == 4:
        family = "SDXL"
    if family not in LATENT_SCALES:
        raise WeightsError(
            f"a VAE of {channels} latent channels and of family {family!r}, "
            f"which its scale depends on; say one of {', '.join(LATENT_SCALES)}"
        )
    scale, shift = LATENT_SCALES[family]
    levels = [f"encoder.down_blocks.{i}" for i in range(_count(shapes, "encoder.down_blocks"))]
    widths = [_shape(shapes, f"{level}.resnets.0.conv1.weight")[0] for level in levels]
    return VAEConfig(
        in_channels=_shape(shapes, "encoder.conv_in.weight")[1],
        out_channels=_shape(shapes, "decoder.conv_out.weight")[0],
        latent_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=_count(shapes, "encoder.down_blocks.0.resnets"),
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
        mid_block_add_attention="encoder.mid_block.attentions.0.to_q.weight" in shapes,
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise WeightsError(
            f"no tensor {name!r} among {len(shapes)}; the file is incomplete or of another model"
        )
    return shapes[name]


def _heads(width: int, head_dim: int = HEAD) -> int:
    if width % head_dim:
        raise WeightsError(
            f"a width of {width} holds no whole heads of {head_dim}; load it with its config.json"
        )
    return width // head_dim


def _count(shapes: Shapes, prefix: str) -> int:
    """Number of children in a numbered list of modules."""
    start = f"{prefix}."
    within = [name.removeprefix(start) for name in shapes if name.startswith(start)]
    return len({name.partition(".")[0] for name in within})
