"""Kinds of single files, with the components each holds, their prefixes and their layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from textpatch.errors import WeightsError
from textpatch.weights.layouts.deepfloyd_if import IF_I, IF_II
from textpatch.weights.layouts.flux import FLUX
from textpatch.weights.layouts.sd3 import sd3_layout
from textpatch.weights.layouts.sdxl import SD_UNET, SDXL_UNET
from textpatch.weights.layouts.table import Layout, listed
from textpatch.weights.layouts.text_encoders import CLIP, OPENCLIP, OPENCLIP_H, T5, TEMPERATURE
from textpatch.weights.layouts.vae import VAE_ORIGINAL


@dataclass(frozen=True)
class FilePart:
    """One component of a single file."""

    component: str  # the folder it has in diffusers layout
    prefix: str
    layout: Layout


@dataclass(frozen=True)
class SingleFile:
    """Kind of single file, recognised by a key.   Kinds are tried in the order of `SINGLE_FILES`."""

    name: str
    signature: str
    parts: tuple[FilePart, ...]
    dropped: dict[str, str] = field(default_factory=dict)

    def part(self, key: str) -> FilePart | None:
        """Component that a key belongs to, None if it belongs to none."""
        return next((part for part in self.parts if key.startswith(part.prefix)), None)

    def split(self, keys: Iterable[str]) -> dict[str, dict[str, str]]:
        """Split keys by component, each key with its name below the prefix, in the order of the parts.

        Raises WeightsError for keys that belong to no component and are not dropped by name.
        """
        keys = [key for key in keys if key not in self.dropped]
        stray = [key for key in keys if self.part(key) is None]
        if stray:
            raise WeightsError(
                f"{listed(stray)} of {len(keys)} tensors "
                f"belong to no component of {self.name} files"
            )
        split: dict[str, dict[str, str]] = {part.component: {} for part in self.parts}
        for key in keys:
            part = self.part(key)
            split[part.component][key] = key.removeprefix(part.prefix)
        return {component: names for component, names in split.items() if names}

    def layout(self, component: str) -> Layout:
        """Layout of one of the components."""
        return next(part.layout for part in self.parts if part.component == component)


def _sd3(name: str, depth: int) -> SingleFile:
    """Single file of an SD3 or SD3.5 of `depth` blocks."""
    clip_l = "text_encoders.clip_l"
    clip_g = "text_encoders.clip_g"
    t5xxl = "text_encoders.t5xxl"
    return SingleFile(
        name,
        f"model.diffusion_model.joint_blocks.{depth - 1}.context_block.attn.qkv.weight",
        (
            FilePart("transformer", "model.diffusion_model.", sd3_layout(depth)),
            FilePart("vae", "first_stage_model.", VAE_ORIGINAL),
            FilePart("text_encoder", f"{clip_l}.transformer.", CLIP),
            FilePart("text_encoder_2", f"{clip_g}.transformer.", CLIP),
            FilePart("text_encoder_3", f"{t5xxl}.transformer.", T5),
        ),
        {f"{encoder}.logit_scale": TEMPERATURE for encoder in (clip_l, clip_g, t5xxl)},
    )


SD_UNET_KEY = "model.diffusion_model.input_blocks.1.1.norm.weight"
SD2_TEXT = "cond_stage_model.model.ln_final.weight"


def _sd(name: str, signature: str, encoder: FilePart) -> SingleFile:
    """Single file of a Stable Diffusion 1 or 2."""
    unet = FilePart("unet", "model.diffusion_model.", SD_UNET)
    vae = FilePart("vae", "first_stage_model.", VAE_ORIGINAL)
    return SingleFile(name, signature, (unet, vae, encoder))


SINGLE_FILES = (
    SingleFile(
        "SDXL",
        "model.diffusion_model.label_emb.0.0.weight",
        (
            FilePart("unet", "model.diffusion_model.", SDXL_UNET),
            FilePart("vae", "first_stage_model.", VAE_ORIGINAL),
            FilePart("text_encoder", "conditioner.embedders.0.transformer.", CLIP),
            FilePart("text_encoder_2", "conditioner.embedders.1.model.", OPENCLIP),
        ),
    ),
    # two versions by their text encoders; a file of version 2 without one is read as one of version 1
    _sd("SD2", SD2_TEXT, FilePart("text_encoder", "cond_stage_model.model.", OPENCLIP_H)),
    _sd("SD1", SD_UNET_KEY, FilePart("text_encoder", "cond_stage_model.transformer.", CLIP)),
    _sd3("SD3.5-large", depth=38),
    _sd3("SD3", depth=24),
    SingleFile(
        "FLUX.1", "double_blocks.0.img_attn.qkv.weight", (FilePart("transformer", "", FLUX),)
    ),
    SingleFile("IF-II", "aug_proj.0.weight", (FilePart("unet", "", IF_II),)),
    SingleFile("IF-I", "encoder_pooling.0.weight", (FilePart("unet", "", IF_I),)),
    SingleFile("VAE", "decoder.mid.attn_1.q.weight", (FilePart("vae", "", VAE_ORIGINAL),)),
)


def recognise(keys: Iterable[str]) -> SingleFile | None:
    """Kind of the single file that has these keys, None if it is none we know."""
    keys = set(keys)
    return next((kind for kind in SINGLE_FILES if kind.signature in keys), None)


def split(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Split the keys of a single file of any known kind, as `SingleFile.split` does.

    Raises WeightsError if it is no kind of file we know.
    """
    keys = list(keys)
    kind = recognise(keys)
    if kind is None:
        known = ", ".join(kind.name for kind in SINGLE_FILES)
        raise WeightsError(f"none of the single files known ({known}) has these {listed(keys)}")
    return kind.split(keys)
