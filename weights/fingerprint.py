"""Fingerprint of a model, one sha256 of all files that it is loaded from."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from textpatch.errors import WeightsError
from textpatch.weights.loading import find
from textpatch.weights.locating import File
from textpatch.weights.reading.files import INDEX, open_tensors
from textpatch.weights.reading.terms import Terms

TOKENIZERS = "tokenizer", "tokenizer_2", "tokenizer_3"


def model_sha256(where: str | os.PathLike[str], *, follow_links: bool = False) -> str:
    """Compute the sha256 over the names and contents of a model's files, for manifests.

    - of a folder: all files in it
    - of a file: the file, the shards that it names, and the tokenizers beside it or in the cache

    Raises WeightsError as `load` does.
    """
    terms = Terms(follow_links)
    path = find(where, terms)
    if path.is_dir():
        named = {file: file.relative_to(path) for file in _files(path)}
    else:
        named = {path: "."} | _beside(path, terms)
    digest = hashlib.sha256()
    for file, name in named.items():
        digest.update(f"{name}\0".encode() + _digest(file))
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """Files in a folder and in its linked folders, in order.

    A link to a folder above itself is not followed, because it would never end.
    """
    files = []
    for where, folders, names in os.walk(folder, followlinks=True):
        above = {os.path.realpath(folder) for folder in (where, *Path(where).parents)}
        folders[:] = [name for name in folders if os.path.realpath(Path(where, name)) not in above]
        files += [Path(where, name) for name in names if Path(where, name).is_file()]
    return sorted(files)


def _beside(path: Path, terms: Terms) -> dict[Path, Path]:
    """Files that `load` reads beside a file, with their names, the shards of an index and the tokenizers."""
    shards = open_tensors(path, terms).files if INDEX.fullmatch(path.name) else ()
    named = {file: file.relative_to(path.parent) for file in sorted({*shards} - {path})}
    folders = {folder.name: folder for folder in sorted(path.parent.glob("tokenizer*"))}
    # a bare denoiser has no tokenizers, and those that are not in the cache are not read
    with suppress(WeightsError):
        source = File(path, terms)
        folders |= {name: source.tokenizer(name) for name in TOKENIZERS if name not in folders}
    return named | {
        file: Path(name) / file.relative_to(folder)
        for name, folder in folders.items()
        for file in _files(folder)
    }


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.digest()
