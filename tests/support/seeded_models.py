"""One small model of each architecture and its inputs, both functions of a seed: what stored reference
outputs are of."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from support.strategies import no_first_values, randomize
from textpatch.reference_models import deepfloyd_if, flux, mmdit, sdxl
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux, FluxConfig
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDConfig, SDXLConfig, StableDiffusion
from textpatch.reference_models.vae import VAE, VAEConfig

IF_WIDTHS = dict(
    block_out_channels=(32, 64),
    cross_attention_dim=64,
    encoder_hid_dim=48,
    addition_embed_type_num_heads=4,
    layers_per_block=1,
    attention_head_dim=16,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
)
STAGE_II = dict(
    in_channels=6,
    class_embed_type="timestep",
    only_cross_attention=True,
    resnet_skip_time_act=True,
    resnet_out_scale_factor=2**0.5,
    mid_block_scale_factor=2**0.5,
    time_embedding_act_fn="gelu",
)
SD3_WIDTHS = dict(
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    caption_projection_dim=32,
    pos_embed_max_size=12,
)
SD_WIDTHS = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    transformer_layers_per_block=(1, 1),
    cross_attention_dim=24,
)
FLUX_WIDTHS = dict(
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    axes_dims_rope=(4, 6, 6),
)
MODELS = {
    "sd-1": (StableDiffusion, SDConfig(**SD_WIDTHS, attention_head_dim=(2, 2))),
    "sd-2": (
        StableDiffusion,
        SDConfig(**SD_WIDTHS, attention_head_dim=(2, 4), use_linear_projection=True),
    ),
    "flux.1-dev": (Flux, FluxConfig(**FLUX_WIDTHS)),
    "sdxl": (
        SDXL,
        SDXLConfig(
            block_out_channels=(32, 64),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            attention_head_dim=(2, 4),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=68,
        ),
    ),
    "if-i": (DeepFloydIF, IFConfig(**IF_WIDTHS)),
    "if-ii": (DeepFloydIF, IFConfig(**IF_WIDTHS, **STAGE_II)),
    "sd3": (MMDiT, MMDiTConfig(**SD3_WIDTHS)),
    "sd3.5": (MMDiT, MMDiTConfig(**SD3_WIDTHS, dual_attention_layers=(0, 1), qk_norm="rms_norm")),
    "vae": (VAE, VAEConfig(block_out_channels=(32, 64), layers_per_block=1)),
}
TEXT_WIDTHS = {
    "sd-1": (24, None),
    "sd-2": (24, None),
    "flux.1-dev": (24, 20),
    "sdxl": (24, 20),
    "if-i": (48, None),
    "if-ii": (48, None),
    "sd3": (24, 20),
    "sd3.5": (24, 20),
}


@no_first_values()
def model(name: str) -> nn.Module:
    """The model in float64, with every tensor random."""
    make, config = MODELS[name]
    return randomize(make(config).double(), seed=1).eval().requires_grad_(False)


def inputs(name: str) -> dict[str, Tensor]:
    """What the model reads, by name: two rows, not square, at two times."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if name == "vae":
        return {"pictures": normal(2, 3, 16, 24).tanh(), "latents": normal(2, 4, 6, 10)}
    width, pooled = TEXT_WIDTHS[name]
    channels = 3 if name.startswith("if") else 4
    given = {
        "x": normal(2, channels, 8, 12),
        "t": torch.tensor([12.0, 987.0]),
        "tokens": normal(2, 5, width),
    }
    if pooled:
        given["pooled"] = normal(2, pooled)
    if name == "sdxl":
        given["micro"] = torch.tensor([[64.0, 96, 0, 0, 64, 96], [512, 512, 8, 16, 64, 96]])
    if name.startswith("flux"):
        given["guidance"] = torch.tensor([2.5, 4.0])
    if name == "if-ii":
        given |= {"low": normal(2, 3, 8, 12), "level": torch.tensor([250.0, 40.0])}
    return given


def outputs(name: str) -> dict[str, Tensor]:
    """What our model makes of them."""
    ours, given = model(name), inputs(name)
    if name == "vae":
        return {
            "vae.encoded": ours.encode(given["pictures"]),
            "vae.decoded": ours.decode(given["latents"]),
        }
    text = TextCondition(given["tokens"], given.get("pooled"), given.get("micro"))
    beside = {key: given[key] for key in ("low", "level", "guidance") if key in given}
    return {name: ours(given["x"], given["t"], text, **beside)}


@contextmanager
def sinusoids(made: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """The block in which the models take their time sinusoids from `made(t, width)`.

    Cosines in float32 differ in the last bits from CPU to CPU, and an output in float64 shows that.
    """
    with ExitStack() as stack:
        for module in (sdxl, deepfloyd_if, mmdit, flux):
            stack.enter_context(mock.patch.object(module, "timestep_sinusoids", made))
        yield
