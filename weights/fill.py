"""Tensors of a file into a module: every key of the file accounted for, every parameter written exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textpatch.errors import WeightsError
from textpatch.weights.identify import identify_tensors
from textpatch.weights.layouts import Layout, convert, listed, origins
from textpatch.weights.reading.files import Tensors


@dataclass(frozen=True)
class Part:
    """The tensors of one component in a file: {key in the file: key in the layout}; no layout means no renaming."""

    tensors: Tensors
    keys: dict[str, str]
    layout: Layout | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in diffusers layout -> shape, from the header alone."""
        shapes = {name: self.tensors[key].shape for key, name in self.keys.items()}
        return shapes if self.layout is None else convert(shapes, self.layout)

    def origins(self) -> dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]]:
        """Key in the file -> (name in diffusers layout, function of its tensor) of all that it holds."""
        if self.layout is None:
            return {key: [(name, lambda x: x)] for key, name in self.keys.items()}
        in_file, held = {name: key for key, name in self.keys.items()}, defaultdict(list)
        for target, (name, function) in origins(in_file, self.layout).items():
            held[in_file[name]].append((target, function))
        return held


def fill_module(
    module: nn.Module, part: Part, *, dtype: torch.dtype, device=None, names=None, exact=()
) -> nn.Module:
    """Give a module made on the meta device the tensors of a part, in `dtype`; no more than one is held beside them.

    names: name in diffusers layout -> the module's own, where they differ; exact: names kept in float32.
    Raises WeightsError listing every missing, unexpected and mismatched tensor; then nothing has been read.
    """
    own = names or {name: name for name in module.state_dict()}
    meta = module.state_dict()
    require_same(part, {name: tuple(meta[mine].shape) for name, mine in own.items()})
    state = {}
    for key, targets in part.origins().items():
        made = _made(part.tensors.read(key), targets)
        for name, value in made.items():
            wanted = torch.float32 if name.endswith(tuple(exact)) else dtype
            state[own[name]] = value.to(
                device, wanted if value.is_floating_point() else value.dtype
            ).contiguous()
        del made, value  # so that nothing of this tensor lives on while the next is read
    module.load_state_dict(state, strict=names is None, assign=True)
    return module


def _made(
    tensor: Tensor, targets: list[tuple[str, Callable[[Tensor], Tensor]]]
) -> dict[str, Tensor]:
    return {name: function(tensor) for name, function in targets}


def require_same(part: Part, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises WeightsError unless the part holds exactly the tensors wanted, by name and shape."""
    found = part.shapes()
    shapes = [
        f"{name} {found[name]} for {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if found[name] != wanted[name]
    ]
    problems = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "of another shape": shapes,
    }
    said = [f"{what} {listed(names)}" for what, names in problems.items() if names]
    if said:
        raise WeightsError(
            f"{part.tensors.files[0]} does not fit its configuration; {'; '.join(said)}; {likely(part)}",
            "misfit",
        )


def likely(part: Part) -> str:
    """What the file is instead: the closest known model, a LoRA, a moving average."""
    finding = identify_tensors(
        {name: (entry.dtype, entry.shape) for name, entry in part.tensors.items()}
    )
    closest = [match.closest for match in finding.matches if match.closest]
    return "; ".join([f"the closest known model is {', '.join(closest) or 'none'}", *finding.notes])
