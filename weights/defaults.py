"""Defaults of a loaded model, written beside it in textpatch.json or taken from the published pipelines."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from torch import nn

from textpatch.errors import WeightsError, closest
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.defaults import Defaults
from textpatch.reference_models.drawn_words import DrawnWords
from textpatch.weights.building import OF_PIXELS
from textpatch.weights.parts import explained
from textpatch.weights.published import localized_sites
from textpatch.weights.reading.files import read_config, read_json

# steps and guidance of the published pipelines
STEPS_AND_GUIDANCE = {
    "StableDiffusionPipeline": (50, 7.5),
    "StableDiffusionXLPipeline": (50, 5.0),
    "StableDiffusion3Pipeline": (28, 7.0),
    "FluxPipeline": (28, 3.5),  # of dev
    "IFPipeline": (100, 7.0),
    "IFSuperResolutionPipeline": (50, 4.0),
}

SCHNELL = (4, 1.0)
BOX = "text_box"  # of one line of text, or a list of these
DRAWS = "draws"  # what words are drawn, by the names of `DrawnWords`


def written_defaults(path: Path) -> Defaults | None:
    """Defaults from a folder's textpatch.json, None if it has none.

    Raises WeightsError for an entry that nothing reads, and for values that no run can be given.
    """
    if not (path / "textpatch.json").exists():
        return None
    names = [field.name for field in fields(Defaults)]
    unknown = sorted(read_json(path, "textpatch.json").keys() - {*names, "trained"})
    if unknown:
        raise WeightsError(
            f"{path / 'textpatch.json'} says {unknown[0]!r}, which nothing reads"
            f"{closest(unknown[0], names)}"
        )
    plain = [name for name in names if name not in (BOX, DRAWS)]
    body = read_config(path, plain, "textpatch.json")
    told = read_json(path, "textpatch.json")
    with explained(path / "textpatch.json"):
        return Defaults(
            **body, text_box=_tupled(told.get(BOX)), draws=_drawn_words(told.get(DRAWS))
        )


def _tupled(box):
    """The box of one line of text, or those of several, with tuples for lists."""
    if isinstance(box, list):
        return tuple(_tupled(one) for one in box)
    return box


def _drawn_words(told) -> DrawnWords | None:
    """What words are drawn, None where nothing is said of them."""
    if told is None:
        return None
    return DrawnWords(**{name: _tupled(value) for name, value in told.items()})


def published_defaults(path: Path, pipeline: str, denoiser: nn.Module, decoder) -> Defaults:
    """Defaults of a model without textpatch.json, by the class of its pipeline.

    Raises WeightsError for a model without the side of its latents, and for a latent-space model without VAE.
    """
    side = denoiser.config.sample_size
    if not isinstance(side, int) or side < 1:
        raise WeightsError(
            f"{path} has sample_size {side!r} in its denoiser's config.json, and no textpatch.json; "
            "write there the side of its latents, a whole number"
        )
    if decoder is pixels and pipeline not in OF_PIXELS:
        raise WeightsError(
            f"{path} holds a {pipeline} without a VAE, and no textpatch.json; "
            "fetch the folder 'vae', too, or take another's: vae=..."
        )
    micro = None
    if pipeline == "StableDiffusionXLPipeline":
        height = width = side * decoder.vae.config.downsampling
        micro = (height, width, 0, 0, height, width)
    steps, guidance = STEPS_AND_GUIDANCE[pipeline]
    if not getattr(denoiser.config, "guidance_embeds", True):
        steps, guidance = SCHNELL
    localized = localized_sites(denoiser)
    return Defaults(side, side, steps, guidance, localized=localized, micro=micro)
