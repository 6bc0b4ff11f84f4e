"""A fixed set of pictures with their captions, and the batch of each training step.

Which rows, noise and times a step has is a function of seed and step alone, so that a run goes on after any
stop as if there had been none.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.pictures import as_rgb
from textpatch.pipelines import picture_size
from textpatch.tuning.data_files import read_data

# (caption, picture), the picture PIL's or latents (C, H, W), or where they lie
Data: TypeAlias = Iterable[tuple[str, Image.Image | Tensor]] | str | os.PathLike[str]
TIMES = "uniform", "logit_normal"


@dataclass(frozen=True, eq=False)
class Examples:
    """Captions and latents (N, C, H, W) of a fixed set, encoded once.

    prompts  distinct captions, and None for "no prompt" at the end
    caption  place of each example's caption among these
    texts    text condition of the prompts
    """

    latents: Tensor
    prompts: list[str | None]
    caption: list[int]
    texts: Any

    @property
    def sha256(self) -> str:
        """Hash of captions and latents, by which a resumed run knows its data."""
        digest = sha256(repr([self.prompts[place] for place in self.caption]).encode())
        digest.update(self.latents.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """Latents and noise (B, C, H, W), shares of time (B,) and the text condition of one step."""

    latents: Tensor
    noise: Tensor
    share: Tensor
    text: Any


def examples(pipeline: Any, data: Data, batch: int) -> Examples:
    """Encode a data set.

    data  (caption, picture) of an iterable that ends, the picture PIL's or latents (C, H, W), or the place of
          data in files, as `read_data` takes it
    Raises PatchError for less than a batch, a caption that is no text, and a picture of another size, and as
    `read_data` does.
    """
    if isinstance(data, (str, os.PathLike)):
        data = read_data(data)
    if not isinstance(data, Iterable):
        raise PatchError(f"the data are a {type(data).__name__}; give a list of (caption, picture)")
    data = list(data)
    if len(data) < batch:
        raise PatchError(
            f"the data are {len(data)} of (caption, picture), and a batch takes {batch}; give more, or a "
            "smaller batch"
        )
    rows = [_latents(pipeline, i, item) for i, item in enumerate(data)]
    captions = [item[0] for item in data]
    prompts: list[str | None] = [*dict.fromkeys(captions), None]
    texts = pipeline.encode(prompts)
    places = [prompts.index(caption) for caption in captions]
    latents = torch.stack(rows).to(pipeline.device, pipeline.dtype)
    return Examples(latents, prompts, places, texts)


def _latents(pipeline: Any, number: int, item: Any) -> Tensor:
    """Latents (C, H, W) of one example."""
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
        raise PatchError(f"example {number} is {str(item)[:60]!r}; give (caption, picture)")
    picture = item[1]
    where = getattr(picture, "filename", "") or f"example {number}"
    shape = tuple(pipeline.noise([0]).shape[1:])
    if isinstance(picture, Image.Image):
        picture = _encoded(pipeline, as_rgb(picture, where), where)
    if not isinstance(picture, Tensor) or tuple(picture.shape) != shape:
        found = tuple(getattr(picture, "shape", ())) or type(picture).__name__
        raise PatchError(
            f"{where} is {found}, and {pipeline.name} takes {shape} (channels, height, width); "
            "resize it, or use pipeline.at(height, width)"
        )
    if not picture.isfinite().all():
        raise PatchError(f"{where} holds NaN or infinity; leave it out")
    return picture


@torch.no_grad()
def _encoded(pipeline: Any, picture: Image.Image, where: str) -> Tensor:
    """Latents (C, H, W) of a picture, the mean of the VAE's posterior, or the pixels in -1..1."""
    numbers = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1)
    pixels = numbers.permute(2, 0, 1)  # (3, H, W)
    vae = getattr(pipeline.decoder, "vae", None)
    if vae is None:
        return pixels
    height, width = picture_size(pipeline)
    if picture.size != (width, height):
        raise PatchError(
            f"{where} has {picture.width} x {picture.height} pixels, and {pipeline.name} draws "
            f"{width} x {height} (width x height); resize it, or use pipeline.at(height, width)"
        )
    dtype = next(vae.parameters()).dtype
    encoded: Tensor = vae.encode(pixels[None].to(pipeline.device, dtype))
    return encoded[0]


def batch_of(
    own: Examples,
    step: int,
    *,
    batch: int,
    seed: int,
    dropout: float,
    times: str,
    rows: Sequence[int] | None = None,
) -> Batch:
    """Batch of one step, or some rows of it.

    The set is gone through in an order of its own each epoch.  A batch may end one epoch and begin the next.
    A row is the same, whichever others are asked for.
    """
    count = len(own.caption)
    first = step * batch
    places = [_place(seed, drawn, count) for drawn in range(first, first + batch)]
    generator = _generator(seed, "step", step)
    noise = torch.randn(batch, *own.latents.shape[1:], generator=generator)
    share = _shares(times, batch, generator)
    dropped = torch.rand(batch, generator=generator) < dropout
    chosen = list(range(batch)) if rows is None else list(rows)
    captions = [own.caption[place] for place in places]
    for row, lost in enumerate(dropped.tolist()):
        if lost:
            captions[row] = len(own.prompts) - 1
    latents = own.latents[[places[row] for row in chosen]]
    text = own.texts[[captions[row] for row in chosen]]
    return Batch(latents, noise[chosen].to(latents), share[chosen].to(latents.device), text)


def _place(seed: int, drawn: int, count: int) -> int:
    """Example that is drawn after `drawn` others, in the order of its epoch."""
    order = torch.randperm(count, generator=_generator(seed, "epoch", drawn // count))
    return int(order[drawn % count])


def _shares(times: str, batch: int, generator: torch.Generator) -> Tensor:
    """Shares of time (B,) in 0..1."""
    if times == "uniform":
        return torch.rand(batch, generator=generator)
    return torch.randn(batch, generator=generator).sigmoid()


def _generator(*name: object) -> torch.Generator:
    """Generator whose numbers are a function of a name."""
    digest = sha256(repr(name).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
