"""What weight files are: each component identified beside the published ones, and shipped models really run."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from PIL import Image
from tqdm import tqdm

from textpatch.errors import PatchError
from textpatch.weights.files import Tensors, component_file, open_tensors
from textpatch.weights.entry import scan
from textpatch.weights.identify import identify
from textpatch.weights.load import find, load

UNUSABLE = "unusable:"
SENTENCE = 'a red sign that says "HELLO" on a blue wall'


def examine(where: str, *, numbers: bool = False) -> Iterator[str]:
    """Lines that say what a model is, whether it is complete, and what differs from the closest published one.

    numbers: read every tensor, too, and name those with NaN or Inf.  What cannot be read is said, not raised.
    """
    if (find(where) / "textpatch.json").is_file():  # one of ours, small enough to be tried
        yield _run(where)
        return
    for path in _components(find(where)):
        yield path.name
        yield from (f"    {line}" for line in _component(path, numbers))


def _run(name: str) -> str:
    pipeline = load(name)
    if pipeline.upscales:
        pipeline.upscale([Image.new("RGB", (96, 32))], [SENTENCE], seeds=[0], steps=1)
    else:
        pipeline.generate(SENTENCE, seeds=0, steps=1)
    count = sum(p.numel() for p in pipeline.parameters())
    return f"{name:<13} loads and runs: {count:,} parameters, {len(pipeline.denoiser.sites)} sites"


def _components(path: Path) -> list[Path]:
    """The file or component folder itself, or every component of a pipeline's folder that has weights."""
    if not (path / "model_index.json").is_file():
        return [path]
    return [folder for folder in sorted(path.iterdir()) if (folder / "config.json").is_file()]


def _component(path: Path, numbers: bool) -> Iterator[str]:
    try:
        tensors = open_tensors(_weights(path) if path.is_dir() else path)
        yield from identify({n: (entry.dtype, entry.shape) for n, entry in tensors.items()}).report().splitlines()
        yield from _scanned(tensors) if numbers else ()
    except PatchError as error:
        yield f"{UNUSABLE} {error}"


def _weights(folder: Path) -> Path:
    """A denoiser's or VAE's file has another name than a text encoder's."""
    try:
        return component_file(folder, "diffusion_pytorch_model")
    except PatchError:
        return component_file(folder, "model")


def _scanned(tensors: Tensors) -> Iterator[str]:
    faults = 0
    for name in tqdm(tensors, desc="scan", unit="tensor", disable=None, leave=False):
        try:
            scan(tensors[name], tensors.read(name))
        except PatchError as error:
            faults += 1
            yield str(error)
    yield f"{len(tensors)} tensors read, {faults} with numbers that are none"
