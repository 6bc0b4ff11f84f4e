"""Packages that may be there or not, and what is wrong with one that is there and cannot be imported."""

from __future__ import annotations

import importlib
import importlib.util

PACKAGES = ("matplotlib", "triton", "torchvision", "peft", "accelerate", "diffusers")


def broken() -> dict[str, str]:
    """Package -> the error its import raises, of those installed; any exception: torchvision of another torch has its own."""
    found = {}
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            try:
                importlib.import_module(name)
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found
