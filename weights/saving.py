"""Saving a trained model as a folder in diffusers layout, in 16 bits or fewer, for `load` and other tools."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from textpatch.disk import placed
from textpatch.errors import PatchError, StoreError, WeightsError
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.pipeline import Pipeline
from textpatch.reference_models.schedules.published import config_of
from textpatch.reference_models.sdxl import SDXL
from textpatch.weights.building import CLIP_SIZES, T5_SIZES
from textpatch.weights.configs import DENOISER_KINDS
from textpatch.weights.layouts import CLIP, T5, Layout
from textpatch.weights.locating import PIPELINES

ENCODER_LAYOUTS = {
    "CLIPTextModel": (CLIP, CLIP_SIZES),
    "CLIPTextModelWithProjection": (CLIP, CLIP_SIZES),
    "T5EncoderModel": (T5, T5_SIZES),
}
TOKENIZER = "PreTrainedTokenizerFast"


def save_pipeline(
    folder: Path, pipeline: Pipeline, trained: dict, *, matrices: torch.dtype = torch.float16
) -> None:
    """Write a whole pipeline of a pixel-space model.

    folder    new, or one that holds a pipeline, which is replaced; after an error it is as it was before
    trained   how the model was made, kept beside the defaults
    matrices  dtype of tensors of more than one axis; the others are float16

    Raises

    - PatchError for a latent-space model, because no VAE is written,
    - WeightsError for numbers that their dtype does not hold,
    - StoreError for a folder of other things,
    - DiskError for a full disk.
    """
    if pipeline.decoder is not pixels:
        decoder = type(pipeline.decoder).__name__
        raise PatchError(
            f"{pipeline.name} has {decoder} for a decoder, which no folder of ours holds; "
            "save_pipeline writes models of pixels alone, so keep the folder that it was loaded from"
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
    kind, place = PIPELINES[type(pipeline.denoiser)]
    if pipeline.upscales:
        kind = "IFSuperResolutionPipeline"
    config = _denoiser_config(pipeline.denoiser)
    weights = "diffusion_pytorch_model.safetensors"
    _component(folder / place, config, pipeline.denoiser, weights, matrices)
    index = {"_class_name": kind, place: ["diffusers", config["_class_name"]]}
    index |= _write_schedulers(folder, pipeline)
    index |= _write_encoders(folder, pipeline.encoders, matrices)
    if isinstance(pipeline.denoiser, SDXL):
        index["force_zeros_for_empty_prompt"] = pipeline.encoders.zeros_for_none
    write_json(folder / "model_index.json", index)
    write_json(folder / "textpatch.json", {**asdict(pipeline.defaults), "trained": trained})


def _write_schedulers(folder: Path, pipeline: Pipeline) -> dict:
    """Write the schedule, in a stage II for the small pictures, too.   Returns its entries of the index."""
    config = config_of(pipeline.schedule)
    names = ["scheduler"]
    if pipeline.upscales:
        names.append("image_noising_scheduler")
    for name in names:
        write_json(folder / name / "scheduler_config.json", config)
    return {name: ["diffusers", config["_class_name"]] for name in names}


def _write_encoders(folder: Path, encoders: nn.Module, matrices: torch.dtype) -> dict:
    """Write text encoders and tokenizers.   Returns their entries of the index."""
    index = {}
    for name, encoder in encoders.named_children():
        index[name] = ["transformers", type(encoder).__name__]
        _encoder(folder / name, encoder, matrices)
    for name, tokenizer in zip(_tokenizer_names(encoders), encoders.tokenizers, strict=True):
        index[name] = ["transformers", TOKENIZER]
        tokenizer.save_pretrained(folder / name)
        path = folder / name / "tokenizer_config.json"
        # transformers 5 writes a new name of the class, which transformers 4 does not know
        write_json(path, {**json.loads(path.read_text()), "tokenizer_class": TOKENIZER})
    return index


def _denoiser_config(denoiser: nn.Module) -> dict:
    """Sizes of a denoiser, and all that it fixes at other values than diffusers' defaults."""
    names = {kind.model: (name, kind) for (name, _), kind in DENOISER_KINDS.items()}
    name, kind = names[type(denoiser)]
    fixed = {field: values[0] for field, values in kind.fixed.items()}
    return {"_class_name": name, **fixed, **asdict(denoiser.config)}


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
    file: str,
    matrices: torch.dtype,
    layout: Layout | None = None,
) -> None:
    write_json(folder / "config.json", config)
    tensors = {}
    for name_here, tensor in module.state_dict().items():
        published = [name_here]
        if layout:
            published = [target for target, _ in layout.targets(name_here)]
        for target in published:
            tensors[target] = _stored(name_here, tensor.detach(), matrices)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def _stored(name: str, tensor: Tensor, matrices: torch.dtype) -> Tensor:
    dtype = matrices if tensor.ndim > 1 else torch.float16
    magnitude = float(tensor.float().abs().max())
    most = torch.finfo(dtype).max
    if not magnitude <= most:  # True for NaN, too
        raise WeightsError(
            f"tensor {name!r} has magnitudes up to {magnitude:.6g}, {dtype} holds {most:.6g} at most; "
            "store matrices in a wider dtype, or train the model with lower rates"
        )
    return tensor.to(dtype).contiguous()
