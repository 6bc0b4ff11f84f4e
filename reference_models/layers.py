"""What more than one architecture shares: the text condition, what each site reads, timestep sinusoids."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textpatch.errors import PatchError


@dataclass(frozen=True)
class TextCondition:
    """The text a denoiser reads: tokens (R, T, C), pooled (B, P) or None, micro (B, 6) or None (SDXL's sizes).

    In place of tokens, models with static text also take the bank that their `text_kv` makes of them.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    micro: Tensor | None = None

    def __getitem__(self, rows) -> TextCondition:
        """The same condition for some rows, in the order given."""
        return self._changed(lambda x: x[rows])

    def to(self, *args) -> TextCondition:
        """Moved or cast as `Tensor.to` does; micro is only moved, for not every size is a bfloat16."""
        made = self._changed(lambda x: x.to(*args))
        return made if self.micro is None else replace(made, micro=self.micro.to(made.micro.device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> TextCondition:
        pooled, micro = (None if x is None else change(x) for x in (self.pooled, self.micro))
        if isinstance(self.tokens, tuple):
            return TextCondition(
                tuple((change(k), change(v)) for k, v in self.tokens), pooled, micro
            )
        return TextCondition(change(self.tokens), pooled, micro)


def timestep_sinusoids(t: Tensor, width: int) -> Tensor:
    """[cos(t w_i), sin(t w_i)], w_i = 10000^(-i / (width/2)): (B,) -> (B, width).

    Always float32, also in float64 runs, and cast by the caller: so do the published pipelines.
    """
    frequencies = torch.exp(
        -math.log(10000.0) * torch.arange(width // 2, device=t.device).float() / (width // 2)
    )
    angles = t.float()[:, None] * frequencies  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def slots_per_site(slots, sites: int) -> list:
    """A pair for keys and values per site, of None (identity) if slots is None.

    Raises PatchError for another number of entries, and for a table of keys beside None for the values.
    """
    if slots is None:
        return [(None, None)] * sites
    if len(slots) != sites:
        raise PatchError(f"{len(slots)} slots entries for {sites} sites; give one per site or None")
    pairs = [entry if isinstance(entry, tuple) else (entry, entry) for entry in slots]
    for site, (k, v) in enumerate(pairs):
        if (
            k is not None and v is None
        ):  # which segment_attention would take to mean the keys' table for both
            raise PatchError(
                f"slots of site {site} are a table for the keys and None for the values; give one table for both, or "
                "a pair of tables (`attention.row_slots` makes that of rows that read themselves)"
            )
    return pairs


def site_reads(tokens, slots, names: Sequence[str]) -> dict[str, tuple]:
    """(tokens, slots) of each site, by its name; a bank gives each site its own (k, v) for tokens.

    A table, and no iterator: gradient checkpointing runs a part of a model again, which must then read the same.
    names: the sites' in execution order, which is the order of the bank and of the slots.
    Raises PatchError for a bank or slots of another number of sites.
    """
    bank = isinstance(tokens, tuple)
    if bank and len(tokens) != len(names):
        raise PatchError(
            f"a bank of {len(tokens)} sites for a model of {len(names)}; make it with its own text_kv"
        )
    texts = tokens if bank else [tokens] * len(names)
    return dict(zip(names, zip(texts, slots_per_site(slots, len(names)))))


class TwoLayer(nn.Module):
    """Linear, activation, Linear, under the names `linear_1` and `linear_2` of the checkpoints."""

    def __init__(self, width_in: int, width: int, activation: Callable[[Tensor], Tensor] = F.silu):
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))
