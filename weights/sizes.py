"""Numbers of tensors that configurations ask for, compared with the numbers that their files hold.

A configuration of a few bytes can ask for billions of layers.  It is refused here by arithmetic alone, before
anything is made of it.  The numbers are lower bounds, which hold whatever else is configured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import IFConfig
from textpatch.reference_models.flux import FluxConfig
from textpatch.reference_models.layers import has_sites
from textpatch.reference_models.mmdit import MMDiTConfig
from textpatch.reference_models.sdxl import SDConfig, SDXLConfig
from textpatch.reference_models.vae import VAEConfig
from textpatch.weights.fill import Part

# Tensors of one layer.  A projection, a convolution or a norm has a weight and most often a bias.
MMDIT_BLOCK = 22  # two modulations, seven projections of the attention, two of a feed-forward
FLUX_BLOCK = 32  # two modulations, eight projections and four norms of heads, two feed-forwards
FLUX_SINGLE = 14  # a modulation, three projections and two norms of heads, two of the feed-forward
SDXL_BLOCK = 20  # three norms, eight projections with two biases, two of the feed-forward
UNET_RESNET = 10  # two norms, two convolutions, one projection of the time
VAE_RESNET = 8
CLIP_LAYER = 16  # two norms, four projections, two of the feed-forward
T5_LAYER = 8  # two norms, four projections, two of the feed-forward, all without bias
# tensors of a layer, by the name that the encoder's configuration has for their number
COUNTED = {"num_layers": T5_LAYER, "num_hidden_layers": CLIP_LAYER}
# fields that the number of layers follows from, for messages
LAYERS = (
    "num_layers",
    "num_single_layers",
    "num_hidden_layers",
    "block_out_channels",
    "layers_per_block",
    "transformer_layers_per_block",
)
# So many tensors are made without data in a moment, and are then compared with the file's by name.
FEW = 400


def require_held(where: Path, config: Any, part: Part) -> None:
    """Raise WeightsError if a model of this configuration has more tensors than a part of a file.

    where   file or folder of the configuration, for the message
    config  configuration of one of our models, or the sizes of an encoder by name
    part    tensors for the model; those without elements do not count
    """
    asked = fewest(config)
    held = sum(prod(shape) > 0 for shape in part.shapes().values())
    if asked > max(held, FEW):
        raise WeightsError(
            f"{where} says {_layers(config)}, which is {_short(asked)} tensors or more, "
            f"and its file holds {held}; fetch both again",
            "too-many-layers",
        )


def fewest(config: Any) -> int:
    """Tensors that a model of this configuration has at least."""
    if isinstance(config, Mapping):
        return fewest_of_encoder(config)
    return FEWEST[type(config)](config)


def fewest_of_encoder(sizes: Mapping[str, Any]) -> int:
    """Tensors of the layers of a CLIP or T5."""
    return sum(_whole(sizes[name]) * tensors for name, tensors in COUNTED.items() if name in sizes)


def fewest_of_mmdit(config: MMDiTConfig) -> int:
    return _whole(config.num_layers) * MMDIT_BLOCK


def fewest_of_flux(config: FluxConfig) -> int:
    return config.num_layers * FLUX_BLOCK + config.num_single_layers * FLUX_SINGLE


def fewest_of_sdxl(config: SDConfig) -> int:
    """Tensors of the ResNets of both sides, and of the transformers' blocks where there are some."""
    down = config.layers_per_block
    up = down + 1
    blocks = config.transformer_layers_per_block
    sides = [
        *zip(blocks, config.down_block_types, [down] * len(blocks), strict=True),
        *zip(reversed(blocks), config.up_block_types, [up] * len(blocks), strict=True),
    ]
    in_transformers = sum(n * layers for n, kind, layers in sides if has_sites(kind))
    in_transformers += blocks[-1]  # in the middle
    return len(blocks) * (down + up) * UNET_RESNET + in_transformers * SDXL_BLOCK


def fewest_of_if(config: IFConfig) -> int:
    return sum(2 * layers + 1 for layers in config.layers) * UNET_RESNET


def fewest_of_vae(config: VAEConfig) -> int:
    return len(config.block_out_channels) * (2 * _whole(config.layers_per_block) + 1) * VAE_RESNET


FEWEST = {
    MMDiTConfig: fewest_of_mmdit,
    FluxConfig: fewest_of_flux,
    SDConfig: fewest_of_sdxl,
    SDXLConfig: fewest_of_sdxl,
    IFConfig: fewest_of_if,
    VAEConfig: fewest_of_vae,
}


def _whole(value: Any) -> int:
    """Number of layers, 0 for anything but a whole number, which the model itself refuses."""
    return value if isinstance(value, int) else 0


def _layers(config: Any) -> str:
    """Fields that the number of layers follows from, with their values."""
    sizes = config if isinstance(config, Mapping) else vars(config)
    return ", ".join(f"{name} {_short(sizes[name])}" for name in LAYERS if name in sizes)


def _short(value: Any) -> str:
    """Number, or the first four of a list, in a few characters."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        values = list(value)
        shown = ", ".join(_short(item) for item in values[:4])
        if len(values) > 4:
            return f"({shown}, ... {len(values)} of them)"
        return f"({shown})"
    if isinstance(value, int) and value >= 10**15:
        return "10^15 or more"
    return str(value)
