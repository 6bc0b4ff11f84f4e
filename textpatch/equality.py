"""Equality of nested data that holds tensors, of which `==` would ask for one truth value of many."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def equal(one: object, other: object) -> bool:
    """True if two values are equal at every depth.

    Tensors are equal if they agree in dtype, device, shape and every number.
    """
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return _equal_tensors(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def _equal_tensors(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other)
