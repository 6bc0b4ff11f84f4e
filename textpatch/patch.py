"""Carrying an intervention out on any model with sites: capture text K and V in one run, put them into another.

B batch rows, T text tokens, W = H heads x D, where H counts the heads of K and V

Hooks on the taps of the sites, of which text tokens and text channels alone are read and written: image keys,
image values and all queries are out of reach by construction.  A norm or rotation after a tap acts on the keys
put there, at the reader's own positions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import contextmanager, nullcontext
from contextvars import Context
from inspect import BoundArguments
from typing import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Row, integers, require_in_range
from textpatch.sites import Site, Span, find_sites, select_sites


class KVCache(dict):
    """Captured text K and V: (site name, step, row label, "k" or "v") -> (T, W), detached copies.

    Keyed by what a row is, never by its place in a batch; a label is `Row.label` or any JSON-able tuple.
    In a file: safetensors' `save_file(cache.tensors, path)` and `KVCache.from_tensors(load_file(path))`.
    """

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.values())

    @staticmethod
    def estimate(sites: Sequence[Site], steps: int, rows: int, tokens: int, dtype: torch.dtype) -> int:
        """Bytes a capture will take, before it runs."""
        width = sum(site.text_heads * site.head_dim for site in sites)
        return 2 * width * steps * rows * tokens * dtype.itemsize

    def to(self, *args, **kwargs) -> KVCache:
        """The cache on another device or in another dtype, as `Tensor.to`."""
        return KVCache({key: tensor.to(*args, **kwargs) for key, tensor in self.items()})

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

    sites  what `select_sites` understands, or Sites that `find_sites` made by a table of one's own
    rows   one Row or label per batch row, in order, or one label; the n-th call of the model is step n
    Raises PatchError if a site is unknown or never runs, if the batch has another number of rows, or if two
    rows have one label.
    """
    cache, labels = KVCache(), [_label(row) for row in _each_row(rows)]
    _require_distinct(labels)

    def keep(site: Site, part: str, step: int, own: Tensor) -> None:
        _require_rows(site, own, labels)
        for b, label in enumerate(labels):
            cache[site.name, step, label, part] = own[b].detach().clone()

    with _at_text(model, _chosen(model, sites), keep):
        yield cache


@contextmanager
def patch(model: nn.Module, cache: KVCache, sites, *, rows: Sequence, steps: Iterable[int] | None = None,
          heads: Iterable[int] | None = None, tokens: Iterable[int] | None = None,
          part: str = "kv") -> Iterator[None]:  # fmt: skip
    """Replace text K and V at `sites` by those in `cache`.   (ICLR 2025, sec. 4.1, Patching)

        A = softmax(q [k'; k_image]^T / sqrt(D)) [v'; v_image],   k', v' from the captured run

    sites  as for `capture`
    rows   one entry per batch row: the Row or label it reads, or None to leave it alone
    steps  the calls of the model, 0 = first, that are patched; heads, tokens: those replaced; all when None.
           Those of a Window: `window.among(sigmas)`, the loop's own sigmas or timesteps, one per call
    part   "kv", or only "k" or only "v"
    Raises PatchError if a site is unknown or never runs; if a row, site or step was not captured; if the
    batch has another number of rows than `rows`, or shapes, dtypes or devices differ; for heads, tokens or
    steps there are not; if a field names nothing.
    """
    labels = [None if row is None else _label(row) for row in _each_row(rows)]
    chosen = _chosen(model, sites)
    asked = {"steps": steps, "heads": heads, "tokens": tokens}
    steps, heads, tokens = (None if x is None else integers(name, x) for name, x in asked.items())
    if not any(labels):
        raise PatchError("patch was given no row to read; name one per batch row, or leave patch out")
    if part not in ("kv", "k", "v"):
        raise PatchError(f"part is {part!r}; give 'kv', 'k' or 'v'")
    _require_some(steps=steps, heads=heads, tokens=tokens)

    def swap(site: Site, which: str, step: int, own: Tensor) -> Tensor | None:
        _require_rows(site, own, labels)
        if steps is not None and step not in steps:
            return None
        new = own.clone()
        for b, label in enumerate(labels):
            if label is not None:
                stored = _read(cache, site, step, label, which, own[b])
                new[b] = _mixed(own[b], stored, site, heads, tokens)
        return new

    with _at_text(model, chosen, swap, part) as calls:
        yield
    require_in_range("step", steps, max(calls.values()), chosen[0])


@contextmanager
def inject(model: nn.Module, text, sites) -> Iterator[None]:
    """Let `sites` read the keys and values of `text` in place of the prompt's.   (sec. 4.1, Injection)

    text: as the model takes it, of as many rows as the batch, the TextCondition of our own models; only its
    tokens are read, so the pooled vector stays the prompt's.  A foreign model makes the keys and values in one
    call more, before its first; on any model no open block sees them made.  Raises PatchError on models whose
    text stream changes with depth: no single text feeds their sites; for another number of rows or tokens than
    the batch has; and for another dtype.
    """
    chosen = _chosen(model, sites)
    if not all(site.text_is_static for site in chosen):
        raise PatchError(
            f"injection is undefined for {type(model).__name__}: its text stream changes with depth, so no single "
            "text feeds a site; use capture and patch, or a plan"
        )
    knows = hasattr(model, "text_kv")
    bank = _own_bank(model, text) if knows else {}

    def injected(site: Site, part: str, step: int, own: Tensor) -> Tensor:
        new = bank[site.index, part]
        if new.shape != own.shape:
            raise PatchError(
                f"site {site.name!r} makes {part} of shape {tuple(own.shape)} for this batch; the injected text "
                f"makes {tuple(new.shape)}; give one row of equal length per batch row, both guidance branches included"
            )
        return new

    with nullcontext() if knows else _fill_at_first_call(bank, model, text, chosen):
        with _at_text(model, chosen, injected):
            yield


def _own_bank(model: nn.Module, text) -> dict[tuple[int, str], Tensor]:
    """(site index, part) -> (B, T, W), from the model's own `text_kv`, in no open block: it is nobody's step."""
    _require_dtype(text.tokens, next(model.parameters()).dtype)
    pairs = enumerate(Context().run(model.text_kv, text))
    return {(i, part): x.transpose(1, 2).flatten(2) for i, pair in pairs for part, x in zip("kv", pair)}


def _fill_at_first_call(bank: dict, model: nn.Module, text, sites: tuple[Site, ...]):
    """A block in which the model's first call is preceded by one with `text`, which fills `bank`."""
    span, inputs_read = sites[0].span, sorted({site.span.text for site in sites})
    if len(inputs_read) > 1:
        raise PatchError(f"these sites read {inputs_read}, and one text was given; inject at sites that read one")

    def keep(site: Site, part: str, step: int, own: Tensor) -> None:
        bank[site.index, part] = own

    def run(inputs: BoundArguments) -> None:
        with _at_text(model, sites, keep):
            model(*inputs.args, **inputs.kwargs)

    def fill(name: str, inputs: BoundArguments) -> None:
        if bank:
            return
        _require_alike(span, text, inputs.arguments.get(span.text))
        inputs.arguments[span.text] = text
        Context().run(run, inputs)  # in no open block: none counts or changes this call

    return HookRegistry(model, [""]).observe_inputs(fill)


def _require_alike(span: Span, text, own) -> None:
    """Raise PatchError unless an injected text has the rows, tokens and dtype of the batch's own."""
    shapes = [(span.length(x), len(x)) for x in (own, text)]
    if shapes[0] != shapes[1]:
        raise PatchError(
            f"{span.text!r} of this batch holds {shapes[0][1]} rows of {shapes[0][0]} tokens, the injected text "
            f"{shapes[1][1]} of {shapes[1][0]}; give one row of equal length per batch row"
        )
    _require_dtype(text[0], own[0].dtype)


def _require_dtype(text: Tensor, dtype: torch.dtype) -> None:
    if text.dtype != dtype:
        raise PatchError(f"the injected text is {text.dtype}, and the model reads {dtype}; inject text.to({dtype})")


def _chosen(model: nn.Module, sites) -> tuple[Site, ...]:
    """Sites are taken as they are, whoever found them; anything else selects among those of the model."""
    given = [sites] if isinstance(sites, (Site, str, int)) else list(sites)
    ready = given and all(isinstance(site, Site) for site in given)
    return select_sites(given if ready else find_sites(model), given)


@contextmanager
def _at_text(model: nn.Module, sites: tuple[Site, ...], fn: Callable, parts: str = "kv") -> Iterator[Counter]:
    """Call fn(site, part, step, own) with the text K or V (B, T, W) of `sites` wherever they are made.

    What it returns takes their place, None leaves them.  Yields how often each tapped module was called.
    """
    calls, lengths, taps = Counter(), {}, defaultdict(list)
    for site in sites:
        for part, tap in zip("kv", site.taps):
            taps[tap.module] += [(site, part, tap.channels)] if part in parts else []

    def at(name: str, output: Tensor) -> Tensor | None:
        step, new = _next(calls, name), None
        for site, part, channels in taps[name]:
            text = site.span.tokens(output.shape[1], lengths.get(site.span))
            where = slice(None), text, slice(*channels or (None,))
            read = fn(site, part, step, output[where])
            if read is not None:
                new = output.clone() if new is None else new
                new[where] = read
        return new

    with _text_lengths(model, sites, lengths):
        with HookRegistry(model, [name for name in taps if taps[name]]).replace(at):
            yield calls


def _text_lengths(model: nn.Module, sites: tuple[Site, ...], lengths: dict[Span, int]):
    """A block in which `lengths` holds how many text tokens the model was called with, where sites ask for it."""
    spans = {site.span for site in sites if site.span.place != "all"}

    def note(name: str, inputs: BoundArguments) -> None:
        lengths.update({span: span.length(inputs.arguments.get(span.text)) for span in spans})

    return HookRegistry(model, [""]).observe_inputs(note) if spans else nullcontext()


def _mixed(own: Tensor, stored: Tensor, site: Site, heads: tuple | None, tokens: tuple | None) -> Tensor:
    """A row's own text K or V (T, W), with the given heads of the given tokens taken from `stored`."""
    if heads is None and tokens is None:
        return stored
    require_in_range("head", heads, site.text_heads, site)
    require_in_range("token", tokens, len(own), site)
    mixed, split = own.clone(), (site.text_heads, -1)
    t = torch.arange(len(own)) if tokens is None else torch.tensor(tokens)
    h = torch.arange(site.text_heads) if heads is None else torch.tensor(heads)
    mixed.unflatten(-1, split)[t[:, None], h] = stored.unflatten(-1, split)[t[:, None], h]
    return mixed


def _require_some(**fields: tuple[int, ...] | None) -> None:
    """Raise PatchError for a field that names nothing."""
    for name, values in fields.items():
        if values == ():
            raise PatchError(f"{name} is empty, so nothing would be patched; give some, or leave it out to mean all")


def _each_row(rows) -> Sequence:
    """Rows or labels, of which one string is one label."""
    return [rows] if isinstance(rows, str) else rows


def _label(row) -> Hashable:
    return row.label if isinstance(row, Row) else (row if isinstance(row, tuple) else (row,))


def _require_distinct(labels: list) -> None:
    repeated = [label for label, times in Counter(labels).items() if times > 1]
    if repeated:
        raise PatchError(f"row {repeated[0]} is labelled more than once; one would overwrite the other in the cache")


def _next(counter: Counter, name: str) -> int:
    """The step of a call: one later than the last, or that same one where checkpointing repeats it in a backward pass."""
    if torch._C._current_graph_task_id() < 0:  # no backward pass is under way; torch's checkpointing asks the same
        counter[name] += 1
    elif counter[name] != 1:
        raise PatchError(
            f"module {name!r} runs again in a backward pass, as checkpointing does, after {counter[name]} calls, and which "
            "of these it repeats is not known; open a block for each call, with its backward pass inside"
        )
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
        held = [list(dict.fromkeys(key[i] for key in cache)) for i in range(3)]
        sites, steps, rows = (", ".join(map(str, some[:6])) + ", ..." * (len(some) > 6) for some in held)
        raise PatchError(
            f"the cache holds no {part} of site {site.name!r} at step {step} for row {label}; it holds sites {sites}, "
            f"steps {steps}, rows {rows}; capture that one too, or patch only what was captured"
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
