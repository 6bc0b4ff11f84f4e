"""SDXL's U-Net: ResNets and transformers on latents, the text read by cross-attention.

Podell et al., "SDXL", 2023 (arXiv 2307.01952, section 2.1), after Rombach et al. (arXiv 2112.10752).
Module names are the diffusers layout's; the defaults of `SDXLConfig` are SDXL base 1.0.

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
    TextCondition,
    TwoLayer,
    site_reads,
    timestep_sinusoids,
)
from textpatch.sites import Site, make_site

TYPES = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
COUNTS = ("transformer_layers_per_block", "attention_head_dim")


def has_sites(block_type: str) -> bool:
    return block_type.startswith("CrossAttn")


@dataclass(frozen=True)
class SDXLConfig:
    """Sizes of an SDXL U-Net; names and defaults are the published configuration of SDXL base 1.0.

    Raises PatchError for sizes that do not fit each other and for block types that SDXL does not have.
    """

    sample_size: int | None = 128  # latent height and width the model was trained at
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280)  # the width of each depth
    layers_per_block: int = 2  # on the way down; there is one more on the way up
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
    )
    up_block_types: tuple[str, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    transformer_layers_per_block: tuple[int, ...] = (
        1,
        2,
        10,
    )  # blocks in each transformer of a depth
    attention_head_dim: tuple[int, ...] = (
        5,
        10,
        20,
    )  # published under this name, but the NUMBER of heads
    cross_attention_dim: int = 2048  # width of the text tokens
    addition_time_embed_dim: int = 256  # sinusoids of each of the six micro numbers
    projection_class_embeddings_input_dim: int = 2816  # pooled text beside the sinusoids of all six
    norm_num_groups: int = 32

    def __post_init__(self):
        for field, known in TYPES.items():
            for found in self._of_each_depth(field):
                if found not in known:
                    raise PatchError(
                        f"{field} has {found!r}; SDXL has {known[0]!r} and {known[1]!r}"
                    )
        counts = {field: self._of_each_depth(field) for field in COUNTS}
        for field, values in {"layers_per_block": (self.layers_per_block,), **counts}.items():
            for found in values:
                if not isinstance(found, int) or found < 1:
                    raise PatchError(
                        f"{field} has {found!r}; SDXL has whole numbers from 1 on there"
                    )
        self._require_widths()

    def _of_each_depth(self, field: str) -> tuple:
        value, depths = getattr(self, field), len(self.block_out_channels)
        if not isinstance(value, tuple) or len(value) != depths:
            raise PatchError(
                f"{field} is {value!r}; {depths} block_out_channels need a tuple of {depths}"
            )
        return value

    def _require_widths(self):
        widths = self.block_out_channels
        types = zip(
            widths, self.attention_head_dim, self.down_block_types, reversed(self.up_block_types)
        )
        split = [(width, heads) for width, heads, *both in types if any(map(has_sites, both))]
        split.append((widths[-1], self.attention_head_dim[-1]))  # the middle always has sites
        rules = [
            *(
                ("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
                for width in widths
            ),
            *(("block_out_channels", width, "attention_head_dim", heads) for width, heads in split),
            ("block_out_channels", widths[0], "cosines and sines of the time", 2),
            ("addition_time_embed_dim", self.addition_time_embed_dim, "cosines and sines", 2),
        ]
        for field, value, what, divisor in rules:
            if value % divisor:
                raise PatchError(f"{field} has {value}, which is no multiple of {divisor} ({what})")
        if self.pooled_width < 1:
            found, micro = (
                self.projection_class_embeddings_input_dim,
                6 * self.addition_time_embed_dim,
            )
            raise PatchError(
                f"projection_class_embeddings_input_dim is {found}, and six times addition_time_embed_dim {micro}; "
                "the first must be larger by the width of the pooled text"
            )

    @property
    def pooled_width(self) -> int:
        """P, what the six micro numbers leave of the input of `add_embedding`."""
        return self.projection_class_embeddings_input_dim - 6 * self.addition_time_embed_dim

    @property
    def embedding_width(self) -> int:
        """E, the width of the vector that modulates every ResNet."""
        return 4 * self.block_out_channels[0]


class ResNet(nn.Module):
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(silu(c)))))."""

    def __init__(self, config: SDXLConfig, width_in: int, width: int):
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
    """The projections of an attention to vectors `width_read` wide; only the last has a bias."""

    def __init__(self, width: int, heads: int, width_read: int):
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
        q, k, v = (
            self.split(project(x)) for project in (self.to_q, self.to_k, self.to_v)
        )  # (B, H, N, D)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class CrossAttention(Attention):
    """Latent pixels attend to the text, whose keys and values are a site.

    softmax(q k_text[slots]^T / sqrt(D)) v_text[slots]
    """

    site: str  # its name in the model, which sets it: what it reads is found by that

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
    """GEGLU (arXiv 2002.05202): Linear to twice four widths, value x gelu(gate), Linear back."""

    def __init__(self, width: int):
        super().__init__()
        up = nn.Module()
        up.proj = nn.Linear(width, 8 * width)
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0].proj(x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward, each of a normalised x and added to x."""

    def __init__(self, config: SDXLConfig, depth: int):
        super().__init__()
        width, heads = config.block_out_channels[depth], config.attention_head_dim[depth]
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = SelfAttention(width, heads, width)
        self.attn2 = CrossAttention(width, heads, config.cross_attention_dim)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Tensor | tuple[Tensor, Tensor], slots) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text, slots)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Blocks over the latent pixels of one depth, between two projections, added to its input."""

    def __init__(self, config: SDXLConfig, depth: int):
        super().__init__()
        width, blocks = config.block_out_channels[depth], config.transformer_layers_per_block[depth]
        self.norm = nn.GroupNorm(config.norm_num_groups, width, eps=1e-6)  # 1e-5 everywhere else
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(Block(config, depth) for _ in range(blocks))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, reads: dict[str, tuple]) -> Tensor:
        pixels = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))  # (B, N, W)
        for block in self.transformer_blocks:
            pixels = block(pixels, *reads[block.attn2.site])
        return x + rearrange(self.proj_out(pixels), "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Half the size, odd ones rounded up."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """The size of what was kept on the way down: twice x's, or one less where halving rounded up."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size, mode="nearest"))


class Layers(nn.Module):
    """ResNets, each followed by a transformer where the type of block has sites."""

    def __init__(self, config: SDXLConfig, block_type: str, widths_in: list[int], depth: int):
        super().__init__()
        width = config.block_out_channels[depth]
        self.resnets = nn.ModuleList(ResNet(config, width_in, width) for width_in in widths_in)
        transformers = widths_in if has_sites(block_type) else []
        self.attentions = nn.ModuleList(Transformer(config, depth) for _ in transformers)

    def layer(self, j: int, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        x = self.resnets[j](x, c)
        return self.attentions[j](x, reads) if self.attentions else x


class DownBlock(Layers):
    """The layers of one depth on the way down, then half the size; each result is kept for the way up."""

    def __init__(self, config: SDXLConfig, depth: int):
        widths, layers = config.block_out_channels, config.layers_per_block
        width, above = widths[depth], widths[max(depth - 1, 0)]
        super().__init__(
            config, config.down_block_types[depth], [above] + [width] * (layers - 1), depth
        )
        last = depth == len(widths) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> list[Tensor]:
        made = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, c, reads)
            made.append(x)
        return made + [downsampler(x) for downsampler in self.downsamplers]


class MidBlock(nn.Module):
    """ResNet, transformer, ResNet at the smallest size."""

    def __init__(self, config: SDXLConfig):
        super().__init__()
        depth = len(config.block_out_channels) - 1
        width = config.block_out_channels[depth]
        self.resnets = nn.ModuleList(ResNet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(config, depth)])

    def forward(self, x: Tensor, c: Tensor, reads: dict[str, tuple]) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, c), reads), c)


class UpBlock(Layers):
    """The layers of one depth on the way up, each beside what was kept last, then the size of what is next."""

    def __init__(self, config: SDXLConfig, depth: int):
        widths, layers = config.block_out_channels, config.layers_per_block
        above, width, below = (
            widths[max(depth - 1, 0)],
            widths[depth],
            widths[depth : depth + 2][-1],
        )
        widths_in = [a + b for a, b in zip([below] + [width] * layers, [width] * layers + [above])]
        super().__init__(config, config.up_block_types[-1 - depth], widths_in, depth)
        self.upsamplers = nn.ModuleList([Upsample(width)] if depth > 0 else [])

    def forward(self, x: Tensor, kept: list[Tensor], c: Tensor, reads: dict[str, tuple]) -> Tensor:
        for j in range(len(self.resnets)):
            x = self.layer(j, torch.cat([x, kept[-1 - j]], dim=1), c, reads)
        for upsampler in self.upsamplers:
            x = upsampler(x, kept[-1 - len(self.resnets)].shape[-2:])
        return x


class SDXL(nn.Module):
    """denoiser(x, t, text) -> noise; see the module docstring.

    x (B, in_channels, H, W) latents; t scalar or (B,) in 0..1000; text tokens (R, T, cross_attention_dim) or
    the bank that `text_kv` makes of them, pooled (B, P), micro (B, 6): height and width of the original, top
    and left of the crop, height and width wanted, in pixels.
    slots: None, or one entry per site: None, int (B, H or 1, T), or a pair of these, keys' and values'.
    Returns (B, out_channels, H, W), x's dtype.
    Raises PatchError for channels, widths and rows that do not fit, and for pooled or micro missing.
    """

    text_is_static = True  # every site reads the same tokens, whatever the depth and the step

    def __init__(self, config: SDXLConfig = SDXLConfig()):
        super().__init__()
        self.config = config
        first, width = config.block_out_channels[0], config.embedding_width
        depths = range(len(config.block_out_channels))
        self.time_embedding = TwoLayer(first, width)
        self.add_embedding = TwoLayer(config.projection_class_embeddings_input_dim, width)
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, depth) for depth in depths)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, depth) for depth in reversed(depths))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, first)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)
        # the blocks are registered in the order they run in, so this is the order of the sites
        self.site_names = [
            name for name, part in self.named_modules() if isinstance(part, CrossAttention)
        ]
        for name in self.site_names:
            self.get_submodule(name).site = name

    @property
    def sites(self) -> tuple[Site, ...]:
        modules = [self.get_submodule(name) for name in self.site_names]
        return tuple(
            make_site(
                i, name, "cross", module, module.heads, module.to_q.out_features // module.heads
            )
            for i, (name, module) in enumerate(zip(self.site_names, modules))
        )

    @property
    def text_modules(self) -> list[str]:
        """The modules that `text_kv` calls."""
        return [f"{name}.{part}" for name in self.site_names for part in ("to_k", "to_v")]

    def text_kv(self, text: TextCondition) -> tuple[tuple[Tensor, Tensor], ...]:
        """The bank: keys and values of each site, each (R, H, T, D), to stand in place of text.tokens."""
        self._require_width(text.tokens)
        return tuple(self.get_submodule(name).text_kv(text.tokens) for name in self.site_names)

    def forward(self, x: Tensor, t: Tensor, text: TextCondition, *, slots=None) -> Tensor:
        self._require(x, text)
        c = self._embed(x, t, text)  # (B, E)
        reads = site_reads(text.tokens, slots, self.site_names)
        kept = [self.conv_in(x)]
        for block in self.down_blocks:
            kept += block(kept[-1], c, reads)
        x = self.mid_block(kept[-1], c, reads)
        for block in self.up_blocks:
            x = block(x, kept, c, reads)
            kept = kept[: -len(block.resnets)]  # a new list: a block that runs again joins the same
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _require(self, x: Tensor, text: TextCondition) -> None:
        if x.shape[1] != self.config.in_channels:
            raise PatchError(
                f"x has {x.shape[1]} channels; this model takes {self.config.in_channels}"
            )
        if not isinstance(text.tokens, tuple):
            self._require_width(text.tokens)
        for name, width in (("pooled", self.config.pooled_width), ("micro", 6)):
            value = getattr(text, name)
            if value is None or value.shape != (len(x), width):
                found = None if value is None else tuple(value.shape)
                raise PatchError(
                    f"text.{name} is {found}; {len(x)} rows of x need {(len(x), width)}"
                )

    def _require_width(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.config.cross_attention_dim:
            raise PatchError(
                f"text.tokens are {tokens.shape[-1]} wide; this model reads {self.config.cross_attention_dim}"
            )

    def _embed(self, x: Tensor, t: Tensor, text: TextCondition) -> Tensor:
        """(B, E): the time, and the pooled text beside the six micro numbers."""
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        time = timestep_sinusoids(t, self.config.block_out_channels[0]).to(x.dtype)
        micro = timestep_sinusoids(text.micro.flatten(), self.config.addition_time_embed_dim).to(
            x.dtype
        )
        added = torch.cat([text.pooled, micro.reshape(len(x), -1)], dim=-1)
        return self.time_embedding(time) + self.add_embedding(added)
