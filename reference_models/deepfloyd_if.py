"""DeepFloyd IF, a U-Net on pixels.   Stage I draws a small picture, stage II a larger one from it.

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
    Denoiser,
    Tables,
    TextCondition,
    TwoLayer,
    depths_with_sites,
    has_sites,
    per_row,
    require_multiple,
    site_reads,
    timestep_sinusoids,
)
from textpatch.sites import Sites, make_site

# groups of every `norm_cross`; norm_num_groups is for the norms of pixels
CROSS_GROUPS = 32
# published types of blocks, the second of each pair with sites
DOWN, CROSS_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, CROSS_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
KNOWN = {
    "down_block_types": (DOWN, CROSS_DOWN),
    "up_block_types": (UP, CROSS_UP),
    "class_embed_type": (None, "timestep"),
    "time_embedding_act_fn": (None, "gelu"),
}


@dataclass(frozen=True)
class IFConfig:
    """Sizes of a DeepFloyd IF U-Net, with the names and defaults published for IF-I-XL.

    Raises PatchError for sizes that do not fit each other and for types that IF does not have.
    """

    sample_size: int | None = 64  # height and width of the pictures the model was trained on
    in_channels: int = 3
    out_channels: int = 6  # the noise, and what sets its variance
    block_out_channels: tuple[int, ...] = (704, 1408, 2112, 2816)
    layers_per_block: int | tuple[int, ...] = 3  # on the way down; there is one more on the way up
    down_block_types: tuple[str, ...] = (DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN)
    up_block_types: tuple[str, ...] = (CROSS_UP, CROSS_UP, CROSS_UP, UP)
    attention_head_dim: int = 64
    cross_attention_dim: int = 2816  # width of the text tokens that the sites read
    encoder_hid_dim: int = 4096  # width of the text encoder's tokens
    addition_embed_type_num_heads: int = 64  # heads of the attention that pools them
    norm_num_groups: int = 32
    class_embed_type: str | None = None  # "timestep" in stage II, which reads `low` and its `level`
    only_cross_attention: bool = False  # True in stage II: pixels read the text and not each other
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    time_embedding_act_fn: str | None = None
    time_embedding_dim: int | None = None  # None is four times the first width

    def __post_init__(self) -> None:
        for field, known in KNOWN.items():
            values = getattr(self, field)
            if not isinstance(values, (tuple, list)):
                values = [values]
            for found in values:
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
        for width in widths:
            require_multiple("block_out_channels", width, self.norm_num_groups, "norm_num_groups")
        for depth in depths_with_sites(self.down_block_types, self.up_block_types):
            head_dim = self.attention_head_dim
            require_multiple("block_out_channels", widths[depth], head_dim, "attention_head_dim")
        require_multiple("block_out_channels", widths[0], 2, "cosines and sines of the time")
        width = self.cross_attention_dim
        require_multiple("cross_attention_dim", width, CROSS_GROUPS, "groups of norm_cross")
        heads = self.addition_embed_type_num_heads
        width = self.encoder_hid_dim
        require_multiple("encoder_hid_dim", width, heads, "addition_embed_type_num_heads")
        if self.class_embed_type:
            require_multiple("in_channels", self.in_channels, 2, "pictures, x and low")

    @property
    def layers(self) -> tuple[int, ...]:
        """Value of layers_per_block at each depth."""
        if isinstance(self.layers_per_block, int):
            return (self.layers_per_block,) * len(self.block_out_channels)
        return tuple(self.layers_per_block)

    @property
    def latent_channels(self) -> int:
        """Channels of x.   In stage II they are half of in_channels, and those of `low` the other half."""
        if self.class_embed_type:
            return self.in_channels // 2
        return self.in_channels

    @property
    def embedding_width(self) -> int:
        """Width E of the vector that modulates every ResNet."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


class AttentionPool(nn.Module):
    """Attention from the tokens' mean, plus a learned vector, to itself and to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
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
        q = self.split(self.q_proj(mean))  # (R, H, 1, D)
        k = self.split(self.k_proj(tokens))  # (R, H, 1 + T, D)
        v = self.split(self.v_proj(tokens))
        # as published, q and k are both scaled, and the softmax is float32 in every run
        scale = q.shape[-1] ** -0.25
        weights = ((q * scale) @ (k * scale).mT).float().softmax(-1).to(v.dtype)  # (R, H, 1, 1 + T)
        return rearrange(weights @ v, "r h 1 d -> r (h d)")


class PooledText(nn.Module):
    """Pooling of the text encoder's tokens (R, T, C) to one vector (R, E), which is added to the time's."""

    def __init__(self, config: IFConfig) -> None:
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
    ) -> None:
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
    """Pixels attend to pixels and to text, whose keys and values are a site.

    GLIDE (arXiv 2112.10741) has this attention.
    x + out(softmax(q [k_image; k_text[slots]]^T / sqrt(D)) [v_image; v_text[slots]])

    With only_cross_attention there are no image keys and values.  `norm_cross` takes its mean and variance
    over all tokens of a row, so that one token's key and value depend on the whole prompt and its padding.
    """

    site: (
        str  # name of this module, set by the model: `reads` holds what the site reads by this name
    )

    def __init__(self, config: IFConfig, width: int) -> None:
        super().__init__()
        self.heads = width // config.attention_head_dim
        self.only_text = config.only_cross_attention
        self.group_norm = nn.GroupNorm(config.norm_num_groups, width)
        self.norm_cross = nn.GroupNorm(CROSS_GROUPS, config.cross_attention_dim)
        self.to_q = nn.Linear(width, width)
        if not self.only_text:
            self.to_k = nn.Linear(width, width)
            self.to_v = nn.Linear(width, width)
        self.add_k_proj = nn.Linear(config.cross_attention_dim, width)
        self.add_v_proj = nn.Linear(config.cross_attention_dim, width)
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
        q = self.split(self.to_q(pixels))  # (B, H, N, D)
        k_image, v_image = self.image_kv(pixels)
        out, _ = segment_attention(
            (q, None), (k_image, k_text), (v_image, v_text), slots_k=slots[0], slots_v=slots[1]
        )
        out = self.to_out[0](rearrange(out, "b h n d -> b n (h d)"))
        return x + out.mT.reshape(x.shape)


class Layers(nn.Module):
    """ResNets, each followed by a site where the type of block has sites."""

    def __init__(self, config: IFConfig, block_type: str, widths_in: list[int], width: int) -> None:
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
    """Layers of one depth on the way down, then half the size.   Returns each result as a skip."""

    def __init__(self, config: IFConfig, depth: int) -> None:
        widths = config.block_out_channels
        width = widths[depth]
        above = widths[max(depth - 1, 0)]
        widths_in = [above] + [width] * (config.layers[depth] - 1)
        super().__init__(config, config.down_block_types[depth], widths_in, width)
        self.downsamplers = nn.ModuleList()
        if depth < len(widths) - 1:
            self.downsamplers.append(ResNet(config, width, width, resample=nn.AvgPool2d(2)))

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> list[Tensor]:
        skips = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, c, reads)
            skips.append(x)
        for downsampler in self.downsamplers:
            skips.append(downsampler(x, c))
        return skips


class MidBlock(nn.Module):
    """ResNet, site, ResNet at the smallest size."""

    def __init__(self, config: IFConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        scale = config.mid_block_scale_factor
        self.resnets = nn.ModuleList(
            ResNet(config, width, width, out_scale=scale) for _ in range(2)
        )
        self.attentions = nn.ModuleList([AddedAttention(config, width)])

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        attention = self.attentions[0]
        x = self.resnets[0](x, c)
        x = attention(x, *reads[attention.site])
        return self.resnets[1](x, c)


class UpBlock(Layers):
    """Layers of one depth on the way up, each beside its skip, then double the size."""

    def __init__(self, config: IFConfig, depth: int) -> None:
        widths = config.block_out_channels
        layers = config.layers[depth]
        width = widths[depth]
        above = widths[max(depth - 1, 0)]
        below = widths[min(depth + 1, len(widths) - 1)]
        widths_x = [below] + [width] * layers
        widths_skip = [width] * layers + [above]
        widths_in = [x + skip for x, skip in zip(widths_x, widths_skip, strict=True)]
        super().__init__(config, config.up_block_types[-1 - depth], widths_in, width)
        self.upsamplers = nn.ModuleList()
        if depth > 0:
            double = nn.Upsample(scale_factor=2)
            self.upsamplers.append(ResNet(config, width, width, resample=double))

    def forward(self, x: Tensor, skips: list[Tensor], c: Tensor, reads: dict[str, tuple]) -> Tensor:
        """Read this depth's skips, the last of `skips`, from the last to the first."""
        for j in range(len(self.resnets)):
            x = self.layer(j, torch.cat([x, skips[-1 - j]], dim=1), c, reads)
        for upsampler in self.upsamplers:
            x = upsampler(x, c)
        return x


class DeepFloydIF(Denoiser):
    """Denoiser of DeepFloyd IF, denoiser(x, t, text) -> noise and variance.

    x      (B, 3, H, W) noisy pictures
    t      scalar or (B,), timesteps in 0..1000
    text   tokens (R, T, encoder_hid_dim) or the bank that `text_kv` makes of them, and pooled (B, E);
           pooled None stands for `pool` of the tokens
    slots  None, or one entry per site: None, int (B, H or 1, T), or a pair of these for keys and values
    low    in stage II alone, (B, 3, H, W), the small pictures brought to x's size
    level  in stage II alone, scalar or (B,), the timestep of the noise in low

    Returns (B, out_channels, H, W) in x's dtype.
    Raises PatchError for channels and widths of another model, sizes that do not halve, rows that do not
    match, and low or level missing or unread.
    """

    family = "DeepFloyd IF"
    text_is_static = True  # every site reads the same tokens, whatever the depth and the step

    def __init__(self, config: IFConfig = IFConfig()) -> None:
        super().__init__()
        self.config = config
        first = config.block_out_channels[0]
        width = config.embedding_width
        depths = range(len(config.layers))
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
        # the blocks are registered in the order in which they run, and so are the sites
        self.site_names = [
            name for name, part in self.named_modules() if isinstance(part, AddedAttention)
        ]
        for name in self.site_names:
            self.get_submodule(name).site = name

    @property
    def sites(self) -> Sites:
        sites = []
        for index, name in enumerate(self.site_names):
            attention = self.get_submodule(name)
            head_dim = self.config.attention_head_dim
            sites.append(make_site(index, name, "added", attention, attention.heads, head_dim))
        return Sites(sites)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pooled vectors (R, E) of tokens (R, T, encoder_hid_dim)."""
        return self.called("add_embedding", tokens)

    @property
    def text_modules(self) -> list[str]:
        """Names of the modules that `text_kv` calls."""
        parts = ("norm_cross", "add_k_proj", "add_v_proj")
        of_sites = [f"{name}.{part}" for name in self.site_names for part in parts]
        return ["encoder_hid_proj", *of_sites]

    def text_kv(self, text: TextCondition) -> tuple[tuple[Tensor, Tensor], ...]:
        """Bank in place of text.tokens, the keys and values (R, H, T, D) of each site."""
        self._require_width(text.tokens)
        tokens = self.called("encoder_hid_proj", text.tokens)
        return self.bank_of(tokens)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: TextCondition,
        *,
        slots: Tables = None,
        low: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        self._require(x, text, low, level)
        c = self._embed(x, t, text, level)  # (B, E)
        tokens = text.tokens
        if not isinstance(tokens, tuple):
            tokens = self.encoder_hid_proj(tokens)
        reads = site_reads(tokens, slots, self.site_names)
        if low is not None:
            x = torch.cat([x, low], dim=1)
        skips = [self.conv_in(x)]
        for block in self.down_blocks:
            skips += block(skips[-1], c, reads)
        x = self.mid_block(skips[-1], c, reads)
        for block in self.up_blocks:
            x = block(x, skips, c, reads)
            # a new list, so that a block which checkpointing runs again finds the same skips
            skips = skips[: -len(block.resnets)]
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
        height, width = x.shape[-2:]
        multiple = 2 ** (len(self.down_blocks) - 1)
        if height % multiple or width % multiple:
            raise PatchError(
                f"picture of {height}x{width}; both sides must be multiples of {multiple}"
            )
        self._require_stage(low, level)
        if low is not None and low.shape != x.shape:
            raise PatchError(
                f"low is {tuple(low.shape)} and x {tuple(x.shape)}; resize low to the size of x"
            )

    def _require_stage(self, low: Tensor | None, level: Tensor | None) -> None:
        stage, reads = "I", []
        if self.class_embedding:
            stage, reads = "II", ["low", "level"]
        given = [name for name, value in (("low", low), ("level", level)) if value is not None]
        if given != reads:
            found = " and ".join(given) or "neither"
            raise PatchError(
                f"stage II reads low and level, stage I neither; this stage {stage} got {found}"
            )

    def _require_width(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.config.encoder_hid_dim:
            raise PatchError(
                f"text.tokens are {tokens.shape[-1]} wide; "
                f"this model reads {self.config.encoder_hid_dim}"
            )

    def _embed(self, x: Tensor, t: Tensor, text: TextCondition, level: Tensor | None) -> Tensor:
        """Embedding (B, E) of the time, the pooled text and, in stage II, the level of noise in `low`."""
        c = self.time_embedding(self._sinusoids(t, x))
        if level is not None:
            c = c + self.class_embedding(self._sinusoids(level, x))
        c = c + self._pooled(text, len(x))
        if self.config.time_embedding_act_fn:
            c = F.gelu(c)
        # the published ResNets each take this activation, which is the same in all, so one here is enough
        if not self.config.resnet_skip_time_act:
            c = F.gelu(c)
        return c

    def _sinusoids(self, t: Tensor, x: Tensor) -> Tensor:
        return timestep_sinusoids(per_row(t, x), self.config.block_out_channels[0]).to(x.dtype)

    def _pooled(self, text: TextCondition, rows: int) -> Tensor:
        pooled = text.pooled
        if pooled is None:
            if isinstance(text.tokens, tuple):
                raise PatchError(
                    "text.tokens is a bank, which cannot be pooled; pass pooled=model.pool(tokens)"
                )
            pooled = self.add_embedding(text.tokens)
        if len(pooled) != rows:
            raise PatchError(
                f"{len(pooled)} pooled vectors for {rows} rows of x; pass one for each"
            )
        return pooled
