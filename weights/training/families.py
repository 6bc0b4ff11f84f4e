"""Families of shipped models, with the denoiser's first weights and small real text encoders of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDXLConfig
from textpatch.reference_models.text_encoders import (
    IFTextEncoder,
    SD3TextEncoders,
    SDXLTextEncoders,
)
from textpatch.weights.signs.drawing import SignFormat
from textpatch.weights.signs.tokens import LENGTH, word_tokenizer


def sd3_encoders(fmt: SignFormat = SignFormat(), length: int = LENGTH) -> SD3TextEncoders:
    """Two CLIPs and a T5 at a thousandth of SD3's size, with the closed-vocabulary tokenizers.

    The T5 tells every place of a line apart, whose half of the buckets are whole places up to a quarter.
    """
    clip_tokenizer = word_tokenizer(begin=True, fmt=fmt, length=length)
    t5_tokenizer = word_tokenizer(begin=False, fmt=fmt, length=length)
    size = len(clip_tokenizer)
    t5 = _t5(size, heads=4, buckets=32 * fmt.lines)
    clips = [_clip(size, act, length=length) for act in ("quick_gelu", "gelu")]
    return SD3TextEncoders(*clips, t5, (clip_tokenizer, clip_tokenizer, t5_tokenizer))


def sdxl_encoders() -> SDXLTextEncoders:
    """Two CLIPs, of which SDXL reads the last-but-one layer."""
    tokenizer = word_tokenizer(begin=True)
    size = len(tokenizer)
    clips = _clip(size, "quick_gelu", kind=CLIPTextModel, layers=3), _clip(size, "gelu", layers=3)
    return SDXLTextEncoders(*clips, (tokenizer, tokenizer))


def if_encoder() -> IFTextEncoder:
    """T5 whose letters know how far back the quote stands.

    Head h of its first layer reads the token h + 1 places back, and takes from it how much it is a quote.
    A T5 has no positions of its own.  It is not trained, because training makes it forget the places: they
    are 65 % of what tells quoted letters apart, and 0.4 % after 18,000 images.  DeepFloyd IF's is not trained
    either.
    """
    tokenizer = word_tokenizer(begin=False, lowered=True)
    t5 = _t5(len(tokenizer), heads=8)
    attention = t5.encoder.block[0].layer[0].SelfAttention
    quote = t5.shared.weight[tokenizer.convert_tokens_to_ids('"')]
    with torch.no_grad():
        # T5's buckets 1..7 are so many places back
        attention.relative_attention_bias.weight[1:8].fill_diagonal_(6.0)
        # so loud that the place weighs nearly three times as much as the letter
        attention.v.weight[: 7 * 16] = 6 * torch.randn(7 * 16, 1) * quote / quote.norm() / 128**0.5
    return IFTextEncoder(t5.requires_grad_(False), tokenizer)


def _t5(vocab_size: int, heads: int, buckets: int = 32) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=128,
            d_kv=128 // heads,
            num_heads=heads,
            d_ff=256,
            num_layers=2,
            relative_attention_num_buckets=buckets,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=1,
            eos_token_id=3,
            decoder_start_token_id=1,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def _clip(
    vocab_size: int,
    act: str,
    kind=CLIPTextModelWithProjection,
    layers: int = 2,
    length: int = LENGTH,
):
    clip = kind(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=64,
            max_position_embeddings=length,
            hidden_act=act,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=1,
        )
    )
    # Positions are as loud as letters.  With the usual 0.02, letters at their places take twice the images.
    embeddings = next(module for module in clip.modules() if hasattr(module, "position_ids"))
    nn.init.normal_(embeddings.token_embedding.weight, std=0.5)
    nn.init.normal_(embeddings.position_embedding.weight, std=1.0)
    return clip


def mmdit(config: MMDiTConfig) -> MMDiT:
    """MMDiT as it starts, with blocks that change nothing (adaLN-zero) and sine-cosine positions.

    The positions may be learned.
    """
    denoiser = MMDiT(config)
    _zero(denoiser, ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out"))
    table = positions_2d(config.pos_embed_max_size, config.width)
    del denoiser.pos_embed.pos_embed
    denoiser.pos_embed.pos_embed = nn.Parameter(table)
    return denoiser


def unet(config: SDXLConfig | IFConfig) -> SDXL | DeepFloydIF:
    """U-Net as it starts, with ResNets and attentions that add nothing and the noisy picture for an answer.

    At high noise the right answer is almost the input, so that only the picture's share is left to learn:
    tiny-sdxl's loss after 100 steps is 0.18, against 3.3 when it starts from 0.  (IF's stage II could answer
    x - low, as if the small picture were right.  It is at low noise, but at high noise the error is a
    hundredfold.)
    Channels 2 j and 2 j + 1 carry plus and minus colour j, because
    silu(z) - silu(-z) = gelu(z) - gelu(-z) = z.
    """
    model = SDXL if isinstance(config, SDXLConfig) else DeepFloydIF
    denoiser = model(config)
    _zero(denoiser, ("conv2", "proj_out", "conv_out"))
    plus_and_minus = torch.kron(torch.eye(3), torch.tensor([[1.0], [-1.0]]))  # (6, 3)
    # this shortcut reads the way up and, in its last channels, the result of conv_in
    shortcut = denoiser.up_blocks[-1].resnets[-1].conv_shortcut
    with torch.no_grad():
        for module in (denoiser.conv_in, shortcut):
            module.weight[:6] = 0
            module.bias[:6] = 0
        denoiser.conv_in.weight[:6, :3, 1, 1] = plus_and_minus
        shortcut.weight[:6, -config.block_out_channels[0] :][:, :6, 0, 0] = torch.eye(6)
        denoiser.conv_out.weight[:3, :6, 1, 1] = plus_and_minus.T
    return denoiser


def _zero(denoiser: nn.Module, names: tuple[str, ...]) -> None:
    for name, module in denoiser.named_modules():
        if name.endswith(names):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def positions_2d(side: int, width: int) -> torch.Tensor:
    """Sine-cosine positions (1, side * side, width), half the channels for the column, half for the row."""
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    one = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (side, width / 2)
    columns = one[None].expand(side, -1, -1)
    rows = one[:, None].expand(-1, side, -1)
    return rearrange(torch.cat([columns, rows], dim=-1), "h w c -> 1 (h w) c").float()


@dataclass(frozen=True)
class Family:
    """First models of one class.

    denoiser  makes the denoiser of a configuration
    encoders  makes the text encoders
    matrices  texts in the names of the parameters that Muon trains
    """

    denoiser: Callable[..., nn.Module]
    encoders: Callable[[], nn.Module]
    matrices: tuple[str, ...]


CONVOLUTIONS = (".conv1.", ".conv2.", "samplers.0.conv.")
FAMILIES = {
    MMDiTConfig: Family(mmdit, sd3_encoders, (".attn.", ".ff")),
    SDXLConfig: Family(unet, sdxl_encoders, (*CONVOLUTIONS, ".attentions.")),
    IFConfig: Family(unet, if_encoder, (*CONVOLUTIONS, ".attentions.")),
}
