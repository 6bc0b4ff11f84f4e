"""Versions that a manifest tells."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("textpatch", "torch", "transformers", "safetensors", "numpy", "Pillow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}
