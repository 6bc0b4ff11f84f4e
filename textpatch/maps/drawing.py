"""A map laid over a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

COLOUR = (222, 94, 0)  # where the map is highest
LEAST = 0.15  # share of the picture's own light that is left everywhere


def resized(weights: Tensor, size: Sequence[int]) -> Tensor:
    """A map (rows, columns) on another grid, each place as it lies between those around it."""
    if weights.shape == torch.Size(size):
        return weights
    return F.interpolate(weights[None, None], tuple(size), mode="bilinear")[0, 0]


def laid_over(image: Image.Image, weights: Tensor) -> Image.Image:
    """Picture in grey under a map, which colours it by how far it lies between its least and its largest.

    weights  (rows, columns)
    """
    low, high = weights.min(), weights.max()
    shares = (weights - low) / (high - low).clamp(min=1e-12)
    share = resized(shares.float(), (image.height, image.width))[..., None]  # (H, W, 1)
    grey = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
    ground = grey.reshape(image.height, image.width, 1).float() * (1 - LEAST) + 255 * LEAST
    mixed = ground * (1 - share) + torch.tensor(COLOUR).float() * share
    return Image.frombytes("RGB", image.size, mixed.round().byte().numpy().tobytes())
