"""Small random models of diffusers' own classes, with inputs by name of two rows and five text tokens."""

import torch

from support import foreign_cross, foreign_streams
from support.random_inputs import g, grid
from support.strategies import randomize


def sdxl(diffusers):
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=29,
    )
    added = dict(text_embeds=g(2, 5), time_ids=g(2, 6))
    return model, dict(
        sample=g(2, 4, 8, 8),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
        added_cond_kwargs=added,
    )


def deepfloyd_if(diffusers):
    model = diffusers.UNet2DConditionModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=32,
        encoder_hid_dim=12,
        encoder_hid_dim_type="text_proj",
        act_fn="gelu",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
    )
    return model, dict(
        sample=g(2, 3, 8, 8),
        timestep=torch.tensor([500.0, 400.0]),
        encoder_hidden_states=g(2, 5, 12),
    )


def sd3(diffusers, **sizes):
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=6,
        pos_embed_max_size=8,
        **sizes,
    )
    return model, dict(
        hidden_states=g(2, 4, 8, 8),
        encoder_hidden_states=g(2, 5, 12),
        pooled_projections=g(2, 6),
        timestep=torch.tensor([500.0, 400.0]),
    )


def sd35(diffusers):
    return sd3(diffusers, qk_norm="rms_norm", dual_attention_layers=(0, 1))


def flux(diffusers):
    """A FLUX.1 whose text tokens lie at places of their own.

    At the published zero a rotation would not show.
    """
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )
    return model, dict(
        hidden_states=g(2, 6, 4),
        encoder_hidden_states=g(2, 5, 12),
        pooled_projections=g(2, 6),
        timestep=torch.tensor([0.5, 0.4]),
        img_ids=grid(6),
        txt_ids=g(5, 3),
    )


def fused_flux(diffusers):
    model, inputs = flux(diffusers)
    model.fuse_qkv_projections()
    return model, inputs


def qwen_image(diffusers):
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    )
    return model, dict(
        hidden_states=g(2, 6, 8),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([0.5, 0.4]),
        img_shapes=[[(1, 2, 3)]] * 2,
    )


def pixart(diffusers):
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
    )
    sizes = dict(resolution=None, aspect_ratio=None)
    return model, dict(
        hidden_states=g(2, 4, 8, 8),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([500.0, 400.0]),
        added_cond_kwargs=sizes,
    )


def z_image(diffusers):
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 16, 16],
    )
    return model, dict(
        x=[g(4, 1, 4, 4), g(4, 1, 4, 4)], t=torch.tensor([0.5, 0.4]), cap_feats=[g(5, 12), g(5, 12)]
    )


def krea2(diffusers):
    model = diffusers.Krea2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=12,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return model, dict(
        hidden_states=g(2, 6, 4),
        encoder_hidden_states=g(2, 5, 3, 12),
        timestep=torch.tensor([0.5, 0.4]),
        position_ids=grid(6, before=5),
    )


def prx(diffusers):
    model = diffusers.PRXTransformer2DModel(
        in_channels=4,
        context_in_dim=12,
        hidden_size=16,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
        theta=100,
    )
    return model, dict(
        hidden_states=g(2, 4, 4, 4),
        timestep=torch.tensor([0.5, 0.4]),
        encoder_hidden_states=g(2, 5, 12),
    )


def lumina2(diffusers):
    """A Lumina 2, in which no module tells how many heads K and V have."""
    model = diffusers.Lumina2Transformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(16, 8, 8),
        cap_feat_dim=12,
    )
    return model, dict(
        hidden_states=g(2, 4, 6, 6),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([0.5, 0.4]),
        encoder_attention_mask=torch.ones(2, 5, dtype=torch.long),
    )


def qwen_image21(diffusers):
    """A Qwen-Image 2.1, whose pipeline keeps the text's K and V of the first call."""
    model = diffusers.QwenImage21Transformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        context_in_dim=12,
        axes_dims_rope=(2, 2, 4),
    )
    places = torch.arange(9).expand(2, 9) >= 5  # four groups of four picture tokens after the text
    return model, dict(
        hidden_states=g(2, 16, 8),
        encoder_hidden_states=g(2, 5, 12),
        timestep=torch.tensor([0.5]),
        img_shapes=[[(1, 4, 4)]] * 2,
        img_mask=places,
    )


FOREIGN = {
    make.__name__: make
    for make in (
        sdxl,
        deepfloyd_if,
        foreign_cross.stable_diffusion,
        foreign_cross.stable_diffusion2,
        foreign_cross.kolors,
        sd3,
        sd35,
        flux,
        fused_flux,
        foreign_streams.flux2,
        foreign_streams.flux2_narrow,
        foreign_streams.flux3,
        foreign_streams.chroma,
        foreign_streams.longcat_image,
        foreign_streams.ovis_image,
        foreign_streams.bria,
        qwen_image,
        foreign_streams.hunyuan_image,
        foreign_streams.hunyuan_glyphs,
        foreign_streams.hunyuan_video,
        foreign_streams.auraflow,
        foreign_streams.cogview4,
        foreign_streams.glm_image,
        foreign_streams.cogvideox,
        z_image,
        krea2,
        lumina2,
        prx,
        pixart,
        foreign_cross.sana,
        foreign_cross.stable_audio,
        foreign_cross.ace_step,
        foreign_cross.audioldm2,
        foreign_streams.ernie_image,
        foreign_streams.ideogram4,
        qwen_image21,
        foreign_cross.sana_sprint,
        foreign_cross.wan,
        foreign_cross.ltx_video,
    )
}


def after_the_text(output):
    """Picture of Ideogram 4 and Qwen-Image 2.1, which put out the five text tokens too."""
    return output[:, 5:]


# what check_port is told of a model beside its inputs
OPTIONS = {
    "deepfloyd_if": dict(pooled=["add_embedding"]),
    "ideogram4": dict(output=after_the_text),
    "qwen_image21": dict(output=after_the_text),
}

# models of which a check of check_port does not hold, though their tables are right: HiDream's experts let
# NaN pass from row to row
UNLIKE = {make.__name__: make for make in (foreign_streams.hidream,)}
# other sizes or classes of a make that is there already, which --long adds
SAME = {
    "stable_diffusion",
    "stable_diffusion2",
    "kolors",
    "flux2_narrow",
    "bria",
    "ovis_image",
    "hunyuan_image",
    "longcat_image",
    "glm_image",
    "cogvideox",
    "flux3",
    "chroma",
    "hunyuan_video",
    "ltx_video",
    "sana_sprint",
    "ace_step",
}


# text among the keys of attention, written down by hand: five tokens first, last or all there are
FIRST, LAST, ALL = slice(0, 5), slice(-5, None), slice(None)
TEXT_KEYS = {
    "sdxl": ALL,
    "deepfloyd_if": FIRST,
    "stable_diffusion": ALL,
    "stable_diffusion2": ALL,
    "kolors": ALL,
    "sd3": LAST,
    "sd35": LAST,
    "flux": FIRST,
    "fused_flux": FIRST,
    "flux2": FIRST,
    "flux2_narrow": FIRST,
    "flux3": FIRST,
    "chroma": FIRST,
    "longcat_image": FIRST,
    "ovis_image": FIRST,
    "bria": FIRST,
    "qwen_image": FIRST,
    "qwen_image21": FIRST,
    "hunyuan_image": LAST,
    "hunyuan_glyphs": slice(-8, None),  # three of glyphs and five
    "hunyuan_video": LAST,
    "auraflow": slice(0, 13),  # eight of its own and five
    "hidream": slice(-11, None),  # five of T5 and twice three of Llama
    "cogview4": FIRST,
    "glm_image": FIRST,
    "cogvideox": FIRST,
    "ernie_image": LAST,
    "ideogram4": FIRST,
    "z_image": slice(-32, None),
    "krea2": FIRST,
    "lumina2": FIRST,
    "prx": FIRST,
    "pixart": ALL,
    "sana": ALL,
    "sana_sprint": ALL,
    "stable_audio": ALL,
    "ace_step": ALL,
    "audioldm2": ALL,
    "wan": ALL,
    "ltx_video": ALL,
}


def foreign(diffusers, name: str):
    """A model and its inputs, with every weight random and none zero, in eval mode."""
    torch.manual_seed(0)
    model, inputs = (FOREIGN | UNLIKE)[name](diffusers)
    return randomize(model, 0).eval().requires_grad_(False), inputs
