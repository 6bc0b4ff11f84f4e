"""Folders in diffusers layout as sources of a model's components."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from textpatch.errors import WeightsError
from textpatch.finite import is_finite
from textpatch.reference_models.schedules import FlowMatchEuler, Schedule
from textpatch.reference_models.schedules.published import BETAS, changed, named, unread
from textpatch.reference_models.vae import VAEConfig
from textpatch.weights.configs import (
    denoiser_from_config,
    denoiser_kind,
    require_sizes,
    vae_from_config,
)
from textpatch.weights.fill import Part
from textpatch.weights.layouts import VAE_DIFFUSERS, Layout, listed
from textpatch.weights.locating import NOT_RUN, PIPELINES, PLACES, SUPPORTED, pipeline_of
from textpatch.weights.parts import built, explained, part_of
from textpatch.weights.reading.files import (
    component_file,
    inside,
    read_config,
    read_json,
    shown,
)
from textpatch.weights.reading.terms import Terms
from textpatch.weights.schedulers import schedule_from_config

FETCH = "the model is incomplete: fetch it"
# what can be done without a component
ABSENT = {
    "vae": "fetch it, or take another's: vae=...",
    "scheduler": "fetch it, one small file, scheduler_config.json; or say which: schedule=...",
    **{
        f"text_encoder{n}": "fetch it, or take another's: text_encoders=..."
        for n in ("", "_2", "_3")
    },
    **{
        f"tokenizer{n}": "fetch it, a few small files of the model's repository, "
        "or take another's with its encoders: text_encoders=..."
        for n in ("", "_2", "_3")
    },
}
# entries of a schedule's configuration that its noise levels follow from
LEVELS = (
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr"
).split()


class Folder:
    """Pipeline in diffusers layout, with a folder for each component and a configuration in each folder.

    Training scripts write such folders without an index, or hold a denoiser alone.
    """

    def __init__(self, path: Path, terms: Terms | None = None) -> None:
        self.path = path
        self.name = path.name
        self.terms = terms or Terms()
        self.index = {}
        if os.path.lexists(path / "model_index.json"):
            self.index = self._json(path, "model_index.json")
        self.pipeline = self._pipeline()
        for lora in sorted(path.glob("*lora*.safetensors")):
            self.terms.note(f"{lora.name} beside is not applied; load_adapter reads it")

    def _json(self, folder: Path, name: str) -> dict:
        return read_json(folder, name, follow_links=self.terms.follow_links)

    def _pipeline(self) -> str:
        """Class of the pipeline, that of its denoiser where the index names none of ours.

        Custom classes are a list of a module and a name, and none is ever imported.
        """
        written = self.index.get("_class_name")
        if written in [*SUPPORTED, *NOT_RUN]:
            return written
        found = self._of_denoiser()
        if found is None:
            if not self.index:
                raise WeightsError(
                    f"no file 'model_index.json' in {self.path}, and no denoiser of ours; "
                    "the folder is incomplete or is no model",
                    "no-file",
                )
            return shown(written)
        if self.index:
            self.terms.note(
                f"its class {shown(written)} is not run; its components are those of a {found}"
            )
        else:
            self.terms.note(f"no model_index.json; its denoiser is that of a {found}")
        return found

    def _of_denoiser(self) -> str | None:
        """Class of the published pipeline of the folder's denoiser, None if it is none of ours."""
        for place in {place: None for _, place in PIPELINES.values()}:
            folder = self.path / place
            if not folder.is_dir() and not self.index:
                folder = self.path
            if not (folder / "config.json").is_file():
                continue
            config = self._json(folder, "config.json")
            kind = denoiser_kind(config)
            if kind is not None and PIPELINES[kind.model][1] == place:
                return pipeline_of(kind.model, config.get("class_embed_type"))
        return None

    def has(self, component: str) -> bool:
        """True for a component whose folder is there, or must be, because a model of ours has all parts.

        An index entry of `[null, null]` says that the component is missing.
        """
        if self.index.get(component) == [None, None]:
            return False
        there = os.path.lexists(self.path / component)
        if there or component not in self.index:
            return there
        if os.path.lexists(self.path / "textpatch.json"):
            return True
        self.terms.note(f"{component} is named in the index and is not there")
        return False

    def folder(self, component: str) -> Path:
        """Folder of a component, inside the model's; the model's own for a denoiser that is there alone.

        Raises WeightsError for a component that is absent, with what can be done, and for a link that leads
        out, unless links are followed.
        """
        folder = self.path / component
        if not os.path.lexists(folder):
            if self._is_bare() and component in PLACES:
                return self.path
            raise self._absent(component)
        target = folder.resolve()
        if self.path.resolve() not in target.parents and not self.terms.follow_links:
            raise WeightsError(
                f"{folder} leads out of its folder to {target}; "
                "copy it, or allow it: follow_links=True",
                "leads-out",
            )
        return folder

    def _is_bare(self) -> bool:
        """True for a folder that holds a denoiser alone."""
        return not self.index and (self.path / "config.json").is_file()

    def _absent(self, component: str) -> WeightsError:
        """Error of a component that is not there, with what can be done."""
        says = f"no folder {component!r} in {self.path}; {ABSENT.get(component, FETCH)}"
        if self._is_bare():
            says = (
                f"{self.path} holds a denoiser alone, without model_index.json and {component!r}; "
                "load_denoiser reads it, text_encoders=... and vae=... take the rest of another"
            )
        return WeightsError(says, "no-part")

    def denoiser(self, component: str) -> tuple[type[nn.Module], object, Part]:
        """Class, configuration and tensors of the denoiser, or of its moving average if that is asked for."""
        average = f"{component}_ema"
        if not (self.path / average).is_dir():
            return denoiser_folder(self.folder(component), self.terms, component)
        if self.terms.ema:
            self.terms.met.add("ema")
            self.terms.note(f"{component}: the moving average of the folder {average!r}")
            return denoiser_folder(self.folder(average), self.terms, component)
        self.terms.note(
            f"{component}: a moving average beside it in {average!r}; ema=True takes it instead"
        )
        return denoiser_folder(self.folder(component), self.terms, component)

    def vae(self) -> tuple[VAEConfig, Part]:
        """Configuration and tensors of the VAE."""
        return vae_folder(self.folder("vae"), self.terms)

    def encoder(self, component: str, layout: Layout, sizes: Iterable[str]) -> tuple[dict, Part]:
        """Configuration and tensors of a text encoder.

        sizes  entries of its configuration that are read
        """
        folder = self.folder(component)
        links = self.terms.follow_links
        file = component_file(folder, "model", self.terms)
        config = read_config(folder, sizes, follow_links=links)
        with explained(folder / "config.json"):
            require_sizes(config, {})
            _require_numbers(config)
        return config, part_of(file, component, layout, self.terms)

    def tokenizer(self, component: str) -> Path:
        """Folder of a tokenizer, whose files lie inside it."""
        folder = self.folder(component)
        for name in sorted(os.listdir(folder)):
            if (folder / name).is_file():
                inside(folder, name, follow_links=self.terms.follow_links)
        return folder

    def tokenizer_class(self, component: str) -> str | None:
        """Class of a tokenizer that the index names, None without one."""
        entry = self.index.get(component)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    def schedule(self) -> Schedule:
        """Schedule of the model, which also noises the small pictures that IF's stage II reads.

        Raises WeightsError for an `image_noising_scheduler` with other noise levels, because nothing here
        would use it.
        """
        if not self.index and not os.path.lexists(self.path / "scheduler"):
            self.terms.note("no folder 'scheduler'; the schedule is the published one")
            return SUPPORTED[self.pipeline]
        schedule = self._schedule(self.folder("scheduler"), self._published)
        if self.has("image_noising_scheduler"):
            folder = self.folder("image_noising_scheduler")
            noising = self._schedule(folder, self._with_levels)
            if noising != schedule:
                raise WeightsError(
                    f"{self.path} noises small pictures by {noising}, and its own by {schedule}; "
                    "one schedule does both here, so give both the same noise levels"
                )
        return schedule

    def schedule_named(self, name: str) -> Schedule:
        """Schedule of a name with the settings of the folder's configuration, whatever class that is of.

        Raises WeightsError for an unknown name, and for settings that the named schedule cannot have.
        """
        if not os.path.lexists(self.path / "scheduler"):
            return changed(name, SUPPORTED[self.pipeline])
        return self._schedule(self.folder("scheduler"), partial(self._named, name))

    def _named(self, name: str, config: dict) -> Schedule:
        self.terms.note(f"scheduler: {name} in the place of {shown(config.get('_class_name'))}")
        return self._of_pipeline(named(name, config))

    def _published(self, config: dict) -> Schedule:
        """Schedule of the folder's configuration, with a note of the settings that it does not read."""
        schedule = schedule_from_config(config)
        left = unread(config)
        if left:
            name = config["_class_name"]
            self.terms.note(f"scheduler: dropped {listed(left)}, which {name} does not read")
        return self._of_pipeline(schedule)

    def _of_pipeline(self, schedule: Schedule) -> Schedule:
        """Schedule with what a published pipeline gives its scheduler, which no configuration says."""
        if self.pipeline == "FluxPipeline" and isinstance(schedule, FlowMatchEuler):
            return replace(schedule, spacing="steps")
        return schedule

    def _schedule(self, folder: Path, build: Callable[[dict], Schedule]) -> Schedule:
        return built(folder, build, self.terms, "scheduler_config.json")

    def _with_levels(self, config: dict) -> Schedule:
        """Schedule of the model with the noise levels of another configuration.

        An `image_noising_scheduler` uses its noise levels alone.
        """
        settings = self._json(self.path / "scheduler", "scheduler_config.json")
        levels = {key: value for key, value in {**BETAS, **config}.items() if key in LEVELS}
        return schedule_from_config({**settings, **levels})


def _require_numbers(config: dict) -> None:
    """Raise WeightsError for an encoder whose norms divide by no number, or whose distances have no room."""
    for name in {"layer_norm_eps", "layer_norm_epsilon"} & config.keys():
        if not is_finite(config[name]) or config[name] <= 0:
            raise WeightsError(f"{name} is {shown(config[name])}; give a small positive number")
    _require_distances(config)


def _require_distances(config: dict) -> None:
    """Raise WeightsError for a T5 whose buckets of distances have no room.

    Half of them are for either side, half of these for one distance each, and the others for longer ones.
    """
    buckets = config.get("relative_attention_num_buckets", 32)
    most = config.get("relative_attention_max_distance", 128)
    if buckets < 4 or most <= buckets // 4 or not is_finite(most):
        raise WeightsError(
            f"relative_attention_num_buckets is {shown(buckets)}, and relative_attention_max_distance "
            f"{shown(most)}; give four buckets or more, and a distance above a quarter of their number"
        )


def denoiser_folder(
    folder: Path, terms: Terms | None = None, component: str | None = None
) -> tuple[type[nn.Module], object, Part]:
    """Class, configuration and tensors of a denoiser's own folder in diffusers layout.

    component  its name in a pipeline, for notes
    """
    terms = terms or Terms()
    model, config = built(folder, denoiser_from_config, terms)
    file = component_file(folder, "diffusion_pytorch_model", terms)
    place = PIPELINES[model][1] if model in PIPELINES else folder.name
    return model, config, part_of(file, component or place, None, terms)


def vae_folder(folder: Path, terms: Terms) -> tuple[VAEConfig, Part]:
    """Configuration and tensors of a VAE's own folder in diffusers layout."""
    config = built(folder, vae_from_config, terms)
    file = component_file(folder, "diffusion_pytorch_model", terms)
    return config, part_of(file, "vae", VAE_DIFFUSERS, terms)
