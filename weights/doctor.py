"""Examination of weight files, each component compared with the published ones and shipped models run."""

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
# Components that `load` reads.  An IF's index names three more.
COMPONENTS = re.compile(r"unet|transformer|vae|scheduler|(text_encoder|tokenizer)(_\d)?")
SENTENCE = 'a red sign that says "HELLO" on a blue wall'


def examine(where: str | os.PathLike, *, numbers: bool = False) -> Iterator[str]:
    """Lines on what a model is, whether it is complete, and what differs from the closest published one.

    numbers  True reads every tensor, too, and names those with NaN or Inf

    A component that cannot be read is named in a line, and the others are examined all the same.
    """
    path = find(where)
    # a model of ours is small enough to be run
    ours = (path / "textpatch.json").is_file()
    if ours:
        yield str(where)
        yield from _indented(_run(where))
    if numbers or not ours:
        for name, lines in _components(path, numbers):
            yield name
            yield from _indented(lines)


def _indented(lines: Iterator[str]) -> Iterator[str]:
    """Indent lines, with the error that ends them, if one does, as the last."""
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


def _components(path: Path, numbers: bool) -> Iterator[tuple[str, Iterator[str]]]:
    """Names of components, each with its lines.

    In a pipeline's folder these are all components that it has or that its index names.  A file, or a folder
    of one component, is the only one.
    """
    if not (path / "model_index.json").is_file():
        yield path.name, _tensors(path, numbers)
        return
    try:
        source = Folder(path)
    except PatchError as error:
        yield path.name, iter([f"{UNUSABLE} {error}"])
        return
    named = {name for name in source.index if COMPONENTS.fullmatch(name) and source.has(name)}
    there = {folder.name for folder in path.iterdir() if (folder / "config.json").is_file()}
    for name in sorted(named | there):
        yield name, _component(source, name, numbers)


def _component(source: Folder, name: str, numbers: bool) -> Iterator[str]:
    """Lines on one component of a pipeline, read as `load` reads it."""
    if name == "scheduler":
        yield repr(source.schedule())
    elif name.startswith("tokenizer"):
        yield f"{len(Builder(source, None, None).tokenizer(name))} tokens"
    else:
        folder = source.folder(name)
        read_json(folder, "config.json")
        yield from _tensors(folder, numbers)


def _tensors(path: Path, numbers: bool) -> Iterator[str]:
    """Lines on a file of tensors, or on the one in a component's folder."""
    tensors = open_tensors(_weights(path) if path.is_dir() else path)
    finding = identify_tensors(
        {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
    )
    yield from finding.report().splitlines()
    if numbers:
        yield from _scanned(tensors)


def _weights(folder: Path) -> Path:
    """File of a component's weights, by the usual name first.

    A text encoder's file is usually `model`, a denoiser's or VAE's `diffusion_pytorch_model`.
    """
    usual, other = "diffusion_pytorch_model", "model"
    if folder.name.startswith("text_encoder"):
        usual, other = other, usual
    try:
        return component_file(folder, usual)
    except WeightsError as error:
        if error.code != "no-file" or not any(folder.glob(f"{other}.*")):
            raise
    return component_file(folder, other)


def _scanned(tensors: Tensors) -> Iterator[str]:
    """Lines on tensors with NaN or infinity, after reading all."""
    faults = 0
    for name in tqdm(tensors, desc="scan", unit="tensor", disable=None, leave=False):
        try:
            scan(tensors[name], tensors.read(name))
        except PatchError as error:
            faults += 1
            yield str(error)
    yield f"{len(tensors)} tensors read, {faults} with numbers that are none"
