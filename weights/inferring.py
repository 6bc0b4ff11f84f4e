"""Configurations of our models, inferred from the shapes of a file's tensors by name in diffusers layout."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import IFConfig
from textpatch.reference_models.flux import FluxConfig
from textpatch.reference_models.mmdit import MMDiTConfig
from textpatch.reference_models.sdxl import SDConfig, SDXLConfig
from textpatch.reference_models.vae import VAEConfig

Shapes = Mapping[str, "tuple[int, ...]"]

# Width of a head in every published denoiser.  Shapes tell it only where queries have a norm of their own.
HEAD = 64
# heads at every level of Stable Diffusion 1
HEADS = 8
# a tensor whose width is that of the text tokens, in every Stable Diffusion and SDXL
SD_TEXT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


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


def flux_config(shapes: Shapes) -> FluxConfig:
    """Configuration of a FLUX.1 transformer of these shapes.

    Raises WeightsError if one is missing, or heads are not as wide as published, 128.
    """
    width, channels = _shape(shapes, "x_embedder.weight")
    (head_dim,) = _shape(shapes, "transformer_blocks.0.attn.norm_q.weight")
    if head_dim != FluxConfig.attention_head_dim:
        raise WeightsError(
            f"heads of {head_dim}, and no shape says which of their channels turn with which axis; "
            "load it with its config.json"
        )
    return FluxConfig(
        in_channels=channels,
        num_layers=_count(shapes, "transformer_blocks"),
        num_single_layers=_count(shapes, "single_transformer_blocks"),
        num_attention_heads=_heads(width, head_dim),
        joint_attention_dim=_shape(shapes, "context_embedder.weight")[1],
        pooled_projection_dim=_shape(shapes, "time_text_embed.text_embedder.linear_1.weight")[1],
        guidance_embeds="time_text_embed.guidance_embedder.linear_1.weight" in shapes,
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
    return SDXLConfig(
        **levels,
        transformer_layers_per_block=tuple(max(n, 1) for n in blocks),
        attention_head_dim=tuple(heads),
        cross_attention_dim=_shape(shapes, SD_TEXT)[1],
        projection_class_embeddings_input_dim=_shape(shapes, "add_embedding.linear_1.weight")[1],
    )


def sd_config(shapes: Shapes) -> SDConfig:
    """Configuration of a Stable Diffusion 1 or 2 U-Net of these shapes.

    Version 1 is the one whose transformers are projected by convolutions.  It has 8 heads at every level.
    Raises WeightsError if a shape is missing, or the width of a level holds no whole heads.
    """
    levels = _levels(shapes, "CrossAttn{}Block2D", "{}Block2D")
    widths = levels["block_out_channels"]
    linear = len(_shape(shapes, "mid_block.attentions.0.proj_in.weight")) == 2
    outer = [f"down_blocks.{i}" for i in range(len(widths) - 1)]
    blocks = [
        _count(shapes, f"{place}.attentions.0.transformer_blocks")
        for place in (*outer, "mid_block")
    ]
    return SDConfig(
        **levels,
        sample_size=96 if linear else 64,  # no shape tells it; of version 2 that of 2.1
        transformer_layers_per_block=tuple(max(n, 1) for n in blocks),
        attention_head_dim=tuple(_heads(width) if linear else HEADS for width in widths),
        cross_attention_dim=_shape(shapes, SD_TEXT)[1],
        use_linear_projection=linear,
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


LATENT_SCALES = {
    "SD": (0.18215, 0.0),
    "SDXL": (0.13025, 0.0),
    "SD3": (1.5305, 0.0609),
    "FLUX.1": (0.3611, 0.1159),
}


def vae_config(shapes: Shapes, family: str | None = None) -> VAEConfig:
    """Configuration of a VAE of these shapes.

    family  `SD`, `SDXL`, `SD3` or `FLUX.1`, which scale and shift depend on; None is SDXL where the latents
            have 4 channels
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
