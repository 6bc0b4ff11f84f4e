"""The cache of captured text keys and values, in memory and as tensors for a file.

T text tokens, W = H heads x D, where H counts the heads of K and V
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from textpatch.changes import require_same_changes
from textpatch.equality import equal
from textpatch.errors import PatchError
from textpatch.html import fragment, safe
from textpatch.sites import Site

Key = tuple[str, int, Hashable, str]
SHOWN = 6  # names of each kind that an error lists
ADAPTERS = (
    "adapters"  # begins the name, in a file, of an empty tensor that says what adapters acted
)


class KVCache(dict[Key, Tensor]):
    """Captured text K and V, as detached copies.

    (site name, step, row label, "k" or "v")   (T, W)
    (site name, step, row label, "mask")       (heads of queries or 1, queries or 1, T), as attention gets it,
                                               where it gets one

    A key names a row by its label, never by its place in a batch.
    A label is `Row.label` or any JSON-able tuple.
    In a file: safetensors' `save_file(cache.tensors, path)` and `KVCache.from_tensors(load_file(path))`.

    adapters  what the model was under when it was captured, `changes.changes_of`
    """

    adapters: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, KVCache) and self.adapters != other.adapters:
            return False
        return equal(dict(self), dict(other) if isinstance(other, dict) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        """What the cache holds, in one line for each kind of name."""
        sites, steps, rows = (_listed(key[place] for key in self) for place in range(3))
        head = f"KVCache of {len(self)} tensors, {self.bytes:,} bytes"
        if not self:
            return head
        return f"{head}\n  sites  {sites}\n  steps  {steps}\n  rows   {rows}"

    def _repr_html_(self) -> str:
        return fragment(f"<pre>{'<br>'.join(map(safe, repr(self).splitlines()))}</pre>")

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.values())

    @staticmethod
    def estimate(
        sites: Sequence[Site], steps: int, rows: int, tokens: int, dtype: torch.dtype
    ) -> int:
        """Bytes a capture will take, before it runs, without masks."""
        width = sum(site.text_heads * site.head_dim for site in sites)
        return 2 * width * steps * rows * tokens * dtype.itemsize

    def to(self, *where: torch.device | str | torch.dtype, non_blocking: bool = False) -> KVCache:
        """The cache on another device, in another dtype, or both, as `Tensor.to` is told them."""
        moved = KVCache(self)
        for one in where:
            for key, tensor in moved.items():
                moved[key] = tensor.to(one, non_blocking=non_blocking)
        moved.adapters = self.adapters
        return moved

    def begin(self, adapters: tuple[str, ...]) -> None:
        """Take note of the adapters of a call that is captured.

        Raises PatchError if earlier calls were captured under others.
        """
        if not self:
            self.adapters = adapters
        self.require(adapters)

    def require(self, adapters: tuple[str, ...]) -> None:
        """Raise PatchError unless a call is under the adapters that were there at the capture."""
        require_same_changes("the cache was captured", self.adapters, adapters)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The cache as a flat dict for a safetensors file, whose keys are JSON lists."""
        flat = {json.dumps(key): tensor.contiguous() for key, tensor in self.items()}
        if self.adapters:
            flat[json.dumps([ADAPTERS, *self.adapters])] = torch.empty(0)
        return flat

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> KVCache:
        """Restore exactly the cache that `tensors` wrote.

        Raises PatchError for names that are no cache keys, and for one key twice.
        """
        try:
            kept, adapters = _parted(tensors)
            cache = cls({_key(name): tensor for name, tensor in kept.items()})
            if len(cache) != len(kept):
                raise ValueError(f"{len(kept)} names are {len(cache)} keys")
            cache.adapters = adapters
        except (ValueError, TypeError, RecursionError) as error:
            raise PatchError(
                f"these tensors are no saved cache ({error}); KVCache.tensors writes one"
            ) from None
        return cache


def _key(name: str) -> Key:
    """Read a cache key from its JSON.  Raises ValueError for any other spelling than that of `tensors`."""
    site, step, label, part = json.loads(name)
    is_step = type(step) is int and step >= 0  # True would pass as the step 1
    is_part = part in ("k", "v", "mask")
    if not (isinstance(site, str) and is_step and isinstance(label, list) and is_part):
        raise ValueError(f"{name} is no cache key")
    if json.dumps([site, step, label, part]) != name:
        raise ValueError(f"{name} is not how a cache spells that key")
    return site, step, _tuples(label), part


def _parted(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Part the tensors of a file into those of keys, and the adapters that the name of one lists.

    Raises ValueError for a list of adapters that are no strings, and for two lists.
    """
    marks = [name for name in tensors if name.startswith(f'["{ADAPTERS}", ')]
    kept = {name: tensor for name, tensor in tensors.items() if name not in marks}
    if not marks:
        return kept, ()
    (mark,) = marks
    _, *adapters = json.loads(mark)
    if not all(isinstance(adapter, str) for adapter in adapters):
        raise ValueError(f"{mark} names no adapters")
    return kept, tuple(adapters)


def _tuples(value: Any) -> Any:
    """The tuples that JSON lists were, at any depth."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return value


def stored_kv(
    cache: KVCache, site: Site, step: int, label: Hashable, part: str, own: Tensor
) -> Tensor:
    """The cached K or V of a row, which must have the shape, dtype and device of `own`."""
    key = site.name, step, label, part
    if key not in cache:
        sites, steps, rows = (_listed(key[i] for key in cache) for i in range(3))
        raise PatchError(
            f"the cache holds no {part} of site {site.name!r} at step {step} for row {label}; it holds sites "
            f"{sites}, steps {steps}, rows {rows}; capture that one too, or patch only what was captured"
        )
    stored = cache[key]
    if stored.shape != own.shape or stored.dtype != own.dtype:
        raise PatchError(
            f"site {site.name!r} makes {part} of shape {tuple(own.shape)}, {own.dtype}; the cache holds "
            f"{tuple(stored.shape)}, {stored.dtype}; capture with the same model, prompt length and dtype"
        )
    if stored.device != own.device:
        raise PatchError(
            f"site {site.name!r} makes {part} on {own.device}; the cache holds it on {stored.device}; "
            f"move the cache once, cache.to({str(own.device)!r}), not at every step"
        )
    return stored


def _listed(values: Iterable[Any]) -> str:
    """The first few different values, for an error."""
    names = [str(value) for value in dict.fromkeys(values)]
    if len(names) > SHOWN:
        names = [*names[:SHOWN], "..."]
    return ", ".join(names)
