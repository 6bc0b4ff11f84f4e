"""MMDiT, the denoiser of Stable Diffusion 3 and 3.5: streams of image and text, joined in every attention.

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
    TextCondition,
    TwoLayer,
    slots_per_site,
    timestep_sinusoids,
)
from textpatch.sites import Site, make_site


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of an MMDiT; names and defaults are SD3-medium's published configuration.

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
    dual_attention_layers: tuple[
        int, ...
    ] = ()  # with image-only attention too; 0..12 in SD3.5-medium

    def __post_init__(self):
        if self.caption_projection_dim != self.width:
            raise PatchError(
                f"caption_projection_dim is {self.caption_projection_dim}, but {self.num_attention_heads} heads x "
                f"{self.attention_head_dim} make a width of {self.width}; both streams share one width"
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
                    f"dual_attention_layers has {block}; the blocks of this MMDiT are 0..{self.num_layers - 1}"
                )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class PatchEmbed(nn.Module):
    """Latent patches to tokens, plus the centre crop of a stored table of positions."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        p, side = config.patch_size, config.pos_embed_max_size
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
        top, left = (self.side - h) // 2, (self.side - w) // 2
        table = self.pos_embed.unflatten(1, (self.side, self.side))[
            :, top : top + h, left : left + w
        ]
        # contiguous, or the whole image stream keeps the convolution's layout: 3 % slower on a CPU
        return x.flatten(2).mT.contiguous() + table.flatten(1, 2).to(x.dtype)  # (B, N, W)


class TimeTextEmbed(nn.Module):
    """The vector that modulates every block: time plus pooled text."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.timestep_embedder = TwoLayer(256, config.width)
        self.text_embedder = TwoLayer(config.pooled_projection_dim, config.width)

    def forward(self, t: Tensor, pooled: Tensor) -> Tensor:
        return self.timestep_embedder(
            timestep_sinusoids(t, 256).to(pooled.dtype)
        ) + self.text_embedder(pooled)


class AdaNorm(nn.Module):
    """LayerNorm without weights, and `chunks` modulation vectors made from the conditioning (adaLN)."""

    def __init__(self, width: int, chunks: int):
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(width, chunks * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(c))[:, None].chunk(self.chunks, dim=-1)  # each (B, 1, W)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class FeedForward(nn.Module):
    """Linear to four times the width, GELU (tanh), Linear back; names `net.0.proj` and `net.2`."""

    def __init__(self, width: int):
        super().__init__()
        up = nn.Module()
        up.proj = nn.Linear(width, 4 * width)
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


def head_norm(config: MMDiTConfig) -> nn.Module:
    """What normalises the queries or keys of every head, if anything does."""
    return nn.RMSNorm(config.attention_head_dim, eps=1e-6) if config.qk_norm else nn.Identity()


class JointAttention(nn.Module):
    """Queries of both streams attend to keys of both; the text keys and values are a site.

    A = softmax([q_image; q_text] [k_image; k_text[slots]]^T / sqrt(D)) [v_image; v_text[slots]]
    """

    def __init__(self, config: MMDiTConfig, context_pre_only: bool):
        super().__init__()
        width, self.heads = config.width, config.num_attention_heads
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            setattr(self, name, nn.Linear(width, width))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = None if context_pre_only else nn.Linear(width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            setattr(self, name, head_norm(config))

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(self, image: Tensor, text: Tensor, slots) -> tuple[Tensor, Tensor | None]:
        q_image, k_image = (
            self.norm_q(self.split(self.to_q(image))),
            self.norm_k(self.split(self.to_k(image))),
        )
        q_text = self.norm_added_q(self.split(self.add_q_proj(text)))  # (B, H, T, D)
        k_text = self.norm_added_k(self.split(self.add_k_proj(text)))
        v_image, v_text = self.split(self.to_v(image)), self.split(self.add_v_proj(text))
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
    """Image tokens attend to each other, beside the joint attention; no text enters, so this is no site."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        width, self.heads = config.width, config.num_attention_heads
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, nn.Linear(width, width))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = head_norm(config), head_norm(config)

    def forward(self, image: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(image), "b n (h d) -> b h n d", h=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)  # (B, H, N, D)
        return self.to_out[0](rearrange(out, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Joint attention and one feed-forward per stream; the last block gives no text (`context_pre_only`).

    A `dual` block adds to the image what an attention of its own reads in the same image.
    """

    def __init__(self, config: MMDiTConfig, context_pre_only: bool, dual: bool):
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
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *dual = self.norm1(c)
        if self.ff_context is None:
            # the last block's two chunks come in the other order, as published: scale, then shift
            text_scale, text_shift = self.norm1_context(c)
        else:
            text_shift, text_scale, text_gate, text_shift_ff, text_scale_ff, text_gate_ff = (
                self.norm1_context(c)
            )
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
        text = text + text_gate * from_text
        return image, text + text_gate_ff * self.ff_context(
            modulate(text, text_shift_ff, text_scale_ff)
        )


class MMDiT(nn.Module):
    """denoiser(x, t, text) -> velocity; see the module docstring.

    x (B, C, H, W) latents; t scalar or (B,) in 0..1000; text tokens (B, T, joint_attention_dim), pooled (B, P).
    slots: None, or one entry per site: None, int (B, H or 1, T), or a pair of these, keys' and values'.
    Returns (B, out_channels, H, W), x's dtype.  Raises PatchError for sizes that patches do not divide or
    positions do not reach, and for channels, widths and rows of x and text that do not fit.
    """

    text_is_static = (
        False  # the text stream changes with depth, so K and V differ between blocks and steps
    )

    def __init__(self, config: MMDiTConfig = MMDiTConfig()):
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
    def sites(self) -> tuple[Site, ...]:
        heads, head_dim = self.config.num_attention_heads, self.config.attention_head_dim
        return tuple(
            make_site(i, f"transformer_blocks.{i}.attn", "joint", block.attn, heads, head_dim)
            for i, block in enumerate(self.transformer_blocks)
        )

    def forward(self, x: Tensor, t: Tensor, text: TextCondition, *, slots=None) -> Tensor:
        self._require(x, text)
        p, height = self.config.patch_size, x.shape[-2]
        t = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        c = self.time_text_embed(t, text.pooled)  # (B, W)
        image, tokens = (
            self.pos_embed(x),
            self.context_embedder(text.tokens),
        )  # (B, N, W), (B, T, W)
        for block, block_slots in zip(
            self.transformer_blocks, slots_per_site(slots, self.config.num_layers)
        ):
            image, tokens = block(image, tokens, c, block_slots)
        scale, shift = self.norm_out(c)  # this order, as published
        image = self.proj_out(modulate(image, shift, scale))  # (B, N, p * p * C)
        return rearrange(image, "b (h w) (p q c) -> b c (h p) (w q)", h=height // p, p=p, q=p)

    def _require(self, x: Tensor, text: TextCondition) -> None:
        p, (height, width) = self.config.patch_size, x.shape[-2:]
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
