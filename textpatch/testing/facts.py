"""Checks of a table against what the model does.

Each docstring is the sentence that its check makes sure of.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import nn

from textpatch.testing.inputs import apply
from textpatch.testing.port import Findings, Port, check, close


@check
def calls_agree(port: Port) -> Findings:
    """Two calls of the model with the same inputs give the same bits."""
    if not torch.equal(port.listen().output, port.plain.output):
        yield "they do not; put the model in eval mode"


@check
def texts_differ(port: Port) -> Findings:
    """The example holds at least two rows, and each has another text than the next."""
    for site, _ in port.samples:
        for own in port.texts_of(site):
            pairs = enumerate(port.next_rows)
            if len(own) < 2 or any(torch.equal(own[row], own[other]) for row, other in pairs):
                yield f"{len(own)} rows of {site.span.text!r}"


@check
def channels_are_read_once(port: Port) -> Findings:
    """No channel is read twice, so that the K and V of all sites lie apart."""
    taps = Counter(tap for site in port.sites for tap in site.taps)
    yield from (f"{tap} is read {n} times" for tap, n in taps.items() if n > 1)


@check
def queries_share_heads_evenly(port: Port) -> Findings:
    """The number of heads is a multiple of the number of K and V heads."""
    yield from (site for site in port.sites if site.heads % site.text_heads)


@check
def parameters_are_counted(port: Port) -> Findings:
    """A site's parameters are its K and V channels times the width they are made from, and their biases."""
    for site in port.sites:
        modules = [port.model.get_submodule(tap.module) for tap in site.taps]
        rows = [cast(nn.Linear, one).in_features + (one.bias is not None) for one in modules]
        if site.parameters != sum(rows) * site.text_heads * site.head_dim:
            yield site


@check
def taps_fire_once(port: Port) -> Findings:
    """Every module that makes text K or V runs once in a call of the model."""
    times = Counter(port.plain.names)
    yield from (
        f"{module!r} ran {times[module]} times" for module in port.tapped if times[module] != 1
    )


@check
def sites_run_in_order(port: Port) -> Findings:
    """Sites run in the order of their numbers."""
    fired = port.plain.names
    starts = [min(fired.index(tap.module) for tap in site.taps) for site in port.sites]
    # the last has none after
    for site, start, after in zip(port.sites, starts, starts[1:], strict=False):
        if start >= after:
            yield f"the site after {site.name!r} does not; order the table as the model runs"


@check
def attention_follows(port: Port) -> Findings:
    """A site's K and V, once they are made, are followed at once by a scaled_dot_product_attention."""
    yield from (site for site in port.sites if port.plain.attention(site) is None)


@check
def span_is_the_text(port: Port) -> Findings:
    """A tap puts out one sequence per row, of the T text tokens, or of more where the span is part of it."""
    for site, spec in port.matched:
        length = port.length(site)
        for tap in site.taps:
            rows, tokens = port.plain.made(tap.module).shape[:2]
            fits = tokens > length
            if spec.span.place == "all":
                fits = tokens == length
            if rows != len(port.rows) or not fits:
                asked = f"{len(port.rows)} of {length}"
                yield f"{tap.module!r} puts out {rows} rows of {tokens} tokens for {asked}"


@check
def heads_are_attentions(port: Port) -> Findings:
    """Attention gets queries, keys and values in as many heads, and of that width, as the site says."""
    for site in port.sites:
        q, k, v = (x.shape[1::2] for x in port.plain.attended(site))
        said = site.heads, site.head_dim
        shared = site.text_heads, site.head_dim
        if q != said or k != v or k not in (said, shared):
            gets = [tuple(x) for x in (q, k, v)]
            yield f"site {site.name!r} says {said} and {shared}, attention gets {gets}"


@check
def values_are_attentions(port: Port) -> Findings:
    """The values attention gets at the text's place, first or last, are the tapped V."""
    for site, spec in port.matched:
        v = port.plain.attended(site)[2]
        made = port.as_attended(port.text_kv(port.plain, site, spec)[1], site, v.shape[1])
        if not torch.equal(made, v[:, :, port.place(site, spec.text_place)]):
            yield site


@check
def keys_are_attentions(port: Port) -> Findings:
    """The keys attention gets there are made of the tapped K: of row 1's in row 0, they are row 1's."""
    for site, spec in port.matched:
        k = port.exchanged(site, spec).attended(site)[1]
        own = port.plain.attended(site)[1]
        place = port.place(site, spec.text_place)
        expected = own.clone()
        expected[0, :, place] = own[1, :, place]
        if not torch.equal(k, expected):
            yield site


@check
def pictures_do_not_reach_the_text(port: Port) -> Findings:
    """Text K and V of the first site do not depend on the picture."""
    heard = port.listen(port.with_rows(port.picture))
    yield from (site for site, spec in port.matched[:1] if not port.same_text(heard, site, spec))


@check
def texts_do_not_reach_the_picture(port: Port) -> Findings:
    """Image tokens' q, k and v at the first site do not depend on the text, in a joint or single stream."""
    site, spec = port.matched[0]
    if spec.kind not in ("joint", "single"):
        return
    heard = port.listen(port.with_rows(*port.texts))
    pairs = zip("qkv", port.plain.attended(site), heard.attended(site), strict=True)
    for part, own, other in pairs:
        image = ~port.is_text(site, spec, own)
        if not torch.equal(own[:, :, image], other[:, :, image]):
            yield f"{part} does"


@check
def text_is_read(port: Port) -> Findings:
    """Text K and V of every site and row depend on the text."""
    heard = port.listen(port.with_rows(*port.texts))
    for site, spec in port.matched:
        before = port.text_kv(port.plain, site, spec)
        pairs = zip(before, port.text_kv(heard, site, spec), strict=True)
        if not all((own != other).flatten(1).any(1).all() for own, other in pairs):
            yield site


@check
def static_text_is_static(port: Port) -> Findings:
    """Text K and V of cross and added sites depend on no picture, no time and no pooled vector."""
    others = {name: value for name, value in port.inputs.items() if name not in port.texts}
    halves = {name: apply(lambda x: x / 2, value) for name, value in others.items()}
    heard = port.listen(port.inputs | halves)
    for site, spec in port.matched:
        if site.text_is_static and not port.same_text(heard, site, spec):
            yield site


@check
def rows_are_apart(port: Port) -> Findings:
    """A row does not depend on the text of the others."""
    heard = port.listen(port.with_rows(*port.texts, rows=[0, 0, *port.rows[2:]]))
    if not torch.equal(heard.output[0], port.plain.output[0]):
        yield "row 0 depends on row 1's"


@check
def rows_may_be_permuted(port: Port) -> Findings:
    """Permuting the rows of all inputs permutes those of the output and of the captured K and V."""
    inputs = port.with_rows(*port.inputs)
    order = port.next_rows
    if not close(port.listen(inputs).output, port.plain.output[order]):
        yield "not the output's"
    for (site, step, label, part), x in port.captured(inputs).items():
        own = port.cache[site, step, (order[port.row_of(label)],), part]
        if not (torch.equal(x, own) if x.dtype == torch.bool else close(x, own)):
            yield f"not {part} at {site!r}"
