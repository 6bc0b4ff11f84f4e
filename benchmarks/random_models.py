"""Denoisers and whole pipelines of random weights, at the published sizes and at small ones.

They are made on the device.  Speed does not depend on what the weights are, and the published ones cannot
travel with a repository.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor, nn

from textpatch.plan import Plan, Row, Swap
from textpatch.ports.shipped import find_sites
from textpatch.reference_models import TextCondition
from textpatch.reference_models.decoders import LatentPixels, pixels
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler
from textpatch.reference_models.sdxl import SDXL, SDXLConfig
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights.published import DENOISERS


@dataclass(frozen=True)
class Model:
    """A denoiser's class and configuration, the side of its latents, and its number of text tokens."""

    make: type[nn.Module]
    config: SDXLConfig | IFConfig | MMDiTConfig
    side: int
    tokens: int


def _published(name: str, side: int, tokens: int) -> Model:
    return Model(*DENOISERS[name], side, tokens)


def _sdxl(widths: tuple[int, int, int], heads: tuple[int, int, int], text: int) -> SDXLConfig:
    return SDXLConfig(
        block_out_channels=widths,
        attention_head_dim=heads,
        layers_per_block=1,
        cross_attention_dim=text,
        transformer_layers_per_block=(1, 1, 2),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + text // 2,
    )


def _if(widths: tuple[int, ...], head: int, text: int) -> IFConfig:
    inner = len(widths) - 1
    return IFConfig(
        block_out_channels=widths,
        attention_head_dim=head,
        layers_per_block=1,
        cross_attention_dim=widths[-1],
        encoder_hid_dim=text,
        addition_embed_type_num_heads=4,
        down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * inner,
        up_block_types=("SimpleCrossAttnUpBlock2D",) * inner + ("ResnetUpsampleBlock2D",),
    )


def _mmdit(blocks: int, heads: int, head: int, text: int) -> MMDiTConfig:
    return MMDiTConfig(
        num_layers=blocks,
        num_attention_heads=heads,
        attention_head_dim=head,
        joint_attention_dim=text,
        pooled_projection_dim=text,
        caption_projection_dim=heads * head,
        pos_embed_max_size=96,
    )


MODELS = {
    "sdxl-1024px": _published("sdxl-base-1.0", 128, 77),
    "sdxl-512px": _published("sdxl-base-1.0", 64, 77),
    "sd3-1024px": _published("sd3-medium", 128, 333),
    "sd3-512px": _published("sd3-medium", 64, 333),
    "if-64px": _published("if-i-xl", 64, 77),
    "if-l-64px": _published("if-i-l", 64, 77),
    "sdxl-middle": Model(SDXL, _sdxl((64, 128, 256), (1, 2, 4), 256), 32, 77),
    "if-middle": Model(DeepFloydIF, _if((64, 128, 192, 256), 64, 256), 32, 77),
    "mmdit-middle": Model(MMDiT, _mmdit(8, 6, 64, 256), 32, 77),
    "sdxl-small": Model(SDXL, _sdxl((32, 32, 64), (1, 2, 2), 32), 8, 7),
    "if-small": Model(DeepFloydIF, _if((32, 64), 16, 32), 8, 7),
    "mmdit-small": Model(MMDiT, _mmdit(3, 2, 16, 32), 8, 7),
}
# of the paper's runs
STEPS_AND_GUIDANCE = {
    SDXL: (50, 5.0),
    DeepFloydIF: (50, 7.0),
    MMDiT: (28, 7.0),
}
VAES = {
    SDXL: VAEConfig(),
    MMDiT: VAEConfig(
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
}
SMALL_VAE = dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1)
SCHEDULES = {SDXL: Euler(), DeepFloydIF: DDPM(), MMDiT: FlowMatchEuler()}
MICRO = (1024, 1024, 0, 0, 1024, 1024)
# what diffusers' UNet2DConditionModel must be told beside the sizes to be SDXL's or IF's
FLAGS = {
    SDXL: dict(addition_embed_type="text_time"),
    DeepFloydIF: dict(
        addition_embed_type="text",
        cross_attention_norm="group_norm",
        act_fn="gelu",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    ),
    MMDiT: {},
}


def randomized(
    make: type[nn.Module], config, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> nn.Module:
    """A module whose every tensor is drawn on the device and is nowhere zero."""
    with torch.device("meta"):
        module = make(config)
    module = module.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in module.state_dict().items():
        matrix = tensor.dim() > 1
        tensor.normal_(0, tensor[0].numel() ** -0.5 if matrix else 0.1, generator=generator)
        if not matrix and name.endswith("weight"):
            tensor.add_(1)  # of a norm
    return module


def denoiser(name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return randomized(MODELS[name].make, MODELS[name].config, device, dtype)


def inputs(name: str, model: nn.Module, rows: int) -> tuple[Tensor, Tensor, TextCondition]:
    """The arguments x, t and text of one call, with a text of its own for every row."""
    size = MODELS[name]
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    generator = torch.Generator(device).manual_seed(1)
    shape = rows, size.config.in_channels, size.side, size.side
    x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    text = text_encoders(name, device)([f"row {b}" for b in range(rows)]).to(dtype)
    if isinstance(model, SDXL):
        text = replace(text, micro=torch.tensor([MICRO] * rows, dtype=torch.float32, device=device))
    if isinstance(model, DeepFloydIF):
        text = replace(text, pooled=model.pool(text.tokens))
    return x, torch.tensor(500.0, device=device), text


def text_encoders(name: str, device: torch.device):
    """Prompt -> random tokens and pooled vector of the model's widths, a function of the prompt alone."""
    config = MODELS[name].config
    tokens = MODELS[name].tokens
    width, pooled = {
        SDXL: lambda: (config.cross_attention_dim, config.pooled_width),
        DeepFloydIF: lambda: (config.encoder_hid_dim, 0),
        MMDiT: lambda: (config.joint_attention_dim, config.pooled_projection_dim),
    }[MODELS[name].make]()

    def draw(prompt: str | None) -> Tensor:
        seed = int.from_bytes(sha256((prompt or "").encode()).digest()[:7], "big")
        return torch.randn(tokens * width + pooled, generator=torch.Generator().manual_seed(seed))

    def encode(prompts) -> TextCondition:
        drawn = torch.stack([draw(prompt) for prompt in prompts]).to(device)
        words, vector = drawn.split([tokens * width, pooled], dim=1)
        return TextCondition(words.unflatten(1, (tokens, width)), vector if pooled else None)

    return encode


def pipeline(name: str, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """A pipeline with the paper's steps and guidance, and a VAE of the published size."""
    make = MODELS[name].make
    side = MODELS[name].side
    decoder = pixels
    if make in VAES:
        config = VAES[make] if name.endswith("px") else replace(VAES[make], **SMALL_VAE)
        decoder = LatentPixels(randomized(VAE, config, device, dtype))
    steps, guidance = STEPS_AND_GUIDANCE[make]
    defaults = Defaults(side, side, steps, guidance, micro=MICRO if make is SDXL else None)
    parts = text_encoders(name, device), denoiser(name, device, dtype), SCHEDULES[make], decoder
    return Pipeline(*parts, defaults, name)


def apart(model: nn.Module) -> nn.Module:
    """The same tensors in modules of their own, so that what one way leaves on them is not another's."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def slots_of(
    swaps: list[Swap], rows: Sequence[Row], model: nn.Module, text: TextCondition
) -> list[Tensor | None]:
    """The argument `slots` of one call, on the model's device."""
    found = Plan(swaps).slots(0, rows, find_sites(model), tokens=text.tokens.shape[1])
    return [entry if entry is None else entry.to(text.tokens.device) for entry in found]


def twin(diffusers, name: str, ours: nn.Module) -> nn.Module:
    """diffusers' model of the same sizes, which holds the very tensors of ours."""
    make = MODELS[name].make
    config = MODELS[name].config
    kind = diffusers.SD3Transformer2DModel if make is MMDiT else diffusers.UNet2DConditionModel
    with torch.device("meta"):
        theirs = kind(**asdict(config), **FLAGS[make])
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return theirs.eval().requires_grad_(False)


def call_twin(theirs: nn.Module, x: Tensor, t: Tensor, text: TextCondition) -> Tensor:
    """The same call of diffusers' model."""
    if text.micro is not None:
        added = {"text_embeds": text.pooled, "time_ids": text.micro}
        return theirs(x, t, text.tokens, added_cond_kwargs=added, return_dict=False)[0]
    if "pooled_projection_dim" in theirs.config:
        return theirs(x, text.tokens, text.pooled, t.expand(len(x)), return_dict=False)[0]
    return theirs(x, t, text.tokens, return_dict=False)[0]
