"""Whether what somebody gave is a number to compute with."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard


def is_finite(value: object) -> TypeGuard[float]:
    """True for a finite number that a float can hold, which a whole number of 400 digits is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
