"""What several commands open before they begin: a model, an upscaler, a run folder.

Nothing heavy is imported before the options are known to be good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from textpatch.errors import PatchError


@contextlib.contextmanager
def _told_on_interrupt(what) -> Iterator[None]:
    """Ctrl-C inside the block says `what` there is and how to go on, as it is then."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(str(what)) from None


def open_upscaler(options, request: dict):
    """The stage II of --upscale, which joins the request; None, and the request as it was, without the option."""
    from textpatch.weights.fingerprint import model_sha256

    if options.upscale is None:
        return None
    if (options.height, options.width) != (None, None):
        raise PatchError(
            "--upscale draws at its own model's size, and --height or --width was given; leave one of them out"
        )
    upscaler = load_model(options, options.upscale)
    if not upscaler.upscales:
        raise PatchError(
            f"--upscale {options.upscale}: that model draws pictures from noise alone; give a stage II"
        )
    request |= {"upscale": upscaler.name, "upscale_weights": model_sha256(options.upscale)}
    return upscaler


def load_model(options, model: str | None = None):
    import torch

    from textpatch.weights import load

    return load(
        model or options.model,
        device=_own_device(options.device),
        dtype=getattr(torch, options.dtype),
    )


def _own_device(device: str) -> str:
    """The device asked for; of torchrun's processes each has a GPU of its own."""
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if device == "cuda" and "LOCAL_RANK" in os.environ
        else device
    )


def load_sized(options):
    """The model, for pictures of --height and --width."""
    from textpatch.pipelines import sized

    return sized(load_model(options), options.height, options.width)


def open_run(options, pipeline, request: dict, *, worker: str = "0", **facts):
    """The run folder of a request of a model; facts belong to the request, too."""
    return _opened(options, _whole(options, pipeline, request | facts), worker=worker)


def _opened(options, request: dict, *, worker: str = "0"):
    """The run folder of a whole request."""
    from textpatch.runs.folder import Run

    manifest = {"request": request, "versions": versions(), "command": options.command_line}
    allow = getattr(options, "allow", None)  # localize alone goes on under another request
    return Run.open(_folder(options, request), manifest, worker=worker, allow=allow)


def _whole(options, pipeline, request: dict) -> dict:
    """A request with the model and the sizes it is of: everything that decides the results."""
    from textpatch.weights.fingerprint import model_sha256

    made_by = {
        "model": pipeline.name,
        "weights": model_sha256(options.model),
        "dtype": options.dtype,
    }
    size = {"height": options.height, "width": options.width}
    given = {name: pixels for name, pixels in size.items() if pixels is not None}
    return {**made_by, **request, **given}


def _folder(options, request: dict) -> Path:
    """The folder asked for, or one named by command, model and the hash of a whole request."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    return options.out or Path("runs") / f"{request['command']}-{request['model']}-{digest}"


def versions() -> dict[str, str]:
    packages = ("textpatch", "torch", "transformers", "safetensors", "numpy", "Pillow")
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }
