"""Loading a pipeline or a bare denoiser from a name, a folder, a file or the Hugging Face cache."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from textpatch.devices import usable_device
from textpatch.errors import PatchError, WeightsError, closest
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.pipeline import Pipeline
from textpatch.reference_models.requests import sampled_by
from textpatch.reference_models.schedules import Schedule
from textpatch.text import number_of
from textpatch.weights.borrowing import Source, with_others
from textpatch.weights.building import BUILDERS, Builder, on_meta, without_data
from textpatch.weights.defaults import published_defaults, written_defaults
from textpatch.weights.fill import Part, fill_module, staying
from textpatch.weights.folders import Folder, denoiser_folder
from textpatch.weights.locating import NOT_RUN, PLACES, denoiser_file
from textpatch.weights.neighbours import require_neighbours
from textpatch.weights.published import DENOISERS
from textpatch.weights.reading.hub import MAIN, cached_snapshot
from textpatch.weights.reading.mapping import Mappings
from textpatch.weights.reading.terms import Terms

log = logging.getLogger("textpatch")
SHIPPED = Path(__file__).parent
PIXEL_CHANNELS = 3
DTYPES = torch.float32, torch.float16, torch.bfloat16, torch.float64


def shipped_models() -> list[str]:
    """Names of the models that come with textpatch."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def load(
    where: str | os.PathLike[str],
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    text_encoders: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    schedule: Schedule | str | None = None,
    clip_skip: int | None = None,
    long_prompts: int | None = None,
    variant: str | None = None,
    ema: bool = False,
    follow_links: bool = False,
    mapped: bool = False,
) -> Pipeline:
    """Load a Pipeline that is ready to run.

    where          a shipped model's name, a folder in diffusers layout, an original single file or its
                   sharded index, or `org/name` or `org/name@revision` in the local Hugging Face cache
    device         the CPU when None
    dtype          float32 when None
    text_encoders  another model, whose text encoders and tokenizers are taken
    vae            another model, or a VAE's own folder or file, which is taken
    schedule       object of `textpatch.reference_models.schedules` or name of its `published.NAMES`, which
                   takes the settings of the model's own schedule and the place of one that is none of ours
    clip_skip      layers left out at the end of the CLIPs, as `Pipeline.with_clip_skip` counts them
    long_prompts   windows of a CLIP in which each prompt is read, as by `Pipeline.with_long_prompts`
    variant        variant of the weights, as "fp16" is in `model.fp16.safetensors`
    ema            True takes the moving average of the denoiser's weights that training has left
    follow_links   True follows links out of a folder, where they end in a regular file
    mapped         True leaves tensors where they lie in their files, on the CPU

    With `mapped`, loading copies nothing that is stored in the dtype asked for, and processes that load the
    same files share the memory.  Other tensors are copied, and a note counts them.  Writing into a weight
    changes the memory of this process and never the file.  The files must stay as they are while the pipeline
    lives.  If somebody writes to a file, the weights change.  If somebody cuts a file short, the process ends
    by SIGBUS.

    `pipeline.notes` says what was loaded, and what was dropped or decided.
    Raises WeightsError for an unknown name, a missing or damaged file, tensors that do not fit their
    configuration, and components that do not fit each other, and for `mapped` where no tensor can stay in its
    file.  Raises PatchError for a device or dtype that cannot be used, and for `mapped` beside a device of
    its own memory.
    """
    terms = Terms(follow_links, variant, ema, mapped)
    device, dtype = _usable(device, dtype, mapped)
    build = Builder(source_of(where, terms, text_encoders, vae), device, dtype)
    pipeline = assembled(build, schedule, clip_skip=clip_skip, long_prompts=long_prompts)
    build.fill()
    log.info("%s", pipeline.notes[0])
    return pipeline.eval().requires_grad_(False)


def assembled(
    build: Builder,
    asked: Schedule | str | None = None,
    *,
    clip_skip: int | None = None,
    long_prompts: int | None = None,
) -> Pipeline:
    """Pipeline of a builder's source, all held against its files, before any data is read.

    asked  schedule in the place of the source's own
    The others are as `load` says.
    """
    source = build.source
    path = source.path
    _require_run(path, source.pipeline)
    encoders_and_denoiser, schedules = BUILDERS[source.pipeline]
    encoders, denoiser = encoders_and_denoiser(build)
    schedule = _schedule(source, asked)
    decoder = build.decoder()
    _require_schedule(path, source.pipeline, schedule, schedules)
    _require_decoder(path, source.pipeline, denoiser, decoder)
    require_neighbours(path, encoders, denoiser, decoder)
    defaults = written_defaults(path)
    if defaults is None:
        defaults = published_defaults(path, source.pipeline, denoiser, decoder)
    name = source.name if asked is None else sampled_by(source.name, schedule)
    pipeline = Pipeline(encoders, denoiser, schedule, decoder, defaults, name=name)
    if clip_skip is not None:
        pipeline = pipeline.with_clip_skip(clip_skip)
    if long_prompts is not None:
        pipeline = pipeline.with_long_prompts(long_prompts)
    if build.terms.mapped:
        _note_mapped(build)
    build.terms.require_met(path)
    pipeline.notes = (_summary(build, pipeline), *build.terms.notes)
    return pipeline


def _require_run(path: Path, pipeline: str) -> None:
    """Raise WeightsError for a class of pipelines that is not run here."""
    if pipeline in NOT_RUN:
        raise WeightsError(
            f"{path} holds a {pipeline}, which {NOT_RUN[pipeline]}, and pictures are drawn "
            "from text alone here; load_denoiser reads its denoiser by itself"
        )
    if pipeline not in BUILDERS:
        raise WeightsError(f"{path} holds a {pipeline}; known: {', '.join(BUILDERS)}")


def _note_mapped(build: Builder) -> None:
    """Note how many tensors stay in their files.   Raises WeightsError if none does."""
    _require_staying(build.source.path, build.stay, build.dtypes, build.dtype)
    copied = build.dtypes.total() - build.stay
    others = f"; the other {copied} are copied, stored or arranged otherwise" if copied else ""
    build.terms.note(
        f"mapped: {number_of(build.stay, 'tensor')} stay in their files, which must not change while the "
        f"pipeline lives{others}"
    )


def _require_staying(path: Path, stay: int, stored: Counter[str], dtype: torch.dtype) -> None:
    """Raise WeightsError if no tensor can stay in its file."""
    if not stay:
        counted = ", ".join(f"{count} {name}" for name, count in stored.most_common())
        raise WeightsError(
            f"mapped=True leaves tensors in their files that are stored as asked for, in {dtype}, "
            f"and {path} has {counted}; give dtype=... as stored, or leave mapped out"
        )


def source_of(where, terms: Terms, text_encoders=None, vae=None) -> Source:
    """Source of the components of what `load` takes, with those of other models in their place."""
    path = find(where, terms)
    others = [other if other is None else find(other, terms) for other in (text_encoders, vae)]
    return with_others(path, terms, *others)


def _schedule(source: Source, asked: Schedule | str | None) -> Schedule:
    """Schedule asked for, or the source's own.   Raises PatchError for what is no schedule."""
    if asked is None:
        return source.schedule()
    if isinstance(asked, str):
        return source.schedule_named(asked)
    if not isinstance(asked, Schedule):
        raise PatchError(
            f"schedule is {asked!r}; give a name, or an object of textpatch.reference_models.schedules"
        )
    return asked


def _summary(build: Builder, pipeline: Pipeline) -> str:
    """One line on what was loaded."""
    layout = "diffusers layout" if build.source.path.is_dir() else "a single file"
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in build.dtypes.most_common())
    sites = pipeline.denoiser.sites
    where = f"{sites[0].name} to {sites[-1].name}" if sites else "none"
    run = str(build.dtype).removeprefix("torch.")
    noted = ""
    if build.terms.notes:
        noted = f"; {number_of(len(build.terms.notes), 'note')} on what was dropped or decided"
    return (
        f"{pipeline.name}: {build.source.pipeline} of {layout}; tensors {dtypes}, run in {run}; "
        f"schedule {pipeline.schedule!r}; {len(sites)} sites, {where}{noted}"
    )


def load_denoiser(
    where: str | os.PathLike[str],
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    ema: bool = False,
    follow_links: bool = False,
    mapped: bool = False,
) -> nn.Module:
    """Load the bare denoiser of whatever `load` takes, or of a component's own folder, file or sharded index.

    The arguments are as `load` says.   Raises as `load` does.
    """
    terms = Terms(follow_links, variant, ema)
    path = find(where, terms)
    model, part = outlined(path, terms)
    terms.require_met(path)
    device, dtype = _usable(device, dtype, mapped)
    mappings = None
    if mapped:
        stored = Counter(part.tensors[key].dtype for key in part.keys)
        _require_staying(path, len(staying(part, dtype)), stored, dtype)
        mappings = Mappings()
    return fill_module(model, part, dtype=dtype, device=device, mappings=mappings).eval()


def outline(
    where: str | os.PathLike[str],
    *,
    variant: str | None = None,
    ema: bool = False,
    follow_links: bool = False,
) -> nn.Module:
    """Denoiser on the meta device, with names, shapes and sites but no data.

    No tensor is read, and for the name of a published model no file either.
    Raises WeightsError as `load` does.
    """
    terms = Terms(follow_links, variant, ema)
    if str(where) in DENOISERS:
        terms.require_met(where)
        model, config = DENOISERS[str(where)]
        with without_data():
            return model(config)
    path = find(where, terms)
    model, _ = outlined(path, terms)
    terms.require_met(path)
    return model


def find(where: str | os.PathLike[str], terms: Terms | None = None) -> Path:
    """Folder or file of a shipped name, a path, or a cached repository, at a revision after an `@`.

    Raises WeightsError for anything else, with the shipped names that are close.
    """
    if str(where) in shipped_models():
        return SHIPPED / str(where)
    # os.path.exists gives False for a name too long to be a file's, where Path.exists raises OSError
    for path in (where, os.path.expanduser(where)):
        if os.path.exists(path):
            return Path(path)
    if str(where).count("/") == 1 and not str(where).startswith(("/", ".", "~")):
        name, at, revision = str(where).partition("@")
        return cached_snapshot(name, revision if at else MAIN, terms)
    if str(where) in DENOISERS:
        raise WeightsError(
            f"no weights of {where} come along, its configuration alone; give the published files"
        )
    raise WeightsError(
        f"no model {str(where)[:200]!r}: neither a shipped name, nor a folder or file, nor org/name of the "
        f"Hugging Face cache{closest(where, shipped_models())}"
    )


def _usable(device, dtype, mapped: bool) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a request, the defaults in place of None.

    Raises PatchError for a device or dtype that cannot be used, or not with tensors left in their files.
    """
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in DTYPES:
        raise PatchError(
            f"dtype is {dtype!r}, and models run in {', '.join(map(str, DTYPES))}; give one of these"
        )
    device = usable_device(device)
    if mapped and device.type != "cpu":
        raise PatchError(
            f"mapped=True leaves tensors in their files, and {device} has memory of its own; "
            "leave one of them out"
        )
    return device, dtype


def outlined(path: Path, terms: Terms) -> tuple[nn.Module, Part]:
    """Denoiser of a folder or file on the meta device, and the tensors for it."""
    if not path.is_dir():
        return on_meta(path, *denoiser_file(path, terms))
    components = [place for place in PLACES if (path / place).exists()]
    if components or (path / "model_index.json").is_file():
        folder = Folder(path, terms)
        component = components[0] if components else "unet"
        return on_meta(path, *folder.denoiser(component))
    return on_meta(path, *denoiser_folder(path, terms))


def _require_schedule(
    path: Path, pipeline: str, schedule: Schedule, schedules: type[Schedule]
) -> None:
    if schedule.flows != schedules.flows:
        raise WeightsError(
            f"{path} holds a {pipeline} with the schedule {type(schedule).__name__}; "
            f"its denoiser is sampled by {schedules.__name__}: give it that scheduler_config.json, "
            "or schedule=..."
        )


def _require_decoder(path: Path, pipeline: str, denoiser: nn.Module, decoder) -> None:
    channels = getattr(denoiser.config, "latent_channels", denoiser.config.in_channels)
    if decoder is pixels and channels != PIXEL_CHANNELS:
        raise WeightsError(
            f"{path} holds a {pipeline} of {channels} latent channels without a VAE; "
            "fetch the folder 'vae', too, or take another's: vae=..."
        )
