"""Small random models of diffusers with cross-attention, for pictures, sound and films, with inputs."""

import torch

from support.random_inputs import g


def stable_diffusion(diffusers, **sizes):
    settings = dict(
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
    )
    model = diffusers.UNet2DConditionModel(**(settings | sizes))
    return model, dict(
        sample=g(2, 4, 8, 8),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
    )


def stable_diffusion2(diffusers):
    """A U-Net of Stable Diffusion 2, with a linear projection and other heads in each block."""
    sizes = dict(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 2),
    )
    return stable_diffusion(diffusers, use_linear_projection=True, **sizes)


def kolors(diffusers):
    """A U-Net of Kolors, which projects its text before the sites read it."""
    return stable_diffusion(
        diffusers, encoder_hid_dim=12, cross_attention_dim=10, encoder_hid_dim_type="text_proj"
    )


def sana(diffusers, **sizes):
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=4,
        **sizes,
    )
    return model, dict(
        hidden_states=g(2, 4, 4, 4),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([500.0, 400.0]),
    )


def sana_sprint(diffusers):
    """A Sana-Sprint, whose keys are normed over all heads."""
    model, inputs = sana(diffusers, guidance_embeds=True, qk_norm="rms_norm_across_heads")
    return model, inputs | dict(guidance=torch.tensor([4.5, 4.5]))


def stable_audio(diffusers):
    """A Stable Audio, whose rotary embedding is a pair and no two rows."""
    model = diffusers.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=6,
        cross_attention_input_dim=12,
    )
    return model, dict(
        hidden_states=g(2, 4, 8),
        timestep=torch.tensor([0.5, 0.4]),
        encoder_hidden_states=g(2, 5, 12),
        global_hidden_states=g(2, 1, 6),
        rotary_embedding=(g(9, 4).cos(), g(9, 4).sin()),
    )


def ace_step(diffusers):
    model = diffusers.AceStepTransformer1DModel(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=4,
        encoder_hidden_size=12,
    )
    return model, dict(
        hidden_states=g(2, 8, 4),
        timestep=torch.tensor([0.5, 0.4]),
        timestep_r=torch.tensor([0.3, 0.2]),
        encoder_hidden_states=g(2, 5, 12),
        context_latents=g(2, 8, 8),
    )


def audioldm2(diffusers):
    """An AudioLDM2, whose sites read two texts of other lengths by turns, or the sound itself."""
    model = diffusers.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=((None, 12, 10),),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
    )
    return model, dict(
        sample=g(2, 4, 8, 8),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
        encoder_hidden_states_1=g(2, 3, 10),
    )


def wan(diffusers):
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=8,
    )
    return model, dict(
        hidden_states=g(2, 4, 1, 4, 4),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
    )


def ltx_video(diffusers):
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=12,
    )
    return model, dict(
        hidden_states=g(2, 4, 4),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_attention_mask=torch.ones(2, 5),
        num_frames=1,
        height=2,
        width=2,
    )
