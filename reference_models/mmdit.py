"""MMDiT, the denoiser of Stable Diffusion 3 and 3.5.   Streams of image and text join in every attention.

Esser et al., "Scaling Rectified Flow Transformers", 2024 (arXiv 2403.03206), fig. 2.
Module names are the diffusers layout's; the defaults of `MMDiTConfig` are SD3-medium.

B rows, C latent channels, N image tokens, T text tokens, W width = H heads x D
"""

from __future__ import annotations

from dataclasses import dataclass

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
from textpatch.sites import Sites, make_site


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of an MMDiT, with the names and defaults published for SD3-medium.

    Raises PatchError for sizes that do not fit each other and for what no SD3 has.
    """

    sample_size: int = 128  # latent height and width the model was trained at
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 24
    num_attention_heads: int = 24
    attention_head_dim: int = 64
    joint_attention_dim: int = 4096  # width of the text tokens
    pooled_projection_dim: int = 2048
    caption_projection_dim: int = 1536  # must be the width: the text stream starts there
    pos_embed_max_size: int = 192  # side, in patches, of the stored position table
    qk_norm: str | None = None  # "rms_norm" from SD3.5 on
    # blocks with an image-only attention too: 0..12 in SD3.5-medium
    dual_attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.caption_projection_dim != self.width:
            raise PatchError(
                f"caption_projection_dim is {self.caption_projection_dim}, but "
                f"{self.num_attention_heads} heads x {self.attention_head_dim} make a width of "
                f"{self.width}; both streams share one width"
            )
        if self.qk_norm not in (None, "rms_norm"):
            raise PatchError(
                f"qk_norm is {self.qk_norm!r}; this MMDiT knows None (SD3) and 'rms_norm' (SD3.5)"
            )
        if not isinstance(self.num_layers, int) or self.num_layers < 1:
            raise PatchError(f"num_layers is {self.num_layers!r}; give a whole number from 1 on")
        for block in self.dual_attention_layers:
            if not isinstance(block, int) or not 0 <= block < self.num_layers:
                raise PatchError(
                    f"dual_attention_layers has {block}; "
                    f"the blocks of this MMDiT are 0..{self.num_layers - 1}"
                )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class PatchEmbed(nn.Module):
    """Tokens of latent patches, plus the centre crop of a stored table of positions."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        p = config.patch_size
        side = config.pos_embed_max_size
        self.side = side
        self.proj = nn.Conv2d(config.in_channels, config.width, p, stride=p)
        self.register_buffer("pos_embed", torch.zeros(1, side * side, config.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, W, h, w)
        h, w = x.shape[-2:]
        if max(h, w) > self.side:
            raise PatchError(
                f"picture of {h}x{w} patches; the position table holds {self.side}x{self.side}"
            )
        top = (self.side - h) // 2
        left = (self.side - w) // 2
        positions = self.pos_embed.unflatten(1, (self.side, self.side))
        positions = positions[:, top : top + h, left : left + w].flatten(1, 2)  # (1, N, W)
        # contiguous, or the whole image stream keeps the convolution's layout: 3 % slower on a CPU
        return x.flatten(2).mT.contiguous() + positions.to(x.dtype)  # (B, N, W)


class TimeTextEmbed(nn.Module):
    """Vector that modulates every block, the time plus the pooled text."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayer(256, config.width)
        self.text_embedder = TwoLayer(config.pooled_projection_dim, config.width)

    def forward(self, t: Tensor, pooled: Tensor) -> Tensor:
        sinusoids = timestep_sinusoids(t, 256).to(pooled.dtype)
        return self.timestep_embedder(sinusoids) + self.text_embedder(pooled)  # (B, W)


def head_norm(config: MMDiTConfig) -> nn.Module:
    """Norm of the queries or keys of every head, in SD3 the identity."""
    if config.qk_norm is None:
        return nn.Identity()
    return nn.RMSNorm(config.attention_head_dim, eps=1e-6)


class JointAttention(nn.Module):
    """Queries of both streams attend to keys of both.   The text keys and values are a site.

    A = softmax([q_image; q_text] [k_image; k_text[slots]]^T / sqrt(D)) [v_image; v_text[slots]]
    """

    def __init__(self, config: MMDiTConfig, context_pre_only: bool) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.add_q_proj = nn.Linear(width, width)
        self.add_k_proj = nn.Linear(width, width)
        self.add_v_proj = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = None if context_pre_only else nn.Linear(width, width)
        self.norm_q = head_norm(config)
        self.norm_k = head_norm(config)
        self.norm_added_q = head_norm(config)
        self.norm_added_k = head_norm(config)

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(self, image: Tensor, text: Tensor, slots) -> tuple[Tensor, Tensor | None]:
        q_image = self.norm_q(self.split(self.to_q(image)))  # (B, H, N, D)
        k_image = self.norm_k(self.split(self.to_k(image)))
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
        if self.to_add_out is None:
            return image, None
        return image, self.to_add_out(rearrange(text, "b h n d -> b n (h d)"))


class ImageAttention(nn.Module):
    """Image tokens attend to each other, beside the joint attention.   No text enters, so this is no site."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q = head_norm(config)
        self.norm_k = head_norm(config)

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(self, image: Tensor) -> Tensor:
        q = self.norm_q(self.split(self.to_q(image)))  # (B, H, N, D)
        k = self.norm_k(self.split(self.to_k(image)))
        v = self.split(self.to_v(image))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](rearrange(out, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Joint attention and one feed-forward per stream.

    context_pre_only  True in the last block, which gives no text
    dual              adds the result of an attention over the image alone
    """

    def __init__(self, config: MMDiTConfig, context_pre_only: bool, dual: bool) -> None:
        super().__init__()
        self.norm1 = AdaNorm(config.width, 9 if dual else 6)
        self.norm1_context = AdaNorm(config.width, 2 if context_pre_only else 6)
        self.attn = JointAttention(config, context_pre_only)
        self.attn2 = ImageAttention(config) if dual else None
        self.ff = FeedForward(config.width)
        self.ff_context = None if context_pre_only else FeedForward(config.width)

    def forward(
        self, image: Tensor, text: Tensor, c: Tensor, slots
    ) -> tuple[Tensor, Tensor | None]:
        # shift, scale and gate of the attention, of the feed-forward and, in `dual`, of the other attention
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *dual = self.norm1(c)
        if self.ff_context is None:
            # the last block's two chunks come in the other order, as published: scale, then shift
            text_scale, text_shift = self.norm1_context(c)
        else:
            text_shift, text_scale, text_gate, *modulation_ff = self.norm1_context(c)
        from_image, from_text = self.attn(
            modulate(image, shift, scale), modulate(text, text_shift, text_scale), slots
        )
        attended = image + gate * from_image
        if self.attn2 is not None:
            shift_2, scale_2, gate_2 = dual
            attended = attended + gate_2 * self.attn2(modulate(image, shift_2, scale_2))
        image = attended + gate_ff * self.ff(modulate(attended, shift_ff, scale_ff))
        if self.ff_context is None:
            return image, None
        text_shift_ff, text_scale_ff, text_gate_ff = modulation_ff
        text = text + text_gate * from_text
        from_ff = self.ff_context(modulate(text, text_shift_ff, text_scale_ff))
        return image, text + text_gate_ff * from_ff


class MMDiT(Denoiser):
    """Denoiser of Stable Diffusion 3, denoiser(x, t, text) -> velocity.

    x      (B, C, H, W) latents
    t      scalar or (B,), timesteps in 0..1000
    text   tokens (B, T, joint_attention_dim) and pooled (B, P)
    slots  None, or one entry per site: None, int (B, H or 1, T), or a pair of these for keys and values

    Returns (B, out_channels, H, W) in x's dtype.
    Raises PatchError for sizes that patches do not divide or positions do not reach, and for channels,
    widths and rows of x and text that do not fit.
    """

    family = "Stable Diffusion 3"
    # the text stream changes with depth, so that keys and values differ between blocks and steps
    text_is_static = False

    def __init__(self, config: MMDiTConfig = MMDiTConfig()) -> None:
        super().__init__()
        self.config = config
        self.pos_embed = PatchEmbed(config)
        self.time_text_embed = TimeTextEmbed(config)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.width)
        last = config.num_layers - 1
        dual = set(config.dual_attention_layers)
        self.transformer_blocks = nn.ModuleList(
            Block(config, i == last, i in dual) for i in range(config.num_layers)
        )
        self.norm_out = AdaNorm(config.width, 2)
        self.proj_out = nn.Linear(config.width, config.patch_size**2 * config.out_channels)

    @property
    def sites(self) -> Sites:
        heads = self.config.num_attention_heads
        head_dim = self.config.attention_head_dim
        return Sites(
            make_site(i, f"transformer_blocks.{i}.attn", "joint", block.attn, heads, head_dim)
            for i, block in enumerate(self.transformer_blocks)
        )

    def forward(self, x: Tensor, t: Tensor, text: TextCondition, *, slots: Tables = None) -> Tensor:
        self._require(x, text)
        c = self.time_text_embed(per_row(t, x), text.pooled)  # (B, W)
        image = self.pos_embed(x)  # (B, N, W)
        tokens = self.context_embedder(text.tokens)  # (B, T, W)
        pairs = slots_per_site(slots, self.config.num_layers)
        for block, pair in zip(self.transformer_blocks, pairs, strict=True):
            image, tokens = block(image, tokens, c, pair)
        scale, shift = self.norm_out(c)  # this order, as published
        image = self.proj_out(modulate(image, shift, scale))  # (B, N, p * p * C)
        p = self.config.patch_size
        h = x.shape[-2] // p
        return rearrange(image, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)

    def _require(self, x: Tensor, text: TextCondition) -> None:
        p = self.config.patch_size
        height, width = x.shape[-2:]
        if height % p or width % p:
            raise PatchError(f"latents of {height}x{width} do not divide into patches of {p}x{p}")
        if text.pooled is None:
            raise PatchError(
                "text.pooled is None; an MMDiT reads a pooled vector for each row of x"
            )
        for what, found, expected in [
            ("channels of x", x.shape[1], self.config.in_channels),
            ("width of text.tokens", text.tokens.shape[-1], self.config.joint_attention_dim),
            ("width of text.pooled", text.pooled.shape[-1], self.config.pooled_projection_dim),
            ("rows of text.tokens", len(text.tokens), len(x)),
            ("rows of text.pooled", len(text.pooled), len(x)),
        ]:
            if found != expected:
                raise PatchError(f"{what}: {found}, but must be {expected} here")
