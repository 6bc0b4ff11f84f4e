"""Seeds of noise, as people give them.

torch's generator on the CPU hears the lowest 32 bits of a seed.  A seed of up to 64 bits is taken, with a
warning.  Two seeds of one request that are the same noise are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import cast

from torch import Tensor

from textpatch.errors import PatchError

HEARD = 2**32  # seeds that differ by this number are one noise
SEEDS = 2**64


def whole_seed(seed: object) -> int:
    """Seed as a whole number, from one or from a tensor of one.

    Raises PatchError for anything else, and for a number outside 0..2^64 - 1.
    """
    given = seed
    if isinstance(seed, Tensor) and seed.numel() == 1:
        given = seed.item()
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or not 0 <= cast(int, given) < SEEDS:
        raise PatchError(
            f"seed {seed!r} does not fit the noise generator; give a whole number of 0 to 2^64 - 1"
        )
    return int(cast(int, given))


def whole_seeds(seeds: Iterable[object]) -> list[int]:
    """Seeds as whole numbers, from a list or a tensor of them.

    A seed of more than 32 bits is told as a warning.
    Raises PatchError as `whole_seed` does, and for different seeds that are the same noise.
    """
    if not isinstance(seeds, Iterable):
        raise PatchError(f"seeds are {seeds!r}; give a list of whole numbers")
    found = [whole_seed(seed) for seed in seeds]
    by_noise: dict[int, int] = {}
    for seed in found:
        other = by_noise.setdefault(seed % HEARD, seed)
        if other != seed:
            raise PatchError(
                f"seeds {other} and {seed} are the same noise, because torch's generator hears 32 bits of a "
                f"seed; leave one of them out, or give seeds below {HEARD}"
            )
    _tell(found)
    return found


def _tell(seeds: Sequence[int]) -> None:
    """Warn of seeds of which the generator does not hear all bits."""
    for seed in sorted({seed for seed in seeds if seed >= HEARD}):
        warnings.warn(
            f"seed {seed} is the noise of seed {seed % HEARD}: torch's generator hears 32 bits of a seed",
            stacklevel=4,
        )
