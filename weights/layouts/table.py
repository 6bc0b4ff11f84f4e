"""A layout: the literal table from a file's keys to names in diffusers layout, and conversion by it.

A row of a table is `source: target`, both patterns of `textpatch.weights.manifests.expand`, whose names
correspond one by one; `*` stands for `{weight,bias}`.  Where the tensor itself changes or holds several, the
target is {target: function}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from textpatch.errors import WeightsError
from textpatch.weights.layouts.tensors import Rows, same
from textpatch.weights.manifests import expand

Function = Callable[[Tensor], Tensor]
Table = Mapping[str, "str | dict[str, Function]"]


@dataclass(frozen=True)
class Layout:
    """How one component is spelled in a file: each key goes somewhere, or is dropped for a stated reason."""

    name: str
    table: dict[str, tuple[tuple[str, Function], ...]]
    dropped: dict[str, str]

    def targets(self, key: str) -> tuple[tuple[str, Function], ...]:
        """(name in diffusers layout, function of the tensor) of all that a key holds; none if it is dropped.

        Raises WeightsError for a key this layout does not know.
        """
        if key in self.dropped:
            return ()
        if key not in self.table:
            raise WeightsError(f"{self.name} has no tensor {key!r}")
        return self.table[key]


def make_layout(name: str, *tables: Table, dropped: Mapping[str, str] | None = None) -> Layout:
    """A layout from tables, where a later row replaces an earlier one of the same key."""
    rows: dict[str, dict[str, Function]] = {}
    for table in tables:
        for source, target in table.items():
            rows |= _expanded(source, _functions(target))
    reasons = {
        key: reason for pattern, reason in (dropped or {}).items() for key in expand(pattern)
    }
    return Layout(name, {key: tuple(targets.items()) for key, targets in rows.items()}, reasons)


def _expanded(source: str, targets: dict[str, Function]) -> dict[str, dict[str, Function]]:
    keys = _names(source)
    row: dict[str, dict[str, Function]] = {key: {} for key in keys}
    for target, function in targets.items():
        for key, name in zip(keys, _names(target), strict=True):
            row[key][name] = function
    return row


def _names(pattern: str) -> list[str]:
    return expand(pattern.replace("*", "{weight,bias}"))


def within(blocks: Mapping[str, str], table: Table) -> Table:
    """The rows of a module, for each of the blocks that hold one: {source prefix: target prefix}."""
    return {
        f"{source}.{key}": {
            f"{target}.{name}": function for name, function in _functions(row).items()
        }
        for source, target in blocks.items()
        for key, row in table.items()
    }


def _functions(row: str | dict[str, Function]) -> dict[str, Function]:
    return row if isinstance(row, dict) else {row: same}


def unchanged(*patterns: str) -> Table:
    """Rows of tensors that have the same name on both sides."""
    return {pattern: pattern for pattern in patterns}


def thirds(query: str, key: str, value: str) -> dict[str, Function]:
    """Targets of a projection fused as q | k | v."""
    return {query: Rows(0, 1, of=3), key: Rows(1, 2, of=3), value: Rows(2, 3, of=3)}


def origins(keys: Iterable[str], layout: Layout) -> dict[str, tuple[str, Function]]:
    """Where each target comes from: name in diffusers layout -> (key of the file, function of its tensor).

    Raises WeightsError if a key is unknown to the layout, or two keys give the same target.
    """
    keys = list(keys)
    unknown = [key for key in keys if key not in layout.table and key not in layout.dropped]
    if unknown:
        raise WeightsError(
            f"{listed(unknown)} of {len(keys)} tensors unknown to the {layout.name} layout; "
            "the file is of another model or version"
        )
    made: dict[str, tuple[str, Function]] = {}
    for key in keys:
        for target, function in layout.targets(key):
            if target in made:
                raise WeightsError(
                    f"{key!r} and {made[target][0]!r} are both {target!r}; remove one of them"
                )
            made[target] = (key, function)
    return made


def convert(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's keys -> shapes in diffusers layout, without data.

    Raises WeightsError as `origins` does, and for a shape that its function cannot take.
    """
    made = {}
    for target, (key, function) in origins(shapes, layout).items():
        try:
            made[target] = tuple(function(torch.empty(shapes[key], device="meta")).shape)
        except (RuntimeError, IndexError) as error:
            raise WeightsError(
                f"{key!r} of shape {shapes[key]} cannot be what the {layout.name} layout holds there ({error})"
            ) from None
    return made


def listed(names: Iterable[str]) -> str:
    """`12: a, b, ...`: the count and at most ten of the names."""
    names = sorted(names)
    return f"{len(names)}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
