"""Loading a pipeline or a bare denoiser from a name, a folder, a file or the Hugging Face cache."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from textpatch.errors import PatchError, WeightsError, closest
from textpatch.reference_models.pipeline import Pipeline, pixels
from textpatch.reference_models.schedules import Schedule
from textpatch.weights.building import BUILDERS, Builder, on_meta
from textpatch.weights.defaults import published_defaults, written_defaults
from textpatch.weights.fill import Part, fill_module
from textpatch.weights.locating import File, Folder, denoiser_file, denoiser_folder
from textpatch.weights.published import DENOISERS
from textpatch.weights.reading.files import cached_snapshot

SHIPPED = Path(__file__).parent
PIXEL_CHANNELS = 3
DTYPES = torch.float32, torch.float16, torch.bfloat16, torch.float64


def shipped_models() -> list[str]:
    """Names of the models that come with textpatch."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def load(where: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None) -> Pipeline:
    """Load a Pipeline that is ready to run.

    where   a shipped model's name, a folder in diffusers layout, an original single file or its sharded
            index, or `org/name` in the local Hugging Face cache
    device  the CPU when None
    dtype   float32 when None

    Raises WeightsError for an unknown name, a missing or damaged file, or tensors that do not fit their
    configuration.  Raises PatchError for a device or dtype that cannot be used.
    """
    path = find(where)
    device, dtype = _usable(device, dtype)
    source = Folder(path) if path.is_dir() else File(path)
    if source.pipeline not in BUILDERS:
        raise WeightsError(f"{path} holds a {source.pipeline}; known: {', '.join(BUILDERS)}")
    encoders_and_denoiser, schedules = BUILDERS[source.pipeline]
    build = Builder(source, device, dtype)
    encoders, denoiser = encoders_and_denoiser(build)
    schedule = source.schedule()
    decoder = build.decoder()
    _require_schedule(path, source.pipeline, schedule, schedules)
    _require_decoder(path, source.pipeline, denoiser, decoder)
    defaults = written_defaults(path)
    if defaults is None:
        defaults = published_defaults(path, source.pipeline, denoiser, decoder)
    pipeline = Pipeline(encoders, denoiser, schedule, decoder, defaults, name=source.name)
    return pipeline.eval().requires_grad_(False)


def load_denoiser(
    where: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Load the bare denoiser of whatever `load` takes, or of a component's own folder, file or sharded index.

    Raises as `load` does.
    """
    model, part = _outlined(find(where))
    device, dtype = _usable(device, dtype)
    return fill_module(model, part, dtype=dtype, device=device).eval()


def outline(where: str | os.PathLike) -> nn.Module:
    """Denoiser on the meta device, with names, shapes and sites but no data.

    No tensor is read, and for the name of a published model no file either.
    Raises WeightsError as `load` does.
    """
    if str(where) in DENOISERS:
        model, config = DENOISERS[str(where)]
        with torch.device("meta"):
            return model(config)
    return _outlined(find(where))[0]


def find(where: str | os.PathLike) -> Path:
    """Folder or file of a shipped name, a path, or a cached repository.

    Raises WeightsError for anything else, with the shipped names that are close.
    """
    if str(where) in shipped_models():
        return SHIPPED / str(where)
    # os.path.exists gives False for a name too long to be a file's, where Path.exists raises OSError
    if os.path.exists(where):
        return Path(where)
    if str(where).count("/") == 1 and not str(where).startswith(("/", ".", "~")):
        return cached_snapshot(str(where))
    if str(where) in DENOISERS:
        raise WeightsError(
            f"no weights of {where} come along, its configuration alone; give the published files"
        )
    raise WeightsError(
        f"no model {str(where)!r}: neither a shipped name, nor a folder or file, nor org/name of the "
        f"Hugging Face cache{closest(where, shipped_models())}"
    )


def _usable(device, dtype) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a request, the defaults in place of None.

    A number is put on the device and read back, which fails on one that is not there or has no memory (meta).
    """
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in DTYPES:
        raise PatchError(
            f"dtype is {dtype!r}, and models run in {', '.join(map(str, DTYPES))}; give one of these"
        )
    try:
        number = torch.zeros(1, device="cpu" if device is None else device)
        number.tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise PatchError(
            f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return number.device, dtype


def _outlined(path: Path) -> tuple[nn.Module, Part]:
    """Denoiser of a folder or file on the meta device, and the tensors for it."""
    if (path / "model_index.json").is_file():
        folder = Folder(path)
        component = "transformer" if folder.has("transformer") else "unet"
        return on_meta(path, *folder.denoiser(component))
    if path.is_dir():
        return on_meta(path, *denoiser_folder(path))
    return on_meta(path, *denoiser_file(path))


def _require_schedule(
    path: Path, pipeline: str, schedule: Schedule, schedules: type[Schedule]
) -> None:
    if schedule.flows != schedules.flows:
        raise WeightsError(
            f"{path} holds a {pipeline} with the schedule {type(schedule).__name__}; "
            f"its denoiser is sampled by {schedules.__name__}: give it that scheduler_config.json"
        )


def _require_decoder(path: Path, pipeline: str, denoiser: nn.Module, decoder) -> None:
    channels = getattr(denoiser.config, "latent_channels", denoiser.config.in_channels)
    if decoder is pixels and channels != PIXEL_CHANNELS:
        raise WeightsError(
            f"{path} holds a {pipeline} of {channels} latent channels without a VAE; "
            "fetch the folder 'vae', too"
        )
