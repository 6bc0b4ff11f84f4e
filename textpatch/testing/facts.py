"""Checks of a table: is it what the model does?  Each docstring is the sentence made sure of."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from textpatch.testing.port import Findings, Port, apply, check, close


@check
def calls_agree(port: Port) -> Findings:
    """Two calls of the model with the same inputs give the same bits."""
    if not torch.equal(port.listen().output, port.plain.output):
        yield "they do not; put the model in eval mode"


@check
def texts_differ(port: Port) -> Findings:
    """The example holds at least two rows, and each has another text than the next."""
    own = port.inputs[port.text]
    if len(own) < 2 or any(
        torch.equal(own[row], own[other]) for row, other in enumerate(port.next_rows)
    ):
        yield f"{len(own)} rows of {port.text!r}"


@check
def channels_are_read_once(port: Port) -> Findings:
    """No channel is read twice: the K and V of all sites lie apart."""
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
        rows = [module.in_features + (module.bias is not None) for module in modules]
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
    late = [site for site, start, after in zip(port.sites, starts, starts[1:]) if start >= after]
    yield from (
        f"the site after {site.name!r} does not; order the table as the model runs" for site in late
    )


@check
def attention_follows(port: Port) -> Findings:
    """Once a site's K and V are made, the next thing is a scaled_dot_product_attention."""
    yield from (site for site in port.sites if port.plain.attention(site) is None)


@check
def span_is_the_text(port: Port) -> Findings:
    """A tap puts out one sequence per row, of the text's T tokens, or of more where the span is a part of it."""
    for site, spec in port.matched:
        for tap in site.taps:
            (rows, tokens), length = port.plain.made(tap.module).shape[:2], port.length(site)
            if rows != len(port.rows) or not (
                tokens == length if spec.span.place == "all" else tokens > length
            ):
                yield f"{tap.module!r} puts out {rows} rows of {tokens} tokens for {len(port.rows)} of {length}"


@check
def heads_are_attentions(port: Port) -> Findings:
    """Attention gets queries, keys and values in as many heads, and of that width, as the site says."""
    for site in port.sites:
        q, k, v = (x.shape[1::2] for x in port.plain.attended(site))
        said, shared = (site.heads, site.head_dim), (site.text_heads, site.head_dim)
        if q != said or k != v or k not in (said, shared):
            yield f"site {site.name!r} says {said} and {shared}, attention gets {[*map(tuple, (q, k, v))]}"


@check
def values_are_attentions(port: Port) -> Findings:
    """The values attention gets at the text's place, first or last, are the tapped V."""
    for site, spec in port.matched:
        v, made = port.plain.attended(site)[2], port.text_kv(port.plain, site, spec)[1]
        if not torch.equal(
            port.as_attended(made, site, v.shape[1]), v[:, :, port.place(site, spec.text_place)]
        ):
            yield site


@check
def keys_are_attentions(port: Port) -> Findings:
    """The keys attention gets there are the tapped K after its norm: equal, or as long where a rotation follows."""
    for site, spec in port.matched:
        k, (made, _) = port.plain.attended(site)[1], port.text_kv(port.plain, site, spec)
        made = port.as_attended(port.normed(made, site, spec), site, k.shape[1])
        pair = made, k[:, :, port.place(site, spec.text_place)]
        if not close(*((x.norm(dim=-1) for x in pair) if spec.rotary else pair)):
            yield site


@check
def pictures_do_not_reach_the_text(port: Port) -> Findings:
    """Text K and V of the first site do not depend on the picture."""
    heard = port.listen(port.with_rows(port.picture))
    yield from (site for site, spec in port.matched[:1] if not port.same_text(heard, site, spec))


@check
def texts_do_not_reach_the_picture(port: Port) -> Findings:
    """In a joint or single stream, q, k and v of image tokens at the first site do not depend on the text."""
    heard, (site, spec) = port.listen(port.with_rows(port.text)), port.matched[0]
    if spec.kind in ("joint", "single"):
        for part, own, other in zip("qkv", port.plain.attended(site), heard.attended(site)):
            image = ~port.is_text(site, spec, own)
            if not torch.equal(own[:, :, image], other[:, :, image]):
                yield f"{part} does"


@check
def text_is_read(port: Port) -> Findings:
    """Text K and V of every site and row depend on the text."""
    heard = port.listen(port.with_rows(port.text))
    for site, spec in port.matched:
        pairs = zip(port.text_kv(port.plain, site, spec), port.text_kv(heard, site, spec))
        if not all((own != other).flatten(1).any(1).all() for own, other in pairs):
            yield site


@check
def static_text_is_static(port: Port) -> Findings:
    """K and V of cross and added sites depend on the text alone: on no picture, no time, no pooled vector."""
    others = {
        name: apply(lambda x: x / 2, value)
        for name, value in port.inputs.items()
        if name != port.text
    }
    heard = port.listen(port.inputs | others)
    yield from (
        s for s, spec in port.matched if s.text_is_static and not port.same_text(heard, s, spec)
    )


@check
def rows_are_apart(port: Port) -> Findings:
    """A row does not depend on the text of the others."""
    heard = port.listen(port.with_rows(port.text, rows=[0, 0, *port.rows[2:]]))
    if not torch.equal(heard.output[0], port.plain.output[0]):
        yield "row 0 depends on row 1's"


@check
def rows_may_be_permuted(port: Port) -> Findings:
    """Permuting the rows of all inputs permutes those of the output and of the captured K and V."""
    inputs, order = port.with_rows(*port.inputs), port.next_rows
    if not close(port.listen(inputs).output, port.plain.output[order]):
        yield "not the output's"
    for (site, step, (row,), part), x in port.captured(inputs).items():
        if not close(x, port.cache[site, step, (order[row],), part]):
            yield f"not {part} at {site!r}"


@check
def the_last_text_is_dropped(port: Port) -> Findings:
    """In a joint or single stream, what text tokens attend to at the last site never reaches the output; what
    image tokens attend to does."""
    site, spec = port.matched[-1]
    at = port.plain.attention(site)
    for text in (True, False) if spec.kind in ("joint", "single") else ():

        def alter(event: int, out: Tensor, text=text) -> Tensor:
            there = port.is_text(site, spec, out) == text
            return out + there[:, None] if event == at else out

        if torch.equal(port.listen(alter=alter).output, port.plain.output) != text:
            yield f"what is {'text' if text else 'image'} by span and order {'does' if text else 'does not'}"
