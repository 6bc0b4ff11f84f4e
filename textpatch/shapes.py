"""Checks of the shapes, dtypes and devices that `segment_attention` is given.

B rows, R bank rows, H heads, M image queries, N image keys, T text tokens read, S bank tokens, D head width
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from textpatch.errors import PatchError


class Inputs(NamedTuple):
    """Tensors of one attention, image and text apart, each (rows, heads, tokens, D)."""

    q_image: Tensor
    q_text: Tensor | None
    k_image: Tensor | None
    k_text: Tensor
    v_image: Tensor | None
    v_text: Tensor


NAMES = {
    "q_image": "image queries",
    "q_text": "text queries",
    "k_image": "image keys",
    "k_text": "text keys",
    "v_image": "image values",
    "v_text": "text values",
}
NEEDED = {"q_image", "k_text", "v_text"}  # the others may be None


def paired(q: object, k: object, v: object) -> Inputs:
    """Inputs of three pairs, each of the image's tensor and the text's.

    Raises PatchError for what is no pair, and for a tensor that is missing or of another kind.
    """
    tensors: list[Any] = []
    for name, pair in (("q", q), ("k", k), ("v", v)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise PatchError(
                f"{name} is {_kind(pair)}; give a pair, of the image's tensor and of the text's"
            )
        tensors += pair
    for field, x in zip(Inputs._fields, tensors, strict=True):
        if x is None and field in NEEDED:
            raise PatchError(
                f"{NAMES[field]} are None; give a tensor (rows, heads, tokens, head width)"
            )
        if x is not None and not isinstance(x, Tensor):
            raise PatchError(f"{NAMES[field]} are {_kind(x)}; give a torch.Tensor")
    return Inputs._make(tensors)


def _kind(value: object) -> str:
    """Type of a value in words, and its length where it has one."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def in_one_dtype(inputs: Inputs) -> Inputs:
    """Inputs in autocast's dtype while autocast is on, else as they are.

    float64 stays float64, as in torch's own attention under autocast.
    """
    device = inputs.q_image.device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return Inputs._make([_cast(x, dtype) for x in inputs])


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if x is None or x.dtype == torch.float64:
        return x
    return x.to(dtype)


def require_fit(inputs: Inputs, slots_k: Tensor | None, slots_v: Tensor | None) -> None:
    """Raise PatchError unless shapes, dtypes and devices fit the image queries and the text keys."""
    _require_four_dimensions(inputs)
    if (inputs.k_image is None) != (inputs.v_image is None):
        raise PatchError("image keys without image values, or the reverse; give both or neither")
    B, H, _, D = inputs.q_image.shape
    R, _, S, _ = inputs.k_text.shape
    if inputs.q_text is not None:
        _require_like("q_text", inputs.q_text, (B, H, inputs.q_text.shape[2], D), inputs.q_image)
    if inputs.k_image is not None and inputs.v_image is not None:
        image = B, H, inputs.k_image.shape[2], D
        _require_like("k_image", inputs.k_image, image, inputs.q_image)
        _require_like("v_image", inputs.v_image, image, inputs.q_image)
    _require_like("k_text", inputs.k_text, (R, H, S, D), inputs.q_image)
    _require_like("v_text", inputs.v_text, (R, H, S, D), inputs.q_image)
    _require_tables(inputs, slots_k, slots_v)


def _require_four_dimensions(inputs: Inputs) -> None:
    for name, x in zip(NAMES.values(), inputs, strict=True):
        if x is not None and x.dim() != 4:
            raise PatchError(
                f"{name} are {tuple(x.shape)}; give four dimensions: rows, heads, tokens, head width"
            )


def _require_like(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise PatchError unless x has a shape, and dtype and device of the image queries `like`."""
    if tuple(x.shape) == shape and x.dtype == like.dtype and x.device == like.device:
        return
    raise PatchError(
        f"{NAMES[name]} are {tuple(x.shape)}, {x.dtype}, on {x.device}; the image queries are "
        f"{tuple(like.shape)}, {like.dtype}, on {like.device}, so {shape} was expected; all must share "
        "heads, width, dtype and device"
    )


def _require_tables(inputs: Inputs, slots_k: Tensor | None, slots_v: Tensor | None) -> None:
    rows = inputs.q_image.shape[0]
    bank_rows, _, tokens, _ = inputs.k_text.shape
    for name, slots in (("keys", slots_k), ("values", slots_v)):
        if slots is not None and (not isinstance(slots, Tensor) or slots.dim() != 3):
            shown = tuple(slots.shape) if isinstance(slots, Tensor) else _kind(slots)
            raise PatchError(
                f"slots of {name} are {shown}; give an int32 tensor (rows, heads or 1, tokens)"
            )
    if slots_k is not None:
        tokens = slots_k.shape[-1]
        _require_slots("keys", slots_k, inputs.q_image, tokens)
    if slots_v is not None:
        _require_slots("values", slots_v, inputs.q_image, tokens)
    if slots_k is None and bank_rows != rows:
        raise PatchError(
            f"{bank_rows} rows of text for {rows} rows of queries; say by slots who reads what"
        )


def _require_slots(name: str, slots: Tensor, q: Tensor, tokens: int) -> None:
    """Raise PatchError unless a table is int (B, H or 1, tokens) on the device of the queries q."""
    rows, heads = q.shape[:2]
    # number by number: torch.compile with dynamic shapes finds no symbolic shape in a tuple of shapes
    fits = slots.dim() == 3 and slots.shape[0] == rows and slots.shape[2] == tokens
    if not fits or not (slots.shape[1] == 1 or slots.shape[1] == heads) or slots.device != q.device:
        raise PatchError(
            f"slots of {name} are {tuple(slots.shape)} on {slots.device}; {rows} rows of {heads} heads "
            f"that read {tokens} tokens on {q.device} need ({rows}, 1 or {heads}, {tokens}) there"
        )
    if slots.dtype not in (torch.int32, torch.int64):
        raise PatchError(f"slots of {name} are {slots.dtype}; give int32")
