"""Capture text K and V in one run of any model with sites, and put them into another run.

B batch rows, T text tokens, W = H heads x D, where H counts the heads of K and V

Text tokens alone are read and written.

- Image keys, image values and all queries are out of reach by construction.
- On other people's models K, V and the mask are those that attention gets, see `attending`.  A mask goes with
  the keys that it hides.
- On textpatch's own they are the outputs of the projections, and there are no masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import BoundArguments
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from textpatch.attending import text_at_attention
from textpatch.cache import Key, KVCache, stored_kv
from textpatch.calls import Call, Calls
from textpatch.changes import changes_of, require_same_changes
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry, outside_blocks
from textpatch.masks import argument, read_masks, replace_argument
from textpatch.pipelines import TextCondition
from textpatch.plan import Row, integers, require_in_range
from textpatch.sites import Selectors, Site, Span, Texts
from textpatch.taps import at_text, chosen_sites

# one Row or label for each row of a batch, None for one that reads nothing, or a single one
Rows: TypeAlias = Sequence[Row | Hashable | None] | Row | Hashable


@contextmanager
def capture(model: nn.Module, sites: Selectors, *, rows: Rows) -> Iterator[KVCache]:
    """Keep the text K and V of `sites` at every call of the model inside the block.

    The calls themselves are unchanged; the n-th call of the model is step n.

    sites  anything `select_sites` understands, or Sites that `find_sites` made by a table of one's own
    rows   one Row or label per batch row, in order.  A Row or a string that stands alone is the only row,
           and ("a", "cond") is two; one row of that label is [("a", "cond")]

    Raises PatchError

    - if `rows` is no sequence
    - if a site is unknown or does not run in some call
    - if the batch has another number of rows, or two rows have one label
    - as `at_attention`, and if a call holds no text
    """
    cache = KVCache()
    labels = [_label(row) for row in _each_row(rows)]
    _require_distinct(labels)

    def keep(site: Site, part: str, call: Call, own: Tensor) -> None:
        _require_rows(site, own, labels)
        cache.begin(changes_of(model))
        for b, label in enumerate(labels):
            cache[site.name, call.step, label, part] = own[b].detach().clone()

    def keep_mask(site: Site, call: Call, own: Tensor | None) -> None:
        if own is not None:
            for b, label in enumerate(labels):
                cache[site.name, call.step, label, "mask"] = own[b].detach().clone()

    with _at_sites(model, chosen_sites(model, sites), keep, keep_mask):
        yield cache


@contextmanager
def patch(
    model: nn.Module,
    cache: KVCache,
    sites: Selectors,
    *,
    rows: Rows,
    steps: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    tokens: Iterable[int] | None = None,
    part: str = "kv",
) -> Iterator[None]:
    """Replace text K and V at `sites` by those in `cache`.   (ICLR 2025, sec. 4.1, Patching)

        A = softmax(q [k'; k_image]^T / sqrt(D)) [v'; v_image],   k', v' from the captured run

    sites   as for `capture`
    rows    one entry per batch row, the Row or label it reads, or None to leave it alone.  One that
            stands alone is the only entry
    steps   the calls that are patched, 0 = first; all when None.  Those of a Window are
            `window.among(sigmas)`, with the loop's own sigmas or timesteps, one per call
    heads, tokens  those that are replaced, all when None
    part           "kv", or only "k" or only "v"

    Raises PatchError

    - if a site is unknown, or does not run in a call that is patched, or `rows` is no sequence
    - if a row, site or step was not captured
    - if the batch has another number of rows than `rows`, or shapes, dtypes or devices differ
    - if K or V alone is read of a row whose mask differs, or a mask finds none in this call
    - if there are no such heads, tokens or steps, or a field names nothing
    - for a cache of other adapters than the call is under, and, as `capture`, calls that hold no text
    """
    labels = [None if row is None else _label(row) for row in _each_row(rows)]
    chosen = chosen_sites(model, sites)
    patched = _numbers("steps", steps)
    some_heads = _numbers("heads", heads)
    some_tokens = _numbers("tokens", tokens)
    _require_what_to_read(cache, labels, part)

    def swap(site: Site, which: str, call: Call, own: Tensor) -> Tensor | None:
        _require_rows(site, own, labels)
        if patched is not None and call.step not in patched:
            return None
        _require_current(cache, model)
        new = own.clone()
        for b, label in enumerate(labels):
            if label is not None:
                stored = stored_kv(cache, site, call.step, label, which, own[b])
                new[b] = _mixed(own[b], stored, site, some_heads, some_tokens)
        return new

    def swap_mask(site: Site, call: Call, own: Tensor | None) -> Tensor | None:
        if patched is not None and call.step not in patched:
            return None
        others = _masks_to_read(cache, site, call.step, labels)
        return read_masks(site, own, others, some_heads, some_tokens, part)

    with _at_sites(model, chosen, swap, swap_mask, part, patched) as calls:
        yield
    require_in_range("step", patched, calls.count, chosen[0])


@contextmanager
def inject(
    model: nn.Module, text: TextCondition | Texts, sites: Selectors, *, mask: Tensor | None = None
) -> Iterator[None]:
    """Let `sites` read the keys and values of `text` in place of the prompt's.   (sec. 4.1, Injection)

    text  the text as the model takes it, of as many rows as the batch; for our own models a TextCondition,
          whose tokens alone are read, so that the pooled vector stays the prompt's
    mask  the mask of `text`, as the model takes one; none when None

    A foreign model makes the keys and values in one call more, before its first.  No open block sees that.

    Raises PatchError

    - on models whose text stream changes with depth, because no single text feeds their sites
    - for a text of another kind than the model takes
    - for another number of rows or tokens than the batch has, another dtype, or a mask in a batch without
    - if an adapter is applied or taken off after the block is entered
    """
    chosen = chosen_sites(model, sites)
    if not all(site.text_is_static for site in chosen):
        raise PatchError(
            f"injection is undefined for {type(model).__name__}: its text stream changes with depth, so no "
            "single text feeds a site; use capture and patch, or a plan"
        )
    if mask is not None and not all(site.span.masks for site in chosen):
        raise PatchError(
            "a mask was injected, and the sites name no mask of the model; leave it out, or see their span"
        )
    bank: dict[tuple[int, str], Tensor] = {}
    adapters = changes_of(model)
    filled: AbstractContextManager[object] = nullcontext()
    if hasattr(model, "text_kv"):
        bank = _own_bank(model, text)
    else:
        filled = _fill_at_first_call(bank, model, text, mask, chosen)

    def injected(site: Site, part: str, call: Call, own: Tensor) -> Tensor:
        require_same_changes("the text was injected", adapters, changes_of(model))
        new = bank[site.index, part]
        if new.shape != own.shape:
            raise PatchError(
                f"site {site.name!r} makes {part} of shape {tuple(own.shape)} for this batch; the injected "
                f"text makes {tuple(new.shape)}; give one row of equal length per batch row, both guidance "
                "branches included"
            )
        return new

    def injected_mask(site: Site, call: Call, own: Tensor | None) -> Tensor | None:
        masks = bank.get((site.index, "mask"))
        rows = range(len(bank[site.index, "k"]))
        return read_masks(site, own, {b: None if masks is None else masks[b] for b in rows})

    with filled, _at_sites(model, chosen, injected, injected_mask):
        yield


def _at_sites(
    model: nn.Module,
    sites: tuple[Site, ...],
    fn: Callable[[Site, str, Call, Tensor], Tensor | None],
    at_mask: Callable[[Site, Call, Tensor | None], Tensor | None],
    parts: str = "kv",
    steps: Collection[int] | None = None,
) -> AbstractContextManager[Calls]:
    """Block in which fn gets K and V of sites: at their attention, or, on our own models, at projections."""
    if all(site.keys is None for site in sites):
        return at_text(model, sites, fn, parts, steps)
    return text_at_attention(model, sites, fn, at_mask, parts, steps)


def _own_bank(model: Any, text: Any) -> dict[tuple[int, str], Tensor]:
    """Keys and values (B, T, W) by (site index, part), from the model's own `text_kv`.

    They are made in no open block, because they are nobody's step.
    Raises PatchError for a text that is no TextCondition, and of another dtype.
    """
    if not isinstance(getattr(text, "tokens", None), Tensor):
        raise PatchError(
            f"the injected text is a {type(text).__name__}, and {type(model).__name__} takes a "
            "TextCondition; give pipeline.encode(prompts)"
        )
    _require_dtype(text.tokens, next(model.parameters()).dtype)
    with outside_blocks():
        pairs = model.text_kv(text)
    bank = {}
    for i, pair in enumerate(pairs):
        for part, x in zip("kv", pair, strict=True):
            bank[i, part] = x.transpose(1, 2).flatten(2)
    return bank


def _fill_at_first_call(
    bank: dict[tuple[int, str], Tensor],
    model: nn.Module,
    text: Any,
    mask: Any,
    sites: tuple[Site, ...],
) -> AbstractContextManager[HookRegistry]:
    """A block in which a call with `text` and mask, which fills `bank`, precedes the first of the model."""
    span = sites[0].span
    read = sorted({name for site in sites for name in site.span.texts})
    if len(read) > 1:
        raise PatchError(
            f"these sites read {read}, and one text was given; inject at sites that read one"
        )

    def keep(site: Site, part: str, call: Call, own: Tensor) -> None:
        bank[site.index, part] = own

    def keep_mask(site: Site, call: Call, own: Tensor | None) -> None:
        if own is not None:
            bank[site.index, "mask"] = own

    def fill(name: str, inputs: BoundArguments) -> None:
        if bank:
            return
        _require_alike(span, text, argument(inputs, read[0]))
        _require_mask_of(mask, text)
        replace_argument(inputs, read[0], text)
        for name in span.masks:
            replace_argument(inputs, name, mask)
        with outside_blocks(), _at_sites(model, sites, keep, keep_mask):
            model(*inputs.args, **inputs.kwargs)

    return HookRegistry(model, [""]).observe_inputs(fill)


def _require_what_to_read(cache: object, labels: Sequence[Hashable | None], part: str) -> None:
    if not isinstance(cache, Mapping):
        raise PatchError(
            f"patch was given a cache that is a {type(cache).__name__}; give what capture yields"
        )
    if not any(labels):
        raise PatchError(
            "patch was given no row to read; name one per batch row, or leave patch out"
        )
    if part not in ("kv", "k", "v"):
        raise PatchError(f"part is {part!r}; give 'kv', 'k' or 'v'")


def _masks_to_read(
    cache: Mapping[Key, Tensor], site: Site, step: int, labels: Sequence[Hashable | None]
) -> dict[int, Tensor | None]:
    """Captured mask of the text that each row of a batch reads, None where it was captured without one."""
    rows = {b: label for b, label in enumerate(labels) if label is not None}
    return {b: cache.get((site.name, step, label, "mask")) for b, label in rows.items()}


def _require_current(cache: Mapping[Key, Tensor], model: nn.Module) -> None:
    """Raise PatchError if a cache was captured under other adapters than the model is under now."""
    if isinstance(cache, KVCache):
        cache.require(changes_of(model))


def _mixed(
    own: Tensor,
    stored: Tensor,
    site: Site,
    heads: tuple[int, ...] | None,
    tokens: tuple[int, ...] | None,
) -> Tensor:
    """A row's own text K or V (T, W), with the given heads of the given tokens taken from `stored`."""
    if heads is None and tokens is None:
        return stored
    require_in_range("head", heads, site.text_heads, site)
    require_in_range("token", tokens, len(own), site)
    mixed = own.clone()
    split = site.text_heads, -1
    t = torch.tensor(range(len(own)) if tokens is None else tokens)
    h = torch.tensor(range(site.text_heads) if heads is None else heads)
    mixed.unflatten(-1, split)[t[:, None], h] = stored.unflatten(-1, split)[t[:, None], h]
    return mixed


def _numbers(name: str, values: Iterable[int] | None) -> tuple[int, ...] | None:
    """The integers of a field.  Raises PatchError for a field that names nothing."""
    if values is None:
        return None
    numbers = integers(name, values)
    if not numbers:
        raise PatchError(
            f"{name} is empty, so nothing would be patched; give some, or leave it out to mean all"
        )
    return numbers


def _each_row(rows: Rows) -> Sequence[Row | Hashable | None]:
    """Rows or labels, of which a Row or a string alone is one.  Raises PatchError for what is no sequence."""
    if isinstance(rows, (Row, str)):
        return [rows]
    if not isinstance(rows, Sequence):
        raise PatchError(f"rows is {rows!r}; give a list with one Row or label per batch row")
    return rows


def _label(row: Row | Hashable) -> Hashable:
    if isinstance(row, Row):
        return row.label
    return row if isinstance(row, tuple) else (row,)


def _require_distinct(labels: list[Hashable]) -> None:
    repeated = [label for label, times in Counter(labels).items() if times > 1]
    if repeated:
        raise PatchError(
            f"row {repeated[0]} is labelled more than once; one would overwrite the other in the cache"
        )


def _require_rows(site: Site, output: Tensor, labels: Sequence[Hashable]) -> None:
    if len(output) != len(labels):
        raise PatchError(
            f"site {site.name!r} ran with a batch of {len(output)} rows, but {len(labels)} rows were "
            "labelled; label every row of the batch, both guidance branches included"
        )


def _require_alike(span: Span, text: Any, own: Any) -> None:
    """Raise PatchError unless an injected text has the rows, tokens and dtype of the batch's own."""
    rows = text if isinstance(text, (list, tuple)) else [text]
    if not all(isinstance(row, Tensor) and row.dim() for row in rows):
        raise PatchError(
            f"the injected text is a {type(text).__name__}; give what the model takes as {span.text!r}, a "
            "tensor or a list of them"
        )
    tokens = span.length(own)
    if (len(text), span.length(text)) != (len(own), tokens):
        raise PatchError(
            f"{span.text!r} of this batch holds {len(own)} rows of {tokens} tokens, the injected text "
            f"{len(text)} of {span.length(text)}; give one row of equal length per batch row"
        )
    _require_dtype(text[0], own[0].dtype)


def _require_mask_of(mask: object, text: Texts) -> None:
    """Raise PatchError unless a mask, if there is one, has a number for each token of a text."""
    if mask is None:
        return
    rows, tokens = len(text), max(map(len, text))
    found = tuple(getattr(mask, "shape", ())) or repr(mask)
    if (
        not isinstance(mask, Tensor)
        or len(mask) not in (1, rows)
        or mask.shape[1:][-1:] != (tokens,)
    ):
        raise PatchError(
            f"the mask of the injected text is {found}; give numbers (rows, tokens), for {rows} rows of "
            f"{tokens} tokens"
        )


def _require_dtype(text: Tensor, dtype: torch.dtype) -> None:
    if text.dtype != dtype:
        raise PatchError(
            f"the injected text is {text.dtype}, and the model reads {dtype}; inject text.to({dtype})"
        )
