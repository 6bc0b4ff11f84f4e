"""Components of a pipeline, each made on the meta device first and then filled from its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from textpatch.errors import WeightsError
from textpatch.reference_models.decoders import LatentPixels, pixels
from textpatch.reference_models.schedules import DDPM, Diffusion, FlowMatchEuler
from textpatch.reference_models.sdxl import SDConfig
from textpatch.reference_models.text_encoders import (
    FLUX_LENGTHS,
    FluxTextEncoders,
    IFTextEncoder,
    SD3TextEncoders,
    SDTextEncoder,
    SDXLTextEncoders,
)
from textpatch.reference_models.vae import VAE
from textpatch.weights.borrowing import Source
from textpatch.weights.fill import Part, fill_module, require_module, staying
from textpatch.weights.layouts import CLIP, T5
from textpatch.weights.parts import explained
from textpatch.weights.reading.files import shown
from textpatch.weights.reading.mapping import Mappings
from textpatch.weights.sizes import require_held
from textpatch.weights.strays import dropped
from textpatch.weights.tokenizers import CLIP_LENGTH, read_tokenizer

if TYPE_CHECKING:  # transformers is imported where it builds something
    from transformers import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        PreTrainedTokenizerBase,
        T5EncoderModel,
    )

# entries of the encoders' configurations that decide their shapes and their arithmetic
CLIP_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads projection_dim "
    "max_position_embeddings hidden_act layer_norm_eps bos_token_id eos_token_id pad_token_id"
).split()
T5_SIZES = (
    "vocab_size d_model d_kv d_ff num_layers num_heads relative_attention_num_buckets "
    "relative_attention_max_distance layer_norm_epsilon feed_forward_proj pad_token_id eos_token_id"
).split()
# tensors that an encoder of texts does not read
OF_PICTURES = {r"vision_model\..*|visual_projection\.weight": "CLIP's half for pictures"}
UNREAD_PROJECTION = {r"text_projection\.weight": "a projection that this encoder does not use"}
OF_DECODER = {r"decoder\..*|lm_head\.weight": "T5's decoder, which writes texts"}
HALF = torch.float16, torch.bfloat16
# other names of `shared.weight`, left out of published files
TIED_T5 = ["encoder.embed_tokens.weight"]


class NoFirstValues(TorchFunctionMode):
    """Functions of `torch.nn.init` leave what they are given as it is."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def without_data() -> Iterator[None]:
    """Make modules on the meta device, and draw no first values, of which nothing would be kept."""
    with torch.device("meta"), NoFirstValues():
        yield


def on_meta(where: Path, model: type[nn.Module], config, part: Part) -> tuple[nn.Module, Part]:
    """A model without data and the tensors for it.

    where  file or folder of the component, for messages
    Raises WeightsError for a configuration that builds nothing or asks for more tensors than the part holds.
    """
    require_held(where, config, part)
    with explained(where), without_data():
        return model(config), part


def _require_from_noise(where: Path, config) -> None:
    """Raise WeightsError for a U-Net that reads more beside its latents than noise."""
    if isinstance(config, SDConfig) and config.in_channels != config.out_channels:
        raise WeightsError(
            f"{where} reads {config.in_channels} channels and gives {config.out_channels}, as U-Nets do that "
            "change a given picture (inpainting has 9), and pictures are drawn from text alone here; "
            "load_denoiser reads it by itself"
        )


class Builder:
    """Builder of a source's components, on one device and in one dtype.

    Components are made without data and held against their files.  `fill` reads the data of all.

    dtypes  number of tensors by the dtype that they are stored in
    stay    number of them that stay in their files
    """

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype
        self.terms = source.terms
        self.dtypes: Counter[str] = Counter()
        self.stay = 0
        self._mappings = Mappings() if self.terms.mapped else None
        self._fillings: list[Callable[[], None]] = []

    def fill(self) -> None:
        """Read the data of all components that were built."""
        for filling in self._fillings:
            filling()

    def _filled(
        self, module: nn.Module, part: Part, *, names=None, exact=(), dtype=None, then=None
    ) -> nn.Module:
        """The module, whose data `fill` will read.   Raises WeightsError for a part that does not fit it.

        then  what is to be done after that
        """
        require_module(part, module, names)
        dtype = dtype or self.dtype
        self.dtypes.update(part.tensors[key].dtype for key in part.keys)
        if self._mappings is not None:
            self.stay += len(staying(part, dtype, exact))

        def filling() -> None:
            fill_module(
                module,
                part,
                dtype=dtype,
                device=self.device,
                names=names,
                exact=exact,
                mappings=self._mappings,
            )
            if then:
                then()

        self._fillings.append(filling)
        return module

    def denoiser(self, component: str) -> nn.Module:
        path = self.source.path / component
        kind, config, part = self.source.denoiser(component)
        _require_from_noise(path, config)
        return self._filled(*on_meta(path, kind, config, part))

    def decoder(self):
        """Decoder through the VAE, or `pixels` where there is none."""
        if not self.source.has("vae"):
            return pixels
        config, part = self.source.vae()
        vae, part = on_meta(self.source.path / "vae", VAE, config, part)
        # SDXL's VAE overflows in float16, and published configurations say so
        upcast = config.force_upcast and self.dtype in HALF
        dtype = torch.float32 if upcast else self.dtype
        return LatentPixels(self._filled(vae, part, dtype=dtype))

    def clip(self, component: str) -> CLIPTextModel:
        """CLIP whose pooled vector is not projected."""
        from transformers import CLIPTextModel

        return self._clip(component, CLIPTextModel, {**OF_PICTURES, **UNREAD_PROJECTION})

    def projecting_clip(self, component: str) -> CLIPTextModelWithProjection:
        """CLIP whose pooled vector is projected."""
        from transformers import CLIPTextModelWithProjection

        return self._clip(component, CLIPTextModelWithProjection, OF_PICTURES)

    def _clip(self, component: str, kind: type[nn.Module], unread: dict[str, str]) -> nn.Module:
        from transformers import CLIPTextConfig

        sizes, part = self.source.encoder(component, CLIP, CLIP_SIZES)
        part = self._without(part, component, unread)
        require_held(self.source.path / component, sizes, part)
        with explained(self.source.path / component / "config.json"), without_data():
            clip = kind(CLIPTextConfig(**sizes))
        names = {CLIP.targets(name)[0][0]: name for name in clip.state_dict() if CLIP.targets(name)}

        def count_positions() -> None:
            # no file holds the positions; the class made them on the meta device, so without data
            positions = torch.arange(clip.config.max_position_embeddings, device=self.device)[None]
            next(m for m in clip.modules() if hasattr(m, "position_ids")).position_ids = positions

        return self._filled(clip, part, names=names, then=count_positions)

    def _without(self, part: Part, component: str, unread: dict[str, str]) -> Part:
        """The part without tensors that this encoder does not read."""
        gone = dropped(part.keys.values(), unread, component, self.terms)
        return replace(part, keys={key: n for key, n in part.keys.items() if n not in gone})

    def t5(self, component: str) -> T5EncoderModel:
        from transformers import T5Config, T5EncoderModel

        sizes, part = self.source.encoder(component, T5, T5_SIZES)
        part = self._without(part, component, OF_DECODER)
        require_held(self.source.path / component, sizes, part)
        with explained(self.source.path / component / "config.json"), without_data():
            t5 = T5EncoderModel(T5Config(**sizes, is_encoder_decoder=False, use_cache=False))
        names = {name: name for name in t5.state_dict() if name not in TIED_T5}

        def tie() -> None:
            t5.encoder.embed_tokens.weight = t5.shared.weight

        # `wo` overflows in float16, so it stays float32, as transformers keeps it
        exact = ("wo.weight",) if self.dtype == torch.float16 else ()
        return self._filled(t5, part, names=names, exact=exact, then=tie)

    def tokenizer(self, component: str) -> PreTrainedTokenizerBase:
        """Tokenizer of a folder, by the published class, tried on two prompts."""
        folder = self.source.tokenizer(component)
        if not folder.is_dir():
            raise WeightsError(
                f"no folder {folder.name!r} in {folder.parent}; the model is incomplete"
            )
        named = self.source.tokenizer_class(component)
        return read_tokenizer(folder, named, t5=(self.source.pipeline, component) in OF_T5)

    def read_in_full(self, clips: Sequence[nn.Module], tokenizers: Sequence) -> None:
        """Have a CLIP of more positions than CLIP has usually read as many tokens.

        Its tokenizer often still says the usual number, which is nobody's choice.
        """
        for clip, tokenizer in zip(clips, tokenizers, strict=False):  # an SD3 has a third
            positions = clip.config.max_position_embeddings
            if tokenizer.model_max_length == CLIP_LENGTH < positions:
                tokenizer.model_max_length = positions
                self.terms.note(
                    f"prompts of {positions} tokens, as the CLIP has positions, though its tokenizer says "
                    f"{CLIP_LENGTH}"
                )


def stable_diffusion(build: Builder) -> tuple[nn.Module, nn.Module]:
    """Text encoder and denoiser of a Stable Diffusion 1 or 2."""
    clip = build.clip("text_encoder")
    tokenizer = build.tokenizer("tokenizer")
    build.read_in_full([clip], [tokenizer])
    with explained(build.source.path):
        encoder = SDTextEncoder(clip, tokenizer)
    return encoder, build.denoiser("unet")


def sdxl(build: Builder) -> tuple[nn.Module, nn.Module]:
    """Text encoders and denoiser of an SDXL."""
    tokenizers = build.tokenizer("tokenizer"), build.tokenizer("tokenizer_2")
    clips = build.clip("text_encoder"), build.projecting_clip("text_encoder_2")
    build.read_in_full(clips, tokenizers)
    zeros = getattr(build.source, "index", {}).get("force_zeros_for_empty_prompt", True)
    if type(zeros) is not bool:
        raise WeightsError(
            f"{build.source.path} says force_zeros_for_empty_prompt {shown(zeros)}; "
            "give true or false in its model_index.json"
        )
    with explained(build.source.path):
        encoders = SDXLTextEncoders(*clips, tokenizers, zeros)
    return encoders, build.denoiser("unet")


def sd3(build: Builder) -> tuple[nn.Module, nn.Module]:
    """Text encoders and denoiser of a Stable Diffusion 3, whose T5 may be missing."""
    tokenizers = [build.tokenizer("tokenizer"), build.tokenizer("tokenizer_2")]
    clips = build.projecting_clip("text_encoder"), build.projecting_clip("text_encoder_2")
    build.read_in_full(clips, tokenizers)
    t5 = None
    if build.source.has("text_encoder_3"):
        tokenizers.append(build.tokenizer("tokenizer_3"))
        t5 = build.t5("text_encoder_3")
    else:
        build.terms.note(
            "without text_encoder_3: zeros in the place of T5's tokens, as published for SD3 without it"
        )
    denoiser = build.denoiser("transformer")
    with explained(build.source.path):
        encoders = SD3TextEncoders(*clips, t5, tokenizers, denoiser.config.joint_attention_dim)
    return encoders, denoiser


def flux(build: Builder) -> tuple[nn.Module, nn.Module]:
    """Text encoders and denoiser of a FLUX.1, dev or schnell."""
    tokenizers = build.tokenizer("tokenizer"), build.tokenizer("tokenizer_2")
    clip = build.clip("text_encoder")
    t5 = build.t5("text_encoder_2")
    denoiser = build.denoiser("transformer")
    length = FLUX_LENGTHS[denoiser.config.guidance_embeds]
    with explained(build.source.path):
        encoders = FluxTextEncoders(clip, t5, tokenizers, length)
    return encoders, denoiser


def deepfloyd_if(build: Builder) -> tuple[nn.Module, nn.Module]:
    """Text encoder and denoiser of a DeepFloyd IF, stage I or II."""
    encoder = IFTextEncoder(build.t5("text_encoder"), build.tokenizer("tokenizer"))
    return encoder, build.denoiser("unet")


# Class of a published pipeline: the function that builds its encoders and denoiser, and the base of the
# schedules that its denoiser can be sampled by.
BUILDERS = {
    "StableDiffusionPipeline": (stable_diffusion, Diffusion),
    "StableDiffusionXLPipeline": (sdxl, Diffusion),
    "StableDiffusion3Pipeline": (sd3, FlowMatchEuler),
    "FluxPipeline": (flux, FlowMatchEuler),
    "IFPipeline": (deepfloyd_if, DDPM),
    "IFSuperResolutionPipeline": (deepfloyd_if, DDPM),
}
# tokenizers of a T5, by pipeline and component; all others are a CLIP's
OF_T5 = {
    ("StableDiffusion3Pipeline", "tokenizer_3"),
    ("FluxPipeline", "tokenizer_2"),
    ("IFPipeline", "tokenizer"),
    ("IFSuperResolutionPipeline", "tokenizer"),
}
# Classes whose pictures are made of pixels, without a VAE.
OF_PIXELS = ("IFPipeline", "IFSuperResolutionPipeline")
