"""A small random AudioLDM2, and a CLAP-like score that tells its sounds apart."""

import diffusers
import numpy as np
import torch
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from support.diffusers_pipelines import random, t5_encoder
from support.foreign_pipelines import quiet
from textpatch.weights.signs.tokens import word_tokenizer

WIDTH = 16


class Sounds(diffusers.AudioLDM2Pipeline):
    """AudioLDM2 with an embedding of words in the place of its three text encoders."""

    def encode_prompt(
        self, prompt, device, count, guided, transcription=None, negative=None, **given
    ):
        """The prompt's own tokens with their mask, and five tokens made of them."""
        texts = [*(negative or [""] * len(prompt)), *prompt] if guided else prompt
        read = word_tokenizer(begin=False)(
            texts, padding="longest", return_attention_mask=True, return_tensors="pt"
        )
        own = self.words(read.input_ids)  # (B, T, C)
        made = own.mean(dim=1, keepdim=True) * torch.arange(1, 6)[:, None]
        return own, read.attention_mask, made


def audioldm2(seed: int = 0):
    """A pipeline whose U-Net reads two texts of other lengths."""
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=((None, WIDTH, WIDTH),) * 2,
    )
    decoder = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=8,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )
    none = dict.fromkeys(
        "text_encoder text_encoder_2 projection_model language_model tokenizer tokenizer_2 "
        "feature_extractor".split()
    )
    pipe = Sounds(
        vae=random(decoder, seed),
        unet=random(unet, seed),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        vocoder=random(vocoder, seed),
        **none,
    )
    pipe.text_encoder_2 = t5_encoder(seed)  # which is asked for its kind alone
    torch.manual_seed(seed)
    pipe.words = nn.Embedding(len(word_tokenizer(begin=False)), WIDTH).requires_grad_(False)
    return quiet(pipe)


def similarities(sounds, labels):
    """How well each label fits each sound, by the parity of a sound's sign changes, as CLAP would say it."""
    changes = [int((np.diff(np.sign(sound)) != 0).sum()) for sound in sounds]
    return np.array(
        [[float(i == count % len(labels)) for i in range(len(labels))] for count in changes]
    )
