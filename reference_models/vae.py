"""VAE between pictures and the latents that SDXL, SD3 and FLUX denoise.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv 2112.10752.
Module names are the diffusers layout's; the defaults of `VAEConfig` are SDXL's.

B rows, H x W pixels, h x w places at a depth or in the latents, C latent channels, W width at a depth
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from textpatch.errors import PatchError


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE, with the names and defaults published for SDXL.

    Raises PatchError for widths that the groups of the norms do not divide, and for depths without layers.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2  # of the encoder; the decoder has one more
    norm_num_groups: int = 32
    scaling_factor: float = 0.13025  # makes the variance of the denoiser's latents about one
    shift_factor: float | None = 0.0  # mean of the latents before scaling; None in files means 0
    # mean and deviation of each latent channel before scaling, in place of the shift
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = (
        True  # to float32 where the pipeline is in half precision, as SDXL's overflows
    )
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        statistics = self.latents_mean, self.latents_std
        if statistics != (None, None):
            lengths = [len(numbers or ()) for numbers in statistics]
            if lengths != [self.latent_channels] * 2:
                raise PatchError(
                    f"latents_mean and latents_std have {lengths[0]} and {lengths[1]} numbers, "
                    f"and there are {self.latent_channels} latent channels; give one each, or neither"
                )
        if self.layers_per_block < 1:
            raise PatchError(
                f"layers_per_block is {self.layers_per_block}; each depth needs at least one"
            )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise PatchError(
                    f"block_out_channels has {width}, "
                    f"no multiple of norm_num_groups, {self.norm_num_groups}"
                )

    @property
    def downsampling(self) -> int:
        """Pixels along either side of a picture for one latent."""
        return 2 ** (len(self.block_out_channels) - 1)


def group_norm(config: VAEConfig, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_num_groups, width, eps=1e-6)


class ResNet(nn.Module):
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))."""

    def __init__(self, config: VAEConfig, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = group_norm(config, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = group_norm(config, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Attention of every place to every other with one head, x + out(softmax(q k^T / sqrt(W)) v)."""

    def __init__(self, config: VAEConfig, width: int) -> None:
        super().__init__()
        self.group_norm = group_norm(config, width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        places = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")  # (B, 1, h w, W)
        q = self.to_q(places)
        k = self.to_k(places)
        v = self.to_v(places)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(out).mT.reshape(x.shape)


class MidBlock(nn.Module):
    """ResNet, attention, ResNet at the smallest size."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(ResNet(config, width, width) for _ in range(2))
        attentions = [Attention(config, width)] if config.mid_block_add_attention else []
        self.attentions = nn.Sequential(*attentions)

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions(self.resnets[0](x)))


class Downsample(nn.Module):
    """Half the size, padded only right and below, so that place i is made of places 2i to 2i + 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the size, each place repeated four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """ResNets of one depth of the encoder, then half the size except at the last depth."""

    def __init__(self, config: VAEConfig, depth: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        width = widths[depth]
        above = widths[max(depth - 1, 0)]
        widths_in = [above] + [width] * (config.layers_per_block - 1)
        self.resnets = nn.Sequential(*(ResNet(config, width_in, width) for width_in in widths_in))
        self.downsamplers = nn.Sequential(*([Downsample(width)] if depth < len(widths) - 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsamplers(self.resnets(x))


class UpBlock(nn.Module):
    """ResNets of one depth of the decoder, then double the size except at depth 0."""

    def __init__(self, config: VAEConfig, depth: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        width = widths[depth]
        below = widths[min(depth + 1, len(widths) - 1)]
        widths_in = [below] + [width] * config.layers_per_block
        self.resnets = nn.Sequential(*(ResNet(config, width_in, width) for width_in in widths_in))
        self.upsamplers = nn.Sequential(*([Upsample(width)] if depth > 0 else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.resnets(x))


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) to the posterior's mean and log variance, (B, 2 C, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.Sequential(
            *(DownBlock(config, depth) for depth in range(len(widths)))
        )
        self.mid_block = MidBlock(config)
        self.conv_norm_out = group_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(pictures)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (B, C, h, w) to pictures (B, 3, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.Sequential(
            *(UpBlock(config, depth) for depth in reversed(range(len(widths))))
        )
        self.conv_norm_out = group_norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.up_blocks(self.mid_block(self.conv_in(latents)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Encoder of pictures to latents and decoder of latents to pictures.

    The latents are the denoiser's, (z - shift) * scale of the z between encoder and decoder, or
    (z - mean) * scale / deviation where a configuration has the statistics of each channel.
    """

    def __init__(self, config: VAEConfig = VAEConfig()) -> None:
        super().__init__()
        self.config = config
        self.shift = config.shift_factor or 0.0
        self.scale = config.scaling_factor
        self.encoder = Encoder(config)
        self.quant_conv = nn.Identity()
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Identity()
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pictures: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) of pictures, the posterior's mean or mean + std * noise.

        pictures  (B, in_channels, H, W) in -1..1
        noise     (B, C, h, w), standard normal; the result is the mean when None
        Raises PatchError for sides that do not halve, other channels, and noise of another shape.
        """
        self._require_channels("pictures", pictures, self.config.in_channels)
        height, width = pictures.shape[-2:]
        multiple = self.config.downsampling
        if height % multiple or width % multiple:
            raise PatchError(
                f"pictures of {height}x{width}; both sides must be multiples of {multiple}"
            )
        moments = self.quant_conv(self.encoder(pictures))  # (B, 2 C, h, w)
        z, log_variance = moments.chunk(2, dim=1)
        if noise is not None:
            if noise.shape != z.shape:
                raise PatchError(f"noise is {tuple(noise.shape)}; the latents are {tuple(z.shape)}")
            z = z + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise
        if self.config.latents_mean:
            mean, deviation = self._statistics(z)
            return (z - mean) * self.scale / deviation
        return (z - self.shift) * self.scale

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C, 1, 1) of the latents' channels."""
        mean = latents.new_tensor(self.config.latents_mean)
        deviation = latents.new_tensor(self.config.latents_std)
        return mean[:, None, None], deviation[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, out_channels, H, W), about in -1..1, of the denoiser's latents (B, C, h, w).

        Raises PatchError for other channels.
        """
        self._require_channels("latents", latents, self.config.latent_channels)
        if self.config.latents_mean:
            mean, deviation = self._statistics(latents)
            return self.decoder(self.post_quant_conv(latents * deviation / self.scale + mean))
        return self.decoder(self.post_quant_conv(latents / self.scale + self.shift))

    def _require_channels(self, what: str, given: Tensor, channels: int) -> None:
        if given.dim() != 4 or given.shape[1] != channels:
            raise PatchError(
                f"{what} are {tuple(given.shape)}; this VAE takes (B, {channels}, H, W)"
            )
