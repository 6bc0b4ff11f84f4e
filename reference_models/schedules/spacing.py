"""Choice of the timesteps that a run of n steps visits, of N trained ones (arXiv 2305.08891, table 2).

leading   the multiples of N // n, moved up by an offset; the noisiest timestep is left out
trailing  N, N - N / n, ... , less 1; the noisiest timestep is the first
linspace  n timesteps from N - 1 to 0

Numbers are rounded as the published code does it, so that timesteps are the same to the last one.
"""

from __future__ import annotations

import numpy as np

from textpatch.errors import PatchError

SPACINGS = ("leading", "trailing", "linspace")


def whole_timesteps(spacing: str, trained: int, steps: int, offset: int) -> np.ndarray:
    """Falling whole timesteps (steps,), int64.   Raises PatchError for an offset beyond the trained ones."""
    if spacing == "linspace":
        return np.linspace(0, trained - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "trailing":
        return _trailing(trained, trained, steps).astype(np.int64) - 1
    return leading(trained, trained // steps, steps, offset)


def leading(trained: int, apart: int, steps: int, offset: int) -> np.ndarray:
    """Falling multiples (steps,) of `apart`, from 0, moved up by an offset, int64."""
    timesteps = np.arange(steps)[::-1].astype(np.int64) * apart + offset
    if timesteps[0] >= trained:
        raise PatchError(
            f"step 0 of {steps} would be at timestep {timesteps[0]}, and the model was trained on "
            f"0..{trained - 1}; take fewer steps, or a smaller steps_offset than {offset}"
        )
    return timesteps


def exact_timesteps(spacing: str, trained: int, steps: int, offset: int) -> np.ndarray:
    """Falling timesteps (steps,), float32, between whole ones where they are spaced by linspace."""
    if spacing == "linspace":
        return np.linspace(0, trained - 1, steps, dtype=np.float32)[::-1].copy()
    return whole_timesteps(spacing, trained, steps, offset).astype(np.float32)


def trailing_of(last: int, trained: int, steps: int) -> np.ndarray:
    """Falling whole timesteps from last - 1, N / n apart, int64."""
    return _trailing(last, trained, steps).astype(np.int64) - 1


def _trailing(last: int, trained: int, steps: int) -> np.ndarray:
    # where N / n is rounded down, the published code has one more, below the first trained timestep
    return np.arange(last, 0, -trained / steps).round()[:steps]
