"""Identification of weight files by the names, shapes and dtypes of their tensors alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from textpatch.errors import WeightsError
from textpatch.weights.layouts import (
    CLIP,
    T5,
    VAE_DIFFUSERS,
    Layout,
    SingleFile,
    convert,
    listed,
    recognise,
)
from textpatch.weights.manifests import manifest, published

Shape = tuple[int, ...]

LORA = re.compile(r"^lora_(unet|te)|lora[_.](A|B|down|up)\b")
LORA_DOWN = re.compile(r"lora[_.](A|down)\b")  # (rank, width)
EMA = "model_ema."


@dataclass(frozen=True)
class Match:
    """One component of a file, compared with the published one that is closest.

    component  its folder in diffusers layout, "" if the file holds this component alone
    exact      manifests of the very same names and shapes
    closest    manifest that most names of the file fit, None if none does
    missing    names of the closest manifest that the file lacks
    extra      names of the file that the closest manifest lacks
    reshaped   names of both, each with the shape in the file and the published shape
    """

    component: str
    exact: tuple[str, ...]
    closest: str | None
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def report(self) -> str:
        """Report of one line, with at most ten names of each list."""
        start = f"{self.component}: " if self.component else ""
        if self.exact:
            dtypes = [dtype for name in self.exact for dtype, _ in manifest(name).files.values()]
            return (
                f"{start}the tensors of {' and '.join(self.exact)}, "
                f"published in {', '.join(dict.fromkeys(dtypes))}"
            )
        if self.closest is None:
            return f"{start}shares no name with any published component; {listed(self.extra)}"
        lists = {"missing": self.missing, "extra": self.extra, "of another shape": self.reshaped}
        differences = [f"{what} {listed(names)}" for what, names in lists.items() if names]
        return f"{start}closest to {self.closest}; {'; '.join(differences)}"


@dataclass(frozen=True)
class Finding:
    """Result of identifying a file.

    layout      diffusers layout, or the kind of single file
    exact       manifests of the very same names and shapes as the whole file
    matches     one for each component
    dtypes      number of tensors by dtype
    n_elements  of all tensors together
    notes       sentences on what no component holds, such as a LoRA
    """

    layout: str
    exact: tuple[str, ...]
    matches: tuple[Match, ...]
    dtypes: dict[str, int]
    n_elements: int
    notes: tuple[str, ...]

    def report(self) -> str:
        """Lines to print."""
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items()) or "none"
        head = f"{self.layout}: tensors {dtypes}; {self.n_elements:,} elements"
        return "\n".join([head, *(match.report() for match in self.matches), *self.notes])


def identify_tensors(tensors: Mapping[str, tuple[str, Shape]]) -> Finding:
    """Identify a file by the dtypes and shapes of its tensors.

    tensors  {name: (dtype as safetensors spells it, shape)}
    """
    shapes = {name: tuple(shape) for name, (_, shape) in tensors.items()}
    adapter = {name: shape for name, shape in shapes.items() if LORA.search(name)}
    copies = {name: shape for name, shape in shapes.items() if name.startswith(EMA)}
    beside = adapter | copies
    weights = {name: shape for name, shape in shapes.items() if name not in beside}
    layout, matches, notes = _of_weights(weights)
    exact = tuple(name for name in published() if manifest(name).shapes == shapes)
    dtypes = dict(Counter(dtype for dtype, _ in tensors.values()).most_common())
    n_elements = sum(map(prod, shapes.values()))
    notes = (*notes, *_notes_beside(adapter, copies))
    return Finding(layout, exact, tuple(matches), dtypes, n_elements, notes)


def _of_weights(weights: dict[str, Shape]) -> tuple[str, list[Match], list[str]]:
    """Layout, matches and notes of the weights of a file, without adapters and moving averages."""
    kind = recognise(weights)
    if kind:
        return f"{kind.name} single file", *_of_single_file(weights, kind)
    if weights:
        return "diffusers layout", *_of_component(weights)
    return "no model", [], []


def _notes_beside(adapter: dict[str, Shape], copies: dict[str, Shape]) -> list[str]:
    """Notes of the tensors of a LoRA and of a moving average."""
    notes = []
    if adapter:
        down = [shape for name, shape in adapter.items() if LORA_DOWN.search(name)]
        ranks = sorted({shape[0] for shape in down if shape})
        notes.append(
            f"{len(adapter)} tensors of a LoRA of rank {ranks}: it changes a model and is none"
        )
    if copies:
        notes.append(
            f"{len(copies)} tensors of a moving average ({EMA}): a second copy of the weights"
        )
    return notes


def _of_component(shapes: dict[str, Shape]) -> tuple[list[Match], list[str]]:
    """Matches and notes of a file in diffusers layout, in any of its spellings."""
    for layout in (VAE_DIFFUSERS, CLIP, T5):
        if not _unknown(shapes, layout):
            return _converted("", shapes, layout)
    return [_compared("", shapes)], []


def _of_single_file(shapes: dict[str, Shape], kind: SingleFile) -> tuple[list[Match], list[str]]:
    """Matches and notes of a single file of a known kind."""
    stray = [key for key in shapes if kind.part(key) is None and key not in kind.dropped]
    parts = kind.split(key for key in shapes if key not in stray)
    absent = [part.component for part in kind.parts if part.component not in parts]
    matches, notes = [], []
    if stray:
        notes.append(f"in no component of {kind.name}: {listed(stray)}")
    if absent:
        notes.append(f"without {', '.join(absent)}")
    for component, names in parts.items():
        in_component = {name: shapes[key] for key, name in names.items()}
        match, problems = _converted(component, in_component, kind.layout(component))
        matches += match
        notes += problems
    return matches, notes


def _converted(
    component: str, shapes: dict[str, Shape], layout: Layout
) -> tuple[list[Match], list[str]]:
    """One match and no note, or no match and the reason.

    Names that the layout does not know are compared as they are.
    """
    unknown = _unknown(shapes, layout)
    known = {name: shape for name, shape in shapes.items() if name not in unknown}
    try:
        known = convert(known, layout)
    except WeightsError as error:
        return [], [f"{component}: {error}" if component else str(error)]
    return [_compared(component, known | unknown)], []


def _unknown(shapes: dict[str, Shape], layout: Layout) -> dict[str, Shape]:
    """Shapes of the tensors that a layout does not know."""
    known = layout.table.keys() | layout.dropped.keys()
    return {name: shape for name, shape in shapes.items() if name not in known}


def _compared(component: str, shapes: dict[str, Shape]) -> Match:
    """Match with the manifest that most of the names fit."""
    known = {name: manifest(name).shapes for name in published() if name.endswith(".diffusers")}
    exact = tuple(name for name, wanted in known.items() if wanted == shapes)
    closest = max(known, key=lambda name: _likeness(shapes, known[name]))
    if not shapes.keys() & known[closest].keys():
        return Match(component, (), None, extra=tuple(sorted(shapes)))
    wanted = known[closest]
    reshaped = [
        f"{name} {shapes[name]} for {wanted[name]}"
        for name in wanted.keys() & shapes.keys()
        if shapes[name] != wanted[name]
    ]
    missing = tuple(sorted(wanted.keys() - shapes.keys()))
    extra = tuple(sorted(shapes.keys() - wanted.keys()))
    return Match(component, exact, closest, missing, extra, tuple(sorted(reshaped)))


def _likeness(shapes: dict[str, Shape], wanted: dict[str, Shape]) -> tuple[int, int]:
    """Number of names in common, then that of the same shapes, less that of names that are missing.

    Missing names count among equals alone, because a small model lacks more of its own family than of one of
    fewer layers.
    """
    both = shapes.keys() & wanted.keys()
    same = sum(shapes[name] == wanted[name] for name in both)
    return len(both), same - len(wanted.keys() - both)
