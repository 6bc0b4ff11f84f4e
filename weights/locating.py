"""Sources of a model's components, a folder in diffusers layout or a file that holds one or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF
from textpatch.reference_models.mmdit import MMDiT
from textpatch.reference_models.schedules import Euler, FlowMatchEuler, Schedule
from textpatch.reference_models.schedules.published import BETAS
from textpatch.reference_models.sdxl import SDXL
from textpatch.reference_models.vae import VAEConfig
from textpatch.weights.configs import (
    denoiser_from_config,
    if_config,
    mmdit_config,
    sdxl_config,
    vae_config,
    vae_from_config,
)
from textpatch.weights.fill import Part
from textpatch.weights.identify import identify_tensors
from textpatch.weights.layouts import VAE_DIFFUSERS, Layout, SingleFile, recognise
from textpatch.weights.reading.files import (
    Tensors,
    cached_snapshot,
    component_file,
    open_tensors,
    read_config,
    read_json,
)
from textpatch.weights.schedulers import schedule_from_config

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
ENCODER_SIZES = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL}
SINGLE_FILE_PIPELINES = {
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
# A tensor that only one denoiser has, that denoiser, and its configuration from the shapes of all.
TELLTALES = {
    "add_embedding.linear_1.weight": (SDXL, sdxl_config),
    "add_embedding.pool.positional_embedding": (DeepFloydIF, if_config),
    "pos_embed.pos_embed": (MMDiT, mmdit_config),
}
# entries of a schedule's configuration that its noise levels follow from
LEVELS = (
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr"
).split()


class Folder:
    """Pipeline in diffusers layout, with a folder for each component and a configuration in each folder."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.index = read_json(path, "model_index.json")
        self.pipeline = self.index.get("_class_name")

    def has(self, component: str) -> bool:
        """True for a component that the index names, or that has a folder.

        An index entry of `[null, null]` says that the component is missing.
        """
        if component in self.index:
            return self.index[component] != [None, None]
        return (self.path / component).exists()

    def folder(self, component: str) -> Path:
        """Folder of a component, inside the model's.   Raises WeightsError for a link that leads out."""
        folder = self.path / component
        target = folder.resolve()
        if self.path.resolve() not in target.parents:
            raise WeightsError(
                f"{folder} leads out of its folder to {target}; copy it", "leads-out"
            )
        return folder

    def denoiser(self, component: str) -> tuple[type[nn.Module], object, Part]:
        return denoiser_folder(self.folder(component))

    def vae(self) -> tuple[VAEConfig, Part]:
        folder = self.folder("vae")
        config = _built(folder, vae_from_config)
        return config, _part(component_file(folder, "diffusion_pytorch_model"), VAE_DIFFUSERS)

    def encoder(self, component: str, layout: Layout, sizes: Iterable[str]) -> tuple[dict, Part]:
        folder = self.folder(component)
        return read_config(folder, sizes), _part(component_file(folder, "model"), layout)

    def tokenizer(self, component: str) -> Path:
        return self.folder(component)

    def schedule(self) -> Schedule:
        """Schedule of the model, which also noises the small pictures that IF's stage II reads.

        Raises WeightsError for an `image_noising_scheduler` with other noise levels, because nothing here
        would use it.
        """
        schedule = _built(self.folder("scheduler"), schedule_from_config, "scheduler_config.json")
        if self.has("image_noising_scheduler"):
            folder = self.folder("image_noising_scheduler")
            noising = _built(folder, self._with_levels, "scheduler_config.json")
            if noising != schedule:
                raise WeightsError(
                    f"{self.path} noises small pictures by {noising}, and its own by {schedule}; "
                    "one schedule does both here, so give both the same noise levels"
                )
        return schedule

    def _with_levels(self, config: dict) -> Schedule:
        """Schedule of the model with the noise levels of another configuration.

        An `image_noising_scheduler` uses its noise levels alone.
        """
        settings = read_json(self.path / "scheduler", "scheduler_config.json")
        levels = {key: value for key, value in {**BETAS, **config}.items() if key in LEVELS}
        return schedule_from_config({**settings, **levels})


class File:
    """Original single file, or its sharded index, with the components that its kind is known to hold."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.stem
        self.tensors = open_tensors(path)
        self.kind = recognise(self.tensors)
        if self.kind is None or self.kind.name not in SINGLE_FILE_PIPELINES:
            raise WeightsError(
                f"{path} holds no whole pipeline: {identified(self.tensors)}; "
                "load_denoiser reads a bare denoiser"
            )
        self.pipeline, self._schedule, self.home = SINGLE_FILE_PIPELINES[self.kind.name]
        self.parts = _split(self.tensors, self.kind)

    def has(self, component: str) -> bool:
        return component in self.parts

    def denoiser(self, component: str) -> tuple[type[nn.Module], object, Part]:
        return *_inferred(self.parts[component]), self.parts[component]

    def vae(self) -> tuple[VAEConfig, Part]:
        part = self.parts["vae"]
        family = "SDXL" if self.kind.name == "SDXL" else "SD3"
        return vae_config(part.shapes(), family), part

    def encoder(self, component: str, layout: Layout, sizes: Iterable[str]) -> tuple[dict, Part]:
        if component not in self.parts:
            raise WeightsError(
                f"{self.path} holds {', '.join(self.parts)} and no {component}; "
                "load_denoiser reads its denoiser, "
                "for pictures load the folder in diffusers layout"
            )
        return ENCODER_SIZES[component], self.parts[component]

    def tokenizer(self, component: str) -> Path:
        """Folder of a tokenizer, beside the file or in the Hugging Face cache.

        Raises WeightsError that names both places.
        """
        beside = self.path.parent / component
        if beside.is_dir():
            return beside
        try:
            return cached_snapshot(self.home) / component
        except WeightsError as error:
            raise WeightsError(
                f"{self.path} holds no tokenizer, as no single file does; "
                f"put the folder {component!r} of {self.home} beside it ({error})"
            ) from None

    def schedule(self) -> Schedule:
        return self._schedule


def denoiser_folder(folder: Path) -> tuple[type[nn.Module], object, Part]:
    """Class, configuration and tensors of a denoiser's own folder in diffusers layout."""
    model, config = _built(folder, denoiser_from_config)
    return model, config, _part(component_file(folder, "diffusion_pytorch_model"))


def denoiser_file(path: Path) -> tuple[type[nn.Module], object, Part]:
    """Class, configuration and tensors of a denoiser's file or sharded index, in any layout.

    The configuration is the `config.json` beside a file in diffusers layout.  Where there is none, it is
    inferred from the shapes.
    """
    tensors = open_tensors(path)
    kind = recognise(tensors)
    if kind is not None:
        parts = _split(tensors, kind)
        part = parts.get("transformer") or parts.get("unet")
        if part is None:
            raise WeightsError(f"{path} holds no denoiser: {identified(tensors)}")
        return *_inferred(part), part
    part = _part(path)
    if (path.parent / "config.json").is_file():
        return *_built(path.parent, denoiser_from_config), part
    return *_inferred(part), part


def identified(tensors: Tensors) -> str:
    """Report on what a file is, in one line."""
    finding = identify_tensors(
        {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
    )
    return finding.report().replace("\n", "; ")


def _built(folder: Path, build: Callable[[dict], Any], name: str = "config.json") -> Any:
    """Object that `build` makes of all entries of a folder's flat configuration.   Raises WeightsError."""
    config = read_config(folder, read_json(folder, name), name)
    with explained(folder / name):
        return build(config)


def _part(path: Path, layout: Layout | None = None) -> Part:
    tensors = open_tensors(path)
    return Part(tensors, {name: name for name in tensors}, layout)


def _split(tensors: Tensors, kind: SingleFile) -> dict[str, Part]:
    return {
        name: Part(tensors, keys, kind.layout(name)) for name, keys in kind.split(tensors).items()
    }


def _inferred(part: Part) -> tuple[type[nn.Module], object]:
    shapes = part.shapes()
    for telltale, (model, infer) in TELLTALES.items():
        if telltale in shapes:
            return model, infer(shapes)
    raise WeightsError(
        f"{part.tensors.files[0]} holds none of our denoisers: {identified(part.tensors)}"
    )


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Turn an error inside the block into a WeightsError of one line that names the file.

    All exceptions are caught, because transformers raises many kinds for values that build nothing.
    """
    try:
        yield
    except PatchError as error:
        raise WeightsError(f"{where}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WeightsError(f"{where} describes no model that can be built ({reason})") from None
