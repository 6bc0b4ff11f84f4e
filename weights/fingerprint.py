"""One sha256 of all that a model is loaded from, for manifests."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from textpatch.errors import WeightsError
from textpatch.weights.loading import find
from textpatch.weights.locating import File
from textpatch.weights.reading.files import INDEX, open_tensors

TOKENIZERS = "tokenizer", "tokenizer_2", "tokenizer_3"


def model_sha256(where: str | os.PathLike) -> str:
    """sha256 over the names and contents of a model's files, for manifests.

    All of a folder; with a file the shards that it names, and the tokenizers beside it or in the cache.  Raises WeightsError
    as `load` does.
    """
    path, digest = find(where), hashlib.sha256()
    named = (
        {file: file.relative_to(path) for file in _files(path)}
        if path.is_dir()
        else {path: "."} | _beside(path)
    )
    for file, name in named.items():
        digest.update(f"{name}\0".encode() + _digest(file))
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """All files in a folder, those of linked folders too, but for a link to a folder that it lies in."""
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        above = {os.path.realpath(parent) for parent in Path(where).parents}
        folders[:] = [
            name
            for name in folders
            if os.path.realpath(Path(where, name)) not in above | {os.path.realpath(where)}
        ]
        found += [path for path in (Path(where, name) for name in names) if path.is_file()]
    return sorted(found)


def _beside(path: Path) -> dict[Path, Path]:
    """What `load` reads beside a file, by name: the shards that an index names, and tokenizers."""
    shards = open_tensors(path).files if INDEX.fullmatch(path.name) else ()
    named = {file: file.relative_to(path.parent) for file in sorted({*shards} - {path})}
    folders = {folder.name: folder for folder in sorted(path.parent.glob("tokenizer*"))}
    with suppress(WeightsError):  # of a bare denoiser, or not in the cache, nothing is read
        source = File(path)
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
