"""A trained model as a folder in diffusers layout, in 16 bits or fewer, that `load` and other tools read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from textpatch.disk import placed
from textpatch.errors import PatchError, StoreError, WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF
from textpatch.reference_models.mmdit import MMDiT
from textpatch.reference_models.pipeline import Pipeline, pixels
from textpatch.reference_models.schedules import Schedule
from textpatch.reference_models.sdxl import SDXL
from textpatch.weights.building import CLIP_SIZES, T5_SIZES
from textpatch.weights.configs import DENOISER_KINDS
from textpatch.weights.layouts import CLIP, T5, Layout
from textpatch.weights.schedulers import SCHEDULES

# Pipeline class, and the folder of its denoiser.
PIPELINES = {
    MMDiT: ("StableDiffusion3Pipeline", "transformer"),
    SDXL: ("StableDiffusionXLPipeline", "unet"),
    DeepFloydIF: ("IFPipeline", "unet"),
}
ENCODER_LAYOUTS = {
    "CLIPTextModel": (CLIP, CLIP_SIZES),
    "CLIPTextModelWithProjection": (CLIP, CLIP_SIZES),
    "T5EncoderModel": (T5, T5_SIZES),
}
TOKENIZER = "PreTrainedTokenizerFast"


def save_pipeline(
    folder: Path, pipeline: Pipeline, trained: dict, *, matrices: torch.dtype = torch.float16
) -> None:
    """Write a whole pipeline of a pixel-space model; `trained` says how it was made and is kept beside the defaults.

    The folder is there whole or as it was; a pipeline that it held is replaced.
    matrices: the dtype of tensors of more than one axis; those of one are float16.
    Raises PatchError for a latent-space model, since no VAE is written; WeightsError for numbers that their dtype
    does not hold; StoreError for a folder of other things, and DiskError for a full disk.
    """
    if pipeline.decoder is not pixels:
        decoder = type(pipeline.decoder).__name__
        raise PatchError(
            f"{pipeline.name} has {decoder} for a decoder, which no folder of ours holds; save_pipeline writes "
            "models of pixels alone, so keep the folder that it was loaded from"
        )
    folder = Path(folder).resolve()
    _require_replaceable(folder)
    with placed(folder) as temporary:
        _write(temporary, pipeline, trained, matrices)


def _require_replaceable(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise StoreError(
            f"{folder} holds something and no pipeline; give a new folder for this one"
        )


def _write(folder: Path, pipeline: Pipeline, trained: dict, matrices: torch.dtype) -> None:
    denoiser, encoders = pipeline.denoiser, pipeline.encoders
    kind, place = PIPELINES[type(denoiser)]
    config, timing = _denoiser_config(denoiser), _schedule_config(pipeline.schedule)
    index = {place: ["diffusers", config["_class_name"]]}
    _component(folder / place, config, denoiser, "diffusion_pytorch_model.safetensors", matrices)
    schedulers = ["scheduler"]
    if pipeline.upscales:  # IF's stage II, whose small pictures have noise, too
        kind, schedulers = "IFSuperResolutionPipeline", ["scheduler", "image_noising_scheduler"]
    for name in schedulers:
        index[name] = ["diffusers", timing["_class_name"]]
        write_json(folder / name / "scheduler_config.json", timing)
    for name, encoder in encoders.named_children():
        index[name] = ["transformers", type(encoder).__name__]
        _encoder(folder / name, encoder, matrices)
    for name, tokenizer in zip(_tokenizer_names(encoders), encoders.tokenizers):
        index[name] = ["transformers", TOKENIZER]
        tokenizer.save_pretrained(folder / name)
        path = folder / name / "tokenizer_config.json"
        # transformers 5 writes the class's new name, which transformers 4 does not know; both know the old one
        write_json(path, {**json.loads(path.read_text()), "tokenizer_class": TOKENIZER})
    if isinstance(denoiser, SDXL):
        index["force_zeros_for_empty_prompt"] = encoders.zeros_for_none
    write_json(folder / "model_index.json", {"_class_name": kind, **index})
    write_json(folder / "textpatch.json", {**asdict(pipeline.defaults), "trained": trained})


def _denoiser_config(denoiser: nn.Module) -> dict:
    """Its sizes, and of what it fixes all that differs from diffusers' defaults."""
    names = {kind.model: (name, kind) for (name, _), kind in DENOISER_KINDS.items()}
    name, kind = names[type(denoiser)]
    fixed = {field: values[0] for field, values in kind.fixed.items()}
    return {"_class_name": name, **fixed, **asdict(denoiser.config)}


def _schedule_config(schedule: Schedule) -> dict:
    names = {kind: name for name, (kind, _) in SCHEDULES.items()}
    return {"_class_name": names[type(schedule)], **schedule.FIXED, **asdict(schedule)}


def _encoder(folder: Path, encoder: nn.Module, matrices: torch.dtype) -> None:
    layout, sizes = ENCODER_LAYOUTS[type(encoder).__name__]
    sizes = {size: getattr(encoder.config, size) for size in sizes}
    config = {"architectures": [type(encoder).__name__], **sizes}
    _component(folder, config, encoder, "model.safetensors", matrices, layout)


def _tokenizer_names(encoders: nn.Module) -> list[str]:
    return [name.replace("text_encoder", "tokenizer") for name, _ in encoders.named_children()]


def write_json(path: Path, body: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")


def _component(
    folder: Path,
    config: dict,
    module: nn.Module,
    name: str,
    matrices: torch.dtype,
    layout: Layout | None = None,
) -> None:
    write_json(folder / "config.json", config)
    tensors = {
        published: _stored(own, tensor.detach(), matrices)
        for own, tensor in module.state_dict().items()
        for published, *_ in (layout.targets(own) if layout else [(own,)])
    }
    save_file(tensors, folder / name, metadata={"format": "pt"})


def _stored(name: str, tensor: Tensor, matrices: torch.dtype) -> Tensor:
    dtype = matrices if tensor.ndim > 1 else torch.float16
    found, most = float(tensor.float().abs().max()), torch.finfo(dtype).max
    if not found <= most:  # NaN, too
        raise WeightsError(
            f"tensor {name!r} has magnitudes up to {found:.6g}, {dtype} holds {most:.6g} at most; store "
            "matrices in a wider dtype, or train the model with lower rates"
        )
    return tensor.to(dtype).contiguous()
