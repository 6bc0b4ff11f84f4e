"""Make tests/golden/reference.safetensors with diffusers.

The models and inputs are those of tests/support/seeded_models.py, functions of a seed.  Stored are diffusers'
outputs in float64, and the time sinusoids of this machine in float32:

    PYTHONPATH=tests python tests/golden/make_reference.py
"""

from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
from diffusers.models.transformers import transformer_flux
from safetensors.torch import save_file

from support import seeded_models
from textpatch.reference_models.layers import timestep_sinusoids

UNET = diffusers.UNet2DConditionModel
IF_FLAGS = dict(
    addition_embed_type="text",
    cross_attention_norm="group_norm",
    act_fn="gelu",
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_time_scale_shift="scale_shift",
)
VAE_FLAGS = dict(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
)
CLASSES = {
    "sdxl": (UNET, dict(addition_embed_type="text_time")),
    "sd-1": (UNET, {}),
    "sd-2": (UNET, {}),
    "flux.1-dev": (diffusers.FluxTransformer2DModel, {}),
    "if-i": (UNET, IF_FLAGS),
    "if-ii": (UNET, IF_FLAGS),
    "sd3": (diffusers.SD3Transformer2DModel, {}),
    "sd3.5": (diffusers.SD3Transformer2DModel, {}),
    "vae": (diffusers.AutoencoderKL, VAE_FLAGS),
}


def in_float64(theirs: torch.nn.Module) -> None:
    """diffusers takes the mean square of its RMSNorm in float32 also in float64 runs; here it does not."""
    for module in list(theirs.modules()):
        for name, norm in list(module.named_children()):
            if type(norm).__name__ == "RMSNorm" and not isinstance(norm, torch.nn.RMSNorm):
                exact = torch.nn.RMSNorm(norm.dim, eps=norm.eps, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(module, name, exact)


def turned(x: torch.Tensor, turn: tuple, sequence_dim: int) -> torch.Tensor:
    """diffusers turns FLUX.1's queries and keys in float32 also in float64 runs; here it does not."""
    cos, sin = (part[None, :, None, :].to(x.dtype) for part in turn)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin


@torch.no_grad()
def reference(name: str) -> dict[str, torch.Tensor]:
    make, flags = CLASSES[name]
    theirs, given = (
        make(**asdict(seeded_models.MODELS[name][1]), **flags).double().eval(),
        seeded_models.inputs(name),
    )
    theirs.load_state_dict(seeded_models.model(name).state_dict())
    in_float64(theirs)
    if name == "vae":
        scale = theirs.config.scaling_factor
        return {
            "vae.encoded": theirs.encode(given["pictures"]).latent_dist.mean * scale,
            "vae.decoded": theirs.decode(given["latents"] / scale).sample,
        }
    if name.startswith("sd3"):
        out = theirs(given["x"], given["tokens"], given["pooled"], given["t"], return_dict=False)
    elif name.startswith("flux"):
        return {name: of_flux(theirs, given)}
    elif name == "sdxl":
        added = {"text_embeds": given["pooled"], "time_ids": given["micro"]}
        out = theirs(
            given["x"], given["t"], given["tokens"], added_cond_kwargs=added, return_dict=False
        )
    else:
        x = torch.cat([given["x"], given["low"]], dim=1) if "low" in given else given["x"]
        out = theirs(
            x, given["t"], given["tokens"], class_labels=given.get("level"), return_dict=False
        )
    return {name: out[0]}


def of_flux(theirs: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What FLUX.1 gives, asked as its pipeline asks: tokens of packed latents with their places."""
    pipeline = diffusers.FluxPipeline
    rows, channels, height, width = given["x"].shape
    transformer_flux.apply_rotary_emb = turned
    (out,) = theirs(
        hidden_states=pipeline._pack_latents(given["x"], rows, channels, height, width),
        encoder_hidden_states=given["tokens"],
        pooled_projections=given["pooled"],
        timestep=given["t"].double() / 1000,
        guidance=given["guidance"].double(),
        img_ids=pipeline._prepare_latent_image_ids(
            rows, height // 2, width // 2, "cpu", torch.float64
        ),
        txt_ids=torch.zeros(given["tokens"].shape[1], 3),
        return_dict=False,
    )
    return pipeline._unpack_latents(out, 8 * height, 8 * width, 8)


def sinusoids(name: str) -> dict[str, torch.Tensor]:
    """What a model calls its time sinusoids for, in the order of the calls."""
    made = []

    def kept(t: torch.Tensor, width: int) -> torch.Tensor:
        made.append(timestep_sinusoids(t, width))
        return made[-1]

    with torch.no_grad(), seeded_models.sinusoids(kept):
        seeded_models.outputs(name)
    return {f"{name}.sinusoids.{i}": one for i, one in enumerate(made)}


made = {}
for name in CLASSES:
    made |= {
        key: tensor.contiguous() for key, tensor in (reference(name) | sinusoids(name)).items()
    }
save_file(
    made,
    Path(__file__).parent / "reference.safetensors",
    metadata={"diffusers": diffusers.__version__},
)
