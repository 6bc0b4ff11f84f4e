"""What a file is instead of safetensors or JSON, by its first bytes."""

from __future__ import annotations

import re

# what is said of a file that begins so, its code, and what to do
POSING = {
    rb"version https://git-lfs": (
        "a Git-LFS pointer, which names the file and does not hold it",
        "lfs-pointer",
        "fetch the file itself: git lfs pull, or hf download",
    ),
    rb"\s*<(?i:!doctype html|html|head)": (
        "a web page, as a server sends instead of a file that needs a login or is gone",
        "web-page",
        "fetch the file itself",
    ),
    rb"\s*<(?i:\?xml|error)": (
        "an XML answer of a server, not the file",
        "web-page",
        "fetch the file itself",
    ),
    rb"GGUF": (
        "a GGUF file, whose numbers are quantised in blocks for other programs",
        "gguf",
        "fetch the safetensors version",
    ),
    rb"\s*\{\s*[\"}]": (
        "JSON, such as an index, a configuration or the answer of a server",
        "json",
        "fetch the file itself; an index is named *.safetensors.index.json",
    ),
    rb"\x1f\x8b": ("a gzip archive", "archive", "unpack it first"),
}
# bytes that tell all of these apart
ENOUGH = 64


def posing(first: bytes) -> tuple[str, str, str] | None:
    """What a file is whose first bytes these are, its code, and what to do, None for nothing known."""
    for beginning, found in POSING.items():
        if re.match(beginning, first):
            return found
    return None
