"""Arguments of a model's forward: their rows, their numbers, and the texts among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

from torch import Tensor

# a text of each row, in one tensor or a list
Text: TypeAlias = Tensor | list[Tensor]


def take(value: object, rows: list[int]) -> object:
    """Rows of an argument in another order.

    An argument without one entry per row stays as it is, and so does a tuple, such as the cosines and
    sines of positions.  A dictionary is taken entry by entry.
    """
    if isinstance(value, dict):
        return {name: take(item, rows) for name, item in value.items()}
    if isinstance(value, Tensor) and value.dim() and len(value) == len(rows):
        return value[rows]
    if isinstance(value, list) and len(value) == len(rows):
        return [value[row] for row in rows]
    return value


def apply(fn: Callable[[Tensor], Tensor], value: object) -> object:
    """An argument with fn applied to every floating-point tensor in it."""
    if isinstance(value, dict):
        return {name: apply(fn, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [apply(fn, item) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return fn(value)
    return value


def text_of(inputs: Mapping[str, object], name: str) -> Text:
    """An argument that holds a text for each row, or for each layer."""
    return cast(Text, inputs[name])
