"""Sites of any model, by its own list, a given table, or a shipped table that fits its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from textpatch.errors import PatchError
from textpatch.ports import (
    audio,
    audioldm2,
    auraflow,
    cogview4,
    ernie_image,
    flux,
    flux2,
    flux3,
    hidream,
    hunyuan,
    ideogram4,
    krea2,
    lumina2,
    pixart,
    prx,
    qwen_image,
    sana,
    sd3,
    unet,
    wan,
    z_image,
)
from textpatch.ports.matching import SiteSpec, match_sites, require_module
from textpatch.sites import Selectors, Site, Sites, select_sites

# tables by the name of the model's class, the fullest first
TABLES = {
    "AceStepTransformer1DModel": (audio.ACE_STEP,),
    "AudioLDM2UNet2DConditionModel": (audioldm2.AUDIOLDM2,),
    "AuraFlowTransformer2DModel": (auraflow.AURAFLOW,),
    "BriaTransformer2DModel": (flux.FLUX,),
    "ChromaTransformer2DModel": (flux.FLUX,),
    "CogVideoXTransformer3DModel": (cogview4.COGVIEW4,),
    "CogView4Transformer2DModel": (cogview4.COGVIEW4,),
    "ErnieImageTransformer2DModel": (ernie_image.ERNIE_IMAGE,),
    "Flux2Transformer2DModel": (flux2.FLUX2,),
    "Flux3Transformer2DModel": (flux3.FLUX3,),
    "FluxTransformer2DModel": (flux.FUSED, flux.FLUX),
    "GlmImageTransformer2DModel": (cogview4.COGVIEW4,),
    "HiDreamImageTransformer2DModel": (hidream.HIDREAM,),
    "HunyuanImageTransformer2DModel": (hunyuan.HUNYUAN_IMAGE,),
    "HunyuanVideoTransformer3DModel": (hunyuan.HUNYUAN_VIDEO,),
    "Ideogram4Transformer2DModel": (ideogram4.IDEOGRAM4,),
    "Krea2Transformer2DModel": (krea2.KREA2,),
    "LTXVideoTransformer3DModel": (sana.SANA,),
    "LongCatImageTransformer2DModel": (flux.FLUX,),
    "Lumina2Transformer2DModel": (lumina2.LUMINA2,),
    "OvisImageTransformer2DModel": (flux.FLUX,),
    "PRXTransformer2DModel": (prx.PRX,),
    "PixArtTransformer2DModel": (pixart.PIXART,),
    "QwenImage21Transformer2DModel": (qwen_image.QWEN_IMAGE21,),
    "QwenImageTransformer2DModel": (qwen_image.QWEN_IMAGE,),
    "SD3Transformer2DModel": (sd3.SD3,),
    "SanaTransformer2DModel": (sana.SANA,),
    "StableAudioDiTModel": (audio.STABLE_AUDIO,),
    "UNet2DConditionModel": (unet.SDXL, unet.DEEPFLOYD_IF),
    "WanTransformer3DModel": (wan.WAN,),
    "ZImageTransformer2DModel": (z_image.Z_IMAGE,),
}


class HasDenoiser(Protocol):
    """Part of a pipeline that its sites are found in."""

    @property
    def denoiser(self) -> nn.Module:
        """Model whose call is a step."""


def find_sites(model: nn.Module, spec: Sequence[SiteSpec] | None = None) -> Sites:
    """Find all sites of a model, in execution order.

    They are those of the table `spec`, else the model's own `sites`, else those of a shipped table.
    Raises PatchError if none of these is there, or if the table does not fit the model.
    """
    if spec is None:
        own = getattr(model, "sites", None)
        if own:
            return Sites(own)
        spec = shipped_table(model)
    return Sites(site for site, _ in match_sites(model, spec))


def pipeline_sites(pipeline: HasDenoiser) -> tuple[Site, ...]:
    """Sites of a pipeline, its own list if it has one, else those of its denoiser."""
    own = getattr(pipeline, "sites", None)
    if own:
        return tuple(own)
    return find_sites(pipeline.denoiser)


def site_indices(pipeline: HasDenoiser, wanted: Selectors) -> tuple[int, ...]:
    """Indices of the sites of a pipeline that are selected as for `select_sites`, in execution order."""
    return tuple(site.index for site in select_sites(pipeline_sites(pipeline), wanted))


def shipped_table(model: nn.Module) -> tuple[SiteSpec, ...]:
    """First shipped table for a model's class, or a class that it inherits, that fits the model.

    Raises PatchError if there is none.
    """
    require_module(model)
    reasons = []
    classes = [kind.__name__ for kind in type(model).__mro__]
    for table in (table for name in classes for table in TABLES.get(name, ())):
        try:
            match_sites(model, table)
        except PatchError as reason:
            reasons.append(str(reason))
        else:
            return table
    lacking = "no table is shipped for its class"
    if reasons:
        lacking = f"no shipped table fits ({'; '.join(reasons)})"
    raise PatchError(
        f"no sites known for {type(model).__name__}: it has no `sites`, and {lacking}; "
        "give find_sites a table of SiteSpecs"
    )
