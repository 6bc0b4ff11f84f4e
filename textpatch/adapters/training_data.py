"""A fixed set of pictures with their captions, and the batch of each training step.

Which rows, noise and times a step has is a function of seed and step alone, so that a run goes on after any
stop as if there had been none.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from textpatch.errors import PatchError

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


def examples(pipeline: Any, data: Sequence[tuple[str, Any]], batch: int) -> Examples:
    """Encode a data set.

    data  (caption, picture), the picture PIL's for a model of pixels, or latents (C, H, W)
    Raises PatchError for less than a batch, a caption that is no text, and a picture of another size.
    """
    if isinstance(data, str) or not isinstance(data, Sequence) or len(data) < batch:
        found = len(data) if isinstance(data, Sequence) else type(data).__name__
        raise PatchError(
            f"the data are {found} of (caption, picture), and a batch takes {batch}; give a list of more"
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
    shape = tuple(pipeline.noise([0]).shape[1:])
    if isinstance(picture, Image.Image):
        if hasattr(pipeline.decoder, "vae"):
            raise PatchError(
                f"example {number} is a picture, and {pipeline.name} denoises latents; give its latents"
            )
        numbers = np.asarray(picture.convert("RGB"), np.float32) / 127.5 - 1
        picture = torch.from_numpy(numbers).permute(2, 0, 1)
    if not isinstance(picture, Tensor) or tuple(picture.shape) != shape:
        found = tuple(getattr(picture, "shape", ())) or type(picture).__name__
        raise PatchError(
            f"example {number} is {found}, and {pipeline.name} takes {shape} (channels, height, width); "
            "resize it, or use pipeline.at(height, width)"
        )
    if not picture.isfinite().all():
        raise PatchError(f"example {number} holds NaN or infinity; leave it out")
    return picture


def batch_of(
    own: Examples, step: int, *, batch: int, seed: int, dropout: float, times: str
) -> Batch:
    """Batch of one step.

    The set is gone through in an order of its own each epoch.  A batch may end one epoch and begin the next.
    """
    count = len(own.caption)
    first = step * batch
    places = [_place(seed, drawn, count) for drawn in range(first, first + batch)]
    generator = _generator(seed, "step", step)
    noise = torch.randn(batch, *own.latents.shape[1:], generator=generator)
    share = _shares(times, batch, generator)
    dropped = torch.rand(batch, generator=generator) < dropout
    none = len(own.prompts) - 1
    captions = [own.caption[place] for place in places]
    kept = [
        none if lost else own_caption for own_caption, lost in zip(captions, dropped, strict=True)
    ]
    latents = own.latents[places]
    return Batch(latents, noise.to(latents), share.to(latents.device), own.texts[kept])


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
