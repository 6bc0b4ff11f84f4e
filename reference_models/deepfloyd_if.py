"""DeepFloyd IF, a U-Net on pixels: stage I draws a small picture, stage II a larger one from it.

DeepFloyd Lab, "IF", 2023 (github.com/deep-floyd/IF), after Imagen (Saharia et al., 2022, arXiv 2205.11487).
Module names are the diffusers layout's; the defaults of `IFConfig` are IF-I-XL.

B rows, R text rows, T text tokens, N pixels at a depth, W width there = heads x D, E width of the embedding
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
    site_reads,
    timestep_sinusoids,
)
from textpatch.sites import Site, make_site

CROSS_GROUPS = 32  # of every `norm_cross`; norm_num_groups is for the norms of pixels
KNOWN = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    "class_embed_type": (None, "timestep"),
    "time_embedding_act_fn": (None, "gelu"),
}


def has_sites(block_type: str) -> bool:
    return block_type.startswith("SimpleCrossAttn")


@dataclass(frozen=True)
class IFConfig:
    """Sizes of a DeepFloyd IF U-Net; names and defaults are IF-I-XL's published configuration.

    Raises PatchError for sizes that do not fit each other and for types that IF does not have.
    """

    sample_size: int | None = 64  # height and width of the pictures the model was trained on
    in_channels: int = 3
    out_channels: int = 6  # the noise, and what sets its variance
    block_out_channels: tuple[int, ...] = (704, 1408, 2112, 2816)
    layers_per_block: int | tuple[int, ...] = 3  # on the way down; there is one more on the way up
    down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D",) + (
        "SimpleCrossAttnDownBlock2D",
    ) * 3
    up_block_types: tuple[str, ...] = ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",)
    attention_head_dim: int = 64
    cross_attention_dim: int = 2816  # width of the text tokens that the sites read
    encoder_hid_dim: int = 4096  # width of the text encoder's tokens
    addition_embed_type_num_heads: int = 64  # heads of the attention that pools them
    norm_num_groups: int = 32
    class_embed_type: str | None = (
        None  # "timestep" in stage II, which reads `low` and its noise `level`
    )
    only_cross_attention: bool = False  # True in stage II: pixels read the text and not each other
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    time_embedding_act_fn: str | None = None
    time_embedding_dim: int | None = None  # None is four times the first width

    def __post_init__(self):
        for field, known in KNOWN.items():
            value = getattr(self, field)
            for found in value if isinstance(value, (tuple, list)) else [value]:
                if found not in known:
                    raise PatchError(
                        f"{field} has {found!r}; DeepFloyd IF has {known[0]!r} and {known[1]!r}"
                    )
        depths = len(self.block_out_channels)
        for field in ("down_block_types", "up_block_types", "layers"):
            if len(getattr(self, field)) != depths:
                raise PatchError(
                    f"{len(getattr(self, field))} {field} for {depths} block_out_channels"
                )
        if min(self.layers) < 1:
            raise PatchError(
                f"layers_per_block is {self.layers_per_block}; each depth needs at least one"
            )
        self._require_divisible()

    def _require_divisible(self):
        widths = self.block_out_channels
        types = zip(widths, self.down_block_types, reversed(self.up_block_types))
        with_sites = [w for w, *both in types if any(map(has_sites, both))] + [
            widths[-1]
        ]  # the middle's
        rules = [
            *(("block_out_channels", w, "norm_num_groups", self.norm_num_groups) for w in widths),
            *(
                ("block_out_channels", w, "attention_head_dim", self.attention_head_dim)
                for w in with_sites
            ),
            ("block_out_channels", widths[0], "cosines and sines of the time", 2),
            ("cross_attention_dim", self.cross_attention_dim, "groups of norm_cross", CROSS_GROUPS),
            (
                "encoder_hid_dim",
                self.encoder_hid_dim,
                "addition_embed_type_num_heads",
                self.addition_embed_type_num_heads,
            ),
            (
                "in_channels",
                self.in_channels,
                "pictures, x and low",
                2 if self.class_embed_type else 1,
            ),
        ]
        for field, value, what, divisor in rules:
            if value % divisor:
                raise PatchError(f"{field} has {value}, which is no multiple of {divisor} ({what})")

    @property
    def layers(self) -> tuple[int, ...]:
        """layers_per_block of each depth."""
        layers = self.layers_per_block
        return (
            (layers,) * len(self.block_out_channels) if isinstance(layers, int) else tuple(layers)
        )

    @property
    def latent_channels(self) -> int:
        """Channels of x; in stage II `low` is the other half of in_channels."""
        return self.in_channels // 2 if self.class_embed_type else self.in_channels

    @property
    def embedding_width(self) -> int:
        """E, the width of the vector that modulates every ResNet."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


class AttentionPool(nn.Module):
    """All tokens as one: their mean, plus a learned vector, attends to itself and to them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, width) * width**-0.5)
        for name in ("k_proj", "q_proj", "v_proj"):
            setattr(self, name, nn.Linear(width, width))

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "r t (h d) -> r h t d", h=self.heads)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(dim=1, keepdim=True) + self.positional_embedding  # (R, 1, C)
        tokens = torch.cat([mean, tokens], dim=1)  # (R, 1 + T, C)
        q, k = self.split(self.q_proj(mean)), self.split(self.k_proj(tokens))
        v = self.split(self.v_proj(tokens))
        scale = (
            q.shape[-1] ** -0.25
        )  # on either side, and softmax in float32 in every run, as published
        weights = ((q * scale) @ (k * scale).mT).float().softmax(-1).to(v.dtype)  # (R, H, 1, 1 + T)
        return rearrange(weights @ v, "r h 1 d -> r (h d)")


class PooledText(nn.Module):
    """The text encoder's tokens (R, T, C) as one vector (R, E), which joins the time's."""

    def __init__(self, config: IFConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.encoder_hid_dim)
        self.pool = AttentionPool(config.encoder_hid_dim, config.addition_embed_type_num_heads)
        self.proj = nn.Linear(config.encoder_hid_dim, config.embedding_width)
        self.norm2 = nn.LayerNorm(config.embedding_width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(tokens))))


class ResNet(nn.Module):
    """Two convolutions, modulated in between by the embedding c, and a shortcut around them.

    h = conv1(resample(gelu(norm1(x)))),   (a, b) = time_emb_proj(c)
    (shortcut(resample(x)) + conv2(gelu(norm2(h) (1 + a) + b))) / out_scale
    """

    def __init__(
        self, config: IFConfig, width_in: int, width: int, *, resample=None, out_scale=None
    ):
        super().__init__()
        self.out_scale = out_scale or config.resnet_out_scale_factor
        self.resample = resample or nn.Identity()
        self.norm1 = nn.GroupNorm(config.norm_num_groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.embedding_width, 2 * width)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.gelu(self.norm1(x))))  # (B, W, h, w)
        scale, shift = self.time_emb_proj(c)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.gelu(self.norm2(h) * (1 + scale) + shift))
        return (self.conv_shortcut(self.resample(x)) + h) / self.out_scale


class AddedAttention(nn.Module):
    """Pixels attend to pixels and to text, whose keys and values are a site (as in GLIDE, arXiv 2112.10741).

    x + out(softmax(q [k_image; k_text[slots]]^T / sqrt(D)) [v_image; v_text[slots]])

    With only_cross_attention there are no image keys and values.  `norm_cross` takes its mean and variance over
    all tokens of a row, so that the key and value of one token depend on the whole prompt and on its padding.
    """

    site: str  # its name in the model, which sets it: what it reads is found by that

    def __init__(self, config: IFConfig, width: int):
        super().__init__()
        self.heads = width // config.attention_head_dim
        self.only_text = config.only_cross_attention
        self.group_norm = nn.GroupNorm(config.norm_num_groups, width)
        self.norm_cross = nn.GroupNorm(CROSS_GROUPS, config.cross_attention_dim)
        for name in ("to_q",) if self.only_text else ("to_q", "to_k", "to_v"):
            setattr(self, name, nn.Linear(width, width))
        for name in ("add_k_proj", "add_v_proj"):
            setattr(self, name, nn.Linear(config.cross_attention_dim, width))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def text_kv(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (R, H, T, D), of tokens (R, T, cross_attention_dim)."""
        tokens = self.norm_cross(tokens.mT).mT
        return self.split(self.add_k_proj(tokens)), self.split(self.add_v_proj(tokens))

    def image_kv(self, pixels: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.only_text:
            return None, None
        return self.split(self.to_k(pixels)), self.split(self.to_v(pixels))

    def forward(self, x: Tensor, text: Tensor | tuple[Tensor, Tensor], slots) -> Tensor:
        k_text, v_text = text if isinstance(text, tuple) else self.text_kv(text)
        pixels = self.group_norm(x.flatten(2)).mT  # (B, N, W)
        q, (k_image, v_image) = self.split(self.to_q(pixels)), self.image_kv(pixels)  # (B, H, N, D)
        out, _ = segment_attention(
            (q, None), (k_image, k_text), (v_image, v_text), slots_k=slots[0], slots_v=slots[1]
        )
        out = self.to_out[0](rearrange(out, "b h n d -> b n (h d)"))
        return x + out.mT.reshape(x.shape)


class Layers(nn.Module):
    """ResNets, each followed by a site where the type of block has sites."""

    def __init__(self, config: IFConfig, block_type: str, widths_in: list[int], width: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResNet(config, width_in, width) for width_in in widths_in)
        sites = widths_in if has_sites(block_type) else []
        self.attentions = nn.ModuleList(AddedAttention(config, width) for _ in sites)

    def layer(self, j: int, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        x = self.resnets[j](x, c)
        if not self.attentions:
            return x
        attention = self.attentions[j]
        return attention(x, *reads[attention.site])


class DownBlock(Layers):
    """The layers of one depth on the way down, then half the size; each result is kept for the way up."""

    def __init__(self, config: IFConfig, depth: int):
        widths, layers = config.block_out_channels, config.layers[depth]
        width, above = widths[depth], widths[max(depth - 1, 0)]
        super().__init__(
            config, config.down_block_types[depth], [above] + [width] * (layers - 1), width
        )
        self.downsamplers = nn.ModuleList()
        if depth < len(widths) - 1:
            self.downsamplers.append(ResNet(config, width, width, resample=nn.AvgPool2d(2)))

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> list[Tensor]:
        made = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, c, reads)
            made.append(x)
        return made + [downsampler(x, c) for downsampler in self.downsamplers]


class MidBlock(nn.Module):
    """ResNet, site, ResNet at the smallest size."""

    def __init__(self, config: IFConfig):
        super().__init__()
        width, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.resnets = nn.ModuleList(
            ResNet(config, width, width, out_scale=scale) for _ in range(2)
        )
        self.attentions = nn.ModuleList([AddedAttention(config, width)])

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        attention = self.attentions[0]
        x = attention(self.resnets[0](x, c), *reads[attention.site])
        return self.resnets[1](x, c)


class UpBlock(Layers):
    """The layers of one depth on the way up, each beside what was kept last, then double the size."""

    def __init__(self, config: IFConfig, depth: int):
        widths, layers = config.block_out_channels, config.layers[depth]
        above, width, below = (
            widths[max(depth - 1, 0)],
            widths[depth],
            widths[min(depth + 1, len(widths) - 1)],
        )
        widths_in = [a + b for a, b in zip([below] + [width] * layers, [width] * layers + [above])]
        super().__init__(config, config.up_block_types[-1 - depth], widths_in, width)
        self.upsamplers = nn.ModuleList()
        if depth > 0:
            self.upsamplers.append(
                ResNet(config, width, width, resample=nn.Upsample(scale_factor=2))
            )

    def forward(self, x: Tensor, kept: list[Tensor], c: Tensor, reads: dict[str, tuple]) -> Tensor:
        for j in range(len(self.resnets)):
            x = self.layer(j, torch.cat([x, kept[-1 - j]], dim=1), c, reads)
        for upsampler in self.upsamplers:
            x = upsampler(x, c)
        return x


class DeepFloydIF(nn.Module):
    """denoiser(x, t, text) -> noise and variance; see the module docstring.

    x (B, 3, H, W) noisy pictures; t scalar or (B,) in 0..1000; text tokens (R, T, encoder_hid_dim) or the bank
    that `text_kv` makes of them, pooled (B, E) or None: then it is `pool` of the tokens.
    slots: None, or one entry per site: None, int (B, H or 1, T), or a pair of these, keys' and values'.
    Stage II also reads low (B, 3, H, W), the small pictures brought to x's size, and level, scalar or (B,), the
    timestep of the noise in them.  Returns (B, out_channels, H, W), x's dtype.
    Raises PatchError for channels and widths of another model, sizes that do not halve, rows that do not match, and low
    or level missing or unread.
    """

    text_is_static = True  # every site reads the same tokens, whatever the depth and the step

    def __init__(self, config: IFConfig = IFConfig()):
        super().__init__()
        self.config = config
        first, width, depths = (
            config.block_out_channels[0],
            config.embedding_width,
            range(len(config.layers)),
        )
        self.time_embedding = TwoLayer(first, width, F.gelu)
        self.class_embedding = TwoLayer(first, width, F.gelu) if config.class_embed_type else None
        self.add_embedding = PooledText(config)
        self.encoder_hid_proj = nn.Linear(config.encoder_hid_dim, config.cross_attention_dim)
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, depth) for depth in depths)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, depth) for depth in reversed(depths))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, first)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)
        # the blocks are registered in the order they run in, so this is the order of the sites
        self.site_names = [
            name for name, part in self.named_modules() if isinstance(part, AddedAttention)
        ]
        for name in self.site_names:
            self.get_submodule(name).site = name

    @property
    def sites(self) -> tuple[Site, ...]:
        modules = [self.get_submodule(name) for name in self.site_names]
        return tuple(
            make_site(i, name, "added", module, module.heads, self.config.attention_head_dim)
            for i, (name, module) in enumerate(zip(self.site_names, modules))
        )

    def pool(self, tokens: Tensor) -> Tensor:
        """The pooled vectors (R, E) of tokens (R, T, encoder_hid_dim)."""
        return self.add_embedding(tokens)

    @property
    def text_modules(self) -> list[str]:
        """The modules that `text_kv` calls."""
        parts = ("norm_cross", "add_k_proj", "add_v_proj")
        return [
            "encoder_hid_proj",
            *(f"{name}.{part}" for name in self.site_names for part in parts),
        ]

    def text_kv(self, text: TextCondition) -> tuple[tuple[Tensor, Tensor], ...]:
        """The bank: keys and values of each site, each (R, H, T, D), to stand in place of text.tokens."""
        self._require_width(text.tokens)
        tokens = self.encoder_hid_proj(text.tokens)
        return tuple(self.get_submodule(name).text_kv(tokens) for name in self.site_names)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: TextCondition,
        *,
        slots=None,
        low: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        self._require(x, text, low, level)
        c = self._embed(x, t, text, level)  # (B, E)
        tokens = (
            text.tokens if isinstance(text.tokens, tuple) else self.encoder_hid_proj(text.tokens)
        )
        reads = site_reads(tokens, slots, self.site_names)
        kept = [self.conv_in(x if low is None else torch.cat([x, low], dim=1))]
        for block in self.down_blocks:
            kept += block(kept[-1], c, reads)
        x = self.mid_block(kept[-1], c, reads)
        for block in self.up_blocks:
            x = block(x, kept, c, reads)
            kept = kept[: -len(block.resnets)]  # a new list: a block that runs again joins the same
        return self.conv_out(F.gelu(self.conv_norm_out(x)))

    def _require(
        self, x: Tensor, text: TextCondition, low: Tensor | None, level: Tensor | None
    ) -> None:
        if x.shape[1] != self.config.latent_channels:
            raise PatchError(
                f"x has {x.shape[1]} channels; this model takes {self.config.latent_channels}"
            )
        if not isinstance(text.tokens, tuple):
            self._require_width(text.tokens)
        (height, width), multiple = x.shape[-2:], 2 ** (len(self.down_blocks) - 1)
        if height % multiple or width % multiple:
            raise PatchError(
                f"picture of {height}x{width}; both sides must be multiples of {multiple}"
            )
        given = [name for name, value in (("low", low), ("level", level)) if value is not None]
        if given != (["low", "level"] if self.class_embedding else []):
            stage, found = "II" if self.class_embedding else "I", " and ".join(given) or "neither"
            raise PatchError(
                f"stage II reads low and level, stage I neither; this stage {stage} got {found}"
            )
        if low is not None and low.shape != x.shape:
            raise PatchError(
                f"low is {tuple(low.shape)} and x {tuple(x.shape)}; resize low to the size of x"
            )

    def _require_width(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.config.encoder_hid_dim:
            raise PatchError(
                f"text.tokens are {tokens.shape[-1]} wide; this model reads {self.config.encoder_hid_dim}"
            )

    def _embed(self, x: Tensor, t: Tensor, text: TextCondition, level: Tensor | None) -> Tensor:
        """(B, E): the time, in stage II the level of noise in `low`, and the pooled text."""
        c = self.time_embedding(self._sinusoids(t, x))
        if level is not None:
            c = c + self.class_embedding(self._sinusoids(level, x))
        c = c + self._pooled(text, len(x))
        if self.config.time_embedding_act_fn:
            c = F.gelu(c)
        # as published every ResNet takes this activation; it is the same in all, so it is taken once, here
        return c if self.config.resnet_skip_time_act else F.gelu(c)

    def _sinusoids(self, t: Tensor, x: Tensor) -> Tensor:
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        return timestep_sinusoids(t, self.config.block_out_channels[0]).to(x.dtype)

    def _pooled(self, text: TextCondition, rows: int) -> Tensor:
        if text.pooled is None and isinstance(text.tokens, tuple):
            raise PatchError(
                "text.tokens is a bank, which cannot be pooled; pass pooled=model.pool(tokens)"
            )
        pooled = self.pool(text.tokens) if text.pooled is None else text.pooled
        if len(pooled) != rows:
            raise PatchError(
                f"{len(pooled)} pooled vectors for {rows} rows of x; pass one for each"
            )
        return pooled
