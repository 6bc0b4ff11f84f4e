"""Small pictures prepared for stage II of DeepFloyd IF, which draws them larger.

B pictures, h x w their size, H x W the size of the pictures made of them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.pictures import as_rgb


def small_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as numbers (B, 3, h, w) in -1..1.

    Raises PatchError for several sizes, and for pictures that `as_rgb` refuses.
    """
    pictures = [as_rgb(picture, f"picture {i}") for i, picture in enumerate(pictures)]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise PatchError(f"pictures of sizes {sorted(sizes)}; give those of one size together")
    arrays = [np.asarray(picture, np.float32) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def read_beside(schedule, small: Tensor, noise: Tensor, level: int) -> dict[str, Tensor]:
    """Arguments `low` and `level` of stage II's denoiser.

    small  (B, 3, h, w) in -1..1, enlarged to the size of noise and noised with it
    noise  (B, 3, H, W), standard normal
    level  timestep that the small pictures are noised to, 0..999

    Raises PatchError for another level.
    """
    low = F.interpolate(small, noise.shape[-2:], mode="bilinear", align_corners=True)
    noised = schedule.add_noise(low, noise, level)
    return {"low": noised, "level": torch.full((len(low),), level, device=low.device)}


def require_one_each(pictures, prompts, seeds) -> None:
    """Raise PatchError unless there are as many pictures, prompts and seeds, and at least one."""
    if not 0 < len(pictures) == len(prompts) == len(seeds):
        raise PatchError(
            f"{len(pictures)} pictures, {len(prompts)} prompts, {len(seeds)} seeds; give one each"
        )
