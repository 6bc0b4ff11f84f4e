"""Single files as sources of a model's components, and what they leave out: sizes, schedules, tokenizers."""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path

from torch import nn

from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF
from textpatch.reference_models.flux import Flux
from textpatch.reference_models.mmdit import MMDiT
from textpatch.reference_models.schedules import DDIM, DDPM, Euler, FlowMatchEuler, Schedule
from textpatch.reference_models.schedules.published import changed
from textpatch.reference_models.sdxl import SDXL, StableDiffusion
from textpatch.reference_models.vae import VAEConfig
from textpatch.weights.configs import denoiser_from_config
from textpatch.weights.fill import Part
from textpatch.weights.inferring import (
    SD_TEXT,
    flux_config,
    if_config,
    mmdit_config,
    sd_config,
    sdxl_config,
    vae_config,
)
from textpatch.weights.layouts import Layout
from textpatch.weights.parts import built, identified, parts_of, recognised
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.reading.hub import cached_snapshot
from textpatch.weights.reading.terms import Terms
from textpatch.weights.schedulers import FLUX_DEV, FLUX_SCHNELL, heard
from textpatch.weights.strays import named

# Single files leave out the sizes of their text encoders, their schedules (whose defaults are the published
# values) and their tokenizers (named here by the repository that has them).
CLIP_L = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
    hidden_act="quick_gelu",
)
CLIP_G = dict(
    vocab_size=49408,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
T5_XXL = dict(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
    pad_token_id=0,
    eos_token_id=1,
)
CLIP_H = dict(
    vocab_size=49408,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,  # of 24
    num_attention_heads=16,
    projection_dim=512,
    hidden_act="gelu",
)
ENCODER_SIZES = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL}
SINGLE_FILE_PIPELINES = {
    "SD1": ("StableDiffusionPipeline", DDIM(), "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "SD2": (
        "StableDiffusionPipeline",
        DDIM(prediction_type="v_prediction"),
        "stabilityai/stable-diffusion-2-1",
    ),
    "SDXL": ("StableDiffusionXLPipeline", Euler(), "stabilityai/stable-diffusion-xl-base-1.0"),
    "SD3": (
        "StableDiffusion3Pipeline",
        FlowMatchEuler(),
        "stabilityai/stable-diffusion-3-medium-diffusers",
    ),
    "SD3.5-large": (
        "StableDiffusion3Pipeline",
        FlowMatchEuler(),
        "stabilityai/stable-diffusion-3.5-large",
    ),
}
# Denoisers, each with the class of its published pipeline and its folder there.
PIPELINES = {
    MMDiT: ("StableDiffusion3Pipeline", "transformer"),
    Flux: ("FluxPipeline", "transformer"),
    SDXL: ("StableDiffusionXLPipeline", "unet"),
    StableDiffusion: ("StableDiffusionPipeline", "unet"),
    DeepFloydIF: ("IFPipeline", "unet"),
}
PLACES = ("transformer", "unet")
# classes of pipelines, each with its published schedule
SUPPORTED = {
    "StableDiffusionPipeline": DDIM(),
    "StableDiffusionXLPipeline": Euler(),
    "StableDiffusion3Pipeline": FlowMatchEuler(),
    "FluxPipeline": FLUX_DEV,
    "IFPipeline": DDPM(),
    "IFSuperResolutionPipeline": DDPM(),
}
# Classes of pipelines that are known and not run, and what they do.
NOT_RUN = {
    "StableDiffusionInpaintPipeline": "fills a masked place of a given picture",
    "StableDiffusionXLInpaintPipeline": "fills a masked place of a given picture",
    "StableDiffusionImg2ImgPipeline": "redraws a given picture",
    "StableDiffusionXLImg2ImgPipeline": "redraws a given picture, as SDXL's refiner does",
}
# families of their VAEs
FAMILIES = {
    "StableDiffusionPipeline": "SD",
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusion3Pipeline": "SD3",
    "FluxPipeline": "FLUX.1",
}
# A tensor that a denoiser has and those below it have not, that denoiser, and its configuration from the
# shapes of all.
TELLTALES = {
    "add_embedding.linear_1.weight": (SDXL, sdxl_config),
    "add_embedding.pool.positional_embedding": (DeepFloydIF, if_config),
    "pos_embed.pos_embed": (MMDiT, mmdit_config),
    "single_transformer_blocks.0.proj_mlp.weight": (Flux, flux_config),
    SD_TEXT: (StableDiffusion, sd_config),
}
# two keys that only SDXL's refiner has both, an embedding of sizes and a fourth depth
REFINER_KEYS = "label_emb.0.0.weight", "input_blocks.11.0.in_layers.0.weight"


class File:
    """Original single file or its sharded index, or a denoiser's file in diffusers layout."""

    def __init__(self, path: Path, terms: Terms | None = None) -> None:
        self.path = path
        self.name = path.stem
        self.terms = terms or Terms()
        self.tensors = open_tensors(path, self.terms)
        names, self.kind = recognised(named(self.tensors, path.name, self.terms), self.terms)
        _require_no_refiner(path, names.keys)
        self.home = None
        if self.kind is not None and self.kind.name in SINGLE_FILE_PIPELINES:
            self.pipeline, self._schedule, self.home = SINGLE_FILE_PIPELINES[self.kind.name]
            self.parts = parts_of(names, self.kind, self.terms)
            return
        self.parts = {}
        if self.kind is None or any(part.component in PLACES for part in self.kind.parts):
            with suppress(NoDenoiser):
                self._bare(path)
        if not self.parts:
            raise WeightsError(
                f"{path} holds no whole pipeline: {identified(self.tensors)}; "
                "load_denoiser reads a bare denoiser"
            )

    def _bare(self, path: Path) -> None:
        """Take the file for one of a denoiser alone."""
        self._model, self._config, part = denoiser_file(path, self.terms)
        self.pipeline = pipeline_of(self._model, getattr(self._config, "class_embed_type", None))
        self._schedule = SUPPORTED[self.pipeline]
        if self._model is Flux and not self._config.guidance_embeds:
            self._schedule = FLUX_SCHNELL
        self.parts = {PIPELINES[self._model][1]: part}

    def has(self, component: str) -> bool:
        """True for a component that the file holds."""
        return component in self.parts

    def denoiser(self, component: str) -> tuple[type[nn.Module], object, Part]:
        """Class, configuration and tensors of the denoiser.   Raises WeightsError if it is another's."""
        if component not in self.parts:
            raise WeightsError(f"{self.path} holds {', '.join(self.parts)} and no {component}")
        part = self.parts[component]
        if self.home is None:
            return self._model, self._config, part
        return *_inferred(part), part

    def vae(self) -> tuple[VAEConfig, Part]:
        """Configuration and tensors of the VAE."""
        part = self.parts["vae"]
        return vae_config(part.shapes(), FAMILIES[self.pipeline]), part

    def encoder(self, component: str, layout: Layout, sizes: Iterable[str]) -> tuple[dict, Part]:
        """Published configuration and tensors of a text encoder.   Raises WeightsError without one."""
        if component not in self.parts:
            raise self._lacking(component)
        if self.kind is not None and self.kind.name == "SD2":
            return CLIP_H, self.parts[component]
        return ENCODER_SIZES[component], self.parts[component]

    def _lacking(self, component: str) -> WeightsError:
        return WeightsError(
            f"{self.path} holds no whole pipeline, {', '.join(self.parts)} and no {component}; "
            "take the rest of another model: text_encoders=..., vae=...; "
            "load_denoiser reads the denoiser alone",
            "no-part",
        )

    def tokenizer(self, component: str) -> Path:
        """Folder of a tokenizer, beside the file or in the Hugging Face cache.

        Raises WeightsError that names both places.
        """
        beside = self.path.parent / component
        if beside.is_dir():
            return beside
        if self.home is None:
            raise self._lacking(component)
        try:
            return cached_snapshot(self.home) / component
        except WeightsError as error:
            raise WeightsError(
                f"{self.path} holds no tokenizer, as no single file does; "
                f"put the folder {component!r} of {self.home} beside it, "
                f"or give text_encoders=... ({error})"
            ) from None

    def tokenizer_class(self, component: str) -> str | None:
        """None, because no single file names a class."""
        return None

    def schedule(self) -> Schedule:
        """Published schedule of the family, with what the file says of its own."""
        kind = None if self.kind is None else self.kind.name
        return heard(self._schedule, self.tensors, kind, self.terms)

    def schedule_named(self, name: str) -> Schedule:
        """Schedule of a name with the settings of the file's own.   Raises PatchError as `changed` does."""
        return changed(name, self.schedule())


def denoiser_file(path: Path, terms: Terms | None = None) -> tuple[type[nn.Module], object, Part]:
    """Class, configuration and tensors of a denoiser's file or sharded index, in any layout.

    The configuration is the `config.json` beside a file in diffusers layout.  Where there is none, it is
    inferred from the shapes.
    """
    terms = terms or Terms()
    tensors = open_tensors(path, terms)
    names, kind = recognised(named(tensors, path.name, terms), terms)
    _require_no_refiner(path, names.keys)
    if kind is not None:
        parts = parts_of(names, kind, terms)
        part = next((parts[place] for place in PLACES if place in parts), None)
        if part is None:
            raise NoDenoiser(f"{path} holds no denoiser: {identified(tensors)}")
        return *_inferred(part), part
    part = Part(tensors, {key: name for name, key in names.keys.items()}, None, names.scales)
    if (path.parent / "config.json").is_file():
        return *built(path.parent, denoiser_from_config, terms), part
    return *_inferred(part), part


class NoDenoiser(WeightsError):
    """A file without a denoiser of ours."""


def _require_no_refiner(path: Path, names: Container[str]) -> None:
    if all(f"model.diffusion_model.{key}" in names for key in REFINER_KEYS):
        raise WeightsError(
            f"{path} holds SDXL's refiner, which redraws a given picture by an aesthetic score, "
            "and pictures are drawn from text alone here; load the base model"
        )


def pipeline_of(model: type[nn.Module], class_embed_type: str | None = None) -> str:
    """Class of the published pipeline of a denoiser."""
    if model is DeepFloydIF and class_embed_type is not None:
        return "IFSuperResolutionPipeline"
    return PIPELINES[model][0]


def _inferred(part: Part) -> tuple[type[nn.Module], object]:
    shapes = part.shapes()
    for telltale, (model, infer) in TELLTALES.items():
        if telltale in shapes:
            return model, infer(shapes)
    raise NoDenoiser(
        f"{part.tensors.files[0]} holds none of our denoisers: {identified(part.tensors)}"
    )
