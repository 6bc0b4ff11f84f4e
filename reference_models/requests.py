"""Prompts, pictures and seeds of a request as lists, its parts, and the name of what it asks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from numbers import Integral

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from textpatch.errors import PatchError
from textpatch.reference_models.defaults import is_whole
from textpatch.seeds import whole_seeds

SAMPLED = " sampled by "
# how prompts are read, at the end of the name of the weights
READ = re.compile(r"( with clip skip \d+)?( of \d+ windows)?$")


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
    return f"{name.partition(SAMPLED)[0]}{SAMPLED}{schedule!r}"


def read_by(name: str, encoders) -> str:
    """Name of a model whose prompts its encoders read otherwise than is usual."""
    _, sampled, schedule = name.partition(SAMPLED)
    read = ""
    if encoders.clip_skip:
        read += f" with clip skip {encoders.clip_skip}"
    if encoders.windows > 1:
        read += f" of {encoders.windows} windows"
    return f"{name_of_weights(name)}{read}{sampled}{schedule}"


def name_of_weights(name: str) -> str:
    """Name of a model, without how its prompts are read and which schedule it is sampled by."""
    return READ.sub("", name.partition(SAMPLED)[0], count=1)
