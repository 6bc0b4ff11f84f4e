"""Masks of text among the arguments of a model's call.

B rows, T text tokens
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import BoundArguments
from typing import Any

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.sites import Span


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


def hidden_tokens(mask: Iterable[Any] | None) -> list[Tensor | None]:
    """Tokens that a mask hides, row by row.

    Each is a tensor of numbers that are 0 for a token in full sight, or None if all tokens are.
    mask  one of

          - (B, T) of integers or booleans, 0 for a hidden token and anything else for one that is seen
          - (B, T) of floating point, 1 for a token in full sight
          - of floating point with more dimensions, what is added to the attention scores, 0 for a token in
            full sight
          - None, which hides nothing

    Raises PatchError for a mask that holds no numbers, or is without rows.
    """
    if mask is None:
        return [None]
    try:
        rows = [torch.as_tensor(row) for row in mask]
    except (TypeError, ValueError, RuntimeError):
        raise PatchError(f"a mask is {mask!r}; give numbers (rows, tokens)") from None
    if any(row.dim() == 0 for row in rows):
        raise PatchError(f"a mask of {len(rows)} numbers is one of no rows; give (rows, tokens)")
    return [_hidden(row) for row in rows]


def _hidden(row: Tensor) -> Tensor | None:
    if not row.is_floating_point():
        hidden = (row == 0).float()
    elif row.dim() > 1:  # added to the scores
        hidden = row.float()
    else:
        hidden = 1 - row.float()
    return hidden if hidden.any() else None


def joined(masks: Sequence[Any]) -> Any:
    """One mask (B, T) of those (B, T1), (B, T2), ... of the texts that a model joins to one.

    Those that were left out count nothing.  A single one stays as it is.
    """
    given = [mask for mask in masks if mask is not None]
    if len(given) > 1:
        return torch.cat([torch.as_tensor(mask).float() for mask in given], dim=1)
    return given[0] if given else None


def of_row(hidden: list[Tensor | None], row: int) -> Tensor | None:
    """Tokens hidden of one row.  A mask of one row is that of all."""
    return hidden[row if len(hidden) > 1 else 0]


def same_mask(
    one: Tensor | None, other: Tensor | None, tokens: Sequence[int] | None = None
) -> bool:
    """True if two rows hide the same of their text, or of some of its tokens."""
    masks = [mask for mask in (one, other) if mask is not None]
    if tokens is not None:
        masks = [mask[..., list(tokens)] for mask in masks]
    if len(masks) == 1:  # the other row hides nothing
        masks.append(torch.zeros_like(masks[0]))
    return not masks or torch.equal(masks[0].to(masks[1]), masks[1])


def told(hidden: Tensor | None) -> str:
    """A row's mask in words, for errors."""
    if hidden is None:
        return "hides nothing"
    return f"hides {int((hidden != 0).sum())} of {hidden.numel()} tokens"


def require_masks_are_said(inputs: BoundArguments, spans: Sequence[Span]) -> None:
    """Raise PatchError for an argument that looks like a mask of text and is named by no span.

    Such an argument has `mask` in its name, as many rows as the text or one for all, ends in one number per
    text token, and hides some.
    """
    said = {name for span in spans for name in span.masks}
    named = named_arguments(inputs)
    shapes = [_rows_and_tokens(argument(inputs, name)) for span in spans for name in span.texts]
    for name, value in named.items():
        if name is None or name in said or "mask" not in name:
            continue
        if not any(_fits(value, shape) for shape in shapes):
            continue
        if any(hidden is not None for hidden in hidden_tokens(value)):
            raise PatchError(
                f"{name!r} of shape {tuple(value.shape)} looks like a mask that hides text tokens, and the "
                "table says nothing of it, so a row that reads another's text would read it through its own "
                f"mask; say Span(mask={name!r}) in the table if it is one, or call the model without it"
            )


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
