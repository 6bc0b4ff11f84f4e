"""U-Net of Stable Diffusion 1, 2 and XL, ResNets and transformers on latents that cross-attend to the text.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022 (arXiv 2112.10752).
SDXL (Podell et al., 2023, arXiv 2307.01952, section 2.1) adds a pooled text and sizes to the embedding.
Module names are the diffusers layout's; the defaults of `SDConfig` are Stable Diffusion 1.5, those of
`SDXLConfig` SDXL base 1.0.

B rows, R text rows, T text tokens, N latent pixels at a depth, W width there = H heads x D, E width of the
embedding
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

# published types of blocks, the second of each pair with sites
DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
TYPES = {"down_block_types": (DOWN, CROSS_DOWN), "up_block_types": (UP, CROSS_UP)}
COUNTS = ("transformer_layers_per_block", "attention_head_dim")


@dataclass(frozen=True)
class SDConfig:
    """Sizes of a Stable Diffusion U-Net, with the names and defaults published for 1.5.

    Raises PatchError for sizes that do not fit each other and for block types that it does not have.
    """

    sample_size: int | None = 64  # latent height and width the model was trained at
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # the width of each depth
    layers_per_block: int = 2  # on the way down; there is one more on the way up
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)
    up_block_types: tuple[str, ...] = (UP, CROSS_UP, CROSS_UP, CROSS_UP)
    # blocks in each transformer of a depth
    transformer_layers_per_block: tuple[int, ...] = (1, 1, 1, 1)
    # the NUMBER of heads, published under this name
    attention_head_dim: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768  # width of the text tokens
    norm_num_groups: int = 32
    # the projections around each transformer: a Linear from version 2 on, before it a 1x1 convolution
    use_linear_projection: bool = False

    def __post_init__(self) -> None:
        for field, known in TYPES.items():
            for found in self._of_each_depth(field):
                if found not in known:
                    raise PatchError(
                        f"{field} has {found!r}; this U-Net has {known[0]!r} and {known[1]!r}"
                    )
        _require_counts("layers_per_block", (self.layers_per_block,))
        for field in COUNTS:
            _require_counts(field, self._of_each_depth(field))
        self._require_widths()

    def _of_each_depth(self, field: str) -> tuple:
        """Value of a field that holds one entry per depth."""
        value = getattr(self, field)
        depths = len(self.block_out_channels)
        if not isinstance(value, tuple) or len(value) != depths:
            raise PatchError(
                f"{field} is {value!r}; {depths} block_out_channels need a tuple of {depths}"
            )
        return value

    def _require_widths(self):
        widths = self.block_out_channels
        for width in widths:
            require_multiple("block_out_channels", width, self.norm_num_groups, "norm_num_groups")
        for depth in depths_with_sites(self.down_block_types, self.up_block_types):
            heads = self.attention_head_dim[depth]
            require_multiple("block_out_channels", widths[depth], heads, "attention_head_dim")
        require_multiple("block_out_channels", widths[0], 2, "cosines and sines of the time")

    @property
    def embedding_width(self) -> int:
        """Width E of the vector that modulates every ResNet."""
        return 4 * self.block_out_channels[0]


@dataclass(frozen=True)
class SDXLConfig(SDConfig):
    """Sizes of an SDXL U-Net, with the names and defaults published for SDXL base 1.0.

    Raises PatchError as `SDConfig` does.
    """

    sample_size: int | None = 128
    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    down_block_types: tuple[str, ...] = (DOWN, CROSS_DOWN, CROSS_DOWN)
    up_block_types: tuple[str, ...] = (CROSS_UP, CROSS_UP, UP)
    transformer_layers_per_block: tuple[int, ...] = (1, 2, 10)
    attention_head_dim: tuple[int, ...] = (5, 10, 20)
    cross_attention_dim: int = 2048
    use_linear_projection: bool = True
    addition_time_embed_dim: int = 256  # sinusoids of each of the six micro numbers
    projection_class_embeddings_input_dim: int = 2816  # pooled text beside the sinusoids of all six

    def _require_widths(self):
        super()._require_widths()
        sines = self.addition_time_embed_dim
        require_multiple("addition_time_embed_dim", sines, 2, "cosines and sines")
        if self.pooled_width < 1:
            raise PatchError(
                "projection_class_embeddings_input_dim is "
                f"{self.projection_class_embeddings_input_dim}, "
                f"and six times addition_time_embed_dim {6 * sines}; "
                "the first must be larger by the width of the pooled text"
            )

    @property
    def pooled_width(self) -> int:
        """Width P of the pooled text, the input of `add_embedding` without the six micro numbers."""
        return self.projection_class_embeddings_input_dim - 6 * self.addition_time_embed_dim


def _require_counts(field: str, values: tuple) -> None:
    for found in values:
        if not isinstance(found, int) or found < 1:
            raise PatchError(f"{field} has {found!r}; give whole numbers from 1 on there")


class ResNet(nn.Module):
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(silu(c)))))."""

    def __init__(self, config: SDConfig, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_num_groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.embedding_width, width)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(c))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Projections of an attention that reads vectors `width_read` wide.   Only the last has a bias."""

    def __init__(self, width: int, heads: int, width_read: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width_read, width, bias=False)
        self.to_v = nn.Linear(width_read, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def out(self, x: Tensor) -> Tensor:
        return self.to_out[0](rearrange(x, "b h n d -> b n (h d)"))


class SelfAttention(Attention):
    """Latent pixels attend to each other."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.split(self.to_q(x))  # (B, H, N, D)
        k = self.split(self.to_k(x))
        v = self.split(self.to_v(x))
        return self.out(F.scaled_dot_product_attention(q, k, v))


class CrossAttention(Attention):
    """Latent pixels attend to the text, whose keys and values are a site.

    softmax(q k_text[slots]^T / sqrt(D)) v_text[slots]
    """

    site: (
        str  # name of this module, set by the model: `reads` holds what the site reads by this name
    )

    def text_kv(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (R, H, T, D), of tokens (R, T, cross_attention_dim)."""
        return self.split(self.to_k(tokens)), self.split(self.to_v(tokens))

    def forward(self, x: Tensor, text: Tensor | tuple[Tensor, Tensor], slots) -> Tensor:
        k, v = text if isinstance(text, tuple) else self.text_kv(text)
        q = self.split(self.to_q(x))  # (B, H, N, D)
        out, _ = segment_attention(
            (q, None), (None, k), (None, v), slots_k=slots[0], slots_v=slots[1]
        )
        return self.out(out)


class FeedForward(nn.Module):
    """GEGLU (arXiv 2002.05202), a Linear to twice four widths, value x gelu(gate), and a Linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        up = nn.Module()
        up.proj = nn.Linear(width, 8 * width)
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0].proj(x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward, each of a normalised x and added to x."""

    def __init__(self, config: SDConfig, depth: int) -> None:
        super().__init__()
        width = config.block_out_channels[depth]
        heads = config.attention_head_dim[depth]
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.attn1 = SelfAttention(width, heads, width)
        self.attn2 = CrossAttention(width, heads, config.cross_attention_dim)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Tensor | tuple[Tensor, Tensor], slots) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text, slots)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Blocks over the latent pixels of one depth, between two projections, added to its input."""

    def __init__(self, config: SDConfig, depth: int) -> None:
        super().__init__()
        width = config.block_out_channels[depth]
        blocks = config.transformer_layers_per_block[depth]
        linear = config.use_linear_projection
        self.norm = nn.GroupNorm(config.norm_num_groups, width, eps=1e-6)  # 1e-5 everywhere else
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(Block(config, depth) for _ in range(blocks))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, reads: dict[str, tuple]) -> Tensor:
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")  # (B, N, W)
        pixels = projected(self.proj_in, pixels)
        for block in self.transformer_blocks:
            pixels = block(pixels, *reads[block.attn2.site])
        pixels = projected(self.proj_out, pixels)
        return x + rearrange(pixels, "b (h w) c -> b c h w", h=x.shape[2])


def projected(projection: nn.Linear | nn.Conv2d, pixels: Tensor) -> Tensor:
    """Pixels (B, N, W) through a Linear, or through a 1x1 convolution, which reads them as a picture."""
    if isinstance(projection, nn.Linear):
        return projection(pixels)
    return projection(pixels.mT[..., None])[..., 0].mT


class Downsample(nn.Module):
    """Half the size, odd ones rounded up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double the size, less one where halving rounded up on the way down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size, mode="nearest"))


class Layers(nn.Module):
    """ResNets, each followed by a transformer where the type of block has sites."""

    def __init__(self, config: SDConfig, block_type: str, widths_in: list[int], depth: int) -> None:
        super().__init__()
        width = config.block_out_channels[depth]
        self.resnets = nn.ModuleList(ResNet(config, width_in, width) for width_in in widths_in)
        transformers = widths_in if has_sites(block_type) else []
        self.attentions = nn.ModuleList(Transformer(config, depth) for _ in transformers)

    def layer(self, j: int, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        x = self.resnets[j](x, c)
        return self.attentions[j](x, reads) if self.attentions else x


class DownBlock(Layers):
    """Layers of one depth on the way down, then half the size.   Returns each result as a skip."""

    def __init__(self, config: SDConfig, depth: int) -> None:
        widths = config.block_out_channels
        width = widths[depth]
        above = widths[max(depth - 1, 0)]
        widths_in = [above] + [width] * (config.layers_per_block - 1)
        super().__init__(config, config.down_block_types[depth], widths_in, depth)
        last = depth == len(widths) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> list[Tensor]:
        skips = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, c, reads)
            skips.append(x)
        for downsampler in self.downsamplers:
            skips.append(downsampler(x))
        return skips


class MidBlock(nn.Module):
    """ResNet, transformer, ResNet at the smallest size."""

    def __init__(self, config: SDConfig) -> None:
        super().__init__()
        depth = len(config.block_out_channels) - 1
        width = config.block_out_channels[depth]
        self.resnets = nn.ModuleList(ResNet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(config, depth)])

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        x = self.resnets[0](x, c)
        x = self.attentions[0](x, reads)
        return self.resnets[1](x, c)


class UpBlock(Layers):
    """Layers of one depth on the way up, each beside its skip, then the size of the depth above."""

    def __init__(self, config: SDConfig, depth: int) -> None:
        widths = config.block_out_channels
        layers = config.layers_per_block
        width = widths[depth]
        above = widths[max(depth - 1, 0)]
        below = widths[min(depth + 1, len(widths) - 1)]
        widths_x = [below] + [width] * layers
        widths_skip = [width] * layers + [above]
        widths_in = [x + skip for x, skip in zip(widths_x, widths_skip, strict=True)]
        super().__init__(config, config.up_block_types[-1 - depth], widths_in, depth)
        self.upsamplers = nn.ModuleList([Upsample(width)] if depth > 0 else [])

    def forward(self, x: Tensor, skips: list[Tensor], c: Tensor, reads: dict[str, tuple]) -> Tensor:
        """Read this depth's skips, the last of `skips`, from the last to the first."""
        for j in range(len(self.resnets)):
            x = self.layer(j, torch.cat([x, skips[-1 - j]], dim=1), c, reads)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1 - len(self.resnets)].shape[-2:])
        return x


class StableDiffusion(Denoiser):
    """Denoiser of Stable Diffusion 1 and 2, denoiser(x, t, text) -> noise, or v where it was so trained.

    x      (B, in_channels, H, W) latents
    t      scalar or (B,), timesteps in 0..1000
    text   tokens (R, T, cross_attention_dim), or the bank that `text_kv` makes of them, and no more
    slots  None, or one entry per site: None, int (B, H or 1, T), or a pair of these for keys and values

    Returns (B, out_channels, H, W) in x's dtype.
    Raises PatchError for channels and widths that do not fit, and for a text with parts that nothing reads.
    """

    family = "Stable Diffusion 1 and 2"
    text_is_static = True  # every site reads the same tokens, whatever the depth and the step

    def __init__(self, config: SDConfig = SDConfig()) -> None:
        super().__init__()
        self.config = config
        first = config.block_out_channels[0]
        depths = range(len(config.block_out_channels))
        self.time_embedding = TwoLayer(first, config.embedding_width)
        self.register_module("add_embedding", None)  # SDXL has one
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, depth) for depth in depths)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, depth) for depth in reversed(depths))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, first)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)
        # the blocks are registered in the order in which they run, and so are the sites
        self.site_names = [
            name for name, part in self.named_modules() if isinstance(part, CrossAttention)
        ]
        for name in self.site_names:
            self.get_submodule(name).site = name

    @property
    def sites(self) -> Sites:
        sites = []
        for index, name in enumerate(self.site_names):
            attention = self.get_submodule(name)
            head_dim = attention.to_q.out_features // attention.heads
            sites.append(make_site(index, name, "cross", attention, attention.heads, head_dim))
        return Sites(sites)

    @property
    def text_modules(self) -> list[str]:
        """Names of the modules that `text_kv` calls."""
        return [f"{name}.{part}" for name in self.site_names for part in ("to_k", "to_v")]

    def text_kv(self, text: TextCondition) -> tuple[tuple[Tensor, Tensor], ...]:
        """Bank in place of text.tokens, the keys and values (R, H, T, D) of each site."""
        self._require_width(text.tokens)
        return self.bank_of(text.tokens)

    def forward(self, x: Tensor, t: Tensor, text: TextCondition, *, slots: Tables = None) -> Tensor:
        if x.shape[1] != self.config.in_channels:
            raise PatchError(
                f"x has {x.shape[1]} channels; this model takes {self.config.in_channels}"
            )
        if not isinstance(text.tokens, tuple):
            self._require_width(text.tokens)
        c = self._embed(x, t, text)  # (B, E)
        reads = site_reads(text.tokens, slots, self.site_names)
        skips = [self.conv_in(x)]
        for block in self.down_blocks:
            skips += block(skips[-1], c, reads)
        x = self.mid_block(skips[-1], c, reads)
        for block in self.up_blocks:
            x = block(x, skips, c, reads)
            # a new list, so that a block which checkpointing runs again finds the same skips
            skips = skips[: -len(block.resnets)]
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _require_width(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.config.cross_attention_dim:
            raise PatchError(
                f"text.tokens are {tokens.shape[-1]} wide; "
                f"this model reads {self.config.cross_attention_dim}"
            )

    def _embed(self, x: Tensor, t: Tensor, text: TextCondition) -> Tensor:
        """Embedding (B, E) of the time."""
        for name in ("pooled", "micro"):
            if getattr(text, name) is not None:
                raise PatchError(
                    f"text.{name} was given; Stable Diffusion 1 and 2 read tokens alone: leave it out"
                )
        return self._embed_time(x, t)

    def _embed_time(self, x: Tensor, t: Tensor) -> Tensor:
        time = timestep_sinusoids(per_row(t, x), self.config.block_out_channels[0]).to(x.dtype)
        return self.time_embedding(time)


class SDXL(StableDiffusion):
    """Denoiser of SDXL, denoiser(x, t, text) -> noise.

    text   tokens or bank as in `StableDiffusion`, pooled (B, P), and micro (B, 6): height and width of the
           original, top and left of the crop, height and width wanted, in pixels
    The other arguments are those of `StableDiffusion`.

    Returns (B, out_channels, H, W) in x's dtype.
    Raises PatchError for channels, widths and rows that do not fit, and for pooled or micro missing.
    """

    family = "Stable Diffusion XL"

    def __init__(self, config: SDXLConfig = SDXLConfig()) -> None:
        super().__init__(config)
        width = config.projection_class_embeddings_input_dim
        self.add_embedding = TwoLayer(width, config.embedding_width)

    def _embed(self, x: Tensor, t: Tensor, text: TextCondition) -> Tensor:
        """Embedding (B, E) of the time, the pooled text and the six micro numbers."""
        for name, width in (("pooled", self.config.pooled_width), ("micro", 6)):
            value = getattr(text, name)
            found = None if value is None else tuple(value.shape)
            if found != (len(x), width):
                raise PatchError(
                    f"text.{name} is {found}; {len(x)} rows of x need {(len(x), width)}"
                )
        time = self._embed_time(x, t)
        micro = timestep_sinusoids(text.micro.flatten(), self.config.addition_time_embed_dim)
        micro = micro.to(x.dtype).reshape(len(x), -1)  # (B, 6 sinusoids)
        return time + self.add_embedding(torch.cat([text.pooled, micro], dim=-1))
