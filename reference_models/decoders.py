"""Decoders, which make pictures of what a denoiser ends with.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.reference_models.vae import VAE


def pixels(latents: Tensor) -> list[Image.Image]:
    """Decoder of pixel-space models, from (B, 3, H, W) in -1..1 to pictures.

    Raises PatchError for NaN and infinity, which would be black pictures.
    """
    if not latents.isfinite().all():
        raise PatchError(
            f"{int((~latents.isfinite()).sum())} of {latents.numel()} numbers to make pictures of are not "
            f"finite, in {latents.dtype}; run in float32 or bfloat16, or with less guidance"
        )
    numbers = (latents.float().clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return [Image.fromarray(picture) for picture in numbers.permute(0, 2, 3, 1).cpu().numpy()]


class LatentPixels(nn.Module):
    """Decoder of latent-space models, from (B, C, H, W) latents through a VAE to pictures."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> list[Image.Image]:
        # The VAE keeps its own dtype, because SDXL's overflows in float16 whatever the denoiser runs in.
        # It takes one picture at a time, because all rows of a localisation would not fit at 1024 pixels.
        latents = latents.to(next(self.vae.parameters()).dtype)
        return [picture for one in latents.split(1) for picture in pixels(self.vae.decode(one))]
