"""A small random pipeline of each class that has a recipe, with the arguments of its calls."""

import diffusers
import torch
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from transformers import LlamaConfig, LlamaModel, T5Config, T5EncoderModel

from support import diffusers_pipelines, foreign_pipelines, foreign_sounds
from support.diffusers_pipelines import random, t5_encoder, vae
from support.foreign_pipelines import quiet, qwen
from textpatch.weights.signs.tokens import word_tokenizer

WIDTH = 32  # of texts
HEADS = dict(attention_head_dim=16, num_attention_heads=2)
LIKE_FLUX = dict(
    HEADS,
    num_layers=1,
    num_single_layers=1,
    joint_attention_dim=WIDTH,
    axes_dims_rope=(4, 6, 6),
)
PIXELS = dict(height=32, width=32)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def tokenizer(length=64):
    """Tokenizer of words that tells which tokens are padding."""
    made = word_tokenizer(begin=False, length=length)
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def language_model(seed: int = 0):
    config = LlamaConfig(
        vocab_size=len(word_tokenizer(begin=False)),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return random(LlamaModel(config), seed)


def decoder(channels: int, **more):
    return vae(channels, 0, scaling_factor=0.5, shift_factor=0.1, **more)


def assembled(kind, transformer, text_encoder, **parts):
    """A pipeline of a class, with the usual tokenizer, decoder and schedule where it is given no other."""
    usual = {"tokenizer": tokenizer(), "vae": decoder(4), "scheduler": FLOW()}
    parts = usual | {"text_encoder": text_encoder, "transformer": random(transformer, 0)} | parts
    return kind(**parts)


def chroma():
    transformer = diffusers.ChromaTransformer2DModel(
        **LIKE_FLUX | {"joint_attention_dim": 128},
        in_channels=16,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return assembled(diffusers.ChromaPipeline, transformer, t5_encoder(0))


def flux2():
    transformer = diffusers.Flux2Transformer2DModel(
        **LIKE_FLUX | {"axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 3 * WIDTH},
        in_channels=16,
        timestep_guidance_channels=8,
    )
    pixels = diffusers.AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    processor = tokenizer()
    processor.chat_template = "{{ messages[-1]['content'][0]['text'] }}"
    return assembled(
        diffusers.Flux2Pipeline,
        transformer,
        language_model(),
        scheduler=FLOW(use_dynamic_shifting=True),
        vae=pixels.eval(),
        tokenizer=processor,
    )


def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[128, 16, 16],
    )
    words = tokenizer()
    words.chat_template = "{{ messages[0]['content'] }}"
    return assembled(diffusers.ZImagePipeline, transformer, language_model(), tokenizer=words)


def pixart(kind):
    def make():
        transformer = diffusers.PixArtTransformer2DModel(
            **HEADS,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=4,
            caption_channels=128,
            out_channels=8,
            use_additional_conditions=False,
        )
        return assembled(
            kind, transformer, t5_encoder(0), scheduler=diffusers.DPMSolverMultistepScheduler()
        )

    return make


def sana():
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=4,
    )
    pixels = diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    )
    return assembled(diffusers.SanaPipeline, transformer, language_model(), vae=random(pixels, 0))


def lumina2():
    transformer = diffusers.Lumina2Transformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 8, 8),
        cap_feat_dim=WIDTH,
    )
    pipe = assembled(diffusers.Lumina2Pipeline, transformer, language_model())
    pipe.system_prompt = "a red"  # the small tokenizer has no words of the published one
    return pipe


def cogview4():
    transformer = diffusers.CogView4Transformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=4,
        rope_axes_dim=(8, 8),
    )
    return assembled(
        diffusers.CogView4Pipeline,
        transformer,
        language_model(),
        scheduler=FLOW(use_dynamic_shifting=True),
    )


def auraflow():
    transformer = diffusers.AuraFlowTransformer2DModel(
        **HEADS,
        sample_size=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    )
    return assembled(diffusers.AuraFlowPipeline, transformer, t5_encoder(0))


class GlmImage(diffusers.GlmImagePipeline):
    """A GLM-Image whose picture tokens come from no language model."""

    def generate_prior_tokens(self, prompt, height, width, image=None, device=None, generator=None):
        shape = len(prompt), (height // 16) * (width // 16)
        return torch.randint(16, shape, generator=generator), None, None


def glm_image():
    transformer = diffusers.GlmImageTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    bytes_of = T5Config(
        vocab_size=len(tokenizer()),
        d_model=WIDTH,
        d_kv=16,
        num_heads=2,
        d_ff=48,
        num_layers=1,
        pad_token_id=1,
        eos_token_id=3,
        decoder_start_token_id=1,
    )
    return GlmImage(
        tokenizer=tokenizer(),
        processor=None,
        text_encoder=random(T5EncoderModel(bytes_of), 0),
        vision_language_encoder=None,
        vae=decoder(4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        transformer=random(transformer, 0),
        scheduler=FLOW(use_dynamic_shifting=True),
    )


def hunyuan_image():
    transformer = diffusers.HunyuanImageTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=128,
        rope_axes_dim=(8, 8),
        guidance_embeds=True,
    )
    pixels = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=8,
        scaling_factor=0.5,
    )
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=FLOW(),
        vae=random(pixels, 0),
        text_encoder=qwen(len(tokenizer()), 0),
        tokenizer=tokenizer(),
        text_encoder_2=t5_encoder(0),
        tokenizer_2=tokenizer(),
        transformer=random(transformer, 0),
    )
    pipe.tokenizer_max_length = 40
    pipe.tokenizer_2_max_length = 16
    pipe.prompt_template_encode = "{}"
    pipe.prompt_template_encode_start_idx = 0
    return pipe


def oobleck():
    made = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=80,
    )
    return random(made, 0)


def stable_audio():
    transformer = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    return diffusers.StableAudioPipeline(
        vae=oobleck(),
        text_encoder=t5_encoder(0),
        projection_model=random(StableAudioProjectionModel(128, WIDTH, 0, 10), 0),
        tokenizer=tokenizer(24),
        transformer=random(transformer, 0),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(),
    )


def ace_step():
    sizes = dict(
        hidden_size=32,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
    )
    transformer = diffusers.AceStepTransformer1DModel(
        **sizes,
        num_hidden_layers=2,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        encoder_hidden_size=32,
    )
    conditions = AceStepConditionEncoder(
        **sizes,
        text_hidden_dim=WIDTH,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    return diffusers.AceStepPipeline(
        vae=oobleck(),
        text_encoder=language_model(),
        tokenizer=tokenizer(),
        transformer=random(transformer, 0),
        condition_encoder=random(conditions, 0),
        scheduler=FLOW(num_train_timesteps=1),
    )


CAPTION = dict(PIXELS, clean_caption=False, use_resolution_binning=False, max_sequence_length=24)
# class -> its pipeline, and further arguments of a call
MADE = {
    "StableDiffusionPipeline": (diffusers_pipelines.stable_diffusion, PIXELS),
    "StableDiffusionXLPipeline": (diffusers_pipelines.sdxl, PIXELS),
    "StableDiffusion3Pipeline": (diffusers_pipelines.sd3, PIXELS),
    "IFPipeline": (
        diffusers_pipelines.deepfloyd_if,
        dict(height=16, width=16, clean_caption=False),
    ),
    "FluxPipeline": (foreign_pipelines.flux, {}),
    "Flux2Pipeline": (
        flux2,
        dict(height=16, width=16, max_sequence_length=24, text_encoder_out_layers=(1, 2, 3)),
    ),
    "QwenImagePipeline": (foreign_pipelines.qwen_image, dict(max_sequence_length=48)),
    "ZImagePipeline": (z_image, dict(PIXELS, max_sequence_length=32)),
    "PixArtAlphaPipeline": (pixart(diffusers.PixArtAlphaPipeline), CAPTION),
    "PixArtSigmaPipeline": (pixart(diffusers.PixArtSigmaPipeline), CAPTION),
    "SanaPipeline": (sana, CAPTION | dict(complex_human_instruction=[])),
    "Lumina2Pipeline": (lumina2, dict(PIXELS, max_sequence_length=32)),
    "CogView4Pipeline": (cogview4, dict(PIXELS, max_sequence_length=64)),
    "ChromaPipeline": (chroma, dict(PIXELS, max_sequence_length=24)),
    "AuraFlowPipeline": (auraflow, dict(PIXELS, max_sequence_length=24)),
    "GlmImagePipeline": (glm_image, dict(PIXELS, max_sequence_length=64)),
    "HunyuanImagePipeline": (hunyuan_image, dict(height=16, width=16)),
    "AudioLDM2Pipeline": (foreign_sounds.audioldm2, dict(audio_length_in_s=0.01)),
    "StableAudioPipeline": (stable_audio, dict(audio_end_in_s=1.0)),
    "AceStepPipeline": (ace_step, dict(audio_duration=1.0, instruction="a red")),
}


# what the model makes of the pooled text, which is each row's own under a swap
POOLED = {
    "StableDiffusionXLPipeline": "add_embedding.linear_2",
    "StableDiffusion3Pipeline": "time_text_embed.text_embedder.linear_2",
    "IFPipeline": "add_embedding.norm2",
    "FluxPipeline": "time_text_embed.text_embedder.linear_2",
}


def made(name: str):
    """A pipeline of a class that makes nothing of pooled texts, and further arguments of its calls."""
    make, options = MADE[name]
    pipe = quiet(make())
    if name in POOLED:
        model = getattr(pipe, "unet", None) or pipe.transformer
        for parameter in model.get_submodule(POOLED[name]).parameters():
            parameter.zero_()
    return pipe, options
