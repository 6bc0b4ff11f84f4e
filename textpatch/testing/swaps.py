"""Checks of capture, patch and inject by a table.

Each docstring is the sentence that its check makes sure of.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import cast

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.patching import KVCache, capture, inject, patch
from textpatch.plan import Plan, Row, Swap
from textpatch.swapping import swap
from textpatch.testing.inputs import Text, text_of
from textpatch.testing.port import Alter, Findings, Port, alike, check


@check
def captures_are_what_attention_gets(port: Port) -> Findings:
    """Captured K and V are what attention gets at the text's place, of every head once."""
    for site, spec in port.matched:
        for part, made in zip("kv", port.plain.attended(site)[1:], strict=True):
            text = made[:, :: made.shape[1] // site.text_heads, port.place(site, spec.text_place)]
            captured = [port.cache[site.name, 0, (row,), part] for row in port.rows]
            if not torch.equal(torch.stack(captured), text.transpose(1, 2).flatten(2)):
                yield f"not {part} at {site.name!r}"


@check
def capture_changes_nothing(port: Port) -> Findings:
    """A call under capture gives the bits of one without."""
    with capture(port.model, port.sites, rows=port.rows):
        if not torch.equal(port.listen().output, port.plain.output):
            yield "it does not"


@check
def dtypes_are_kept(port: Port) -> Findings:
    """Captured K and V have their attention's dtype, and a patched call the plain call's."""
    for site in port.sites:
        kept = [port.cache[site.name, 0, (0,), part].dtype for part in "kv"]
        if kept != [x.dtype for x in port.plain.attended(site)[1:]]:
            yield site
    if port.reading().output.dtype != port.plain.output.dtype:
        yield "a patched call has another"


@check
def own_text_is_the_identity(port: Port) -> Findings:
    """Patching every row with its own K and V at all sites gives the plain bits."""
    with patch(port.model, port.cache, port.sites, rows=port.rows):
        if not torch.equal(port.listen().output, port.plain.output):
            yield "it does not"


@check
def a_swap_changes_its_row(port: Port) -> Findings:
    """Another row's K and V, at one site alone, change the output of the row that reads them."""
    for site, _ in port.samples:
        if torch.equal(port.reading(site).output[0], port.plain.output[0]):
            yield site


@check
def a_swap_changes_no_other_row(port: Port) -> Findings:
    """Rows that read their own text keep their bits, whether one site is patched or all are."""
    for site in (*(site for site, _ in port.samples), None):
        if not torch.equal(port.reading(site).output[1:], port.plain.output[1:]):
            yield site or "not with all patched"


def _wrongly_attended(
    port: Port, part: str = "kv", head: int | None = None, token: int | None = None
) -> Findings:
    """Sites at which row 0 under a swap gets other q, k, v than its own with row 1's swapped in.

    head, token  the only ones that are swapped; all when None
    """
    heads = None if head is None else [head]
    tokens = None if token is None else [token]
    for site, spec in port.samples:
        place = port.place(site, spec.text_place)
        heard = port.reading(site, part=part, heads=heads, tokens=tokens).attended(site)
        for name, own, new in zip("qkv", port.plain.attended(site), heard, strict=True):
            group = own.shape[1] // site.text_heads
            expected = own.clone()
            if name in part:
                h = _cells(head, group)
                t = _cells(token, 1)
                expected[:, :, place][0, h, t] = own[:, :, place][1, h, t]
            if not torch.equal(new, expected):
                yield f"not {name} at {site.name!r}"


def _cells(index: int | None, size: int) -> slice:
    """Cells of one head or token among groups of a size.  All when None."""
    if index is None:
        return slice(None)
    return slice(index * size, (index + 1) * size)


@check
def a_swap_is_attended_to(port: Port) -> Findings:
    """Attention gets the other row's text K and V under a swap, to the bit, and all else as before."""
    yield from _wrongly_attended(port)


@check
def one_head_is_one_head(port: Port) -> Findings:
    """A swap of one head is attended to in that head alone, or in those that share it."""
    yield from _wrongly_attended(port, head=min(site.text_heads for site in port.sites) - 1)


@check
def one_token_is_one_token(port: Port) -> Findings:
    """A swap of one token is attended to in that token alone."""
    yield from _wrongly_attended(port, token=1)


@check
def keys_are_keys(port: Port) -> Findings:
    """A swap of K alone changes the keys attention gets, and no value."""
    yield from _wrongly_attended(port, "k")


@check
def values_are_values(port: Port) -> Findings:
    """A swap of V alone changes the values attention gets, and no key."""
    yield from _wrongly_attended(port, "v")


@check
def keys_and_values_differ(port: Port) -> Findings:
    """Swaps of K alone, of V alone and of both give three outputs."""
    k, v, both = (port.reading(part=part).output[0] for part in ("k", "v", "kv"))
    if torch.equal(k, v) or torch.equal(k, both) or torch.equal(v, both):
        yield "two of them are equal"


@check
def all_heads_are_the_site(port: Port) -> Findings:
    """All heads, swapped one by one, are the whole site, to the bit."""
    for site, _ in port.samples:
        with ExitStack() as stack:
            for head in range(1, site.text_heads):
                one = patch(port.model, port.cache, site, rows=port.reads, heads=[head])
                stack.enter_context(one)
            union = port.reading(site, heads=[0]).output
        if not torch.equal(union, port.reading(site).output):
            yield site


@check
def earlier_sites_are_unchanged(port: Port) -> Findings:
    """A swap changes no text K and V at sites before it."""
    for site, _ in port.samples:
        heard = port.reading(site)
        for earlier, spec in port.matched[: site.index]:
            if not port.same_text(heard, earlier, spec):
                yield f"one at {site.name!r} does at {earlier.name!r}"


@check
def all_sites_are_attended_to(port: Port) -> Findings:
    """Attention gets the other row's text K and V at each site when all are patched."""
    heard = port.reading()
    for site, spec in port.matched:
        place = port.place(site, spec.text_place)
        pairs = zip(heard.attended(site)[1:], port.plain.attended(site)[1:], strict=True)
        if not all(torch.equal(new[0, :, place], own[1, :, place]) for new, own in pairs):
            yield site


@check
def a_row_that_reads_another_is_that_row(port: Port) -> Findings:
    """A row that reads another's text at all sites gives that row's picture, where all else is alike."""
    yield from _not_the_donor(port, port.twins)


@check
def masks_go_with_their_keys(port: Port) -> Findings:
    """So does a row that reads a longer or a shorter text under a mask, unless that is refused."""
    for name in port.masks:
        for rows in ([0], [1]):
            inputs = port.masked(name, rows, port.twins)
            if not port.runs(inputs):
                continue  # this argument hides something else than text tokens
            with suppress(PatchError):
                yield from (f"{found}, with {name!r}" for found in _not_the_donor(port, inputs))


def _not_the_donor(port: Port, inputs: dict[str, object]) -> Findings:
    """Finding unless row 0, which reads row 1 at all sites in lock-step, gives row 1's picture."""
    plain = port.shown(port.listen(inputs).output)
    rows = [Row(str(row), str(row)) for row in port.rows]
    plan = Plan([Swap("all", "0", "1")])
    swapping = swap(port.model, plan, rows, calls=[["cond"]], sites=port.sites)
    with port.pooled_alike(), swapping:
        swapped = port.shown(port.listen(inputs).output)
    if not alike(swapped[0], plain[1]):
        away, apart = ((x - plain[1]).abs().max().item() for x in (swapped[0], plain[0]))
        yield (
            f"it is {away:.3g} off, of {apart:.3g} between the two; see whether the table has all sites, "
            "whether the output is picture alone (`output`), and what else is made of the text (`pooled`)"
        )


@check
def steps_are_calls(port: Port) -> Findings:
    """A patch of step 1 leaves the first call as it is and changes the second."""
    cache = KVCache({(site, 1, row, part): x for (site, _, row, part), x in port.cache.items()})
    with patch(port.model, cache, port.sites, rows=port.reads, steps=[1]):
        same = [torch.equal(port.listen().output, port.plain.output) for _ in range(2)]
    if same != [True, False]:
        yield f"as it was: {same}"


@check
def injection_is_patching(port: Port) -> Findings:
    """Injecting a text is patching with what a run of it captures, and a text that evolves is refused."""
    other = port.with_rows(*port.texts)
    if not all(site.text_is_static for site in port.sites):
        with suppress(PatchError), inject(port.model, text_of(other, port.texts[0]), port.sites):
            yield "it was injected"
        return
    for name in port.texts:
        sites = [site for site in port.sites if name in site.span.texts]
        mask = cast("Tensor | None", port.inputs.get("".join(sites[0].span.masks)))
        with inject(port.model, text_of(other, name), sites, mask=mask):
            injected = port.listen().output
        with patch(port.model, port.captured(other), sites, rows=port.rows):
            if not torch.equal(port.listen().output, injected):
                yield f"it is not, of {name!r}"


@check
def masked_text_is_where_it_was(port: Port) -> Findings:
    """Text K and V of the first site do not depend on the picture either when every last token is hidden."""
    site = port.sites[0]
    if not site.span.masks:
        return
    name = site.span.masks[0]
    captured = port.captured(port.masked(name, port.rows))
    other = port.captured(port.masked(name, port.rows, port.with_rows(port.picture)))
    here = [key for key in captured if key[0] == site.name]
    if not all(torch.equal(captured[key], other[key]) for key in here):
        remedy = "where hidden tokens are left out of the sequence, the span is packed"
        yield f"they do with {name!r}; {remedy}"


@check
def an_injected_text_brings_its_mask(port: Port) -> Findings:
    """A text injected with a mask is that text under that mask, whatever the batch's own mask is."""
    for site, _ in port.samples:
        if not site.text_is_static or len(site.span.masks) != 1:
            continue
        (name,) = site.span.masks
        own = port.masked(name, port.rows)
        other = port.masked(name, [1])
        sites = [one for one in port.sites if one.span == site.span]
        with inject(port.model, port.texts_of(site)[0], sites, mask=cast(Tensor, other[name])):
            injected = port.listen(own).output
        with capture(port.model, sites, rows=port.rows) as cache:
            port.listen(other)
        with patch(port.model, cache, sites, rows=port.rows):
            if not torch.equal(port.listen(own).output, injected):
                yield f"not with {name!r}"


@check
def other_rows_are_refused(port: Port) -> Findings:
    """A batch of one row more or less than is labelled is refused, by capture and by patch."""
    for n in (len(port.rows) - 1, len(port.rows) + 1):
        with suppress(PatchError), capture(port.model, port.sites, rows=range(n)):
            port.listen()
            yield f"a capture of {n} rows was not"
        with suppress(PatchError), patch(port.model, port.cache, port.sites, rows=[0] * n):
            port.listen()
            yield f"a patch of {n} rows was not"


@check
def other_shapes_are_refused(port: Port) -> Findings:
    """A cache of another number of tokens, of another width or of another dtype is refused."""
    for change in (lambda x: x[1:], lambda x: x[..., 1:], Tensor.half):
        cache = KVCache({key: change(x) for key, x in port.cache.items()})
        with suppress(PatchError), patch(port.model, cache, port.sites, rows=port.rows):
            port.listen()
            x = next(iter(cache.values()))
            yield f"{tuple(x.shape)}, {x.dtype} was not"


@check
def what_is_not_there_is_refused(port: Port) -> Findings:
    """A head and a token beyond the last are refused."""
    for site, _ in port.samples:
        with suppress(PatchError):
            port.reading(site, heads=[site.text_heads])
            yield f"head {site.text_heads} was not at {site.name!r}"
        with suppress(PatchError):
            port.reading(site, tokens=[port.length(site)])
            yield f"token {port.length(site)} was not at {site.name!r}"


@check
def nan_does_not_leak(port: Port) -> Findings:
    """NaN in a text that a row does not read does not reach it, neither by the batch nor by the cache."""
    lost = {name: _lost(port, name) for name in port.texts}
    heard = port.listen(port.inputs | lost)
    if not torch.equal(heard.output[0], port.plain.output[0]):
        yield "it does by the batch"
    cache = KVCache(port.cache)
    for key, x in port.cache.items():
        if key[2] != (1,):
            cache[key] = x * float("nan")
    with patch(port.model, cache, port.sites, rows=port.reads):
        leaked = port.listen().output
    if not torch.equal(leaked, port.reading().output):
        yield "it does by the cache"


def _lost(port: Port, name: str) -> object:
    """A text in which all rows but the first are NaN."""

    def lost(text: Text) -> Text:
        rows = [text[0], *(x * float("nan") for x in text[1:])]
        return torch.stack(rows) if isinstance(text, Tensor) else rows

    text = text_of(port.inputs, name)
    if name not in port.layered:
        return lost(text)
    layers = list(map(lost, text))
    return torch.stack(cast(list[Tensor], layers)) if isinstance(text, Tensor) else layers


@check
def threads_are_untouched(port: Port) -> Findings:
    """Another thread's call of the model during a patch is as without it."""
    with (
        patch(port.model, port.cache, port.sites, rows=port.next_rows),
        ThreadPoolExecutor(1) as pool,
    ):
        port.listen()
        if not torch.equal(pool.submit(port.listen).result().output, port.plain.output):
            yield "it is not"


class _Interrupt(BaseException):
    """An interrupt from outside in the middle of a call, which is no Exception."""


@check
def nothing_is_left_behind(port: Port) -> Findings:
    """The model is as it was after a capture and a patch, ended or interrupted in the middle of a call."""

    def interrupt(event: int, out: Tensor) -> Tensor:
        raise _Interrupt

    before = _anatomy(port.model)
    _capture_and_patch(port, None)
    if _anatomy(port.model) != before:
        yield "ended, it is not"
    with suppress(_Interrupt):
        _capture_and_patch(port, interrupt)
    if _anatomy(port.model) != before:
        yield "interrupted, it is not"


def _capture_and_patch(port: Port, alter: Alter | None) -> None:
    with (
        capture(port.model, port.sites, rows=port.rows),
        patch(port.model, port.cache, port.sites, rows=port.next_rows),
    ):
        port.listen(alter=alter)


def _anatomy(model: nn.Module) -> list[tuple[list[str], list[list[object]]]]:
    """Attributes and hooks of all modules, in which a hook could leave something behind."""
    kinds = "hooks", "hooks_with_kwargs", "pre_hooks", "pre_hooks_with_kwargs"
    tables = [f"_forward_{kind}" for kind in kinds]
    return [
        (sorted(vars(module)), [list(vars(module)[table].items()) for table in tables])
        for module in model.modules()
    ]
