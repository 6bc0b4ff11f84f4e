"""Components of a model that are taken from another folder or file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from textpatch.errors import WeightsError
from textpatch.reference_models.schedules import Schedule
from textpatch.reference_models.vae import VAEConfig
from textpatch.weights.fill import Part
from textpatch.weights.folders import Folder, vae_folder
from textpatch.weights.inferring import vae_config
from textpatch.weights.layouts import VAE_DIFFUSERS, Layout
from textpatch.weights.locating import FAMILIES, File
from textpatch.weights.parts import split_names
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.reading.terms import Terms
from textpatch.weights.strays import named

OF_TEXT = "text_encoder", "tokenizer"


@dataclass(frozen=True)
class Borrowing:
    """A source whose text encoders and tokenizers, or whose VAE, are another's.

    own            the model
    text_encoders  source of text encoders and tokenizers, None for the model's own
    other_vae      function that finds the VAE, None for the model's own
    """

    own: Folder | File
    text_encoders: Folder | File | None
    other_vae: Callable[[], tuple[VAEConfig, Part]] | None

    @property
    def path(self) -> Path:
        return self.own.path

    @property
    def name(self) -> str:
        return self.own.name

    @property
    def terms(self) -> Terms:
        return self.own.terms

    @property
    def pipeline(self) -> str:
        return self.own.pipeline

    @property
    def index(self) -> dict:
        return getattr(self.own, "index", {})

    def _of(self, component: str) -> Folder | File:
        if self.text_encoders is not None and component.startswith(OF_TEXT):
            return self.text_encoders
        return self.own

    def has(self, component: str) -> bool:
        if component == "vae" and self.other_vae:
            return True
        return self._of(component).has(component)

    def denoiser(self, component: str) -> tuple[type[nn.Module], object, Part]:
        return self.own.denoiser(component)

    def vae(self) -> tuple[VAEConfig, Part]:
        if self.other_vae:
            return self.other_vae()
        return self.own.vae()

    def encoder(self, component: str, layout: Layout, sizes: Iterable[str]) -> tuple[dict, Part]:
        return self._of(component).encoder(component, layout, sizes)

    def tokenizer(self, component: str) -> Path:
        return self._of(component).tokenizer(component)

    def tokenizer_class(self, component: str) -> str | None:
        return self._of(component).tokenizer_class(component)

    def schedule(self) -> Schedule:
        return self.own.schedule()

    def schedule_named(self, name: str) -> Schedule:
        return self.own.schedule_named(name)


Source = Folder | File | Borrowing


def own_source(path: Path, terms: Terms) -> Folder | File:
    """Source of the components of a folder or a file."""
    return Folder(path, terms) if path.is_dir() else File(path, terms)


def with_others(path: Path, terms: Terms, text_encoders: Path | None, vae: Path | None) -> Source:
    """Source of a model's components, with those of others in their place."""
    own = own_source(path, terms)
    if text_encoders is None and vae is None:
        return own
    encoders = None
    if text_encoders is not None:
        encoders = own_source(text_encoders, terms)
        terms.note(f"text encoders and tokenizers of {text_encoders}")
    other_vae = None
    if vae is not None:
        terms.note(f"VAE of {vae}")

        def other_vae() -> tuple[VAEConfig, Part]:
            return vae_of(vae, own.pipeline, terms)

    return Borrowing(own, encoders, other_vae)


def vae_of(path: Path, pipeline: str, terms: Terms) -> tuple[VAEConfig, Part]:
    """Configuration and tensors of the VAE of a model's folder, its own folder, or a file in any layout."""
    if path.is_dir():
        if (path / "vae").is_dir():
            return Folder(path, terms).vae()
        return vae_folder(path, terms)
    names, kind, parts = split_names(named(open_tensors(path, terms), path.name, terms), terms)
    if kind is None:
        keys = {key: name for name, key in names.keys.items()}
        part = Part(names.tensors, keys, VAE_DIFFUSERS, names.scales)
    elif "vae" in parts:
        part = parts["vae"]
    else:
        raise WeightsError(f"{path} is an original {kind.name} file and holds no VAE")
    return vae_config(part.shapes(), FAMILIES[pipeline]), part
