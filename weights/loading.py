"""From a name, a folder, a file or a cached repository to a pipeline or a bare denoiser, without diffusers."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from textpatch.errors import PatchError, WeightsError, closest
from textpatch.reference_models.pipeline import Defaults, LatentPixels, Pipeline, pixels
from textpatch.reference_models.schedules import DDPM, FlowMatchEuler, ScaledLinear, Schedule
from textpatch.reference_models.text_encoders import (
    T5_LENGTH,
    IFTextEncoder,
    SD3TextEncoders,
    SDXLTextEncoders,
    tokenize,
)
from textpatch.reference_models.vae import VAE
from textpatch.weights.fill import Part, fill_module
from textpatch.weights.layouts import CLIP, T5
from textpatch.weights.locating import File, Folder, denoiser_file, denoiser_folder, explained
from textpatch.weights.published import DENOISERS, localized_sites
from textpatch.weights.reading.files import cached_snapshot, read_config, read_json
from textpatch.weights.sizes import require_held

SHIPPED = Path(__file__).parent
CLIP_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads projection_dim "
    "max_position_embeddings hidden_act layer_norm_eps bos_token_id eos_token_id pad_token_id"
).split()
T5_SIZES = (
    "vocab_size d_model d_kv d_ff num_layers num_heads relative_attention_num_buckets "
    "relative_attention_max_distance layer_norm_epsilon feed_forward_proj pad_token_id eos_token_id"
).split()
PIXEL_CHANNELS = 3
DTYPES = torch.float32, torch.float16, torch.bfloat16, torch.float64
TIED_T5 = [
    "encoder.embed_tokens.weight"
]  # another name of `shared.weight`, left out of published files


def shipped_models() -> list[str]:
    """Names of the models that come with textpatch."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def load(where: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None) -> Pipeline:
    """A ready Pipeline.  where: a shipped model's name, a folder in diffusers layout, an original single file
    or its sharded index, or `org/name` in the local Hugging Face cache.

    dtype is float32 when None; device is the CPU when None.  Raises WeightsError for an unknown name, a
    missing or damaged file, or tensors that do not fit their configuration; PatchError for a device or dtype that
    cannot be used.
    """
    path, (device, dtype) = find(where), _usable(device, dtype)
    source = Folder(path) if path.is_dir() else File(path)
    if source.pipeline not in BUILDERS:
        raise WeightsError(f"{path} holds a {source.pipeline}; known: {', '.join(BUILDERS)}")
    build = Builder(source, device, dtype)
    make, schedules = BUILDERS[source.pipeline]
    (encoders, denoiser), schedule, decoder = make(build), source.schedule(), build.decoder()
    _require_fit(path, source.pipeline, denoiser, schedule, decoder, schedules)
    defaults = _written_defaults(path) or _published_defaults(
        path, source.pipeline, denoiser, decoder
    )
    return (
        Pipeline(encoders, denoiser, schedule, decoder, defaults, name=source.name)
        .eval()
        .requires_grad_(False)
    )


def _require_fit(
    path: Path,
    pipeline: str,
    denoiser: nn.Module,
    schedule: Schedule,
    decoder,
    schedules: type[Schedule],
) -> None:
    if not isinstance(schedule, schedules):
        raise WeightsError(
            f"{path} holds a {pipeline} with the schedule {type(schedule).__name__}; its denoiser is sampled by "
            f"{schedules.__name__}: give it that scheduler_config.json"
        )
    channels = getattr(denoiser.config, "latent_channels", denoiser.config.in_channels)
    if decoder is pixels and channels != PIXEL_CHANNELS:
        raise WeightsError(
            f"{path} holds a {pipeline} of {channels} latent channels without a VAE; fetch the folder 'vae', too"
        )


def load_denoiser(
    where: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None
) -> nn.Module:
    """The bare denoiser of whatever `load` takes, and of a component's own folder, file or sharded index.

    Raises as `load` does.
    """
    (model, part), (device, dtype) = _outlined(find(where)), _usable(device, dtype)
    return fill_module(model, part, dtype=dtype, device=device).eval()


def outline(where: str | os.PathLike) -> nn.Module:
    """The same denoiser on the meta device: names, shapes and sites, no data read; of a published name, no file either.

    Raises WeightsError as `load` does.
    """
    if str(where) in DENOISERS:
        model, config = DENOISERS[str(where)]
        with torch.device("meta"):
            return model(config)
    return _outlined(find(where))[0]


def _usable(device, dtype) -> tuple[torch.device, torch.dtype]:
    """The device and dtype asked for, once a number has been there and back, which meta, without memory, cannot do."""
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in DTYPES:
        raise PatchError(
            f"dtype is {dtype!r}, and models run in {', '.join(map(str, DTYPES))}; give one of these"
        )
    try:
        tried = torch.zeros(1, device="cpu" if device is None else device)
        tried.tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise PatchError(
            f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return tried.device, dtype


def _outlined(path: Path) -> tuple[nn.Module, Part]:
    if (path / "model_index.json").is_file():
        folder = Folder(path)
        return _on_meta(
            path, *folder.denoiser("transformer" if folder.has("transformer") else "unet")
        )
    return _on_meta(path, *(denoiser_folder(path) if path.is_dir() else denoiser_file(path)))


def _on_meta(where: Path, model: type[nn.Module], config, part: Part) -> tuple[nn.Module, Part]:
    require_held(where, config, part)
    with explained(where), torch.device("meta"):
        return model(config), part


def find(where: str | os.PathLike) -> Path:
    """The folder or file of a shipped name, a path, or a cached repository.  Raises WeightsError with what is close."""
    if str(where) in shipped_models():
        return SHIPPED / str(where)
    if os.path.exists(where):  # False, and no OSError, for a name too long to be a file's
        return Path(where)
    if str(where).count("/") == 1 and not str(where).startswith(("/", ".", "~")):
        return cached_snapshot(str(where))
    if str(where) in DENOISERS:
        raise WeightsError(
            f"no weights of {where} come along, its configuration alone; give the published files"
        )
    raise WeightsError(
        f"no model {str(where)!r}: neither a shipped name, nor a folder or file, nor org/name of the Hugging Face "
        f"cache{closest(where, shipped_models())}"
    )


class Builder:
    """Makes the components of a source, each on the meta device first and then filled from its file."""

    def __init__(self, source: Folder | File, device: torch.device, dtype: torch.dtype):
        self.source, self.device, self.dtype = source, device, dtype

    def denoiser(self, component: str) -> nn.Module:
        made, part = _on_meta(self.source.path / component, *self.source.denoiser(component))
        return fill_module(made, part, dtype=self.dtype, device=self.device)

    def decoder(self):
        if not self.source.has("vae"):
            return pixels
        config, part = self.source.vae()
        made, part = _on_meta(self.source.path / "vae", VAE, config, part)
        # published VAEs say so themselves: SDXL's overflows in float16
        dtype = torch.float32 if config.force_upcast else self.dtype
        return LatentPixels(fill_module(made, part, dtype=dtype, device=self.device))

    def clip(self, component: str, kind=CLIPTextModelWithProjection) -> nn.Module:
        sizes, part = self.source.encoder(component, CLIP, CLIP_SIZES)
        require_held(self.source.path / component, sizes, part)
        with explained(self.source.path / component / "config.json"), torch.device("meta"):
            clip = kind(CLIPTextConfig(**sizes))
        names = {CLIP.targets(name)[0][0]: name for name in clip.state_dict() if CLIP.targets(name)}
        fill_module(clip, part, dtype=self.dtype, device=self.device, names=names)
        # not in the file: made by the class itself, and so left without data on the meta device
        positions = torch.arange(clip.config.max_position_embeddings, device=self.device)[None]
        next(m for m in clip.modules() if hasattr(m, "position_ids")).position_ids = positions
        return clip

    def t5(self, component: str) -> T5EncoderModel:
        sizes, part = self.source.encoder(component, T5, T5_SIZES)
        require_held(self.source.path / component, sizes, part)
        with explained(self.source.path / component / "config.json"), torch.device("meta"):
            t5 = T5EncoderModel(T5Config(**sizes, is_encoder_decoder=False, use_cache=False))
        names = {name: name for name in t5.state_dict() if name not in TIED_T5}
        # float16 overflows in `wo`, so it stays float32, as transformers keeps it
        exact = ("wo.weight",) if self.dtype == torch.float16 else ()
        fill_module(t5, part, dtype=self.dtype, device=self.device, names=names, exact=exact)
        t5.encoder.embed_tokens.weight = t5.shared.weight
        return t5

    def tokenizer(self, component: str) -> PreTrainedTokenizerBase:
        folder = self.source.tokenizer(component)
        if not folder.is_dir():
            raise WeightsError(
                f"no folder {folder.name!r} in {folder.parent}; the model is incomplete"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            tokenize(
                [""], [tokenizer], [T5_LENGTH]
            )  # here, and not in a run, breaks what can be read and not used
            tokenizer("\uffff")  # a word that nobody knows
        except BaseException as error:
            # tokenizers raises bare Exceptions, and Rust's panics, which are none and have no name to import
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise WeightsError(
                f"{folder} holds no tokenizer transformers can read: {reason}; fetch it again"
            ) from None
        return tokenizer


def _sdxl(build: Builder):
    tokenizers = build.tokenizer("tokenizer"), build.tokenizer("tokenizer_2")
    clips = build.clip("text_encoder", CLIPTextModel), build.clip("text_encoder_2")
    zeros = getattr(build.source, "index", {}).get("force_zeros_for_empty_prompt", True)
    with explained(build.source.path):
        encoders = SDXLTextEncoders(*clips, tokenizers, zeros)
    return encoders, build.denoiser("unet")


def _sd3(build: Builder):
    names = ["", "_2"] + ["_3"] * build.source.has("text_encoder_3")
    tokenizers = [build.tokenizer(f"tokenizer{name}") for name in names]
    clips = build.clip("text_encoder"), build.clip("text_encoder_2")
    t5, denoiser = (
        build.t5("text_encoder_3") if "_3" in names else None,
        build.denoiser("transformer"),
    )
    with explained(build.source.path):
        encoders = SD3TextEncoders(*clips, t5, tokenizers, denoiser.config.joint_attention_dim)
    return encoders, denoiser


def _deepfloyd_if(build: Builder):
    return IFTextEncoder(build.t5("text_encoder"), build.tokenizer("tokenizer")), build.denoiser(
        "unet"
    )


BUILDERS = {
    "StableDiffusionXLPipeline": (_sdxl, ScaledLinear),
    "StableDiffusion3Pipeline": (_sd3, FlowMatchEuler),
    "IFPipeline": (_deepfloyd_if, DDPM),
    "IFSuperResolutionPipeline": (_deepfloyd_if, DDPM),
}
# Steps and guidance of the published pipelines.
USUAL = {
    "StableDiffusionXLPipeline": (50, 5.0),
    "StableDiffusion3Pipeline": (28, 7.0),
    "IFPipeline": (100, 7.0),
    "IFSuperResolutionPipeline": (50, 4.0),
}


def _written_defaults(path: Path) -> Defaults | None:
    if not (path / "textpatch.json").exists():
        return None
    names = [f.name for f in fields(Defaults)]
    unknown = sorted(read_json(path, "textpatch.json").keys() - {*names, "trained"})
    if unknown:
        raise WeightsError(
            f"{path / 'textpatch.json'} says {unknown[0]!r}, which nothing reads{closest(unknown[0], names)}"
        )
    body = read_config(path, names, "textpatch.json")
    with explained(path / "textpatch.json"):
        return Defaults(**body)


def _published_defaults(path: Path, pipeline: str, denoiser: nn.Module, decoder) -> Defaults:
    side, micro = denoiser.config.sample_size, None
    if not isinstance(side, int) or side < 1:
        raise WeightsError(
            f"{path} has sample_size {side!r} in its denoiser's config.json, and no textpatch.json; "
            "write there the side of its latents, a whole number"
        )
    if decoder is pixels and BUILDERS[pipeline][0] is not _deepfloyd_if:
        raise WeightsError(
            f"{path} holds a {pipeline} without a VAE, and no textpatch.json; fetch the folder 'vae', too"
        )
    if pipeline == "StableDiffusionXLPipeline":
        pixels_per_side = side * decoder.vae.config.downsampling
        micro = (pixels_per_side, pixels_per_side, 0, 0, pixels_per_side, pixels_per_side)
    return Defaults(side, side, *USUAL[pipeline], localized=localized_sites(denoiser), micro=micro)
