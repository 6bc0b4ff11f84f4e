"""Small random pipelines in float64 of the two U-Nets, whose sites number four, with three heads each."""

from dataclasses import replace

import torch

from support.strategies import fake_encoders, no_first_values, randomize
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import DDPM, Euler
from textpatch.reference_models.sdxl import SDXL, SDXLConfig

TOKENS = 4  # of the fake encoders, 6 wide, with pooled vectors of 5
SMALL_SDXL = SDXLConfig(
    in_channels=3,
    out_channels=3,
    block_out_channels=(12, 24),
    layers_per_block=1,
    norm_num_groups=3,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 1),
    attention_head_dim=(2, 3),
    cross_attention_dim=6,
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=24 + 5,
)
SMALL_IF = IFConfig(
    block_out_channels=(16, 24),
    layers_per_block=1,
    attention_head_dim=8,
    cross_attention_dim=32,
    encoder_hid_dim=6,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    norm_num_groups=4,
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    addition_embed_type_num_heads=2,
)
SMALL_IF_II = replace(
    SMALL_IF, in_channels=6, class_embed_type="timestep", only_cross_attention=True
)


def without_pooled(encode):
    """A condition without pooled vectors, as DeepFloyd IF's encoders make them.

    The denoiser pools.
    """
    return lambda prompts: replace(encode(prompts), pooled=None)


class StageII(Pipeline):
    """A pipeline whose denoiser also reads a low-resolution picture, the same for all rows."""

    def denoise(self, x, text, **options):
        return super().denoise(
            x, text, low=torch.full_like(x, 0.3), level=torch.full((len(x),), 250.0), **options
        )


@no_first_values()
def unet(name: str, seed: int = 0) -> Pipeline:
    """A small random U-Net pipeline in float64, of four sites with three heads each."""
    defaults = Defaults(4, 8, 3, 4.5, micro=(8, 8, 0, 0, 8, 8) if name == "sdxl" else None)
    encoders, make, config, schedule = {
        "sdxl": (fake_encoders(TOKENS), SDXL, SMALL_SDXL, Euler()),
        "if": (without_pooled(fake_encoders(TOKENS)), DeepFloydIF, SMALL_IF, DDPM()),
        "if-ii": (without_pooled(fake_encoders(TOKENS)), DeepFloydIF, SMALL_IF_II, DDPM()),
    }[name]
    model = randomize(make(config).double(), seed).eval().requires_grad_(False)
    return (StageII if name == "if-ii" else Pipeline)(
        encoders, model, schedule, list, defaults, "random"
    )
