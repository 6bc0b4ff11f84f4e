"""Small random pipelines of other people's classes, which `textpatch.wrap` must take as they are."""

import diffusers
from transformers import (
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from support.diffusers_pipelines import clip, random, t5_encoder, vae
from textpatch.weights.signs.tokens import word_tokenizer

diffusers.utils.logging.set_verbosity_error()  # it warns of what `to` does to an empty list of modules


def flux(seed: int = 0):
    """A FLUX.1 with guidance that is a number, as FLUX.1-dev has."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4, seed, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(CLIPTextModel, 64, seed),
        tokenizer=word_tokenizer(begin=True),
        text_encoder_2=t5_encoder(seed),
        tokenizer_2=word_tokenizer(begin=False),
        transformer=random(transformer, seed),
    )
    pipe.default_sample_size = 4  # latents along a side, 32 pixels
    return quiet(pipe)


def qwen_image(seed: int = 0):
    """A Qwen-Image whose prompts stand in no template, since the small tokenizer has no words for one."""
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    tokenizer = word_tokenizer(begin=False)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=random(decoder, seed),
        text_encoder=qwen(len(tokenizer), seed),
        tokenizer=tokenizer,
        transformer=random(transformer, seed),
    )
    pipe.default_sample_size = 4
    pipe.prompt_template_encode = "{}"
    pipe.prompt_template_encode_start_idx = 0
    return quiet(pipe)


def qwen(words: int, seed: int):
    """A Qwen 2.5 VL whose text part is 32 wide."""
    sizes = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=words,
        max_position_embeddings=64,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
    )
    seen = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32)
    config = Qwen2_5_VLConfig(text_config=sizes, vision_config=seen, **sizes)
    return random(Qwen2_5_VLForConditionalGeneration(config), seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
