"""What a file of weights is, told from its tensors' names, shapes and dtypes alone."""

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
    """One component beside the published one that it is, or is closest to.

    component is its folder in diffusers layout, empty if the file is nothing else; exact names the manifests
    of the very same names and shapes.  The lists say how it differs from closest, in diffusers layout.
    """

    component: str
    exact: tuple[str, ...]
    closest: str | None
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()  # name, shape found, shape published

    def report(self) -> str:
        """One line; at most ten names of each list."""
        start = f"{self.component}: " if self.component else ""
        if self.exact:
            dtypes = {
                dtype: None for name in self.exact for dtype, _ in manifest(name).files.values()
            }
            return f"{start}the tensors of {' and '.join(self.exact)}, published in {', '.join(dtypes)}"
        if self.closest is None:
            return f"{start}shares no name with any published component; {listed(self.extra)}"
        lists = {"missing": self.missing, "extra": self.extra, "of another shape": self.reshaped}
        said = [f"{name} {listed(names)}" for name, names in lists.items() if names]
        return f"{start}closest to {self.closest}; {'; '.join(said)}"


@dataclass(frozen=True)
class Finding:
    """What a file is: its layout, its components, its dtypes, and what else there is to say of it."""

    layout: str
    exact: tuple[str, ...]  # manifests of the very same names and shapes as the whole file
    matches: tuple[Match, ...]
    dtypes: dict[str, int]  # dtype -> tensors
    n_elements: int
    notes: tuple[str, ...]

    def report(self) -> str:
        """A few lines to print."""
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items()) or "none"
        head = f"{self.layout}: tensors {dtypes}; {self.n_elements:,} elements"
        return "\n".join([head, *(match.report() for match in self.matches), *self.notes])


def identify_tensors(found: Mapping[str, tuple[str, Shape]]) -> Finding:
    """What the file of these tensors, name -> (dtype, shape), is; dtypes as safetensors spells them."""
    shapes = {name: tuple(shape) for name, (_, shape) in found.items()}
    adapter = {name: shape for name, shape in shapes.items() if LORA.search(name)}
    copies = {name for name in shapes if name.startswith(EMA)}
    weights = {
        name: shape for name, shape in shapes.items() if name not in adapter and name not in copies
    }
    kind = recognise(weights)
    matches, notes = _of_single_file(weights, kind) if kind else _of_component(weights)
    if adapter:
        ranks = sorted(
            {shape[0] for name, shape in adapter.items() if LORA_DOWN.search(name) and shape}
        )
        notes.append(
            f"{len(adapter)} tensors of a LoRA of rank {ranks}: it changes a model and is none"
        )
    if copies:
        notes.append(
            f"{len(copies)} tensors of a moving average ({EMA}): a second copy of the weights"
        )
    layout = f"{kind.name} single file" if kind else "diffusers layout" if weights else "no model"
    exact = tuple(name for name in published() if manifest(name).shapes == shapes)
    dtypes = dict(Counter(dtype for dtype, _ in found.values()).most_common())
    return Finding(
        layout, exact, tuple(matches), dtypes, sum(map(prod, shapes.values())), tuple(notes)
    )


def _of_component(shapes: dict[str, Shape]) -> tuple[list[Match], list[str]]:
    """A file in diffusers layout, in any of its spellings."""
    if not shapes:
        return [], []
    spelled = next(
        (layout for layout in (VAE_DIFFUSERS, CLIP, T5) if not _unknown(shapes, layout)), None
    )
    return _converted("", shapes, spelled) if spelled else ([_compared("", shapes)], [])


def _of_single_file(shapes: dict[str, Shape], kind: SingleFile) -> tuple[list[Match], list[str]]:
    stray = [key for key in shapes if kind.part(key) is None and key not in kind.dropped]
    parts = kind.split(key for key in shapes if key not in stray)
    notes = [f"in no component of {kind.name}: {listed(stray)}"] if stray else []
    absent = [part.component for part in kind.parts if part.component not in parts]
    notes += [f"without {', '.join(absent)}"] if absent else []
    matches = []
    for component, names in parts.items():
        own = {name: shapes[key] for key, name in names.items()}
        match, problems = _converted(component, own, kind.layout(component))
        matches, notes = matches + match, notes + problems
    return matches, notes


def _converted(
    component: str, shapes: dict[str, Shape], layout: Layout
) -> tuple[list[Match], list[str]]:
    """A match, or the reason why there is none; names unknown to the layout are compared as they are."""
    unknown = _unknown(shapes, layout)
    try:
        known = convert(
            {name: shape for name, shape in shapes.items() if name not in unknown}, layout
        )
    except WeightsError as error:
        return [], [f"{component}: {error}" if component else str(error)]
    return [_compared(component, known | unknown)], []


def _unknown(shapes: dict[str, Shape], layout: Layout) -> dict[str, Shape]:
    return {
        k: shape for k, shape in shapes.items() if k not in layout.table and k not in layout.dropped
    }


def _compared(component: str, shapes: dict[str, Shape]) -> Match:
    """Beside the manifest with the largest share of the same names, and of the same shapes among them."""
    known = {name: manifest(name).shapes for name in published() if name.endswith(".diffusers")}
    exact = tuple(name for name, wanted in known.items() if wanted == shapes)
    closest = max(known, key=lambda name: _likeness(shapes, known[name]))
    if not _likeness(shapes, known[closest]):
        return Match(component, (), None, extra=tuple(sorted(shapes)))
    wanted = known[closest]
    reshaped = [
        f"{k} {shapes[k]} for {wanted[k]}" for k in wanted if k in shapes and shapes[k] != wanted[k]
    ]
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    return Match(component, exact, closest, tuple(missing), tuple(extra), tuple(sorted(reshaped)))


def _likeness(shapes: dict[str, Shape], wanted: dict[str, Shape]) -> float:
    both = shapes.keys() & wanted.keys()
    same = sum(shapes[name] == wanted[name] for name in both)
    return (len(both) + same) / len(shapes.keys() | wanted.keys())
