"""The models of a command, loaded as its options say.

Nothing heavy is imported before the options are known to be good.
"""

from __future__ import annotations

import os

from textpatch.cli.functions import names_function, pipeline_given_by
from textpatch.cli.options import LOADING
from textpatch.errors import PatchError
from textpatch.runs.interrupts import finishing


def import_heavy() -> None:
    """Import what every model needs, before a first Ctrl-C is heard.

    Packages swallow an interrupt in the middle of their import, or cannot be imported again after it.
    """
    with finishing():
        import textpatch.localization.layers
        import textpatch.weights  # noqa: F401


def chosen(options, names: tuple[str, ...]) -> dict:
    """Return the options of some names that ask for something, flags that are on among them."""
    asked = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in asked.items() if value not in (None, False)}


def load_model(options, model: str | None = None):
    """Load a model as the options say, or take the pipeline that a function gives.

    model  None for the model of the options; what they say of its files is not said of another, but for links
    """
    if names_function(model or options.model):
        return pipeline_given_by(options, model or options.model)
    asked = chosen(options, LOADING if model is None else ("follow_links",))
    import_heavy()
    import torch

    from textpatch.devices import first_device
    from textpatch.weights import load

    if options.device == "auto":
        options.device = first_device()

    return load(
        model or options.model,
        device=_own_device(options.device),
        dtype=getattr(torch, options.dtype),
        **asked,
    )


def load_sized(options):
    """Load the model for pictures of --height and --width."""
    if names_function(options.model):
        return load_model(options)
    from textpatch.pipelines import sized

    return sized(load_model(options), options.height, options.width)


def load_upscaler(options):
    """Load the stage II of --upscale, or return None without the option.

    Raises PatchError beside --height or --width, and for a model that is no stage II.
    """
    if options.upscale is None:
        return None
    if (options.height, options.width) != (None, None):
        raise PatchError(
            "--upscale draws at its own model's size, and --height or --width was given; "
            "leave one of them out"
        )
    upscaler = load_model(options, options.upscale)
    if not upscaler.upscales:
        raise PatchError(
            f"--upscale {options.upscale}: that model draws pictures from noise alone; give a stage II"
        )
    return upscaler


def _own_device(device: str) -> str:
    """Return the device asked for, of torchrun's processes to each a GPU of its own."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
