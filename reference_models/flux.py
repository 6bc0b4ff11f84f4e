"""FLUX.1, a transformer whose first blocks hold image and text in two streams, and whose others hold one.

Black Forest Labs, 2024 (github.com/black-forest-labs/flux), after Esser et al., 2024 (arXiv 2403.03206).
The second kind of block has attention and feed-forward beside each other (arXiv 2302.05442).
Module names are the diffusers layout's; the defaults of `FluxConfig` are FLUX.1-dev.

B rows, C latent channels, N image tokens, T text tokens, W width = H heads x D
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from textpatch.attention import segment_attention
from textpatch.errors import PatchError
from textpatch.reference_models.layers import (
    AdaNorm,
    Denoiser,
    FeedForward,
    Tables,
    TextCondition,
    TwoLayer,
    modulate,
    per_row,
    slots_per_site,
    timestep_sinusoids,
)
from textpatch.sites import Sites, Span, make_site

THETA = 10_000  # wavelength of the slowest turn of a position, over 2 pi
# what FLUX.1-dev is told of guidance where nothing else is asked for
GUIDANCE = 3.5
# a single block makes text and image keys by one projection, the text's first
TEXT_FIRST = Span("first", text="text.tokens")


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of a FLUX.1, with the names and defaults published for dev.

    Raises PatchError for sizes that do not fit each other.
    """

    in_channels: int = 64  # of a token, which holds 2 x 2 latents
    num_layers: int = 19  # blocks of two streams
    num_single_layers: int = 38  # blocks of one, after them
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    joint_attention_dim: int = 4096  # width of the text tokens
    pooled_projection_dim: int = 768
    guidance_embeds: bool = True  # False in schnell
    # channels of a head that are turned by an axis that is always 0, by the row and by the column
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    # Nothing published says these.  Latents are packed before the published transformer, whose own is 1.
    patch_size: ClassVar[int] = 2
    sample_size: ClassVar[int] = 128

    def __post_init__(self) -> None:
        if self.in_channels % self.patch_size**2:
            raise PatchError(
                f"in_channels is {self.in_channels}, which is no multiple of the 4 latents of a token"
            )
        for name in ("num_layers", "num_single_layers", "num_attention_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise PatchError(f"{name} is {value!r}; give a whole number from 1 on")
        axes = self.axes_dims_rope
        if len(axes) != 3 or any(width % 2 for width in axes):
            raise PatchError(f"axes_dims_rope is {axes}; give three even widths")
        if sum(axes) != self.attention_head_dim:
            raise PatchError(
                f"axes_dims_rope is {axes}, {sum(axes)} together, and attention_head_dim "
                f"{self.attention_head_dim}; all channels of a head are turned, so both must be equal"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def latent_channels(self) -> int:
        return self.in_channels // self.patch_size**2


class TimeTextEmbed(nn.Module):
    """Vector that modulates every block, the time, plus the guidance told, plus the pooled text."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayer(256, config.width)
        self.guidance_embedder = TwoLayer(256, config.width) if config.guidance_embeds else None
        self.text_embedder = TwoLayer(config.pooled_projection_dim, config.width)

    def forward(self, t: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        c = self.timestep_embedder(timestep_sinusoids(t, 256).to(pooled.dtype))
        if guidance is not None:
            c = c + self.guidance_embedder(timestep_sinusoids(guidance, 256).to(pooled.dtype))
        return c + self.text_embedder(pooled)  # (B, W)


def turns(config: FluxConfig, height: int, width: int, device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, D / 2) of the angles by which image tokens are turned (arXiv 2104.09864).

    angle = position THETA^(-2 i / width of the axis)

    Text tokens have position 0 on every axis, so that nothing turns them.
    Angles are float64 and their cosines float32 in every dtype, as published.
    """
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    positions = (torch.zeros_like(rows), rows, columns)
    angles = []
    for position, channels in zip(positions, config.axes_dims_rope, strict=True):
        even = torch.arange(0, channels, 2, dtype=torch.float64, device=device)
        angles.append(torch.outer(position.flatten().double(), 1.0 / THETA ** (even / channels)))
    angle = torch.cat(angles, dim=-1)
    return angle.cos().float(), angle.sin().float()


class Turned(nn.Module):
    """Queries or keys (B, H, N, D) of image tokens, each pair of channels turned by its angle."""

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = turn
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, N, D / 2)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class SingleAttention(nn.Module):
    """Attention of one stream, text before image, without an output projection.

    The keys and values of the text, the first T tokens of the projections' output, are a site.
    A = softmax([q_text; q_image] [k_text[slots]; k_image]^T / sqrt(D)) [v_text[slots]; v_image]
    """

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(config.attention_head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(config.attention_head_dim, eps=1e-6)
        self.turned_q = Turned()
        self.turned_k = Turned()
        # they change nothing: hooks see there what attention reads and gives of each stream
        for name in ("text_q", "text_k", "text_v", "image_v", "image_out", "text_out"):
            setattr(self, name, nn.Identity())

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(self, x: Tensor, tokens: int, turn, slots) -> Tensor:
        parts = [tokens, x.shape[1] - tokens]
        q_text, q_image = self.norm_q(self.split(self.to_q(x))).split(parts, dim=2)
        k_text, k_image = self.norm_k(self.split(self.to_k(x))).split(parts, dim=2)
        v_text, v_image = self.split(self.to_v(x)).split(parts, dim=2)
        image, text = segment_attention(
            (self.turned_q(q_image, turn), self.text_q(q_text)),
            (self.turned_k(k_image, turn), self.text_k(k_text)),
            (self.image_v(v_image), self.text_v(v_text)),
            slots_k=slots[0],
            slots_v=slots[1],
        )
        image = self.image_out(rearrange(image, "b h n d -> b n (h d)"))
        text = self.text_out(rearrange(text, "b h n d -> b n (h d)"))
        return torch.cat([text, image], dim=1)


class JointAttention(nn.Module):
    """Attention of two streams, each with projections of its own.

    The text keys and values are a site.
    """

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(config.attention_head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(config.attention_head_dim, eps=1e-6)
        self.turned_q = Turned()
        self.turned_k = Turned()
        self.add_q_proj = nn.Linear(width, width)
        self.add_k_proj = nn.Linear(width, width)
        self.add_v_proj = nn.Linear(width, width)
        self.norm_added_q = nn.RMSNorm(config.attention_head_dim, eps=1e-6)
        self.norm_added_k = nn.RMSNorm(config.attention_head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(self, image: Tensor, text: Tensor, turn, slots) -> tuple[Tensor, Tensor]:
        q_image = self.turned_q(self.norm_q(self.split(self.to_q(image))), turn)  # (B, H, N, D)
        k_image = self.turned_k(self.norm_k(self.split(self.to_k(image))), turn)
        v_image = self.split(self.to_v(image))
        q_text = self.norm_added_q(self.split(self.add_q_proj(text)))  # (B, H, T, D)
        k_text = self.norm_added_k(self.split(self.add_k_proj(text)))
        v_text = self.split(self.add_v_proj(text))
        image, text = segment_attention(
            (q_image, q_text),
            (k_image, k_text),
            (v_image, v_text),
            slots_k=slots[0],
            slots_v=slots[1],
        )
        image = self.to_out[0](rearrange(image, "b h n d -> b n (h d)"))
        return image, self.to_add_out(rearrange(text, "b h n d -> b n (h d)"))


def within_range(x: Tensor) -> Tensor:
    """Numbers of float16 within its range, as published.  Other dtypes hold them all."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


class Block(nn.Module):
    """Joint attention and one feed-forward per stream."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.norm1 = AdaNorm(config.width, 6)
        self.norm1_context = AdaNorm(config.width, 6)
        self.attn = JointAttention(config)
        self.ff = FeedForward(config.width)
        self.ff_context = FeedForward(config.width)

    def forward(self, image: Tensor, text: Tensor, c: Tensor, turn, slots) -> tuple[Tensor, Tensor]:
        # shift, scale and gate of the attention and of the feed-forward
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(c)
        text_shift, text_scale, text_gate, *text_ff = self.norm1_context(c)
        from_image, from_text = self.attn(
            modulate(image, shift, scale), modulate(text, text_shift, text_scale), turn, slots
        )
        image = image + gate * from_image
        image = image + gate_ff * self.ff(modulate(image, shift_ff, scale_ff))
        text_shift_ff, text_scale_ff, text_gate_ff = text_ff
        text = text + text_gate * from_text
        text = text + text_gate_ff * self.ff_context(modulate(text, text_shift_ff, text_scale_ff))
        return image, within_range(text)


class SingleBlock(nn.Module):
    """Attention and a feed-forward side by side.

    y = x + gate proj_out([attention(h); gelu(proj_mlp(h))]),   h = modulate(x)
    """

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = AdaNorm(width, 3)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(5 * width, width)
        self.attn = SingleAttention(config)

    def forward(self, x: Tensor, tokens: int, c: Tensor, turn, slots) -> Tensor:
        shift, scale, gate = self.norm(c)
        h = modulate(x, shift, scale)
        attended = self.attn(h, tokens, turn, slots)
        made = F.gelu(self.proj_mlp(h), approximate="tanh")
        return within_range(x + gate * self.proj_out(torch.cat([attended, made], dim=-1)))


class Flux(Denoiser):
    """Denoiser of FLUX.1, denoiser(x, t, text) -> velocity.

    x         (B, C, H, W) latents; two by two of them are a token
    t         scalar or (B,), timesteps in 0..1000
    text      tokens (B, T, joint_attention_dim) and pooled (B, P)
    slots     None, or one entry per site: None, int (B, H or 1, T), or a pair of these for keys and values
    guidance  scalar or (B,), what dev is told of guidance, GUIDANCE when None; schnell is told nothing

    Returns (B, C, H, W) in x's dtype.
    Raises PatchError for sizes that are not even, for channels, widths and rows of x and text that do not
    fit, and for a guidance that nothing reads.
    """

    family = "FLUX.1"
    # the text stream changes with depth, so that keys and values differ between blocks and steps
    text_is_static = False

    def __init__(self, config: FluxConfig = FluxConfig()) -> None:
        super().__init__()
        self.config = config
        self.time_text_embed = TimeTextEmbed(config)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.width)
        self.x_embedder = nn.Linear(config.in_channels, config.width)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config) for _ in range(config.num_single_layers)
        )
        self.norm_out = AdaNorm(config.width, 2)
        self.proj_out = nn.Linear(config.width, config.in_channels)

    @property
    def sites(self) -> Sites:
        double = [
            (f"transformer_blocks.{i}.attn", "joint", block.attn)
            for i, block in enumerate(self.transformer_blocks)
        ]
        single = [
            (f"single_transformer_blocks.{i}.attn", "single", block.attn)
            for i, block in enumerate(self.single_transformer_blocks)
        ]
        heads = self.config.num_attention_heads
        head_dim = self.config.attention_head_dim
        sites = []
        for index, (name, kind, attention) in enumerate([*double, *single]):
            site = make_site(index, name, kind, attention, heads, head_dim)
            sites.append(replace(site, span=TEXT_FIRST) if kind == "single" else site)
        return Sites(sites)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: TextCondition,
        *,
        slots: Tables = None,
        guidance: Tensor | float | None = None,
    ) -> Tensor:
        self._require(x, text, guidance)
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        turn = turns(self.config, height, width, x.device)
        c = self.time_text_embed(self._time(t, x), self._told(guidance, x), text.pooled)  # (B, W)
        image = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
        image = self.x_embedder(image)  # (B, N, W)
        tokens = self.context_embedder(text.tokens)  # (B, T, W)
        pairs = iter(
            slots_per_site(
                slots, len(self.transformer_blocks) + len(self.single_transformer_blocks)
            )
        )
        for block in self.transformer_blocks:
            image, tokens = block(image, tokens, c, turn, next(pairs))
        length = tokens.shape[1]
        stream = torch.cat([tokens, image], dim=1)  # (B, T + N, W)
        for block in self.single_transformer_blocks:
            stream = block(stream, length, c, turn, next(pairs))
        scale, shift = self.norm_out(c)  # this order, as published
        image = self.proj_out(modulate(stream[:, length:], shift, scale))  # (B, N, 4 C)
        return rearrange(image, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=2, q=2)

    def _time(self, t: Tensor, x: Tensor) -> Tensor:
        """Timesteps (B,) rounded as the published pipelines round them, which hand over t / 1000."""
        return per_row(t, x).to(x.dtype) / 1000 * 1000

    def _told(self, guidance: Tensor | float | None, x: Tensor) -> Tensor | None:
        if not self.config.guidance_embeds:
            return None
        told = GUIDANCE if guidance is None else guidance
        return per_row(told, x).to(x.dtype) * 1000

    def _require(self, x: Tensor, text: TextCondition, guidance: Tensor | float | None) -> None:
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            raise PatchError(f"latents of {height}x{width} do not divide into tokens of 2x2")
        if guidance is not None and not self.config.guidance_embeds:
            raise PatchError(
                f"guidance {guidance!r} was told to a FLUX.1 without guidance_embeds, as schnell is, "
                "which does not read it; leave it out"
            )
        if text.pooled is None:
            raise PatchError("text.pooled is None; FLUX.1 reads a pooled vector for each row of x")
        for what, found, expected in [
            ("channels of x", x.shape[1], self.config.latent_channels),
            ("width of text.tokens", text.tokens.shape[-1], self.config.joint_attention_dim),
            ("width of text.pooled", text.pooled.shape[-1], self.config.pooled_projection_dim),
            ("rows of text.tokens", len(text.tokens), len(x)),
            ("rows of text.pooled", len(text.pooled), len(x)),
        ]:
            if found != expected:
                raise PatchError(f"{what}: {found}, but must be {expected} here")
