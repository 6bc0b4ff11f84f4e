"""Small random pipelines of the published classes, made by diffusers itself: what `load` must read and
equal."""

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from support.strategies import no_first_values, randomize
from textpatch.weights.signs.tokens import word_tokenizer


@no_first_values()
def sdxl(seed: int = 0):
    first, second = (
        clip(CLIPTextModel, 64, seed),
        clip(CLIPTextModelWithProjection, 32, seed + 1, "gelu"),
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=96,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        use_linear_projection=True,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )
    schedule = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    tokenizers = {
        "tokenizer": word_tokenizer(begin=True),
        "tokenizer_2": word_tokenizer(begin=True),
    }
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4, seed, scaling_factor=0.13025),
        text_encoder=first,
        text_encoder_2=second,
        **tokenizers,
        unet=random(unet, seed),
        scheduler=schedule,
        add_watermarker=False,
    )


@no_first_values()
def stable_diffusion(seed: int = 0, version: int = 1, prediction: str | None = None):
    wide = version == 2
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    schedule = diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False)
    if prediction:
        schedule = diffusers.PNDMScheduler(
            **betas, skip_prk_steps=True, set_alpha_to_one=False, prediction_type=prediction
        )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[2, 4] if wide else 8,
        cross_attention_dim=64,
        use_linear_projection=wide,
        upcast_attention=wide,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(4, seed, scaling_factor=0.18215),
        text_encoder=clip(CLIPTextModel, 64, seed, "gelu" if wide else "quick_gelu"),
        tokenizer=word_tokenizer(begin=True),
        unet=random(unet, seed),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@no_first_values()
def sd3(seed: int = 0, t5: bool = True, dual: bool = False):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=64,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=96,
        pos_embed_max_size=12,
        **({"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if dual else {}),
    )
    encoders = {
        "text_encoder": clip(CLIPTextModelWithProjection, 64, seed),
        "tokenizer": word_tokenizer(begin=True),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 32, seed + 1, "gelu"),
        "tokenizer_2": word_tokenizer(begin=True),
        "text_encoder_3": t5_encoder(seed) if t5 else None,
        "tokenizer_3": word_tokenizer(begin=False) if t5 else None,
    }
    return diffusers.StableDiffusion3Pipeline(
        transformer=random(transformer, seed),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(
            16,
            seed,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        **encoders,
    )


@no_first_values()
def flux(seed: int = 0, dev: bool = True):
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        transformer=random(transformer, seed),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if dev else 1.0, use_dynamic_shifting=dev
        ),
        vae=vae(
            16,
            seed,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=clip(CLIPTextModel, 64, seed),
        tokenizer=word_tokenizer(begin=True),
        text_encoder_2=t5_encoder(seed),
        tokenizer_2=word_tokenizer(begin=False),
    )


def deepfloyd_if(seed: int = 0):
    return diffusers.IFPipeline(**_if_parts(_if_unet(seed), seed), requires_safety_checker=False)


def deepfloyd_if_ii(seed: int = 0):
    unet = _if_unet(
        seed,
        sample_size=16,
        in_channels=6,
        class_embed_type="timestep",
        only_cross_attention=True,
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2**0.5,
        mid_block_scale_factor=2**0.5,
        time_embedding_act_fn="gelu",
        time_embedding_dim=64,
    )
    low = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    parts = _if_parts(unet, seed, image_noising_scheduler=low)
    return diffusers.IFSuperResolutionPipeline(**parts, requires_safety_checker=False)


def _if_parts(unet, seed: int, **more) -> dict:
    schedule = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        sample_max_value=1.5,
        timestep_spacing="leading",
    )
    tokenizer = word_tokenizer(begin=False)
    # as the published T5 tokenizer: this pipeline passes the mask on, and cuts at 77 itself
    tokenizer.model_input_names, tokenizer.model_max_length = ["input_ids", "attention_mask"], 512
    return dict(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(seed),
        unet=unet,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        **more,
    )


@no_first_values()
def _if_unet(seed: int, **changed):
    sizes = dict(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=64,
        cross_attention_dim=64,
        cross_attention_norm="group_norm",
        encoder_hid_dim=128,
        addition_embed_type="text",
        addition_embed_type_num_heads=64,
        act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
    )
    return random(diffusers.UNet2DConditionModel(**sizes | changed), seed)


def clip(kind, width: int, seed: int, act: str = "quick_gelu"):
    config = CLIPTextConfig(
        vocab_size=len(word_tokenizer(begin=True)),
        hidden_size=width,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=1,
    )
    return random(kind(config), seed)


def t5_encoder(seed: int):
    config = T5Config(
        vocab_size=len(word_tokenizer(begin=False)),
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=1,
        eos_token_id=3,
        decoder_start_token_id=1,
    )
    return random(T5EncoderModel(config), seed)


@no_first_values()
def vae(channels: int, seed: int, **more):
    made = diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **more,
    )
    return random(made, seed)


def random(model, seed: int):
    randomize(model, seed)
    return model.eval().requires_grad_(False).to(torch.float32)
