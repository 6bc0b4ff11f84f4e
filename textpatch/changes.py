"""Low-rank changes of linear layers, which last as long as a block, and the changes a model is under.

    y = W x + b + s B A x        beside a layer, whose weight stays as it is
    W' = round(W + s B A)        within its weight, whose original is kept and put back

s = strength x alpha / r, A (r, in), B (out, r)

A change is a part of the model while its block is open, in every thread.  Hooks of the layer, earlier ones
included, see the layer's true output.  Blocks close in any order.  Nothing here knows of attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, SupportsIndex
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.finite import is_finite

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True, eq=False)
class LowRank:
    """Change s B A of a linear layer's matrix, with s = alpha / r.

    down   A (r, in)
    up     B (out, r)
    alpha  strength of the whole, the rank r for s = 1

    Raises PatchError for shapes that do not fit each other, a rank above the layer's width, numbers that are
    not finite, and an alpha that is not positive.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        shapes = tuple(self.down.shape), tuple(self.up.shape)
        if self.down.dim() != 2 or self.up.dim() != 2 or len(self.down) != self.up.shape[1]:
            raise PatchError(
                f"A is {shapes[0]} and B {shapes[1]}; a low-rank change takes (r, in) and (out, r)"
            )
        if not 1 <= self.rank <= min(self.up.shape[0], self.down.shape[1]):
            raise PatchError(
                f"the rank of A {shapes[0]} and B {shapes[1]} is {self.rank}; give 1 or more, and at most "
                f"the layer's width {min(self.up.shape[0], self.down.shape[1])}"
            )
        if not is_finite(self.alpha) or self.alpha <= 0:
            raise PatchError(
                f"alpha is {self.alpha}; give a positive number, which is the rank for a change as it is"
            )
        for name, factor in (("A", self.down), ("B", self.up)):
            if factor.dtype not in FLOATS:
                raise PatchError(
                    f"{name} of a low-rank change is {factor.dtype}; give one of {FLOATS}"
                )
            if not factor.detach().isfinite().all():
                raise PatchError(
                    f"{name} {tuple(factor.shape)} of a low-rank change holds NaN or infinity; the adapter "
                    "is damaged, or its training diverged"
                )

    @property
    def rank(self) -> int:
        """Number r of rows of A."""
        return len(self.down)

    @property
    def scale(self) -> float:
        """Factor alpha / r of B A."""
        return self.alpha / self.rank

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Change s B A (out, in) of the matrix."""
        return self.scale * (self.up.to(dtype) @ self.down.to(dtype))

    def of(self, x: Tensor, strength: float) -> Tensor:
        """Change of the output, strength s B A x, in the wider dtype of x and the factors."""
        dtype = torch.promote_types(x.dtype, self.down.dtype)
        down = self.down.to(x.device, dtype)
        up = self.up.to(x.device, dtype)
        return strength * self.scale * F.linear(F.linear(x.to(dtype), down), up)


# What each layer is under: (block, mark) of every open block.
_marks: WeakKeyDictionary[nn.Module, list[tuple[object, str]]] = WeakKeyDictionary()


def changes_of(model: nn.Module) -> tuple[str, ...]:
    """Marks of the changes that a model is under, sorted.  () for the base."""
    if not _marks:
        return ()
    found = {mark for part in model.modules() for _, mark in _marks.get(part, [])}
    return tuple(sorted(found))


def require_same_changes(what: str, was: tuple[str, ...], now: tuple[str, ...]) -> None:
    """Raise PatchError unless what was made under some changes is read under the same.

    what  begins the message, "the cache was captured"
    """
    if was != now:
        raise PatchError(
            f"{what} under {_told(was)}, and the model is now under {_told(now)}; keys and values of two "
            "models would be mixed, so make it again under the adapters of this call"
        )


def _told(marks: tuple[str, ...]) -> str:
    if not marks:
        return "no adapter"
    return f"adapter {', '.join(marks)}"


@contextmanager
def _marked(layers: Mapping[str, nn.Linear], block: object, mark: str) -> Iterator[None]:
    """Mark layers while a block is open."""
    try:
        for layer in layers.values():
            _marks.setdefault(layer, []).append((block, mark))
        yield
    finally:
        for layer in layers.values():
            left = [entry for entry in _marks.get(layer, []) if entry[0] is not block]
            if left:
                _marks[layer] = left
            else:
                _marks.pop(layer, None)


@contextmanager
def beside(
    layers: Mapping[str, nn.Linear], changes: Mapping[str, LowRank], strength: float, mark: str
) -> Iterator[None]:
    """Add strength s B A x to the outputs of linear layers.

    mark  says which change this is, for `changes_of`
    Strength 0 is the base: nothing is put beside any layer.
    Raises PatchError on leaving if no layer ran: the model was not called, or was compiled before the block.
    """
    if strength == 0:
        yield
        return
    block = _Block()
    try:
        for name, layer in layers.items():
            _forward_of(layer).added.append((block, changes[name], strength))
        with _marked(layers, block, mark):
            yield
    finally:
        for layer in layers.values():
            _take_off(layer, block)
    if not block.ran:
        raise PatchError(
            f"none of {len(layers)} adapted layers ran inside the block; call the model inside it, and "
            "compile the model only after entering"
        )


@dataclass(eq=False)
class _Block:
    """One open block of `beside`, by identity.  `ran` is true once one of its layers ran."""

    ran: bool = False


class _Forward:
    """Forward of a linear layer with changes beside it.

    It stands in the layer's own `forward`, inside the call that runs the hooks, so that these see its output.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.replaced = layer.__dict__.get("forward")
        self.plain = layer.forward
        # whoever asks for a layer's arguments by name finds the names of its own forward
        self.__signature__ = inspect.signature(self.plain)
        self.added: list[tuple[_Block, LowRank, float]] = []

    def __call__(self, *args: Any, **named: Any) -> Tensor:
        y: Tensor = self.plain(*args, **named)
        x = [*args, *named.values()][0]
        for block, change, strength in self.added:
            block.ran = True
            y = y + change.of(x, strength).to(y.dtype)
        return y

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies, from which nobody would take the change off."""
        raise PatchError(
            "the model is copied or pickled while an adapter is applied; do it before the block or after"
        )


def _forward_of(layer: nn.Linear) -> _Forward:
    """Forward with changes of a layer, put in place by the first of them."""
    now = layer.__dict__.get("forward")
    if isinstance(now, _Forward):
        return now
    made = _Forward(layer)
    layer.forward = made  # type: ignore[method-assign]
    return made


def _take_off(layer: nn.Linear, block: _Block) -> None:
    """Remove a block's changes from a layer, and with the last its forward."""
    forward = layer.__dict__.get("forward")
    if not isinstance(forward, _Forward):
        return
    forward.added = [entry for entry in forward.added if entry[0] is not block]
    if forward.added:
        return
    if forward.replaced is None:
        del layer.__dict__["forward"]
    else:
        layer.__dict__["forward"] = forward.replaced


@dataclass
class _Merge:
    """Original weight of a layer, and the (block, change, strength) within the present one."""

    original: Tensor
    parts: list[tuple[object, LowRank, float]] = field(default_factory=list)


_merges: WeakKeyDictionary[nn.Module, _Merge] = WeakKeyDictionary()


def original_weight(layer: nn.Linear) -> Tensor:
    """Weight (out, in) of a layer without what is merged into it."""
    merge = _merges.get(layer)
    if merge is None:
        return layer.weight.detach()
    return merge.original


def acting_weight(layer: nn.Linear) -> Tensor:
    """Weight (out, in) that acts in a layer, with the changes beside it and those within."""
    weight = layer.weight.detach()
    forward = layer.__dict__.get("forward")
    if not isinstance(forward, _Forward):
        return weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(dtype)
    for _, change, strength in forward.added:
        total = total + strength * change.matrix(dtype).detach().to(weight.device)
    return total


@contextmanager
def within(
    layers: Mapping[str, nn.Linear], changes: Mapping[str, LowRank], strength: float, mark: str
) -> Iterator[None]:
    """Put round(W + strength s B A) in the place of the weights W of linear layers.

    The sum, of all blocks that are open on a layer, is made in float32 (of float64 weights in float64) and
    rounded once.  W itself is kept and put back.
    Raises PatchError for a sum that the weight's dtype cannot hold.
    """
    if strength == 0:
        yield
        return
    block = object()
    try:
        for name, layer in layers.items():
            merge = _merges.setdefault(layer, _Merge(layer.weight.data))
            merge.parts.append((block, changes[name], strength))
            layer.weight.data = _merged(name, merge)
        with _marked(layers, block, mark):
            yield
    finally:
        for name, layer in layers.items():
            _take_out(name, layer, block)


def _merged(name: str, merge: _Merge) -> Tensor:
    """Weight with all changes in it, rounded once."""
    weight = merge.original
    dtype = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(dtype)
    with torch.no_grad():
        for _, change, strength in merge.parts:
            total = total + strength * change.matrix(dtype).to(weight.device)
    rounded = total.to(weight.dtype)
    if not rounded.isfinite().all():
        raise PatchError(
            f"layer {name!r} has magnitudes up to {float(total.abs().max()):.6g} with the adapter in it, "
            f"which {weight.dtype} cannot hold; give a smaller scale, or a wider dtype"
        )
    return rounded


def _take_out(name: str, layer: nn.Linear, block: object) -> None:
    """Remove a block's changes from a weight, which without any is the original itself."""
    merge = _merges.get(layer)
    if merge is None:
        return
    merge.parts = [part for part in merge.parts if part[0] is not block]
    if merge.parts:
        layer.weight.data = _merged(name, merge)
    else:
        layer.weight.data = merge.original
        del _merges[layer]
