"""Masks of text, among the arguments of a model's call and where attention gets them.

B rows, N keys, T of them text tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import BoundArguments
from typing import Any

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.sites import Site, Span

MIXED = (
    "at site {site!r} a row reads the keys of one text and the values of another, and their masks differ, so "
    "that hidden values would be seen; read both, or name `tokens` that both texts show"
)


def argument(inputs: BoundArguments, name: str) -> Any:
    """The argument that a forward was called with under a name.  None where it was left out.

    `name[0]` is its first entry, and `name.part` an attribute of it.
    """
    whole, _, attribute = name.partition(".")
    plain, entry = argument_and_entry(whole)
    value = named_arguments(inputs).get(plain)
    if value is None:
        return None
    if entry is not None:
        value = value[entry]
    return getattr(value, attribute) if attribute else value


def argument_and_entry(name: str) -> tuple[str, int | None]:
    """Name of an argument, and the entry of it that `name[0]` means.  None where all of it is meant."""
    plain, bracket, entry = name.partition("[")
    return plain, int(entry.removesuffix("]")) if bracket else None


def replace_argument(inputs: BoundArguments, name: str, value: Any) -> None:
    """Put a value where `argument` finds one of that name.

    A dictionary that holds it is copied, because it may be the caller's own.
    """
    holders = [outer for outer, inside in inputs.arguments.items() if _holds(inside, name)]
    if name in inputs.arguments or not holders:
        inputs.arguments[name] = value
    else:
        holder = holders[-1]
        inputs.arguments[holder] = inputs.arguments[holder] | {name: value}


def named_arguments(inputs: BoundArguments) -> dict[str | None, Any]:
    """All arguments by name, those inside dictionaries too, such as `**kwargs`.

    The last of several dictionaries that hold a name counts, and an argument of the forward before all.
    """
    inside: dict[str | None, Any] = {}
    for value in inputs.arguments.values():
        if isinstance(value, dict):
            inside |= value
    return inside | inputs.arguments


def _holds(value: Any, name: str) -> bool:
    return isinstance(value, dict) and name in value


def hides(mask: Tensor) -> bool:
    """True if a mask hides something.

    mask  one of

          - integers or booleans, 0 for a hidden token and anything else for one that is seen
          - (B, T) of floating point, 1 for a token in full sight
          - of floating point with more dimensions, what is added to the attention scores, 0 for a token in
            full sight
    """
    seen = 1.0 if mask.is_floating_point() and mask.dim() == 2 else 0.0
    if not mask.is_floating_point():
        return bool((mask == 0).any())
    return bool((mask != seen).any())


def require_known_layout(inputs: BoundArguments, spans: Sequence[Span]) -> None:
    """Raise PatchError for a mask of text that no span names where text is a part of a sequence.

    Whether the model leaves the hidden tokens out of its sequences is then not known.
    """
    parts = [span for span in spans if span.place != "all"]
    said = {name for span in parts for name in span.masks}
    for name, value in _masks_of_text(inputs, parts).items():
        if name not in said:
            raise PatchError(
                f"{name!r} of shape {tuple(value.shape)} looks like a mask that hides text tokens, and the "
                "table says nothing of it, so where the text is in a sequence is not known; say "
                f"Span(mask={name!r}), and packed=True if the model leaves hidden tokens out, or call it "
                "without one"
            )


def require_no_mask(inputs: BoundArguments, spans: Sequence[Span]) -> None:
    """Raise PatchError for a mask of text, which cannot be read from another row at projections."""
    for name, value in _masks_of_text(inputs, spans).items():
        raise PatchError(
            f"{name!r} of shape {tuple(value.shape)} looks like a mask that hides text tokens, and sites "
            "without `keys` read a text through the mask of their own; give sites that find_sites made by a "
            "table, or call the model without one"
        )


def _masks_of_text(inputs: BoundArguments, spans: Sequence[Span]) -> dict[str, Tensor]:
    """Arguments that look like a mask of text and hide some.

    Such an argument has `mask` in its name, as many rows as the text or one for all, and ends in one number
    per text token.
    """
    shapes = [_rows_and_tokens(argument(inputs, name)) for span in spans for name in span.texts]
    return {
        name: value
        for name, value in named_arguments(inputs).items()
        if name is not None and "mask" in name
        if any(_fits(value, shape) for shape in shapes) and hides(value)
    }


def _rows_and_tokens(text: Any) -> tuple[int, int] | None:
    """Sizes (B, T) of a text that is a tensor or a list of rows, else None."""
    if isinstance(text, Tensor) and text.dim() > 1:
        return len(text), text.shape[1]
    if isinstance(text, list) and text:
        return len(text), max(map(len, text))
    return None


def _fits(value: Any, shape: tuple[int, int] | None) -> bool:
    """True for an argument with one number for each of T tokens, of each of B rows or of all."""
    if shape is None or not isinstance(value, Tensor) or value.dim() < 2:
        return False
    return len(value) in (1, shape[0]) and value.shape[-1] == shape[1]


def require_masks_are_arguments(inputs: BoundArguments, spans: Sequence[Span]) -> None:
    """Raise PatchError for a mask that a span names and the forward cannot be given."""
    parameters = inputs.signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for mask in (name for span in spans for name in span.masks):
        if not takes_any and mask not in parameters:
            raise PatchError(
                f"the table names the mask {mask!r}, and the model's forward takes no such argument"
                f"{closest(mask, parameters)}; leave it out, or name the one that hides text tokens"
            )


# --- masks that go with the keys they hide


def read_masks(
    site: Site,
    own: Tensor | None,
    others: Mapping[int, Tensor | None],
    heads: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    part: str = "kv",
) -> Tensor | None:
    """Masks of a batch in which some rows read the keys of other texts.  None where they stay.

    own     what attention gets for the text, (B, heads of queries or 1, queries, T), None without a mask
    others  for each row that reads, the same of the text it reads, (heads or 1, queries, T)
    heads, tokens, part  what is read, all when None
    Raises PatchError for a mask of another kind, one that finds no mask in this call, and keys and values of
    texts whose masks differ.
    """
    if own is None:
        if any(other is not None and hides(other) for other in others.values()):
            raise PatchError(
                f"site {site.name!r} attends without a mask, and a text is to be read there of which some "
                "tokens are hidden; give the batch a mask, be it one of ones"
            )
        return None
    if heads is not None or any(x is not None and len(x) > own.shape[1] for x in others.values()):
        own = own.expand(-1, site.heads, -1, -1)
    new = own.clone()
    group = site.heads // site.text_heads
    h = [head * group + i for head in heads or range(site.text_heads) for i in range(group)]
    h = h if new.shape[1] > 1 else [0]
    t = list(range(own.shape[-1])) if tokens is None else list(tokens)
    for row, other in others.items():
        read = _as_alike(site, other, own[row])
        for head in h:
            new[row, head][:, t] = read[head][:, t]
    if part != "kv" and not torch.equal(new, own):
        raise PatchError(MIXED.format(site=site.name))
    return new


def _as_alike(site: Site, other: Tensor | None, own: Tensor) -> Tensor:
    """Mask of another text in the form of a row's own.  Without one all its tokens are seen.

    Some models add 1 to the scores of what is seen, and then no mask says that all is seen alike.
    """
    if other is None:
        if own.is_floating_point() and bool((own > 0).any()):
            raise PatchError(
                f"attention at site {site.name!r} adds {float(own.max()):g} to scores of a row's text, and "
                "the text to be read was captured without a mask; capture it with one, be it of ones"
            )
        return torch.zeros_like(own) if own.is_floating_point() else torch.ones_like(own)
    if other.dtype != own.dtype or other.shape[-2:] not in (own.shape[-2:], (1, own.shape[-1])):
        raise PatchError(
            f"attention at site {site.name!r} gets a mask {tuple(own.shape)}, {own.dtype} of a row's text, "
            f"and that of the text to be read is {tuple(other.shape)}, {other.dtype}; capture and patch "
            "calls of one kind"
        )
    return other.expand_as(own)


def rows_of_mask(site: Site, mask: Tensor | None, rows: int, keys: int) -> Tensor | None:
    """Mask (B, heads of queries or 1, queries, N) as attention gets it, None where it hides no keys apart.

    Raises PatchError for a mask of another shape.
    """
    if mask is None or mask.shape[-1] == 1:
        return None
    while mask.dim() < 4:
        mask = mask[None]
    if len(mask) not in (1, rows) or mask.shape[-1] != keys:
        raise PatchError(
            f"attention at site {site.name!r} gets a mask of shape {tuple(mask.shape)} for {rows} rows of "
            f"{keys} keys, so which row each part hides is not known; leave the site out"
        )
    return mask.expand(rows, -1, -1, -1)
