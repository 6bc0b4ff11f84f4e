"""Carrying an intervention out on any model with sites: capture text K and V in one run, put them into another.

B batch rows, T text tokens, W = H heads x D, where H counts the heads of K and V

Hooks on the taps of the sites, of which text tokens and text channels alone are read and written: image keys,
image values and all queries are out of reach by construction.  A norm or rotation after a tap acts on the keys
put there, at the reader's own positions.  A mask stays the reader's: a donor whose mask differs is refused.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import Context
from inspect import BoundArguments

import torch
from torch import Tensor, nn

from textpatch.calls import Call, Calls, hidden_tokens, of_row, same_mask, told
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Row, integers, require_in_range
from textpatch.ports.shipped import find_sites
from textpatch.sites import Site, Span, select_sites


class KVCache(dict):
    """Captured text K and V: (site name, step, row label, "k" or "v") -> (T, W), detached copies.

    Where a row's mask hides tokens, (site name, step, row label, "mask") holds what `hidden_tokens` gives.
    Keyed by what a row is, never by its place in a batch; a label is `Row.label` or any JSON-able tuple.
    In a file: safetensors' `save_file(cache.tensors, path)` and `KVCache.from_tensors(load_file(path))`.
    """

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.values())

    @staticmethod
    def estimate(
        sites: Sequence[Site], steps: int, rows: int, tokens: int, dtype: torch.dtype
    ) -> int:
        """Bytes a capture will take, before it runs, without masks."""
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
        """The inverse of `tensors`, exactly.  Raises PatchError for names that are no cache keys, or one key twice."""
        try:
            cache = cls({_key(name): tensor for name, tensor in tensors.items()})
            if len(cache) != len(tensors):
                raise ValueError(f"{len(tensors)} names are {len(cache)} keys")
        except (ValueError, TypeError, RecursionError) as error:
            raise PatchError(
                f"these tensors are no saved cache ({error}); KVCache.tensors writes one"
            ) from None
        return cache


def _key(name: str) -> tuple:
    site, step, label, part = json.loads(name)
    is_step = type(step) is int and step >= 0  # True would pass as the step 1
    if not (
        isinstance(site, str) and is_step and isinstance(label, list) and part in ("k", "v", "mask")
    ):
        raise ValueError(f"{name} is no cache key")
    if json.dumps([site, step, label, part]) != name:
        raise ValueError(f"{name} is not how a cache spells that key")
    return site, step, _tuples(label), part


def _tuples(value):
    """JSON lists, at any depth, as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextmanager
def capture(model: nn.Module, sites, *, rows: Sequence[Row | Hashable]) -> Iterator[KVCache]:
    """Keep the text K and V of `sites` at every call of the model inside the block; nothing else changes.

    sites  what `select_sites` understands, or Sites that `find_sites` made by a table of one's own
    rows   one Row or label per batch row, in order, or one label; the n-th call of the model is step n
    Raises PatchError if a site is unknown or does not run in some call, if the batch has another number of rows, if
    two rows have one label, if a mask of text is given that the sites do not name, or if a call holds no text.
    """
    cache, labels = KVCache(), [_label(row) for row in _each_row(rows)]
    _require_distinct(labels)

    def keep(site: Site, part: str, call: Call, own: Tensor) -> None:
        _require_rows(site, own, labels)
        for b, label in enumerate(labels):
            cache[site.name, call.step, label, part] = own[b].detach().clone()
            mask = call.mask(site, b)
            if mask is not None:
                cache[site.name, call.step, label, "mask"] = mask.to(own.device, copy=True)

    with _at_text(model, _chosen(model, sites), keep):
        yield cache


@contextmanager
def patch(
    model: nn.Module,
    cache: KVCache,
    sites,
    *,
    rows: Sequence,
    steps: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    tokens: Iterable[int] | None = None,
    part: str = "kv",
) -> Iterator[None]:
    """Replace text K and V at `sites` by those in `cache`.   (ICLR 2025, sec. 4.1, Patching)

        A = softmax(q [k'; k_image]^T / sqrt(D)) [v'; v_image],   k', v' from the captured run

    sites  as for `capture`
    rows   one entry per batch row: the Row or label it reads, or None to leave it alone
    steps  the calls of the model, 0 = first, that are patched; heads, tokens: those replaced; all when None.
           Those of a Window: `window.among(sigmas)`, the loop's own sigmas or timesteps, one per call
    part   "kv", or only "k" or only "v"
    Raises PatchError if a site is unknown or does not run in a call that is patched; if a row, site or step was not
    captured; if the batch has another number of rows than `rows`, or shapes, dtypes or devices differ; if a row's mask
    is not that of the row it reads, at the tokens it reads; for heads, tokens or steps there are not; if a field
    names nothing; and as `capture` for masks that are not named and calls that hold no text.
    """
    labels = [None if row is None else _label(row) for row in _each_row(rows)]
    chosen = _chosen(model, sites)
    asked = {"steps": steps, "heads": heads, "tokens": tokens}
    steps, heads, tokens = (None if x is None else integers(name, x) for name, x in asked.items())
    if not any(labels):
        raise PatchError(
            "patch was given no row to read; name one per batch row, or leave patch out"
        )
    if part not in ("kv", "k", "v"):
        raise PatchError(f"part is {part!r}; give 'kv', 'k' or 'v'")
    _require_some(steps=steps, heads=heads, tokens=tokens)

    def swap(site: Site, which: str, call: Call, own: Tensor) -> Tensor | None:
        _require_rows(site, own, labels)
        if steps is not None and call.step not in steps:
            return None
        new = own.clone()
        for b, label in enumerate(labels):
            if label is not None:
                stored = _read(cache, site, call.step, label, which, own[b])
                new[b] = _mixed(own[b], stored, site, heads, tokens)
                _require_same_mask(cache, site, call, label, b, tokens)
        return new

    with _at_text(model, chosen, swap, part, steps) as calls:
        yield
    require_in_range("step", steps, calls.count, chosen[0])


@contextmanager
def inject(model: nn.Module, text, sites, *, mask=None) -> Iterator[None]:
    """Let `sites` read the keys and values of `text` in place of the prompt's.   (sec. 4.1, Injection)

    text: as the model takes it, of as many rows as the batch, the TextCondition of our own models; only its
    tokens are read, so the pooled vector stays the prompt's.  mask: that of `text`, as the model takes one; none when
    None.  A foreign model makes the keys and values in one call more, before its first; on any model no open block
    sees them made.  Raises PatchError on models whose text stream changes with depth: no single text feeds their
    sites; for another number of rows or tokens than the batch has; for another dtype; and for another mask.
    """
    chosen = _chosen(model, sites)
    if not all(site.text_is_static for site in chosen):
        raise PatchError(
            f"injection is undefined for {type(model).__name__}: its text stream changes with depth, so no single "
            "text feeds a site; use capture and patch, or a plan"
        )
    if mask is not None and not all(site.span.mask for site in chosen):
        raise PatchError(
            "a mask was injected, and the sites name no mask of the model; leave it out, or see their span"
        )
    hidden = hidden_tokens(mask)
    knows = hasattr(model, "text_kv")
    bank = _own_bank(model, text) if knows else {}

    def injected(site: Site, part: str, call: Call, own: Tensor) -> Tensor:
        _require_injected_mask(site, call, hidden, len(own))
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
    return {
        (i, part): x.transpose(1, 2).flatten(2) for i, pair in pairs for part, x in zip("kv", pair)
    }


def _fill_at_first_call(bank: dict, model: nn.Module, text, sites: tuple[Site, ...]):
    """A block in which the model's first call is preceded by one with `text`, which fills `bank`."""
    span, inputs_read = sites[0].span, sorted({site.span.text for site in sites})
    if len(inputs_read) > 1:
        raise PatchError(
            f"these sites read {inputs_read}, and one text was given; inject at sites that read one"
        )

    def keep(site: Site, part: str, call: Call, own: Tensor) -> None:
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
        raise PatchError(
            f"the injected text is {text.dtype}, and the model reads {dtype}; inject text.to({dtype})"
        )


def _chosen(model: nn.Module, sites) -> tuple[Site, ...]:
    """Sites are taken as they are, whoever found them; anything else selects among those of the model."""
    given = [sites] if isinstance(sites, (Site, str, int)) else list(sites)
    ready = given and all(isinstance(site, Site) for site in given)
    return select_sites(given if ready else find_sites(model), given)


@contextmanager
def _at_text(
    model: nn.Module,
    sites: tuple[Site, ...],
    fn: Callable,
    parts: str = "kv",
    steps: tuple | None = None,
) -> Iterator[Calls]:
    """Call fn(site, part, call, own) with the text K or V (B, T, W) of `sites` wherever they are made.

    What it returns takes their place, None leaves them.  Yields the calls of the model, of which those in `steps` must
    run every site.
    """
    taps = defaultdict(list)
    for site in sites:
        for part, tap in zip("kv", site.taps):
            taps[tap.module] += [(site, part, tap.channels)] if part in parts else []
    names = [name for name in taps if taps[name]]
    calls = Calls(model, sites, names, steps)

    def at(name: str, output: Tensor) -> Tensor | None:
        call = calls.at(name)
        new = None
        for site, part, channels in taps[name]:
            text = calls.text(site, name, output.shape[1])
            where = slice(None), text, slice(*channels or (None,))
            read = fn(site, part, call, output[where])
            if read is not None:
                new = output.clone() if new is None else new
                new[where] = read
        return new

    with calls.counted(), HookRegistry(model, names).replace(at):
        yield calls


def _mixed(
    own: Tensor, stored: Tensor, site: Site, heads: tuple | None, tokens: tuple | None
) -> Tensor:
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
            raise PatchError(
                f"{name} is empty, so nothing would be patched; give some, or leave it out to mean all"
            )


def _each_row(rows) -> Sequence:
    """Rows or labels, of which one string is one label."""
    return [rows] if isinstance(rows, str) else rows


def _label(row) -> Hashable:
    return row.label if isinstance(row, Row) else (row if isinstance(row, tuple) else (row,))


def _require_distinct(labels: list) -> None:
    repeated = [label for label, times in Counter(labels).items() if times > 1]
    if repeated:
        raise PatchError(
            f"row {repeated[0]} is labelled more than once; one would overwrite the other in the cache"
        )


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
        sites, steps, rows = (
            ", ".join(map(str, some[:6])) + ", ..." * (len(some) > 6) for some in held
        )
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


def _require_same_mask(
    cache: KVCache, site: Site, call: Call, label: Hashable, row: int, tokens: tuple | None
) -> None:
    """Raise PatchError unless a row of this call hides of its text what the row it reads did, at the tokens read."""
    own, other = call.mask(site, row), cache.get((site.name, call.step, label, "mask"))
    if not same_mask(own, other, tokens):
        raise PatchError(
            f"the mask of row {label} {told(other)} at step {call.step}, and {site.span.mask!r} of batch row {row}, which "
            f"reads it at site {site.name!r}, {told(own)}; its mask would stay and cut or pad the text it reads, so give "
            "both texts of one length, or `tokens` that both see"
        )


def _require_injected_mask(site: Site, call: Call, hidden: list, rows: int) -> None:
    """Raise PatchError unless an injected text's mask is that of the batch, row by row."""
    if len(hidden) not in (1, rows):
        raise PatchError(
            f"the mask of the injected text holds {len(hidden)} rows, the batch {rows}; give one per row"
        )
    for row in range(rows):
        own, other = call.mask(site, row), of_row(hidden, row)
        if not same_mask(own, other):
            raise PatchError(
                f"the mask of the injected text {told(other)} in row {row}, and {site.span.mask!r} of the batch, which "
                f"stays, {told(own)}; inject(..., mask=...) a text that is masked as the batch is"
            )
