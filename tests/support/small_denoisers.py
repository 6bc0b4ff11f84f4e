"""Small random denoisers in each family's published proportions, for original single files."""

from support.strategies import no_first_values, randomize
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux, FluxConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDConfig, SDXLConfig, StableDiffusion

SMALL = {
    "SD1": (StableDiffusion, SDConfig(block_out_channels=(32, 32, 32, 32), cross_attention_dim=24)),
    "SD2": (
        StableDiffusion,
        SDConfig(
            block_out_channels=(64, 64, 128, 128),
            attention_head_dim=(1, 1, 2, 2),
            cross_attention_dim=24,
            sample_size=96,
            use_linear_projection=True,
        ),
    ),
    "SDXL": (
        SDXL,
        SDXLConfig(
            block_out_channels=(64, 128, 128),
            attention_head_dim=(1, 2, 2),
            cross_attention_dim=96,
            transformer_layers_per_block=(1, 1, 2),
            projection_class_embeddings_input_dim=1568,
        ),
    ),
    "FLUX.1": (
        Flux,
        FluxConfig(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            num_attention_heads=1,
            joint_attention_dim=24,
            pooled_projection_dim=20,
        ),
    ),
    "SD3": (
        MMDiT,
        MMDiTConfig(
            num_attention_heads=1,
            caption_projection_dim=64,
            joint_attention_dim=96,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
        ),
    ),
    "IF-I": (
        DeepFloydIF,
        IFConfig(block_out_channels=(64, 64, 64, 64), cross_attention_dim=64, encoder_hid_dim=64),
    ),
}


@no_first_values()
def small(kind: str, seed: int = 0):
    model, config = SMALL[kind]
    return randomize(model(config), seed).eval().requires_grad_(False)
