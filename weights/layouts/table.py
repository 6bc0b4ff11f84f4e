"""Layout of a component, a literal table from a file's keys to names in diffusers layout, and its use.

A row of a table is `source: target`.  Both are patterns of `textpatch.weights.manifests.expand`, whose names
correspond one by one, and `*` stands for `{weight,bias}`.  Where the tensor itself changes or holds several,
the target is {target: function}.
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
    """Spelling of one component in a file, where each key has targets or is dropped for a stated reason."""

    name: str
    table: dict[str, tuple[tuple[str, Function], ...]]
    dropped: dict[str, str]

    def targets(self, key: str) -> tuple[tuple[str, Function], ...]:
        """Targets of a key, each a name in diffusers layout and a function of the tensor.

        A dropped key has none.  Raises WeightsError for a key this layout does not know.
        """
        if key in self.dropped:
            return ()
        if key not in self.table:
            raise WeightsError(f"{self.name} has no tensor {key!r}")
        return self.table[key]


def make_layout(name: str, *tables: Table, dropped: Mapping[str, str] | None = None) -> Layout:
    """Make a layout from tables, where a later row replaces an earlier one of the same key."""
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
    """Rows of a module, repeated for each of the blocks that hold one.

    blocks  {source prefix: target prefix}
    """
    rows = {}
    for source, target in blocks.items():
        for key, row in table.items():
            targets = _functions(row)
            rows[f"{source}.{key}"] = {f"{target}.{name}": targets[name] for name in targets}
    return rows


def _functions(row: str | dict[str, Function]) -> dict[str, Function]:
    return row if isinstance(row, dict) else {row: same}


def unchanged(*patterns: str) -> Table:
    """Rows of tensors that have the same name on both sides."""
    return {pattern: pattern for pattern in patterns}


def thirds(query: str, key: str, value: str) -> dict[str, Function]:
    """Targets of a projection fused as q | k | v."""
    return {query: Rows(0, 1, of=3), key: Rows(1, 2, of=3), value: Rows(2, 3, of=3)}


def origins(keys: Iterable[str], layout: Layout) -> dict[str, tuple[str, Function]]:
    """Origins of all targets, the key of the file and a function of its tensor, by name in diffusers layout.

    Raises WeightsError if a key is unknown to the layout, or two keys give the same target.
    """
    keys = list(keys)
    unknown = [key for key in keys if key not in layout.table and key not in layout.dropped]
    if unknown:
        raise WeightsError(
            f"{listed(unknown)} of {len(keys)} tensors unknown to the {layout.name} layout; "
            "the file is of another model or version"
        )
    by_target: dict[str, tuple[str, Function]] = {}
    for key in keys:
        for target, function in layout.targets(key):
            if target in by_target:
                other, _ = by_target[target]
                raise WeightsError(f"{key!r} and {other!r} are both {target!r}; remove one of them")
            by_target[target] = (key, function)
    return by_target


def convert(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, tuple[int, ...]]:
    """Convert the shapes of a file's keys to shapes in diffusers layout, without data.

    Raises WeightsError as `origins` does, and for a shape that its function cannot take.
    """
    converted = {}
    for target, (key, function) in origins(shapes, layout).items():
        try:
            tensor = function(torch.empty(shapes[key], device="meta"))
        except (RuntimeError, IndexError) as error:
            raise WeightsError(
                f"{key!r} of shape {shapes[key]} cannot be what the {layout.name} layout "
                f"holds there ({error})"
            ) from None
        converted[target] = tuple(tensor.shape)
    return converted


def listed(names: Iterable[str]) -> str:
    """Count and at most ten of the names, as in `12: a, b, ...`."""
    names = sorted(names)
    more = ", ..." if len(names) > 10 else ""
    return f"{len(names)}: {', '.join(names[:10])}{more}"
