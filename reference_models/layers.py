"""What more than one architecture shares: the text condition, timestep sinusoids, normalised modulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextCondition:
    """The text a denoiser reads: tokens (R, T, C), pooled (B, P) or None, micro (B, 6) or None (SDXL's sizes)."""

    tokens: Tensor
    pooled: Tensor | None = None
    micro: Tensor | None = None

    def __getitem__(self, rows) -> TextCondition:
        """The same condition for some rows, in the order given."""
        return TextCondition(
            *(None if x is None else x[rows] for x in (self.tokens, self.pooled, self.micro))
        )

    def to(self, *args) -> TextCondition:
        """Moved or cast as `Tensor.to` does."""
        return TextCondition(
            *(None if x is None else x.to(*args) for x in (self.tokens, self.pooled, self.micro))
        )


def timestep_sinusoids(t: Tensor, width: int) -> Tensor:
    """[cos(t w_i), sin(t w_i)], w_i = 10000^(-i / (width/2)): (B,) -> (B, width).

    Always float32, also in float64 runs, and cast by the caller: so do the published pipelines.
    """
    frequencies = torch.exp(
        -math.log(10000.0) * torch.arange(width // 2, device=t.device).float() / (width // 2)
    )
    angles = t.float()[:, None] * frequencies  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TwoLayer(nn.Module):
    """Linear, SiLU, Linear, under the names `linear_1` and `linear_2` of the checkpoints."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))
