"""How many tensors a configuration asks for, by arithmetic alone, held against those that its file holds.

A configuration of a few bytes can ask for billions of layers; it is refused here, before anything is made of it.
The numbers are bounds from below: what every layer has, whatever else is configured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import IFConfig
from textpatch.reference_models.mmdit import MMDiTConfig
from textpatch.reference_models.sdxl import SDXLConfig, has_sites
from textpatch.reference_models.vae import VAEConfig
from textpatch.weights.fill import Part, likely

# Tensors of one layer: of its projections and convolutions a weight and most often a bias, of its norms as many.
MMDIT_BLOCK = (
    22  # two modulations, seven projections of the attention, two of the image's feed-forward
)
SDXL_BLOCK = 20  # three norms, eight projections with two biases, two of the feed-forward
UNET_RESNET = 10  # two norms, two convolutions, one projection of the time
VAE_RESNET = 8
CLIP_LAYER = 16  # two norms, four projections, two of the feed-forward
T5_LAYER = 8  # two norms, four projections, two of the feed-forward, all without bias
COUNTED = {"num_layers": T5_LAYER, "num_hidden_layers": CLIP_LAYER}  # what encoders call them
LAYERS = (
    "num_layers",
    "num_hidden_layers",
    "block_out_channels",
    "layers_per_block",
    "transformer_layers_per_block",
)
FEW = 1000  # tensors, which are made without data in a moment, and then compared with the file's by name


def require_held(where: Path, config: Any, part: Part) -> None:
    """Raises WeightsError if a model of this configuration has more tensors than the part of a file.

    config: of one of our models, or the sizes of an encoder by name.  Tensors without elements count for none.
    """
    asked = (
        fewest_of_encoder(config) if isinstance(config, Mapping) else FEWEST[type(config)](config)
    )
    held = sum(prod(shape) > 0 for shape in part.shapes().values())
    if asked > max(held, FEW):
        raise WeightsError(
            f"{where} says {_said(config)}, which is {_short(asked)} tensors or more, and its file holds {held}; "
            f"fetch both again; {likely(part)}",
            "too-many-layers",
        )


def fewest_of_encoder(sizes: Mapping[str, Any]) -> int:
    """Tensors of the layers of a CLIP or T5."""
    return sum(_whole(sizes[name]) * tensors for name, tensors in COUNTED.items() if name in sizes)


def fewest_of_mmdit(config: MMDiTConfig) -> int:
    return _whole(config.num_layers) * MMDIT_BLOCK


def fewest_of_sdxl(config: SDXLConfig) -> int:
    """ResNets of both sides, and the blocks of the transformers beside them where the type of block has some."""
    down, up = config.layers_per_block, config.layers_per_block + 1
    blocks = config.transformer_layers_per_block
    sides = [
        *zip(blocks, config.down_block_types, [down] * len(blocks)),
        *zip(reversed(blocks), config.up_block_types, [up] * len(blocks)),
    ]
    in_transformers = (
        sum(n * layers for n, kind, layers in sides if has_sites(kind)) + blocks[-1]
    )  # the middle's
    return len(blocks) * (down + up) * UNET_RESNET + in_transformers * SDXL_BLOCK


def fewest_of_if(config: IFConfig) -> int:
    return sum(2 * layers + 1 for layers in config.layers) * UNET_RESNET


def fewest_of_vae(config: VAEConfig) -> int:
    return len(config.block_out_channels) * (2 * _whole(config.layers_per_block) + 1) * VAE_RESNET


FEWEST = {
    MMDiTConfig: fewest_of_mmdit,
    SDXLConfig: fewest_of_sdxl,
    IFConfig: fewest_of_if,
    VAEConfig: fewest_of_vae,
}


def _whole(value: Any) -> int:
    """The number; none for what is no whole number, which the model itself refuses with what it expects."""
    return value if isinstance(value, int) else 0


def _said(config: Any) -> str:
    """The fields that layers follow from."""
    sizes = config if isinstance(config, Mapping) else vars(config)
    return ", ".join(f"{name} {_short(sizes[name])}" for name in LAYERS if name in sizes)


def _short(value: Any) -> str:
    """A number, or a few of a list's, in a few characters."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        values = list(value)
        shown = ", ".join(_short(item) for item in values[:4])
        return f"({shown})" if len(values) <= 4 else f"({shown}, ... {len(values)} of them)"
    if isinstance(value, int) and value >= 10**15:
        return "10^15 or more"
    return str(value)
