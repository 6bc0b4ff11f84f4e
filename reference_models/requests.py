"""Prompts, pictures and seeds of a request as lists, its parts, and the name of what it asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Integral

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from textpatch.errors import PatchError
from textpatch.reference_models.defaults import is_whole
from textpatch.seeds import whole_seeds

SAMPLED = " sampled by "


def parts(count: int, at_once: int) -> Iterator[slice]:
    """Slices of at most `at_once` pictures each.  More than one slice shows a progress bar on a terminal."""
    if not is_whole(at_once) or at_once < 1:
        raise PatchError(f"micro_batch is {at_once}; make at least one picture at once")
    starts = tqdm(
        range(0, count, at_once),
        desc="generate",
        unit="batch",
        # None asks tqdm to look whether there is a terminal
        disable=True if count <= at_once else None,
        leave=False,
        dynamic_ncols=True,
    )
    return (slice(start, start + at_once) for start in starts)


def each_seed(seeds, count: int) -> list[int]:
    """Seeds as a list, from a list or from one seed for all."""
    if isinstance(seeds, Integral) or (isinstance(seeds, Tensor) and seeds.dim() == 0):
        return [seeds] * count
    if not isinstance(seeds, Iterable):
        raise PatchError(
            f"seeds is {seeds!r}; give a whole number for all, or a list with one for each"
        )
    return whole_seeds(seeds)


def listed(given) -> list:
    """A list of pictures or prompts, from a sequence of them or from one alone."""
    if isinstance(given, (Image.Image, str)):
        return [given]
    return list(given)


def sampled_by(name: str, schedule: object) -> str:
    """Name of a model that is sampled by another schedule than its own."""
    return f"{name_of_weights(name)}{SAMPLED}{schedule!r}"


def name_of_weights(name: str) -> str:
    """Name of a model without the schedule that it is sampled by."""
    return name.partition(SAMPLED)[0]
