"""Make tests/golden/reference.safetensors with diffusers.

The models and inputs are those of tests/support/seeded_models.py, functions of a seed.  Stored are diffusers'
outputs in float64, and the time sinusoids of this machine in float32:

    PYTHONPATH=tests python tests/golden/make_reference.py
"""

from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
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
            if type(norm).__name__ == "RMSNorm":
                exact = torch.nn.RMSNorm(norm.dim, eps=norm.eps, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(module, name, exact)


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
        return {"vae.encoded": theirs.encode(given["pictures"]).latent_dist.mean * scale,
                "vae.decoded": theirs.decode(given["latents"] / scale).sample}  # fmt: skip
    if name.startswith("sd3"):
        out = theirs(given["x"], given["tokens"], given["pooled"], given["t"], return_dict=False)
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
