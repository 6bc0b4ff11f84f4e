"""Words and HTML that explain swaps, down to the tensors they touch."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from textpatch.sites import Site
from textpatch.swaps import Swap
from textpatch.windows import Window

IDENTITY = "no swap: identity"
HEAD = ("readers read", "of row", "at sites", "steps", "heads", "tokens", "branch")
EQUATION = (
    "softmax(q [k_image; k']<sup>T</sup> / &radic;D) [v_image; v'], "
    "k' and v' read from another row's text"
)


def explained(swap: Swap, run: Swap, sites: Sequence[Site] | None, tokens: int | str) -> str:
    """Lines that explain a swap, with its equation, its steps and its tensors.

    run     the same swap with the loop indices of a run.  The swap itself outside a run
    sites   sites that the swap names.  None where no model is known
    tokens  number of text tokens, or a letter for it
    """
    swapped = ", ".join(f"{part}'" for part in swap.part)
    read = f"  {swapped} of row {swap.donor}, same step and branch"
    lines = [
        f"{', '.join(swap.readers)} <- {swap.donor}:  {', '.join(_equations(swap, sites))}",
        f"  steps {_steps(swap, run)}; heads {_words(swap.heads)}; "
        f"tokens {_words(swap.tokens)}; branch {swap.branch}",
    ]
    if sites is None:
        return "\n".join([*lines, f"{read}, at sites {_words(swap.sites)}"])
    lines.append(f"{read}; readers x heads x tokens x head_dim:")
    for site in sites:
        lines += _tensors(swap, site, tokens)
    return "\n".join(lines)


def _equations(swap: Swap, sites: Sequence[Site] | None) -> list[str]:
    """Equations of the attention at some sites, with a prime where the donor is read."""
    k, v = (_primed(part, swap) for part in "kv")
    alone = f"softmax(q {k}^T / sqrt(D)) {v}"
    beside = f"softmax(q [k_image; {k}]^T / sqrt(D)) [v_image; {v}]"
    if sites is None:
        return [f"{alone} or {beside}"]
    return sorted({alone if site.kind == "cross" else beside for site in sites})


def _primed(part: str, swap: Swap) -> str:
    if part in swap.part:
        return part + "'"
    return part


def _steps(swap: Swap, run: Swap) -> str:
    """Steps of a swap in words, and those of a window in the run."""
    if isinstance(run.steps, Window):
        return f"of {run.steps}"
    if isinstance(swap.steps, Window):
        return f"of {swap.steps} = {_words(run.steps)}"
    return _words(run.steps)


def _words(values: object) -> str:
    """Value of a swap's field in words."""
    if values is None:
        return "all"
    if isinstance(values, tuple):
        return ", ".join(map(str, values))
    return str(values)


def _tensors(swap: Swap, site: Site, tokens: int | str) -> Iterator[str]:
    """Line of a site, and a line for each tensor made there of which a swap replaces entries.

    A tensor's line says how many entries are replaced in each guidance branch.
    """
    heads = _how_many(swap.heads, site.text_heads)
    read = _how_many(swap.tokens, tokens)
    shape = f"{len(swap.readers)} x {heads} x {read} x {site.head_dim}"
    yield f"  {site.index:4d}  {site.name}  ({site.kind})"
    for part, tap in zip("kv", site.taps, strict=True):
        if part in swap.part:
            place = tap.module + site.span.cut(tokens, tap.channels)
            yield f"          {part}' {place}  {shape}"


def _how_many(named: Sequence[int] | None, every: int | str) -> int | str:
    """Number of heads or tokens named, all of them when None."""
    if named is None:
        return every
    return len(named)


def as_html(swaps: Sequence[Swap]) -> str:
    """HTML of the equation and a table with a line for every swap."""
    if not swaps:
        return f"<p>{IDENTITY}</p><table></table>"
    lines = ["".join(f"<th>{name}</th>" for name in HEAD)]
    for swap in swaps:
        lines.append("".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(swap)))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    page = f"<p>{EQUATION}</p><table>{table}</table>"
    # names may hold lone surrogates, which UTF-8 cannot write
    return page.encode(errors="replace").decode()


def _cells(swap: Swap) -> list[str]:
    """Fields of a swap in words, in the order of `HEAD`."""
    fields = (swap.sites, swap.steps, swap.heads, swap.tokens, swap.branch)
    return [
        f"{_words(swap.readers)}: {', '.join(swap.part)}",
        swap.donor,
        *map(_words, fields),
    ]
