"""From a name or a folder to a pipeline: the diffusers layout, read without diffusers."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Iterator

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from textpatch.errors import PatchError, WeightsError, closest
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.pipeline import Defaults, Pipeline, pixels
from textpatch.reference_models.schedules import FlowMatchEuler
from textpatch.reference_models.text_encoders import SD3TextEncoders
from textpatch.weights.read import load_tensors, read_config, read_json

SHIPPED = Path(__file__).parent
TIED_T5 = ["encoder.embed_tokens.weight"]  # another name of `shared.weight`, left out of published files
CLIP_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads projection_dim "
    "max_position_embeddings hidden_act layer_norm_eps bos_token_id eos_token_id pad_token_id"
).split()
T5_SIZES = (
    "vocab_size d_model d_kv d_ff num_layers num_heads relative_attention_num_buckets "
    "relative_attention_max_distance layer_norm_epsilon feed_forward_proj pad_token_id eos_token_id"
).split()


def shipped_models() -> list[str]:
    """Names of the models that come with textpatch."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def load(where: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None) -> Pipeline:
    """A shipped model by name, or a folder in diffusers layout, as a ready Pipeline.

    dtype is float32 when None; device is the CPU when None.  Raises WeightsError for an unknown name, a
    missing or damaged file, or tensors that do not fit their configuration.
    """
    folder = find_folder(where)
    index, dtype = read_json(folder, "model_index.json"), dtype or torch.float32
    if index.get("_class_name") != "StableDiffusion3Pipeline":
        raise WeightsError(
            f"{folder} holds a {index.get('_class_name')}; this version loads StableDiffusion3Pipeline"
        )
    if (folder / "vae").exists():
        raise WeightsError(
            f"{folder} has a VAE, which this version cannot decode; use load_denoiser for its transformer"
        )
    with _explained(folder / "textpatch.json"):
        defaults = Defaults(**read_config(folder, {f.name for f in fields(Defaults)}, "textpatch.json"))
    pipeline = Pipeline(
        _encoders(folder, dtype),
        load_denoiser(folder / "transformer", dtype=dtype),
        _schedule(folder / "scheduler"),
        pixels,
        defaults,
        name=folder.name,
    )
    return pipeline.to(device or "cpu").eval().requires_grad_(False)


def load_denoiser(where: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None) -> nn.Module:
    """The bare denoiser of a diffusers-layout component folder: config.json and one safetensors file.

    Raises WeightsError as `load` does.
    """
    folder = Path(where)
    config = read_config(
        folder, {f.name for f in fields(MMDiTConfig)} | {"_class_name", "dual_attention_layers"}
    )
    if config.pop("_class_name", None) != "SD3Transformer2DModel":
        raise WeightsError(f"{folder} is no SD3Transformer2DModel, the one denoiser this version loads")
    if config.pop("dual_attention_layers", ()):
        raise WeightsError(
            f"{folder} has dual-attention layers (SD3.5-medium), which this version does not build"
        )
    with _explained(folder / "config.json"), torch.device("meta"):
        model = MMDiT(MMDiTConfig(**config))
    model = load_tensors(model, folder, "diffusion_pytorch_model.safetensors", dtype=dtype or torch.float32)
    return model.to(device or "cpu").eval()


def find_folder(where: str | os.PathLike) -> Path:
    """The folder of a shipped model's name or of a path.  Raises WeightsError with the closest names."""
    if str(where) in shipped_models():
        return SHIPPED / str(where)
    if Path(where).is_dir():
        return Path(where)
    raise WeightsError(
        f"no model {str(where)!r}: neither a shipped name nor a folder{closest(where, shipped_models())}"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say in one line that a configuration's values build nothing; transformers has many exceptions for it."""
    try:
        yield
    except PatchError:
        raise
    except Exception as error:
        found = " ".join(str(error).split())
        raise WeightsError(
            f"{path} describes no model that can be built ({type(error).__name__}: {found})"
        ) from None


def _encoders(folder: Path, dtype: torch.dtype) -> SD3TextEncoders:
    t5_folder = folder / "text_encoder_3"
    clips = [_meta_clip(folder / name) for name in ("text_encoder", "text_encoder_2")]
    with _explained(t5_folder / "config.json"), torch.device("meta"):
        t5 = T5EncoderModel(
            T5Config(**read_config(t5_folder, T5_SIZES), is_encoder_decoder=False, use_cache=False)
        )
    for clip, name in zip(clips, ("text_encoder", "text_encoder_2")):
        load_tensors(clip, folder / name, "model.safetensors", dtype=dtype)
        # not in the file: made by the class itself, and so left without data on the meta device
        embeddings = clip.text_model.embeddings
        embeddings.position_ids = torch.arange(clip.config.max_position_embeddings)[None]
    load_tensors(t5, t5_folder, "model.safetensors", tied=TIED_T5, dtype=dtype)
    t5.encoder.embed_tokens.weight = t5.shared.weight
    tokenizers = [_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    return SD3TextEncoders(*clips, t5, tokenizers)


def _meta_clip(folder: Path) -> CLIPTextModelWithProjection:
    with _explained(folder / "config.json"), torch.device("meta"):
        return CLIPTextModelWithProjection(CLIPTextConfig(**read_config(folder, CLIP_SIZES)))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise WeightsError(f"no folder {folder.name!r} in {folder.parent}; the model is incomplete")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} holds no tokenizer transformers can read: {error}") from None


def _schedule(folder: Path) -> FlowMatchEuler:
    names = {"num_train_timesteps", "shift", "prediction"}
    with _explained(folder / "scheduler_config.json"):
        return FlowMatchEuler(**read_config(folder, names, "scheduler_config.json"))


def fingerprint(where: str | os.PathLike) -> str:
    """sha256 over the names and contents of a model's files, for manifests."""
    folder, digest = find_folder(where), hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
