"""Small random transformers of diffusers in which text and image share attention, with inputs."""

import torch

from support.random_inputs import g, grid

# sizes that most of them share
SMALL = dict(attention_head_dim=8, num_attention_heads=2)
LIKE_FLUX = dict(
    SMALL,
    in_channels=4,
    num_layers=2,
    num_single_layers=2,
    joint_attention_dim=12,
    axes_dims_rope=(2, 2, 4),
)


def like_flux():
    """Inputs of six picture tokens and five of text, which lie at places of their own."""
    return dict(
        hidden_states=g(2, 6, 4),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([0.5, 0.4]),
        img_ids=grid(6),
        txt_ids=g(5, 3),
    )


def flux2(diffusers, **sizes):
    settings = dict(
        LIKE_FLUX, axes_dims_rope=(2, 2, 2, 2), timestep_guidance_channels=8, guidance_embeds=False
    )
    model = diffusers.Flux2Transformer2DModel(**(settings | sizes))
    places = dict(img_ids=grid(6, axes=4), txt_ids=g(5, 4))
    return model, like_flux() | places


def flux2_narrow(diffusers):
    """A FLUX.2 whose single blocks have an MLP of another width than three times theirs."""
    return flux2(diffusers, mlp_ratio=2.0)


def flux3(diffusers):
    settings = dict(LIKE_FLUX, axes_dims_rope=(2, 2, 2, 2), timestep_channels=8, cond_in_channels=4)
    model = diffusers.Flux3Transformer2DModel(**settings)
    places = dict(img_ids=grid(6, axes=4), txt_ids=g(5, 4))
    return model, like_flux() | places


def chroma(diffusers):
    approximator = dict(
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1
    )
    return diffusers.ChromaTransformer2DModel(**LIKE_FLUX, **approximator), like_flux()


def longcat_image(diffusers):
    model = diffusers.LongCatImageTransformer2DModel(**LIKE_FLUX, pooled_projection_dim=6)
    return model, like_flux()


def ovis_image(diffusers):
    return diffusers.OvisImageTransformer2DModel(**LIKE_FLUX, out_channels=4), like_flux()


def bria(diffusers):
    settings = dict(LIKE_FLUX, axes_dims_rope=[2, 2, 4])
    return diffusers.BriaTransformer2DModel(**settings), like_flux()


def cogview4(diffusers):
    model = diffusers.CogView4Transformer2DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    sizes = {name: g(2, 2) for name in ("original_size", "target_size", "crop_coords")}
    return model, dict(
        hidden_states=g(2, 4, 8, 8),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([500.0, 400.0]),
        **sizes,
    )


def glm_image(diffusers):
    model = diffusers.GlmImageTransformer2DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    sizes = {name: g(2, 2) for name in ("target_size", "crop_coords")}
    return model, dict(
        hidden_states=g(2, 4, 8, 8),
        encoder_hidden_states=g(2, 5, 12),
        prior_token_id=torch.arange(32).reshape(2, 16) % 16,
        prior_token_drop=torch.zeros(2, 16, dtype=torch.bool),
        timestep=torch.tensor([500.0, 400.0]),
        **sizes,
    )


def hunyuan_image(diffusers, **sizes):
    model = diffusers.HunyuanImageTransformer2DModel(
        **SMALL,
        **sizes,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=12,
        rope_axes_dim=(4, 4),
    )
    return model, dict(
        hidden_states=g(2, 4, 4, 4),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
        encoder_attention_mask=torch.ones(2, 5, dtype=torch.long),
    )


def hunyuan_glyphs(diffusers):
    """A HunyuanImage that reads a second text, of the letters that are to be drawn."""
    model, inputs = hunyuan_image(diffusers, text_embed_2_dim=10)
    mask = torch.ones(2, 3, dtype=torch.long)
    return model, inputs | dict(encoder_hidden_states_2=g(2, 3, 10), encoder_attention_mask_2=mask)


def hunyuan_video(diffusers):
    model = diffusers.HunyuanVideoTransformer3DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=False,
        text_embed_dim=12,
        pooled_projection_dim=6,
        rope_axes_dim=(2, 2, 4),
    )
    return model, dict(
        hidden_states=g(2, 4, 1, 4, 4),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
        encoder_attention_mask=torch.ones(2, 5, dtype=torch.long),
        pooled_projections=g(2, 6),
    )


def auraflow(diffusers):
    """An AuraFlow, which puts eight tokens of its own before the text."""
    model = diffusers.AuraFlowTransformer2DModel(
        **SMALL,
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    return model, dict(
        hidden_states=g(2, 4, 8, 8),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([0.5, 0.4]),
    )


def hidream(diffusers):
    """A HiDream, each of whose blocks reads a text of its own, beside two that all read."""
    model = diffusers.HiDreamImageTransformer2DModel(
        **SMALL,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        caption_channels=[12, 10],
        text_emb_dim=6,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1, 2, 3],
    )
    return model, dict(
        hidden_states=g(2, 4, 8, 8),
        timesteps=torch.tensor([500.0, 400.0]),
        encoder_hidden_states_t5=g(2, 5, 12),
        encoder_hidden_states_llama3=g(4, 2, 3, 10),
        pooled_embeds=g(2, 6),
    )


def ernie_image(diffusers):
    model = diffusers.ErnieImageTransformer2DModel(
        hidden_size=16,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=24,
        in_channels=4,
        out_channels=4,
        text_in_dim=12,
        rope_axes_dim=(2, 2, 4),
    )
    return model, dict(
        hidden_states=g(2, 4, 4, 4),
        timestep=torch.tensor([500.0, 400.0]),
        text_bth=g(2, 5, 12),
        text_lens=torch.tensor([5, 5]),
    )


def ideogram4(diffusers):
    """An Ideogram 4, whose text lies where `indicator` is 3."""
    model = diffusers.Ideogram4Transformer2DModel(
        **SMALL,
        in_channels=4,
        num_layers=2,
        intermediate_size=24,
        adaln_dim=8,
        llm_features_dim=12,
        mrope_section=(2, 1, 1),
    )
    indicator = torch.tensor([[3] * 5 + [2] * 6] * 2)
    return model, dict(
        hidden_states=g(2, 11, 4),
        timestep=torch.tensor([0.5, 0.4]),
        encoder_hidden_states=g(2, 11, 12),
        position_ids=grid(6, before=5).long().expand(2, 11, 3),
        segment_ids=torch.ones(2, 11, dtype=torch.long),
        indicator=indicator,
    )


def cogvideox(diffusers):
    model = diffusers.CogVideoXTransformer3DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=1,
        max_text_seq_length=5,
    )
    return model, dict(
        hidden_states=g(2, 1, 4, 4, 4),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([500.0, 400.0]),
    )
