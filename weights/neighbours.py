"""Components of a pipeline held against each other, widths, channels and lengths, when they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
TEXT = "text of the width"
POOLED = "a pooled vector of the width"


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
    latents = getattr(config, "latent_channels", config.in_channels)
    made = _channels_made(denoiser)
    yield "channels of its prediction,", "the schedule", latents, "the denoiser", made
    if isinstance(decoder, LatentPixels):
        held = decoder.vae.config.latent_channels
        yield "latents of channels,", "the denoiser", latents, "the VAE", held
    for (asking, given), meetings in OF_TEXT.items():
        if isinstance(denoiser, asking) and isinstance(encoders, given):
            yield from meetings(config, encoders)


def _of_stable_diffusion(config: Any, encoders: SDTextEncoder) -> Iterator[Meeting]:
    width = encoders.text_encoder.config.hidden_size
    yield TEXT, "the U-Net", config.cross_attention_dim, "the CLIP", width


def _of_sdxl(config: Any, encoders: SDXLTextEncoders) -> Iterator[Meeting]:
    first = encoders.text_encoder.config
    second = encoders.text_encoder_2.config
    width = first.hidden_size + second.hidden_size
    yield TEXT, "the U-Net", config.cross_attention_dim, "the CLIPs together", width
    yield POOLED, "the U-Net", config.pooled_width, "CLIP 2", second.projection_dim


def _of_sd3(config: Any, encoders: SD3TextEncoders) -> Iterator[Meeting]:
    clips = encoders.text_encoder.config, encoders.text_encoder_2.config
    pooled = sum(clip.projection_dim for clip in clips)
    yield TEXT, "the transformer", config.joint_attention_dim, "T5", encoders.width
    yield POOLED, "the transformer", config.pooled_projection_dim, "the CLIPs together", pooled


def _of_flux(config: Any, encoders: FluxTextEncoders) -> Iterator[Meeting]:
    clip = encoders.text_encoder.config.hidden_size
    t5 = encoders.text_encoder_2.config.d_model
    yield TEXT, "the transformer", config.joint_attention_dim, "T5", t5
    yield POOLED, "the transformer", config.pooled_projection_dim, "the CLIP", clip


def _of_if(config: Any, encoders: IFTextEncoder) -> Iterator[Meeting]:
    width = encoders.text_encoder.config.d_model
    yield TEXT, "the U-Net", config.encoder_hid_dim, "T5", width


# a denoiser and its text encoders: the numbers at which these meet
OF_TEXT: dict[tuple[type, type], Callable[..., Iterator[Meeting]]] = {
    (StableDiffusion, SDTextEncoder): _of_stable_diffusion,
    (SDXL, SDXLTextEncoders): _of_sdxl,
    (MMDiT, SD3TextEncoders): _of_sd3,
    (Flux, FluxTextEncoders): _of_flux,
    (DeepFloydIF, IFTextEncoder): _of_if,
}


def _channels_made(denoiser: nn.Module) -> int:
    """Channels of a denoiser's prediction, without those of the variance that IF predicts, too."""
    if isinstance(denoiser, Flux):
        return denoiser.config.latent_channels
    made = denoiser.config.out_channels
    if isinstance(denoiser, DeepFloydIF) and made == 2 * denoiser.config.latent_channels:
        return denoiser.config.latent_channels
    return made
