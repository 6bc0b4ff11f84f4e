"""Components of a pipeline held against each other, widths, channels and lengths, when they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from textpatch.errors import WeightsError
from textpatch.reference_models.decoders import LatentPixels
from textpatch.reference_models.deepfloyd_if import DeepFloydIF
from textpatch.reference_models.flux import Flux
from textpatch.reference_models.mmdit import MMDiT
from textpatch.reference_models.sdxl import SDXL, StableDiffusion
from textpatch.reference_models.text_encoders import (
    FluxTextEncoders,
    IFTextEncoder,
    SD3TextEncoders,
    SDTextEncoder,
    SDXLTextEncoders,
)

# what, by whom it is asked for with which width, and what its neighbour has
Meeting = tuple[str, str, int, str, int]


def require_neighbours(path: Path, encoders: nn.Module, denoiser: nn.Module, decoder) -> None:
    """Raise WeightsError for two components of other widths, channels or statistics than each other."""
    statistics = isinstance(decoder, LatentPixels) and decoder.vae.config.latents_mean
    if statistics and not isinstance(denoiser, SDXL):
        raise WeightsError(
            f"{path}: the VAE says latents_mean and latents_std, which SDXL's pipeline alone reads, and the "
            f"denoiser is a {type(denoiser).__name__}; take both out of vae/config.json",
            "neighbours",
        )
    for what, asking, wanted, neighbour, found in _meetings(encoders, denoiser, decoder):
        if wanted != found:
            raise WeightsError(
                f"{path}: {asking} wants {what} {wanted}, and {neighbour} has {found}; "
                "one of them is another model's: fetch both from one",
                "neighbours",
            )


def _meetings(encoders: nn.Module, denoiser: nn.Module, decoder) -> Iterator[Meeting]:
    """Numbers at which components meet."""
    config = denoiser.config
    given = _channels_made(denoiser)
    latents = getattr(config, "latent_channels", config.in_channels)
    yield "channels of its prediction,", "the schedule", latents, "the denoiser", given
    if isinstance(decoder, LatentPixels):
        yield (
            "latents of channels,",
            "the denoiser",
            latents,
            "the VAE",
            decoder.vae.config.latent_channels,
        )
    if isinstance(denoiser, StableDiffusion) and isinstance(encoders, SDTextEncoder):
        width = encoders.text_encoder.config.hidden_size
        yield "text of the width", "the U-Net", config.cross_attention_dim, "the CLIP", width
    if isinstance(denoiser, SDXL) and isinstance(encoders, SDXLTextEncoders):
        first = encoders.text_encoder.config
        second = encoders.text_encoder_2.config
        width = first.hidden_size + second.hidden_size
        yield (
            "text of the width",
            "the U-Net",
            config.cross_attention_dim,
            "the CLIPs together",
            width,
        )
        pooled = config.pooled_width
        yield "a pooled vector of the width", "the U-Net", pooled, "CLIP 2", second.projection_dim
    if isinstance(denoiser, MMDiT) and isinstance(encoders, SD3TextEncoders):
        clips = encoders.text_encoder.config, encoders.text_encoder_2.config
        yield (
            "text of the width",
            "the transformer",
            config.joint_attention_dim,
            "T5",
            encoders.width,
        )
        pooled = sum(clip.projection_dim for clip in clips)
        yield (
            "a pooled vector of the width",
            "the transformer",
            config.pooled_projection_dim,
            "the CLIPs together",
            pooled,
        )
    if isinstance(denoiser, Flux) and isinstance(encoders, FluxTextEncoders):
        clip = encoders.text_encoder.config.hidden_size
        t5 = encoders.text_encoder_2.config.d_model
        yield "text of the width", "the transformer", config.joint_attention_dim, "T5", t5
        pooled = config.pooled_projection_dim
        yield "a pooled vector of the width", "the transformer", pooled, "the CLIP", clip
    if isinstance(denoiser, DeepFloydIF) and isinstance(encoders, IFTextEncoder):
        width = encoders.text_encoder.config.d_model
        yield "text of the width", "the U-Net", config.encoder_hid_dim, "T5", width


def _channels_made(denoiser: nn.Module) -> int:
    """Channels of a denoiser's prediction, without those of the variance that IF predicts, too."""
    if isinstance(denoiser, Flux):
        return denoiser.config.latent_channels
    made = denoiser.config.out_channels
    if isinstance(denoiser, DeepFloydIF) and made == 2 * denoiser.config.latent_channels:
        return denoiser.config.latent_channels
    return made
