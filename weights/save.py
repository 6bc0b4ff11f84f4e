"""A trained model as a folder in diffusers layout, 16-bit, that `load` and other tools read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from textpatch.reference_models.mmdit import MMDiT
from textpatch.reference_models.pipeline import Defaults
from textpatch.reference_models.schedules import FlowMatchEuler
from textpatch.reference_models.text_encoders import SD3TextEncoders
from textpatch.weights.load import CLIP_SIZES, T5_SIZES, TIED_T5

CLASSES = {
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    "tokenizer_3": ["transformers", "PreTrainedTokenizerFast"],
}


def save_pipeline(
    folder: Path,
    denoiser: MMDiT,
    encoders: SD3TextEncoders,
    schedule: FlowMatchEuler,
    defaults: Defaults,
    trained: dict,
) -> None:
    """Write a whole pipeline; `trained` says how it was made and is kept beside the defaults."""
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline", **CLASSES})
    write_json(folder / "textpatch.json", {**asdict(defaults), "trained": trained})
    config = {"_class_name": "SD3Transformer2DModel", **asdict(denoiser.config)}
    _component(folder / "transformer", config, denoiser, "diffusion_pytorch_model.safetensors")
    write_json(
        folder / "scheduler/scheduler_config.json",
        {"_class_name": CLASSES["scheduler"][1], **asdict(schedule)},
    )
    for name, sizes in (
        ("text_encoder", CLIP_SIZES),
        ("text_encoder_2", CLIP_SIZES),
        ("text_encoder_3", T5_SIZES),
    ):
        encoder = getattr(encoders, name)
        config = {"architectures": [CLASSES[name][1]], **{key: getattr(encoder.config, key) for key in sizes}}
        _component(folder / name, config, encoder, "model.safetensors")
    for name, tokenizer in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), encoders.tokenizers):
        tokenizer.save_pretrained(folder / name)
        path = folder / name / "tokenizer_config.json"
        # transformers 5 writes the class's new name, which transformers 4 does not know; both know the old one
        write_json(path, {**json.loads(path.read_text()), "tokenizer_class": CLASSES[name][1]})


def write_json(path: Path, body: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")


def _component(folder: Path, config: dict, module: nn.Module, name: str) -> None:
    write_json(folder / "config.json", config)
    tensors = {
        k: v.detach().to(torch.float16).contiguous()
        for k, v in module.state_dict().items()
        if k not in TIED_T5
    }
    save_file(tensors, folder / name, metadata={"format": "pt"})
