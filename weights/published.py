"""Published denoisers by name, and the sites of three that the paper (ICLR 2025) reports."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux, FluxConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDConfig, SDXLConfig, StableDiffusion
from textpatch.sites import Site

DENOISERS = {
    "sd-1.5": (StableDiffusion, SDConfig()),
    "sd-2.1": (
        StableDiffusion,
        SDConfig(
            sample_size=96,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        ),
    ),
    "sdxl-base-1.0": (SDXL, SDXLConfig()),
    "if-i-xl": (DeepFloydIF, IFConfig()),
    "if-i-l": (
        DeepFloydIF,
        IFConfig(block_out_channels=(320, 640, 960, 1280), cross_attention_dim=1280),
    ),
    "if-i-m": (
        DeepFloydIF,
        IFConfig(block_out_channels=(192, 384, 576, 768), cross_attention_dim=768),
    ),
    "flux.1-dev": (Flux, FluxConfig()),
    "flux.1-schnell": (Flux, FluxConfig(guidance_embeds=False)),
    "sd3-medium": (MMDiT, MMDiTConfig()),
    "sd3.5-medium": (
        MMDiT,
        MMDiTConfig(
            pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))
        ),
    ),
    "sd3.5-large": (
        MMDiT,
        MMDiTConfig(
            num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"
        ),
    ),
}
# the paper's sites (sec. 4.2), in execution order
LOCALIZED = {"sdxl-base-1.0": (55, 56, 57), "if-i-xl": (17,), "sd3-medium": (10,)}

# Projections whose parameters give the paper's percentages: 0.61 % of SDXL, 0.21 % of IF-I-XL, 0.23 % of SD3.
# In IF `to_k` and `to_v` make the image's own keys and values.  The text's, which a swap changes, are made by
# `add_k_proj` and `add_v_proj`, 0.28 %.  (Inferred: no count of text projections gives 0.21 %.)
COUNTED = {
    "cross": ("to_k", "to_v"),
    "added": ("to_k", "to_v"),
    "joint": ("add_k_proj", "add_v_proj"),
    "single": ("to_k", "to_v"),
}


def localized_sites(model: nn.Module) -> tuple[int, ...]:
    """Sites of the paper for a model with the published sizes of SDXL, IF-I-XL or SD3-medium, else ()."""
    for name, sites in LOCALIZED.items():
        _, config = DENOISERS[name]
        if model.config == replace(config, sample_size=getattr(model.config, "sample_size", None)):
            return sites
    return ()


def counted_parameters(model: nn.Module, site: Site) -> int:
    """Parameters of a site as the paper counts them.   `site.parameters` counts the text projections."""
    module = model.get_submodule(site.name)
    projections = [getattr(module, name, None) for name in COUNTED[site.kind]]
    return sum(
        p.numel() for projection in projections if projection for p in projection.parameters()
    )
