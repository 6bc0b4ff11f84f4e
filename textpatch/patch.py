"""Carrying an intervention out on any model with sites: capture text K and V in one run, put them into another.

B batch rows, T text tokens, W = H heads x D

Hooks on the text projections themselves (`sites.TEXT_PROJECTIONS`): image keys, image values and all
queries are out of reach by construction.  A K norm after the projection then acts on the captured keys, so
the swap is of what attention reads.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from typing import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Row
from textpatch.sites import TEXT_PROJECTIONS, Site, find_sites, select_sites


class KVCache(dict):
    """Captured text K and V: (site name, step, row label, "k" or "v") -> (T, W), detached copies.

    Keyed by what a row is, never by its place in a batch; a label is `Row.label` or any JSON-able tuple.
    """

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.values())

    @staticmethod
    def estimate(sites: Sequence[Site], steps: int, rows: int, tokens: int, dtype: torch.dtype) -> int:
        """Bytes a capture will take, before it runs."""
        width = sum(site.heads * site.head_dim for site in sites)
        return 2 * width * steps * rows * tokens * dtype.itemsize

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The cache as a flat dict for a safetensors file; its keys are JSON lists."""
        return {json.dumps(key): tensor.contiguous() for key, tensor in self.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> KVCache:
        """The inverse of `tensors`, exactly.  Raises PatchError for names that are no cache keys."""
        try:
            return cls({_key(name): tensor for name, tensor in tensors.items()})
        except (ValueError, TypeError) as error:
            raise PatchError(f"these tensors are no saved cache ({error}); KVCache.tensors writes one") from None


def _key(name: str) -> tuple:
    site, step, label, part = json.loads(name)
    if not (isinstance(site, str) and isinstance(step, int) and isinstance(label, list) and part in ("k", "v")):
        raise ValueError(f"{name} is no cache key")
    return site, step, _tuples(label), part


def _tuples(value):
    """JSON lists, at any depth, as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextmanager
def capture(model: nn.Module, sites, *, rows: Sequence[Row | Hashable]) -> Iterator[KVCache]:
    """Keep the text K and V of `sites` at every call of the model inside the block; nothing else changes.

    rows  one Row or label per batch row, in order; the n-th call of the model is step n
    Raises PatchError if a site is unknown or never runs, if the batch has another number of rows, or if two
    rows have one label.
    """
    cache, steps, labels = KVCache(), Counter(), [_label(row) for row in rows]
    _require_distinct(labels)

    def keep(name: str, output: Tensor) -> None:
        site, part = owners[name]
        _require_rows(site, output, labels)
        step = _next(steps, name)
        for b, label in enumerate(labels):
            cache[site.name, step, label, part] = output[b].detach().clone()

    registry, owners = _projections(model, sites)
    with registry.observe(keep):
        yield cache


@contextmanager
def patch(model: nn.Module, cache: KVCache, sites, *, rows: Sequence, steps: Iterable[int] | None = None,
          heads: Iterable[int] | None = None, tokens: Iterable[int] | None = None,
          part: str = "kv") -> Iterator[None]:  # fmt: skip
    """Replace text K and V at `sites` by those in `cache`.   (ICLR 2025, sec. 4.1, Patching)

        A = softmax(q [k'; k_image]^T / sqrt(D)) [v'; v_image],   k', v' from the captured run

    rows   one entry per batch row: the Row or label it reads, or None to leave it alone
    steps  the calls of the model, 0 = first, that are patched; heads, tokens: those replaced; all when None
    part   "kv", or only "k" or only "v"
    Raises PatchError if a site is unknown or never runs; if a row, site or step was not captured; if the
    batch has another number of rows than `rows`, or shapes or dtypes differ; for heads, tokens or steps
    there are not; if a field names nothing.
    """
    labels, counts = [None if row is None else _label(row) for row in rows], Counter()
    steps, heads, tokens = (None if x is None else sorted(set(x)) for x in (steps, heads, tokens))
    if not any(labels):
        raise PatchError("patch was given no row to read; name one per batch row, or leave patch out")
    if [] in (steps, heads, tokens) or part not in ("kv", "k", "v"):
        raise PatchError(f"nothing to patch in {steps=}, {heads=}, {tokens=}, {part=}; leave a field out to mean all")

    def swap(name: str, output: Tensor) -> Tensor | None:
        site, which = owners[name]
        _require_rows(site, output, labels)
        step = _next(counts, name)
        if steps is not None and step not in steps:
            return None
        new = output.clone()
        for b, label in enumerate(labels):
            if label is not None:
                stored = _read(cache, site, step, label, which, output[b])
                new[b] = _mixed(output[b], stored, site, heads, tokens)
        return new

    registry, owners = _projections(model, sites, part)
    with registry.replace(swap):
        yield
    missed = [step for step in steps or () if not 0 <= step < max(counts.values())]
    if missed:
        raise PatchError(f"steps {missed} were to be patched; the model was called {max(counts.values())} times")


@contextmanager
def inject(model: nn.Module, text: Tensor, sites) -> Iterator[None]:
    """Feed `text` (B, T, C) to the text projections of `sites` in place of the prompt.   (sec. 4.1, Injection)

    Raises PatchError on models whose text stream changes with depth: no single text feeds their sites.
    """
    if not getattr(model, "text_is_static", False):
        raise PatchError(
            f"injection is undefined for {type(model).__name__}: its text stream changes with depth, so no single "
            "text feeds a site; use capture and patch, or a plan"
        )
    registry, owners = _projections(model, sites)
    modules = dict(model.named_modules())

    def project(name: str, output: Tensor) -> Tensor:
        return nn.functional.linear(text, modules[name].weight, modules[name].bias)

    with registry.replace(project):
        yield


def _projections(model: nn.Module, sites, parts: str = "kv") -> tuple[HookRegistry, dict[str, tuple[Site, str]]]:
    """A registry of the text K and V projections of `sites`, and which site and part each belongs to."""
    owners = {
        f"{site.name}.{module}": (site, part)
        for site in select_sites(find_sites(model), sites)
        for part, module in zip("kv", TEXT_PROJECTIONS[site.kind])
        if part in parts
    }
    return HookRegistry(model, owners), owners


def _mixed(own: Tensor, stored: Tensor, site: Site, heads: list[int] | None, tokens: list[int] | None) -> Tensor:
    """A row's own text K or V (T, W), with the given heads of the given tokens taken from `stored`."""
    if heads is None and tokens is None:
        return stored
    for what, asked, size in (("head", heads, site.heads), ("token", tokens, len(own))):
        if asked is not None and not 0 <= asked[0] <= asked[-1] < size:
            raise PatchError(f"no {what} {asked[-1]} at site {site.name!r}; there are {size}, numbered 0..{size - 1}")
    mixed, split = own.clone(), (site.heads, -1)
    t = torch.arange(len(own)) if tokens is None else torch.tensor(tokens)
    h = torch.arange(site.heads) if heads is None else torch.tensor(heads)
    mixed.unflatten(-1, split)[t[:, None], h] = stored.unflatten(-1, split)[t[:, None], h]
    return mixed


def _label(row) -> Hashable:
    return row.label if isinstance(row, Row) else (row if isinstance(row, tuple) else (row,))


def _require_distinct(labels: list) -> None:
    repeated = [label for label, times in Counter(labels).items() if times > 1]
    if repeated:
        raise PatchError(f"row {repeated[0]} is labelled more than once; one would overwrite the other in the cache")


def _next(counter: Counter, name: str) -> int:
    counter[name] += 1
    return counter[name] - 1


def _require_rows(site: Site, output: Tensor, labels: list) -> None:
    if len(output) != len(labels):
        raise PatchError(
            f"site {site.name!r} ran with a batch of {len(output)} rows, but {len(labels)} rows were labelled; "
            "label every row of the batch, both guidance branches included"
        )


def _read(cache: KVCache, site: Site, step: int, label: Hashable, part: str, own: Tensor) -> Tensor:
    key = site.name, step, label, part
    if key not in cache:
        labels = sorted({str(k[2]) for k in cache})
        raise PatchError(
            f"the cache holds no {part} of site {site.name!r} at step {step} for row {label}; it holds "
            f"{len({k[0] for k in cache})} sites, {len({k[1] for k in cache})} steps, rows {', '.join(labels[:6])}"
        )
    stored = cache[key]
    if stored.shape != own.shape or stored.dtype != own.dtype:
        raise PatchError(
            f"site {site.name!r} makes {part} of shape {tuple(own.shape)}, {own.dtype}; the cache holds "
            f"{tuple(stored.shape)}, {stored.dtype}; capture with the same model, prompt length and dtype"
        )
    return stored.to(own.device)
