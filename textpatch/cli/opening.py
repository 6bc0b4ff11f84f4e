"""The run folder of a command.

A request holds everything that decides the results.  Its hash names the folder, unless --out does.
A folder goes on with the same request only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from textpatch.cli.functions import names_function
from textpatch.cli.models import chosen
from textpatch.cli.options import BORROWING, LOADING
from textpatch.runs.packages import versions


def whole_request(options, pipeline, request: dict) -> dict:
    """Return a request together with the model, its weights and numbers, and the sizes asked for."""
    from textpatch.reference_models.requests import name_of_weights

    made_by = {
        "model": name_of_weights(pipeline.name),
        "weights": weights_of(options, pipeline),
        "dtype": dtype_of(options, pipeline),
        **loaded_by(options),
    }
    sizes = {"height": options.height, "width": options.width}
    given = {name: pixels for name, pixels in sizes.items() if pixels is not None}
    whole = {**made_by, **request, **given}
    _require_same(whole)
    return whole


def _require_same(request: dict) -> None:
    """Raise PatchError unless all processes of torch's group, if there is one, have the same request."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        from textpatch.runs.ranks import require_alike

        require_alike("request", request)


def loaded_by(options) -> dict:
    """Return what the options of loading add to a request, models in the place of parts by their weights."""
    from textpatch.weights.fingerprint import model_sha256

    asked = chosen(options, LOADING)
    links = asked.pop("follow_links", False)  # a permission, which decides no number
    for name in BORROWING:
        if name in asked:
            asked[name] = model_sha256(asked[name], follow_links=links)
    return asked


def weights_of(options, pipeline) -> str:
    """Return the sha256 of a model's files, or of the parameters of a pipeline that a function gave."""
    if names_function(options.model):
        from textpatch.foreign.fingerprint import parameters_sha256

        return parameters_sha256(pipeline.denoiser)
    from textpatch.weights.fingerprint import model_sha256

    return model_sha256(options.model, follow_links=options.follow_links)


def dtype_of(options, pipeline) -> str:
    """Return --dtype, or the dtype of the denoiser of a pipeline that a function gave."""
    if names_function(options.model):
        return str(next(pipeline.denoiser.parameters()).dtype).removeprefix("torch.")
    return options.dtype


def upscaled_by(options, upscaler) -> dict:
    """Return what --upscale adds to a request, nothing if there is no upscaler."""
    from textpatch.weights.fingerprint import model_sha256

    if upscaler is None:
        return {}
    weights = model_sha256(options.upscale, follow_links=options.follow_links)
    return {"upscale": upscaler.name, "upscale_weights": weights}


def folder_of(options, request: dict) -> Path:
    """Return --out, or the folder named by verb, model and the hash of a whole request."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    return options.out or Path("runs") / f"{request['command']}-{request['model']}-{digest}"


def open_folder(options, request: dict, **facts):
    """Open the run folder of a whole request, and return a `Run`.

    facts  what the manifest tells beside the request, and may differ when the run goes on
    """
    from textpatch.runs.folder import Run
    from textpatch.runs.workers import Worker

    manifest = {
        "request": request,
        "versions": versions(),
        "command": options.command_line,
        **facts,
    }
    allow = getattr(options, "allow", None)  # localize alone goes on under another request
    process = getattr(options, "worker", Worker())  # of the verbs that can be divided
    run = Run.open(folder_of(options, request), manifest, worker=process.name, allow=allow)
    process.require_fitting(run)
    return run


def open_run(options, pipeline, request: dict, **facts):
    """Open the run folder of a request that does not name its model yet, and return a `Run`.

    The manifest tells what was loaded, too, and what was dropped or decided.
    """
    request = whole_request(options, pipeline, request)
    return open_folder(options, request, loaded=notes_of(pipeline), **facts)


def notes_of(pipeline) -> list[str]:
    """What was loaded, dropped or decided, nothing for a pipeline of somebody else that does not tell."""
    return list(getattr(pipeline, "notes", ()))


def require_same_run(options, pipeline, request: dict) -> None:
    """Raise StoreError, before a picture is made, if --out holds a run that was asked for otherwise.

    request  the entries of the request that are known already
    """
    from textpatch.disk import read_json
    from textpatch.errors import StoreError
    from textpatch.runs.requests import another_run, differences

    if options.out is None or not (options.out / "manifest.json").is_file():
        return
    stored = read_json(options.out / "manifest.json").get("request", {})
    asked = whole_request(options, pipeline, request)
    here = {name: stored[name] for name in asked if name in stored}
    differing = differences(here, json.loads(json.dumps(asked)))
    if differing:
        raise StoreError(another_run(options.out, differing, may_allow=False))
