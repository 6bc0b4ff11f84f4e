"""What weight files are: each component identified beside the published ones, and shipped models really run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from textpatch.errors import PatchError, WeightsError
from textpatch.weights.building import Builder
from textpatch.weights.identify import identify_tensors
from textpatch.weights.loading import find, load
from textpatch.weights.locating import Folder
from textpatch.weights.reading.entry import scan
from textpatch.weights.reading.files import Tensors, component_file, open_tensors, read_json

UNUSABLE = "unusable:"
READ = re.compile(
    r"unet|transformer|vae|scheduler|(text_encoder|tokenizer)(_\d)?"
)  # by `load`; IF names three parts more
SENTENCE = 'a red sign that says "HELLO" on a blue wall'


def examine(where: str | os.PathLike, *, numbers: bool = False) -> Iterator[str]:
    """Lines that say what a model is, whether it is complete, and what differs from the closest published one.

    numbers: read every tensor, too, and name those with NaN or Inf.  What cannot be read is said, not raised.
    """
    path = find(where)
    ours = (path / "textpatch.json").is_file()  # small enough to be tried
    if ours:
        yield str(where)
        yield from _said(_run(where))
    if numbers or not ours:
        for name, lines in _parts(path, numbers):
            yield name
            yield from _said(lines)


def _said(lines: Iterator[str]) -> Iterator[str]:
    try:
        yield from (f"    {line}" for line in lines)
    except PatchError as error:
        yield f"    {UNUSABLE} {error}"


def _run(where: str | os.PathLike) -> Iterator[str]:
    pipeline = load(where)
    if pipeline.upscales:
        pipeline.upscale([Image.new("RGB", (96, 32))], [SENTENCE], seeds=[0], steps=1)
    else:
        pipeline.generate(SENTENCE, seeds=0, steps=1)
    count = sum(p.numel() for p in pipeline.parameters())
    yield f"loads and runs: {count:,} parameters, {len(pipeline.denoiser.sites)} sites"


def _parts(path: Path, numbers: bool) -> Iterator[tuple[str, Iterator[str]]]:
    """The file or component folder itself, or of a pipeline's folder all that is there and all that its index names."""
    if not (path / "model_index.json").is_file():
        yield path.name, _tensors(path, numbers)
        return
    try:
        source = Folder(path)
    except PatchError as error:
        yield path.name, iter([f"{UNUSABLE} {error}"])
        return
    named = {name for name in source.index if READ.fullmatch(name) and source.has(name)}
    there = {part.name for part in path.iterdir() if (part / "config.json").is_file()}
    for name in sorted(named | there):
        yield name, _part(source, name, numbers)


def _part(source: Folder, name: str, numbers: bool) -> Iterator[str]:
    """What one part of a pipeline is, read as `load` reads it."""
    if name == "scheduler":
        yield repr(source.schedule())
    elif name.startswith("tokenizer"):
        yield f"{len(Builder(source, None, None).tokenizer(name))} tokens"
    else:
        folder = source.folder(name)
        read_json(folder, "config.json")
        yield from _tensors(folder, numbers)


def _tensors(path: Path, numbers: bool) -> Iterator[str]:
    tensors = open_tensors(_weights(path) if path.is_dir() else path)
    yield from (
        identify_tensors({n: (entry.dtype, entry.shape) for n, entry in tensors.items()})
        .report()
        .splitlines()
    )
    yield from _scanned(tensors) if numbers else ()


def _weights(folder: Path) -> Path:
    """A denoiser's or VAE's file has another name than a text encoder's."""
    usual, other = sorted(
        ("diffusion_pytorch_model", "model"), reverse=folder.name.startswith("text_encoder")
    )
    try:
        return component_file(folder, usual)
    except WeightsError as error:
        if error.code != "no-file" or not any(folder.glob(f"{other}.*")):
            raise
    return component_file(folder, other)


def _scanned(tensors: Tensors) -> Iterator[str]:
    faults = 0
    for name in tqdm(tensors, desc="scan", unit="tensor", disable=None, leave=False):
        try:
            scan(tensors[name], tensors.read(name))
        except PatchError as error:
            faults += 1
            yield str(error)
    yield f"{len(tensors)} tensors read, {faults} with numbers that are none"
