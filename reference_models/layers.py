"""Parts shared by several architectures.

TextCondition, site_reads   the text, and what each site reads of it
Denoiser                    what is asked of every denoiser
per_row, timestep_sinusoids   numbers of rows, and as vectors
TwoLayer                    two Linears under the checkpoints' names
AdaNorm, modulate, FeedForward        parts of the transformers' blocks
depths_with_sites, require_multiple   checks of U-Nets' configurations
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textpatch.devices import gathered
from textpatch.errors import PatchError
from textpatch.finite import is_finite
from textpatch.plan import SiteSlots
from textpatch.sites import Sites

Tables: TypeAlias = Sequence[SiteSlots] | None  # slots of each site in order, None for no swap


@dataclass(frozen=True)
class TextCondition:
    """Text that a denoiser reads.

    tokens  (R, T, C); models with static text also take the bank that their `text_kv` makes of them
    pooled  (B, P), or None
    micro   (B, 6), the sizes that SDXL is told, or None
    """

    tokens: Tensor
    pooled: Tensor | None = None
    micro: Tensor | None = None

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> TextCondition:
        """Condition of some rows, in the order given."""
        return self._changed(lambda x: x[rows])

    def to(self, *args: torch.device | str | torch.dtype) -> TextCondition:
        """Move or cast the tensors as `Tensor.to` does.

        micro is moved and never cast, because bfloat16 does not hold every size.
        """
        moved = self._changed(lambda x: x.to(*args))
        if self.micro is None:
            return moved
        return replace(moved, micro=self.micro.to(moved.micro.device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> TextCondition:
        """Condition whose tensors are those of this one after `change`."""

        def changed(x):
            if isinstance(x, tuple):  # a bank, or the (k, v) of one of its sites
                return tuple(changed(part) for part in x)
            return None if x is None else change(x)

        return TextCondition(changed(self.tokens), changed(self.pooled), changed(self.micro))


class Denoiser(nn.Module):
    """A denoiser, denoiser(x, t, text, *, slots=None) -> prediction (B, C', H, W).

    x      latents (B, C, H, W)
    t      timesteps, a scalar or (B,), in 0..1000
    text   what the prompts say, as `Pipeline.encode` gives it
    slots  slots of each site in order, None for one that reads its own text, or None for no swap
    """

    text_is_static: bool
    site_names: list[str]

    @property
    def sites(self) -> Sites:
        """Sites in execution order."""
        raise NotImplementedError

    def called(self, name: str, tokens: Tensor) -> Tensor:
        """Output of one of its modules that is called outside its forward."""
        with gathered(self, name):
            output: Tensor = self.get_submodule(name)(tokens)
        return output

    def bank_of(self, tokens: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values (R, H, T, D) that each site of `site_names` makes of tokens (R, T, C)."""
        bank = []
        for name in self.site_names:
            with gathered(self, name):
                bank.append(self.get_submodule(name).text_kv(tokens))
        return tuple(bank)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Tensor,
            t: Tensor,
            text: TextCondition,
            *,
            slots: Tables = None,
            **beside: Tensor | float | None,
        ) -> Tensor:
            """Prediction of a batch.   A stage II and distilled models take more beside."""


def per_row(value: Tensor | float | Sequence[float], x: Tensor) -> Tensor:
    """Numbers (B,) on the device of x (B, ...), from one for all rows or one for each.

    Raises PatchError for what is no finite number, and for another count of them.
    """
    if not isinstance(value, Tensor):
        numbers = value if isinstance(value, (list, tuple)) else [value]
        # a traced number is not known yet
        if not torch.compiler.is_compiling() and not all(map(is_finite, numbers)):
            raise PatchError(f"{value!r} was given for rows of x; give finite numbers")
        value = torch.tensor([float(number) for number in numbers], dtype=torch.float32)
    if value.dim() > 1 or value.numel() not in (1, len(x)):
        raise PatchError(
            f"numbers of shape {tuple(value.shape)} were given for {len(x)} rows of x; "
            "give one, or one for each row"
        )
    return value.to(x.device).expand(len(x))


def timestep_sinusoids(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of the timesteps, from (B,) to (B, width).

    [cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (width/2)).  They are float32 even in float64 runs and
    the caller casts them, as in the published pipelines.
    """
    frequencies = torch.exp(
        -math.log(10000.0) * torch.arange(width // 2, device=t.device).float() / (width // 2)
    )
    angles = t.float()[:, None] * frequencies  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def slots_per_site(slots, sites: int) -> list:
    """One pair of slots per site, the first for its keys and the second for its values.

    None means that every row reads itself, at one site or, as `slots`, at all of them.
    Raises PatchError for another number of entries, and for a table of keys beside None for the values.
    """
    if slots is None:
        return [(None, None)] * sites
    if len(slots) != sites:
        raise PatchError(f"{len(slots)} slots entries for {sites} sites; give one per site or None")
    pairs = [entry if isinstance(entry, tuple) else (entry, entry) for entry in slots]
    for site, (k, v) in enumerate(pairs):
        # segment_attention would take such a pair to mean the keys' table for both
        if k is not None and v is None:
            raise PatchError(
                f"slots of site {site} are a table for the keys and None for the values; "
                "give one table for both, or "
                "a pair of tables (`attention.row_slots` makes that of rows that read themselves)"
            )
    return pairs


def site_reads(tokens, slots, names: Sequence[str]) -> dict[str, tuple]:
    """Text and slots that each site reads, by the name of the site.

    tokens  (R, T, C), or a bank, which gives each site its own (k, v) in their place
    slots   None, or one entry per site as in `slots_per_site`
    names   sites in execution order, which is the order of the bank and of the slots

    Gradient checkpointing runs a part of a model again, and from this dict it reads the same once more.
    Raises PatchError for a bank or slots of another number of sites.
    """
    bank = isinstance(tokens, tuple)
    if bank and len(tokens) != len(names):
        raise PatchError(
            f"a bank of {len(tokens)} sites for a model of {len(names)}; "
            "make it with its own text_kv"
        )
    texts = tokens if bank else [tokens] * len(names)
    pairs = slots_per_site(slots, len(names))
    return {name: (texts[i], pairs[i]) for i, name in enumerate(names)}


def has_sites(block_type: str) -> bool:
    """True for a published type of U-Net block whose layers read the text."""
    return "CrossAttn" in block_type


def depths_with_sites(down_block_types: Sequence[str], up_block_types: Sequence[str]) -> list[int]:
    """Depths of a U-Net that have sites on the way down, on the way up or, the last one, in the middle."""
    up = up_block_types[::-1]
    last = len(down_block_types) - 1
    return [
        depth
        for depth, down in enumerate(down_block_types)
        if has_sites(down) or has_sites(up[depth]) or depth == last
    ]


def require_multiple(field: str, value: int, divisor: int, what: str) -> None:
    """Raise PatchError for the value of a configuration's field that is no multiple of a divisor.

    Both are whole numbers of 1 or more, because a divisor of -1 or 0.5 divides everything.
    """
    for name, number in ((field, value), (what, divisor)):
        if type(number) is not int or number < 1:
            raise PatchError(f"{name} has {number!r}; give a whole number of 1 or more")
    if value % divisor:
        raise PatchError(f"{field} has {value}, which is no multiple of {divisor} ({what})")


class TwoLayer(nn.Module):
    """Linear, activation, Linear, with the checkpoints' names `linear_1` and `linear_2`."""

    def __init__(
        self, width_in: int, width: int, activation: Callable[[Tensor], Tensor] = F.silu
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class AdaNorm(nn.Module):
    """Modulation vectors made from the conditioning (adaLN), `chunks` of them."""

    def __init__(self, width: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(width, chunks * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(c))[:, None].chunk(self.chunks, dim=-1)  # each (B, 1, W)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class FeedForward(nn.Module):
    """Linear to four times the width, GELU (tanh), Linear back, named `net.0.proj` and `net.2`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        up = nn.Module()
        up.proj = nn.Linear(width, 4 * width)
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))
