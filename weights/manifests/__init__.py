"""Manifests of published files, with every tensor's name, shape and dtype, and file sizes where known.

There is one text file per component and layout.  A line `name  4x3` is a tensor, `name  4x3 + 4` a weight and
its bias, and braces stand for alternatives: `attn{1,2}.to_{q,k,v}.weight  640x640` is six tensors.  The
comment at the top says how the list was checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

from textpatch.errors import WeightsError, closest

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Manifest:
    """Tensors of one published component, and the files that it comes in.

    tensors  {name: (dtype, shape)}
    files    {name: (dtype, size in bytes or None if unknown)}

    Where only the width of a dtype is known, the file's says `16-bit`, and the tensors' is a guess.
    """

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    files: dict[str, tuple[str, int | None]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self.tensors.items()}

    @property
    def n_elements(self) -> int:
        return sum(map(prod, self.shapes.values()))


def published() -> list[str]:
    """Names of all manifests, `model.component.diffusers` or `model.single-file`."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


@cache
def manifest(name: str) -> Manifest:
    """Read the manifest of a published component.   Raises WeightsError for an unknown name."""
    if name not in published():
        raise WeightsError(f"no manifest {name!r}{closest(name, published())}")
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    common, *rows = [line.split("  ") for line in lines if not line.startswith("#")]
    tensors, files = {}, {}
    for pattern, shape, *dtype in rows:
        if pattern == "file":
            # such a line is `file  name  dtype  bytes`
            files[shape] = (dtype[0], int(dtype[1]) if dtype[1].isdigit() else None)
        else:
            tensors |= _tensors(pattern, shape, (dtype or common)[-1])
    return Manifest(tensors, files)


def _tensors(pattern: str, shape: str, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of one line, where `4x3 + 4` is the shapes of a weight and its bias."""
    weight, _, bias = shape.partition(" + ")
    shapes = {"": weight}
    if bias:
        shapes = {".weight": weight, ".bias": bias}
    tensors = {}
    for name in expand(pattern):
        for suffix, text in shapes.items():
            tensors[name + suffix] = (dtype, tuple(map(int, re.findall(r"\d+", text))))
    return tensors


def expand(pattern: str) -> list[str]:
    """Names that a pattern stands for, where `{a,b}.{0..2}` is a.0 a.1 a.2 b.0 b.1 b.2."""
    pieces = re.split(r"\{(.*?)\}", pattern)
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    """Alternatives between commas, where `0..3` counts up and `3..0` down.   One may be empty."""
    chosen = []
    for item in inside.split(","):
        first, _, last = item.partition("..")
        if last:
            chosen += map(str, _count(int(first), int(last)))
        else:
            chosen.append(item)
    return chosen


def _count(first: int, last: int) -> range:
    if first <= last:
        return range(first, last + 1)
    return range(first, last - 1, -1)
