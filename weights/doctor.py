"""Examination of weight files, each component compared with the published ones and shipped models run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from textpatch.errors import PatchError, WeightsError
from textpatch.weights.borrowing import OF_TEXT
from textpatch.weights.building import Builder
from textpatch.weights.fill import require_module
from textpatch.weights.folders import Folder
from textpatch.weights.identify import identify_tensors
from textpatch.weights.loading import assembled, find, load, outlined, source_of
from textpatch.weights.locating import PLACES, NoDenoiser
from textpatch.weights.reading.entry import scan
from textpatch.weights.reading.files import component_file, open_tensors, read_json
from textpatch.weights.reading.tensors import Tensors
from textpatch.weights.reading.terms import Terms

UNUSABLE = "unusable:"
# Components that `load` reads.  An IF's index names three more.
COMPONENTS = re.compile(r"unet|transformer|vae|scheduler|(text_encoder|tokenizer)(_\d)?")
# name of the lines on a folder as a whole
WHOLE = "as a pipeline"
META = torch.device("meta")
# what is said of the parts of SD3's T5 where that is not there
WITHOUT_T5 = {
    "text_encoder_3": "absent; zeros are read in its place, as published for SD3 without it",
    "tokenizer_3": "not read, as there is no text_encoder_3",
}
SENTENCE = 'a red sign that says "HELLO" on a blue wall'


@dataclass(frozen=True)
class Asked:
    """Arguments of `load` that say what is loaded."""

    text_encoders: str | os.PathLike[str] | None = None
    vae: str | os.PathLike[str] | None = None
    schedule: str | None = None
    clip_skip: int | None = None
    long_prompts: int | None = None
    variant: str | None = None
    ema: bool = False
    follow_links: bool = False

    def terms(self) -> Terms:
        """Terms without a note yet."""
        return Terms(self.follow_links, self.variant, self.ema)

    def replaces(self, component: str) -> bool:
        """True for a component that another model gives, or a name in its place."""
        if component == "scheduler":
            return self.schedule is not None
        if component == "vae":
            return self.vae is not None
        return component.startswith(OF_TEXT) and self.text_encoders is not None


def examine(where: str | os.PathLike[str], *, numbers: bool = False, **asked) -> Iterator[str]:
    """Lines on what a model is, whether it is complete, and what differs from the closest published one.

    numbers  True reads every tensor, too, and names those with NaN or Inf
    asked    what is loaded, as the arguments of `load` say it

    A component that cannot be read is named in a line, and the others are examined all the same.
    """
    asked = Asked(**asked)
    path = find(where, asked.terms())
    # a model of ours is small enough to be run
    ours = (path / "textpatch.json").is_file()
    if ours:
        yield str(where)
        yield from _indented(_run(where, asked))
    if numbers or not ours:
        for name, lines in _components(path, numbers, asked):
            yield name
            yield from _indented(lines)


def _indented(lines: Iterator[str]) -> Iterator[str]:
    """Indent lines, with the error that ends them, if one does, as the last."""
    try:
        yield from (f"    {line}" for line in lines)
    except PatchError as error:
        yield f"    {UNUSABLE} {error}"


def _run(where: str | os.PathLike[str], asked: Asked) -> Iterator[str]:
    pipeline = load(where, **asdict(asked))
    if pipeline.upscales:
        pipeline.upscale([Image.new("RGB", (96, 32))], [SENTENCE], seeds=[0], steps=1)
    else:
        pipeline.generate(SENTENCE, seeds=0, steps=1)
    count = sum(p.numel() for p in pipeline.parameters())
    yield f"loads and runs: {count:,} parameters, {len(pipeline.denoiser.sites)} sites"


def _components(path: Path, numbers: bool, asked: Asked) -> Iterator[tuple[str, Iterator[str]]]:
    """Names of components, each with its lines, and last the whole.

    In a pipeline's folder these are all components that it has or that its index names, but for those taken
    of other models.  A file, or a folder of one component, is the only one.
    """
    if not path.is_dir() or not _is_pipeline(path):
        yield path.name, _alone(path, numbers, asked)
        return
    try:
        source = Folder(path, asked.terms())
    except PatchError as error:
        yield path.name, iter([f"{UNUSABLE} {error}"])
        return
    named = {name for name in source.index if COMPONENTS.fullmatch(name)}
    named = {name for name in named if source.index[name] != [None, None]}
    there = {folder.name for folder in path.iterdir() if (folder / "config.json").is_file()}
    build = Builder(source, META, torch.float32)
    refused: list[str] = []
    for name in sorted(named | there):
        if not asked.replaces(name):
            yield name, _noting(_component(build, name, numbers), refused)
    if not refused:
        yield WHOLE, _told(path, asked)


def _is_pipeline(folder: Path) -> bool:
    """True for a folder of components, with or without an index."""
    if (folder / "model_index.json").is_file():
        return True
    return any((folder / place).is_dir() for place in PLACES)


def _noting(lines: Iterator[str], refused: list[str]) -> Iterator[str]:
    """The lines, with the error that ends them kept as well."""
    try:
        yield from lines
    except PatchError as error:
        refused.append(str(error))
        raise


def _component(build: Builder, name: str, numbers: bool) -> Iterator[str]:
    """Lines on one component of a pipeline, read and held against its file as `load` does."""
    source = build.source
    if name == "scheduler":
        yield repr(source.schedule())
    elif name in WITHOUT_T5 and not source.has("text_encoder_3"):
        yield WITHOUT_T5[name]
    elif name.startswith("tokenizer"):
        yield f"{len(build.tokenizer(name))} tokens"
    else:
        folder = source.folder(name)
        read_json(folder, "config.json", follow_links=build.terms.follow_links)
        yield from _tensors(folder, numbers, build.terms)
        _build(build, name)


def _build(build: Builder, name: str) -> None:
    """Make one component without data, and hold it against its file."""
    named = build.source.index.get(name)
    kind = named[-1] if isinstance(named, list) and named else None
    encoders = {
        "CLIPTextModel": build.clip,
        "CLIPTextModelWithProjection": build.projecting_clip,
        "T5EncoderModel": build.t5,
    }
    if name in PLACES:
        build.denoiser(name)
    elif name == "vae":
        build.decoder()
    elif isinstance(kind, str) and kind in encoders:
        encoders[kind](name)


def _told(path: Path, asked: Asked) -> Iterator[str]:
    """What `load` says of a model, without its data."""
    source = source_of(path, asked.terms(), asked.text_encoders, asked.vae)
    loaded, *notes = assembled(
        Builder(source, META, torch.float32),
        asked.schedule,
        clip_skip=asked.clip_skip,
        long_prompts=asked.long_prompts,
    ).notes
    yield f"loads: {loaded}"
    yield from notes


def _alone(path: Path, numbers: bool, asked: Asked) -> Iterator[str]:
    """Lines on a file, or on a folder of one component, and whether it loads."""
    terms = asked.terms()
    yield from _tensors(path, numbers, terms)
    try:
        model, part = outlined(path, terms)
    except NoDenoiser:
        return
    require_module(part, model)
    yield from terms.notes
    if path.is_dir():
        return
    try:
        yield from _told(path, asked)
    except PatchError as error:
        yield f"loads as a denoiser; for pictures: {error}"


def _tensors(path: Path, numbers: bool, terms: Terms) -> Iterator[str]:
    """Lines on a file of tensors, or on the one in a component's folder."""
    tensors = open_tensors(_weights(path, terms) if path.is_dir() else path, terms)
    finding = identify_tensors(
        {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
    )
    yield from finding.report().splitlines()
    if numbers:
        yield from _scanned(tensors)


def _weights(folder: Path, terms: Terms) -> Path:
    """File of a component's weights, by the usual name first.

    A text encoder's file is usually `model`, a denoiser's or VAE's `diffusion_pytorch_model`.
    """
    usual, other = "diffusion_pytorch_model", "model"
    if folder.name.startswith("text_encoder"):
        usual, other = other, usual
    try:
        return component_file(folder, usual, terms)
    except WeightsError as error:
        if error.code != "no-file" or not any(folder.glob(f"{other}.*")):
            raise
    return component_file(folder, other, terms)


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
