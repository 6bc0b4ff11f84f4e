"""Small random models in SD3's layout, for tests that need weights and no skill."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from support.strategies import no_first_values, randomize
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.mmdit import MMDiT
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import FlowMatchEuler
from textpatch.weights.saving import save_pipeline
from textpatch.weights.training.families import sd3_encoders
from textpatch.weights.training.recipes import TINY_MMDIT

PROMPTS = [
    'a red sign that says "HELLO" on a blue wall',
    'a green arrow with text "ZEN" in mono on a dotted pink wall',
]
DEFAULTS = Defaults(height=32, width=96, steps=2, guidance=1.0, text_box=(7, 9, 81, 24))


@no_first_values()
def small_denoiser(seed: int = 0, **sizes) -> MMDiT:
    return randomize(MMDiT(replace(TINY_MMDIT, **{"num_layers": 2, **sizes})), seed).requires_grad_(
        False
    )


@no_first_values()
def small_encoders(seed: int = 0):
    """Real CLIPs and a T5 with random weights."""
    return randomize(sd3_encoders(), seed).eval().requires_grad_(False)


def small_pipeline(seed: int = 0, defaults: Defaults = DEFAULTS, **sizes) -> Pipeline:
    parts = small_encoders(seed), small_denoiser(seed, **sizes)
    return Pipeline(*parts, FlowMatchEuler(), pixels, defaults, "small").eval()


def save_small(folder: Path, pipeline: Pipeline | None = None) -> Path:
    """A small pipeline as a folder that `load` reads."""
    made = pipeline or small_pipeline()
    save_pipeline(folder, made, {"seed": 0})
    return folder


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a - b).abs().max() / b.abs().max())


def require_the_donors(output, plain, twice, floor: float) -> None:
    """Row 0 of an output is row 1 of `plain`, the donor's, which is another than its own.

    To the bit where equal rows have equal bits, as the rows of `twice` tell: both had the donor's inputs.
    Else to `floor`: MKL's products on an AMD EPYC (Zen 5) round by a row's place in the batch.
    """
    if torch.equal(twice[0], twice[1]):
        assert torch.equal(output[0], plain[1])
    assert relative(output[0], plain[1]) <= floor
    assert relative(plain[0], plain[1]) > 1e-3


@contextmanager
def outputs(model, *suffixes):
    """Outputs [(name, output)] of all modules whose names end in one of the suffixes, in the order made."""
    made = []
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: made.append((name, output))
        )
        for name, module in model.named_modules()
        if name.endswith(suffixes)
    ]
    yield made
    for handle in handles:
        handle.remove()


def write_flux_config(folder: Path) -> Path:
    """Write the configuration of a FLUX.1 of two blocks where a pipeline's folder holds it."""
    sizes = dict(
        num_layers=1,
        num_single_layers=1,
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=[2, 2, 4],
    )
    (folder / "transformer").mkdir(parents=True)
    body = json.dumps({"_class_name": "FluxTransformer2DModel"} | sizes)
    (folder / "transformer" / "config.json").write_text(body)
    return folder
