"""Files as people have them: what is done to a folder or file, and what `load` makes of it.

Each row is a situation of `weights/README.md`, and `python tests/support/wild.py` writes its table from them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from support.originals import originals, write_shards

PAGE = Path(__file__).parents[2] / "weights" / "README.md"
START = "<!-- files as people have them: python tests/support/wild.py -->"
END = "<!-- end of the files as people have them -->"

# what diffusers does: as the page says it where `load` reads it, and where `load` refuses it
THEIRS = {
    "same": ("the same", "reads it"),
    "others": ("other numbers", "other numbers"),
    "refuses": ("refuses", "refuses"),
    "endless": ("does not end", "does not end"),
}


@dataclass(frozen=True)
class Row:
    """One situation.

    name       the test's
    situation  what people have
    happens    what `load` does with it, for the page
    base       the folder or file that is changed: sdxl, sd3, if, or file for an original one of SDXL
    change     what is done to a copy; it may return another place to load
    says       pattern in a note or in the refusal, "" for neither
    refused    True where `load` refuses it
    options    further arguments of `load`, from the copy
    reader     load or load_denoiser
    component  the one that is compared with diffusers' own loading of it
    diffusers  what diffusers' own loading of it gives, one of `THEIRS`
    whole      True where it loads the whole pipeline, and not the component alone
    differs    True where the tensors are not those of the base
    """

    name: str
    situation: str
    happens: str
    base: str
    change: Callable[[Path], Path | str | None]
    says: str = ""
    refused: bool = False
    options: Callable[[Path], dict] = field(default=lambda folder: {})
    reader: str = "load"
    component: str = "unet"
    diffusers: str = "same"
    whole: bool = False
    differs: bool = False


# changes


def unlinked(path: Path) -> Path:
    """The file as a copy of its own, because the folder's files are hard links."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def edited(name: str, **changed):
    """A JSON file with other entries, None taken for null and ... for none."""

    def change(folder: Path) -> None:
        path = unlinked(folder / name)
        body = json.loads(path.read_text()) | changed
        body = {key: value for key, value in body.items() if value is not ...}
        path.write_text(json.dumps(body))

    return change


def renamed(before: str, after: str):
    return lambda folder: (folder / before).rename(folder / after) and None


def removed(*names: str):
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def rewritten(name: str, tensors: Callable[[dict], dict]):
    """A file of tensors with others in it."""

    def change(folder: Path) -> None:
        state = tensors(load_file(folder / name))
        (folder / name).unlink()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)

    return change


def written(name: str, data: bytes):
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return change


def both(*changes):
    def change(folder: Path):
        places = [made(folder) for made in changes]
        return places[-1]

    return change


def sharded(component: str, stem: str = "diffusion_pytorch_model", keep: bool = False, **metadata):
    """Shards and their index in the place of a file, or beside it."""

    def change(folder: Path) -> None:
        whole = folder / component / f"{stem}.safetensors"
        write_shards(folder / component, stem, load_file(whole))
        if not keep:
            whole.unlink()
        index = folder / component / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | metadata))

    return change


def copied(before: str, after: str):
    def change(folder: Path) -> None:
        made = folder / after
        if (folder / before).is_dir():
            shutil.copytree(folder / before, made)
        else:
            made.parent.mkdir(exist_ok=True)
            shutil.copy(folder / before, made)

    return change


def half(state: dict) -> dict:
    return {name: value.half() for name, value in state.items()}


def added(**tensors):
    return lambda state: state | {name.replace("__", "."): value for name, value in tensors.items()}


def prefixed(prefix: str):
    return lambda state: {prefix + name: value for name, value in state.items()}


def inside_compiled(state: dict) -> dict:
    return {
        name.replace("_blocks.0.", "_blocks.0._orig_mod."): value for name, value in state.items()
    }


def to_original(kind: str, component: str):
    return lambda state: originals(kind, component, state)


def without_prefix(prefix: str):
    return lambda state: {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def old_attention(state: dict) -> dict:
    """A VAE under the names that diffusers gave its attention before 0.18."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    made = {}
    for name, value in state.items():
        for new, old in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        made[name] = value
    return made


def averaged(state: dict) -> dict:
    """A moving average beside the denoiser, as original files name it: here the weights plus one."""
    copies = {
        "model_ema." + "".join(key.split(".")[1:]): value + 1
        for key, value in state.items()
        if key.startswith("model.diffusion_model.")
    }
    return (
        state | copies | {"model_ema.decay": torch.ones(1), "model_ema.num_updates": torch.ones(1)}
    )


def scaled(weight: str, scale: str, *beside: str):
    """Weights of matrices in 8 bits, each with its scale, whose product is a number of 8 bits times two."""

    def change(state: dict) -> dict:
        made = {}
        for name, value in state.items():
            if name.startswith("model.diffusion") and name.endswith(weight) and value.dim() == 2:
                made[name] = (value / 2).to(torch.float8_e4m3fn)
                base = name.removesuffix(weight)
                made[base + scale] = torch.tensor(2.0)
                for extra in beside:
                    made[base + extra] = torch.ones(1)
            else:
                made[name] = value
        return made

    return change


def linked_out(name: str):
    """A file or folder moved out of the model, and a link in its place."""

    def change(folder: Path) -> None:
        elsewhere = folder.parent / "elsewhere"
        (folder / name).symlink_to((folder / name).rename(elsewhere))

    return change


def alone(component: str):
    """The folder of training: one component and its moving average, without anything else."""

    def change(folder: Path) -> Path:
        checkpoint = folder.parent / "checkpoint-500"
        shutil.copytree(folder / component, checkpoint / component)
        (checkpoint / "optimizer.bin").write_bytes(b"\x80\x02}q\x00.")
        return checkpoint

    return change


def comfy(form: str) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
SD3 = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
SECOND = "unet/diffusion_pytorch_model-00002-of-00003.safetensors"
ONE = "one.safetensors"
FP16 = "unet/diffusion_pytorch_model.fp16.safetensors"
ORIGINAL = dict(base="file", reader="load_denoiser")


def nothing(folder: Path) -> None:
    """Leave the copy as it is."""


def pickled(folder: Path) -> None:
    """A pickle of the same tensors beside the U-Net's file."""
    torch.save(load_file(folder / UNET), folder / "unet" / "diffusion_pytorch_model.bin")


def variants(folder: Path) -> None:
    for path in [*folder.glob("*/*.safetensors")]:
        path.rename(path.with_suffix("").with_suffix(".fp16.safetensors"))


FOLDERS = [
    Row("saved", "a folder as diffusers saves it", "read", "sdxl", nothing),
    Row("sharded", "a component in shards under their index", "read", "sdxl", sharded("unet")),
    Row(
        "one-variant",
        "one component of which only a variant is there (`bf16`, `ema`, `non_ema`, ...)",
        "that variant is read and told",
        "sdxl",
        renamed(UNET, "unet/diffusion_pytorch_model.bf16.safetensors"),
        "unet: its variant 'bf16', the only one that is there",
        diffusers="refuses",
    ),
    Row(
        "all-fp16",
        "all components in the variant `fp16` alone",
        "read and told",
        "sdxl",
        variants,
        "text_encoder: its variant 'fp16'",
        diffusers="refuses",
    ),
    Row(
        "variant-asked",
        '`variant="fp16"`, which some components have',
        "those are read in it, the others plain, and told",
        "sdxl",
        copied(UNET, FP16),
        "vae: its plain file, as there is none of 'fp16'",
        options=lambda folder: {"variant": "fp16"},
    ),
    Row(
        "variant-of-shards",
        "shards under the index of a variant",
        "read and told",
        "sdxl",
        both(
            sharded("unet"),
            renamed(INDEX, INDEX.replace(".json", ".fp16.json")),
        ),
        "unet: its variant 'fp16'",
        diffusers="refuses",
    ),
    Row(
        "several-variants",
        "several variants and no plain file",
        "refused: both are named, `variant=` chooses",
        "sdxl",
        both(copied(UNET, FP16), renamed(UNET, UNET.replace("model.s", "model.ema.s"))),
        "holds the variants ema, fp16 and no plain file; choose one: variant=",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "variant-chosen",
        "several variants, and one is chosen",
        "that one is read",
        "sdxl",
        both(copied(UNET, FP16), renamed(UNET, UNET.replace("model.s", "model.ema.s"))),
        options=lambda folder: {"variant": "ema"},
    ),
    Row(
        "variant-of-nobody",
        "a variant asked for that no component has",
        "refused",
        "sdxl",
        nothing,
        "has no file of the variant 'fp8'",
        True,
        options=lambda folder: {"variant": "fp8"},
        diffusers="refuses",
    ),
    Row(
        "whole-and-shards",
        "a whole file beside the shards of one variant",
        "refused: either may be the older (diffusers reads one, transformers the other)",
        "sdxl",
        sharded("unet", keep=True),
        "and nothing says which is meant; move one",
        True,
        diffusers="same",
        reader="load_denoiser",
    ),
    Row(
        "whole-and-index",
        "a whole file beside an index whose shards are gone",
        "the whole file is read and told",
        "sdxl",
        both(
            sharded("unet", keep=True),
            lambda folder: [path.unlink() for path in (folder / "unet").glob("*-of-*")] and None,
        ),
        "diffusion_pytorch_model.safetensors, because .* lacks shards",
        diffusers="refuses",
    ),
    Row(
        "a-shard-less",
        "a shard that is not there",
        "refused, with its name",
        "sdxl",
        both(
            sharded("unet"),
            removed("unet/diffusion_pytorch_model-00002-of-00003.safetensors"),
        ),
        "names 3 files and lacks 1: .*00002-of-00003",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "no-index-of-shards",
        "shards without their index",
        "read and told, as their names say how many there are",
        "sdxl",
        both(sharded("unet"), removed(INDEX)),
        "unet: 3 shards without their index",
        diffusers="refuses",
    ),
    Row(
        "no-index-and-a-shard-less",
        "shards without their index, of which one is not there",
        "refused, with its number",
        "sdxl",
        both(sharded("unet"), removed(INDEX, SECOND)),
        r"one of 3 shards, of which 1: '2' are not there; fetch them",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "two-sets-of-shards",
        "shards of two sets without an index",
        "refused: both are named",
        "sdxl",
        both(
            sharded("unet"), removed(INDEX), copied(SECOND, SECOND.replace("of-00003", "of-00002"))
        ),
        "of two sets of shards, and no index says which is meant",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "a-shard-by-itself",
        "one shard named by its path",
        "its whole set is read and told",
        "sdxl",
        both(sharded("unet"), lambda folder: folder / SECOND),
        reader="load_denoiser",
        diffusers="refuses",
    ),
    Row(
        "metadata-null",
        "an index whose metadata is null",
        "the tensors decide, and it is told",
        "sdxl",
        sharded("unet", metadata=None),
        "its index says None of the total size",
        diffusers="refuses",
    ),
    Row(
        "metadata-text",
        "an index whose metadata is a text or a list",
        "the tensors decide, and it is told",
        "sdxl",
        sharded("unet", metadata="16 bit"),
        "its index says '16 bit' of the total size",
        diffusers="refuses",
    ),
    Row(
        "metadata-of-another",
        "an index with the size of another precision, or of the files",
        "the tensors decide, and it is told",
        "sdxl",
        sharded("unet", metadata={"total_size": 12345}),
        "its index says 12345 of the total size, and the tensors are",
    ),
    Row(
        "pickles-beside",
        "pickles beside safetensors",
        "the safetensors are read, the pickles never",
        "sdxl",
        written("unet/diffusion_pytorch_model.bin", b"\x80\x02}q\x00."),
    ),
    Row(
        "pickles-alone",
        "pickles alone (`.bin`, `.ckpt`, `.pt`)",
        "refused, with the way to convert them elsewhere",
        "sdxl",
        both(pickled, removed(UNET)),
        "only pickles .*; a pickle can run any code",
        True,
        reader="load_denoiser",
    ),
    Row(
        "no-t5",
        "SD3 whose index says that there is no T5",
        "zeros in its place, as published, and told",
        "sd3",
        both(
            edited("model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None]),
            removed("text_encoder_3", "tokenizer_3"),
        ),
        "without text_encoder_3: zeros in the place of T5's tokens",
        component="transformer",
    ),
    Row(
        "t5-not-fetched",
        "SD3 whose index names a T5 that was not fetched",
        "zeros in its place, as published, and told",
        "sd3",
        removed("text_encoder_3", "tokenizer_3"),
        "text_encoder_3 is named in the index and is not there",
        component="transformer",
    ),
    Row(
        "no-tokenizer",
        "a tokenizer that is not there",
        "refused: a few small files to fetch, or those of another model",
        "sdxl",
        removed("tokenizer_2"),
        "no folder 'tokenizer_2' .* a few small files .* text_encoders=",
        True,
        diffusers="refuses",
        whole=True,
    ),
    Row(
        "no-encoder",
        "a text encoder that is not there",
        "refused: fetch it, or `text_encoders=` takes another model's",
        "sdxl",
        removed("text_encoder"),
        "no folder 'text_encoder' .* take another's: text_encoders=",
        True,
        component="text_encoder",
        diffusers="refuses",
    ),
    Row(
        "encoders-of-another",
        "the same, with `text_encoders=` another folder",
        "its encoders and tokenizers are used and told",
        "sdxl",
        removed("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        "text encoders and tokenizers of ",
        options=lambda folder: {"text_encoders": folder.parent / "base"},
    ),
    Row(
        "no-vae",
        "a VAE that is not there",
        "refused: fetch it, or `vae=` takes another's",
        "sdxl",
        removed("vae"),
        "without a VAE; .*vae=",
        True,
        component="vae",
        diffusers="refuses",
    ),
    Row(
        "vae-of-another",
        "the same, with `vae=` another folder",
        "its VAE is used and told",
        "sdxl",
        removed("vae"),
        "VAE of ",
        options=lambda folder: {"vae": folder.parent / "base"},
    ),
    Row(
        "vae-of-a-file",
        "`vae=` an original file of a VAE, with or without its prefix",
        "converted, used and told",
        "sdxl",
        lambda folder: save_file(
            to_original("SDXL", "vae")(load_file(folder / VAE)), folder.parent / "vae.safetensors"
        ),
        "names of an original VAE file without 'first_stage_model.'",
        options=lambda folder: {"vae": folder.parent / "vae.safetensors"},
    ),
    Row(
        "no-scheduler",
        "a scheduler that is not there",
        "refused: one small file to fetch",
        "sdxl",
        removed("scheduler"),
        "no folder 'scheduler' .* one small file, scheduler_config.json",
        True,
        diffusers="refuses",
        whole=True,
    ),
    Row(
        "custom-class",
        "an index with a custom class, a list of module and name",
        "never imported: the components are used as those of their published class, and it is told",
        "sdxl",
        edited("model_index.json", _class_name=["pipeline", "MyPipeline"]),
        r"its class \['pipeline', 'MyPipeline'\] is not run; its components are those of a Stable",
    ),
    Row(
        "unknown-class",
        "an index with another class of the same components",
        "its components are used as those of their published class, and it is told",
        "sdxl",
        edited("model_index.json", _class_name="StableDiffusionXLControlNetPipeline"),
        "its class 'StableDiffusionXLControlNetPipeline' is not run",
    ),
    Row(
        "no-class",
        "an index whose class is no class (`{}`, null)",
        "its components decide, and it is told",
        "sdxl",
        edited("model_index.json", _class_name={}),
        "its class {} is not run",
    ),
    Row(
        "custom-component",
        "an index that names a component's class of a module beside it",
        "never imported: its config.json decides",
        "sdxl",
        edited("model_index.json", unet=["my_unet", "MyUNet"]),
    ),
    Row(
        "no-model-index",
        "a folder of components without model_index.json",
        "its components decide, and it is told",
        "sdxl",
        removed("model_index.json"),
        "no model_index.json; its denoiser is that of a StableDiffusionXLPipeline",
    ),
    Row(
        "safety-checker",
        "an index that names a safety checker, which is not there",
        "not read, as no picture here goes through it",
        "if",
        edited("model_index.json", safety_checker=["deepfloyd_if", "IFSafetyChecker"]),
    ),
    Row(
        "checkpoint",
        "`checkpoint-500` of a training script: a U-Net and an optimizer, nothing else",
        "refused as a pipeline, with what it lacks; `load_denoiser` reads it",
        "sdxl",
        alone("unet"),
        "no folder 'tokenizer' .* text_encoders=",
        True,
    ),
    Row(
        "checkpoint-with-base",
        "the same, with `text_encoders=` and `vae=` the base model",
        "used and told, with the published schedule",
        "sdxl",
        alone("unet"),
        "no folder 'scheduler'; the schedule is the published one",
        options=lambda folder: {
            "text_encoders": folder.parent / "base",
            "vae": folder.parent / "base",
        },
    ),
    Row(
        "bare-denoiser",
        "a component's own folder",
        "`load_denoiser` reads it",
        "sdxl",
        lambda folder: folder / "unet",
        reader="load_denoiser",
    ),
    Row(
        "ema-beside",
        "`unet_ema` beside `unet`",
        "the weights are read, and the moving average is told",
        "sdxl",
        both(
            copied("unet", "unet_ema"),
            rewritten(
                UNET.replace("unet/", "unet_ema/"), lambda s: {k: v + 1 for k, v in s.items()}
            ),
        ),
        "unet: a moving average beside it in 'unet_ema'; ema=True takes it instead",
    ),
    Row(
        "ema-chosen",
        "the same, with `ema=True`",
        "the moving average is read and told",
        "sdxl",
        both(
            copied("unet", "unet_ema"), rewritten(UNET, lambda s: {k: v + 1 for k, v in s.items()})
        ),
        "unet: the moving average of the folder 'unet_ema'",
        options=lambda folder: {"ema": True},
        component="unet_ema",
    ),
    Row(
        "ema-of-nobody",
        "`ema=True` where there is no moving average",
        "refused",
        "sdxl",
        nothing,
        "has no moving average of its weights",
        True,
        options=lambda folder: {"ema": True},
        diffusers="refuses",
        component="unet_ema",
    ),
    Row(
        "lora-beside",
        "a LoRA in the model's folder",
        "not applied, as by diffusers, and told",
        "sdxl",
        lambda folder: save_file(
            {"unet.a.lora_A.weight": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors"
        ),
        "pytorch_lora_weights.safetensors beside is not applied; load_adapter reads it",
    ),
    Row(
        "half-merged",
        "a LoRA half merged, with `base_layer` in the names",
        "refused: the tensors are named",
        "sdxl",
        rewritten(
            UNET,
            lambda state: {k.replace("to_k.", "to_k.base_layer."): v for k, v in state.items()},
        ),
        "missing .*attn1.to_k.weight.*unexpected .*to_k.base_layer.weight",
        True,
        diffusers="others",
        reader="load_denoiser",
    ),
    Row(
        "original-in-folder",
        "a U-Net's folder whose file has its original names",
        "converted and told",
        "flat",
        rewritten(UNET, to_original("SDXL", "unet")),
        "unet: converted from the names of an original SDXL file",
        reader="load_denoiser",
        diffusers="others",
    ),
    Row(
        "original-vae-in-folder",
        "a VAE's folder whose file has its original names",
        "converted and told",
        "sdxl",
        rewritten(VAE, to_original("SDXL", "vae")),
        "vae: converted from the names of an original VAE file",
        component="vae",
        diffusers="others",
    ),
    Row(
        "old-vae",
        "a VAE with the older names of its attention (`query`, `proj_attn`)",
        "read",
        "sdxl",
        rewritten(VAE, old_attention),
        component="vae",
    ),
    Row(
        "compiled",
        "names prefixed by torch.compile (`_orig_mod.`)",
        "read and told",
        "sdxl",
        rewritten(UNET, prefixed("_orig_mod.")),
        "unet: names without what a compiler or wrapper put there",
        diffusers="others",
    ),
    Row(
        "compiled-blocks",
        "the same within the names, of blocks compiled one by one",
        "read and told",
        "sdxl",
        rewritten(UNET, inside_compiled),
        "unet: names without what a compiler or wrapper put there",
        diffusers="others",
    ),
    Row(
        "wrapped",
        "names prefixed by DataParallel (`module.`)",
        "read and told",
        "sdxl",
        rewritten(UNET, prefixed("module.")),
        "unet: names without what a compiler or wrapper put there",
        diffusers="others",
    ),
    Row(
        "whole-clip",
        "a text encoder's file with CLIP's half for pictures",
        "that half is dropped by name",
        "sdxl",
        rewritten(
            "text_encoder_2/model.safetensors",
            added(
                vision_model__embeddings__class_embedding=torch.zeros(4),
                visual_projection__weight=torch.zeros(4, 4),
                logit_scale=torch.zeros(()),
            ),
        ),
        "text_encoder_2: dropped 2: vision_model.* CLIP's half for pictures",
        component="text_encoder_2",
    ),
    Row(
        "unread-projection",
        "a projection in SDXL's first text encoder, which nobody reads",
        "dropped by name",
        "sdxl",
        rewritten(
            "text_encoder/model.safetensors", added(text_projection__weight=torch.zeros(64, 64))
        ),
        "text_encoder: dropped 1: text_projection.weight",
        component="text_encoder",
    ),
    Row(
        "whole-t5",
        "a T5 with its decoder",
        "the decoder is dropped by name",
        "if",
        rewritten(
            "text_encoder/model.safetensors",
            added(
                decoder__block__0__layer__0__SelfAttention__q__weight=torch.zeros(4, 4),
                lm_head__weight=torch.zeros(4, 4),
            ),
        ),
        "text_encoder: dropped 2: decoder.block",
        component="text_encoder",
    ),
    Row(
        "linked-file",
        "a link in the folder that its owner made",
        "refused: copy it, or allow links",
        "sdxl",
        linked_out(UNET),
        "leads out of its folder to .* follow_links=True",
        True,
        reader="load_denoiser",
    ),
    Row(
        "linked-file-allowed",
        "the same, with `follow_links=True`",
        "read",
        "sdxl",
        linked_out(UNET),
        options=lambda folder: {"follow_links": True},
    ),
    Row(
        "linked-folder-allowed",
        "a component that is a link to another model's, with `follow_links=True`",
        "read",
        "sdxl",
        linked_out("vae"),
        options=lambda folder: {"follow_links": True},
        component="vae",
    ),
    Row(
        "linked-to-a-pipe",
        "a link that ends in a device or a pipe, with `follow_links=True`",
        "refused: no regular file",
        "sdxl",
        both(
            removed(UNET),
            lambda folder: os.mkfifo(folder.parent / "pipe"),
            lambda folder: (folder / UNET).symlink_to(folder.parent / "pipe"),
        ),
        "no file 'diffusion_pytorch_model.safetensors' in",
        True,
        options=lambda folder: {"follow_links": True},
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "lfs-pointer",
        "a Git-LFS pointer in a file's place",
        "refused, and called that",
        "sdxl",
        written(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n"),
        "is a Git-LFS pointer, .* git lfs pull",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "lfs-config",
        "a Git-LFS pointer in a configuration's place",
        "refused, and called that",
        "sdxl",
        written("unet/config.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "config.json is a Git-LFS pointer",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "web-page",
        "a web page saved under a file's name",
        "refused, and called that",
        "sdxl",
        written(UNET, b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"),
        "is a web page, .*needs a login",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "json-answer",
        "JSON saved under a file's name",
        "refused, and called that",
        "sdxl",
        written(UNET, b'{"error": "Repository not found", "status": 404}'),
        "is JSON, such as",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "empty-file",
        "a file of no bytes",
        "refused, and told so",
        "sdxl",
        written(UNET, b""),
        "damaged or no safetensors file .0 bytes",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "half-a-file",
        "half of a file, as a stopped download leaves",
        "refused, before anything is built",
        "sdxl",
        lambda folder: written(UNET, (folder / UNET).read_bytes()[:200_000])(folder),
        "is damaged .* fetch it again",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
    Row(
        "a-tensor-less",
        "a tensor that is missing",
        "refused, named; `doctor` says the same",
        "sdxl",
        rewritten(UNET, lambda s: {k: v for k, v in s.items() if k != "conv_in.bias"}),
        "missing 1: conv_in.bias",
        True,
        diffusers="others",
        reader="load_denoiser",
    ),
    Row(
        "a-stranger",
        "a tensor that nobody knows",
        "refused, named: the model may be another",
        "sdxl",
        rewritten(UNET, added(time_gate__weight=torch.zeros(3))),
        "unexpected 1: time_gate.weight",
        True,
        reader="load_denoiser",
    ),
    Row(
        "mixed-precision",
        "tensors of several precisions in one file",
        "read, counted in the first note",
        "sdxl",
        rewritten(UNET, lambda s: {k: v.double() if v.dim() == 1 else v for k, v in s.items()}),
        "tensors .* F32, .* F64",
    ),
]

CONFIGURATIONS = [
    Row(
        "vae-of-other-channels",
        "a VAE of other channels than the denoiser",
        "refused before data is read",
        "sdxl",
        lambda folder: both(removed("vae"), copied("../sd3/vae", "vae"))(folder),
        "the denoiser wants latents of channels, 4, and the VAE has 16",
        True,
        whole=True,
    ),
    Row(
        "text-of-another-width",
        "text encoders of another width than the denoiser",
        "refused before data is read",
        "sdxl",
        both(removed("text_encoder"), copied("text_encoder_2", "text_encoder")),
        "the U-Net wants text of the width 96, and the CLIPs together has 64",
        True,
        whole=True,
    ),
    Row(
        "another-t5",
        "a T5 of another width than the denoiser",
        "refused before data is read",
        "if",
        both(removed("text_encoder"), copied("../narrow_t5", "text_encoder")),
        "the U-Net wants text of the width 128, and T5 has 64",
        True,
        whole=True,
    ),
    Row(
        "end-token",
        "an end token of the encoder that is not its tokenizer's",
        "refused: another vector would be pooled",
        "sdxl",
        edited("text_encoder_2/config.json", eos_token_id=1),
        "eos_token_id 1, and its tokenizer ends prompts with 3",
        True,
        whole=True,
    ),
    Row(
        "padding-side",
        "a tokenizer that pads at the left",
        "refused: its encoder reads prompts from their first token on",
        "sdxl",
        edited("tokenizer/tokenizer_config.json", padding_side="left"),
        "says padding_side 'left'",
        True,
        whole=True,
    ),
    Row(
        "bookkeeping-entries",
        "entries of a configuration that begin with an underscore",
        "not read",
        "sdxl",
        edited("unet/config.json", _name_or_path="/home/a/b", _use_default_values=["norm_eps"]),
    ),
    Row(
        "a-new-field",
        "a field of a configuration that is not the published one's",
        "refused with both values: numbers would change",
        "sdxl",
        edited("unet/config.json", norm_eps=1e-3),
        "with norm_eps 0.001; SDXL is the published one, with 1e-05",
        True,
        reader="load_denoiser",
    ),
    Row(
        "too-many-layers",
        "a configuration that asks for more layers than its file holds",
        "refused by arithmetic",
        "if",
        edited("unet/config.json", layers_per_block=10**9),
        "tensors or more, and its file holds",
        True,
        diffusers="endless",
    ),
    Row(
        "heads-of-half",
        "sizes below 1 or with a fraction",
        "refused with the field",
        "if",
        edited("unet/config.json", attention_head_dim=0.5),
        "attention_head_dim has 0.5; give whole numbers of 1 or more",
        True,
        diffusers="refuses",
    ),
    Row(
        "distances-of-nothing",
        "a T5 without distances",
        "refused with the field",
        "if",
        edited("text_encoder/config.json", relative_attention_max_distance=0),
        "relative_attention_max_distance has 0; give whole numbers",
        True,
        whole=True,
    ),
    Row(
        "deep-json",
        "a configuration of 100,000 brackets",
        "refused in one line",
        "sdxl",
        written("unet/config.json", b"[" * 100_000),
        "cannot be read as JSON",
        True,
        diffusers="refuses",
        reader="load_denoiser",
    ),
]

FILES = [
    Row("original", "an original file", "read", change=nothing, diffusers="same", **ORIGINAL),
    Row(
        "sft",
        "the ending `.sft`",
        "read",
        change=lambda folder: (folder / ONE).rename(folder / "one.sft"),
        diffusers="refuses",
        **ORIGINAL,
    ),
    Row(
        "bare-unet",
        "a denoiser alone, without the prefix of its names",
        "read and told",
        change=rewritten(ONE, without_prefix("model.diffusion_model.")),
        says="names of an original SDXL file without 'model.diffusion_model.'",
        diffusers="refuses",
        **ORIGINAL,
    ),
    Row(
        "half-a-prefix",
        "a denoiser alone, with half the prefix (`diffusion_model.`)",
        "read and told",
        change=both(
            rewritten(ONE, without_prefix("model.diffusion_model.")),
            rewritten(ONE, prefixed("diffusion_model.")),
        ),
        says="names of an original SDXL file without",
        diffusers="refuses",
        **ORIGINAL,
    ),
    Row(
        "tables",
        "tables of the noise schedule (`betas`, `alphas_cumprod`, `denoiser.sigmas`, ...)",
        "dropped by name",
        change=rewritten(
            ONE,
            added(
                betas=torch.zeros(9),
                sqrt_one_minus_alphas_cumprod=torch.zeros(9),
                denoiser__sigmas=torch.zeros(9),
                posterior_mean_coef1=torch.zeros(9),
            ),
        ),
        says="dropped 4: betas, .* tables of the noise schedule",
        diffusers="same",
        **ORIGINAL,
    ),
    Row(
        "bookkeeping",
        "bookkeeping of training (`global_step`, losses of the autoencoder)",
        "dropped by name",
        change=rewritten(
            ONE,
            added(
                global_step=torch.zeros(()),
                first_stage_model__loss__logvar=torch.zeros(()),
                first_stage_model__loss__discriminator__main__0__weight=torch.zeros(3),
            ),
        ),
        says="dropped 1: first_stage_model.loss.discriminator.*losses of the autoencoder",
        diffusers="same",
        **ORIGINAL,
    ),
    Row(
        "moving-average",
        "a moving average beside the weights (`model_ema.`)",
        "the weights are read, and the average is told",
        change=rewritten(ONE, averaged),
        says="a moving average beside the weights, .* ema=True takes it instead",
        diffusers="same",
        **ORIGINAL,
    ),
    Row(
        "moving-average-chosen",
        "the same, with `ema=True`",
        "the average is read and told",
        change=rewritten(ONE, averaged),
        says="the moving average instead of the weights",
        options=lambda folder: {"ema": True},
        differs=True,
        diffusers="others",
        **ORIGINAL,
    ),
    Row(
        "fp8",
        "weights in 8 bits (`F8_E4M3`, `F8_E5M2`)",
        "read in the dtype asked for",
        change=rewritten(ONE, lambda s: {k: v.to(torch.float8_e4m3fn) for k, v in s.items()}),
        differs=True,
        **ORIGINAL,
    ),
    Row(
        "fp8-scaled",
        "weights in 8 bits with scales (`scale_weight`, `scaled_fp8`)",
        "multiplied by their scales, and told",
        change=both(
            rewritten(ONE, scaled(".weight", ".scale_weight", ".scale_input")),
            rewritten(
                ONE,
                added(model__diffusion_model__scaled_fp8=torch.zeros(0).to(torch.float8_e4m3fn)),
            ),
        ),
        says="weights in 8 bits, multiplied by their scales",
        differs=True,
        diffusers="others",
        **ORIGINAL,
    ),
    Row(
        "fp8-of-comfy",
        "the same as newer programs write it (`weight_scale`, `comfy_quant`)",
        "multiplied by their scales, and told",
        change=both(
            rewritten(ONE, scaled(".weight", ".weight_scale")),
            rewritten(
                ONE,
                lambda s: (
                    s
                    | {
                        key.replace("weight_scale", "comfy_quant"): comfy("float8_e4m3fn")
                        for key in s
                        if key.endswith("weight_scale")
                    }
                ),
            ),
        ),
        says="weights in 8 bits, multiplied by their scales",
        differs=True,
        diffusers="others",
        **ORIGINAL,
    ),
    Row(
        "fp4",
        "weights in 4 bits of the same programs",
        "refused: the format is named",
        change=rewritten(
            ONE,
            lambda s: s | {"model.diffusion_model.out.2.comfy_quant": comfy("nvfp4")},
        ),
        says="says the format 'nvfp4'; 8-bit floats alone",
        refused=True,
        **ORIGINAL,
    ),
    Row(
        "bitsandbytes",
        "weights quantised by bitsandbytes or GPTQ",
        "refused: the tensors are named",
        change=rewritten(
            ONE,
            added(model__diffusion_model__out__2__weight__absmax=torch.zeros(3)),
        ),
        says="is quantised by another program .1: .*absmax",
        refused=True,
        **ORIGINAL,
    ),
    Row(
        "gguf",
        "a GGUF file under another name",
        "refused, and called that",
        change=written(ONE, b"GGUF\x03\x00\x00\x00" + bytes(64)),
        says="is a GGUF file",
        refused=True,
        diffusers="refuses",
        **ORIGINAL,
    ),
    Row(
        "twice",
        "two tensors that are one without a wrapper's prefix",
        "refused: both are named",
        change=rewritten(
            ONE,
            lambda s: s | {"module.model.diffusion_model.out.2.bias": torch.zeros(4)},
        ),
        says="which are both 'model.diffusion_model.out.2.bias'",
        refused=True,
        **ORIGINAL,
    ),
    Row(
        "of-no-component",
        "tensors of no component",
        "refused, named",
        change=rewritten(ONE, added(control_model__out__weight=torch.zeros(3))),
        says="1: control_model.out.weight .* belong to no component of SDXL",
        refused=True,
        **ORIGINAL,
    ),
    Row(
        "without-encoders",
        "an original file without text encoders",
        "refused, with what takes them from another model",
        "file",
        lambda folder: folder / ONE,
        "no tokenizer",
        True,
    ),
    Row(
        "with-encoders-of-another",
        "the same, with `text_encoders=` a folder",
        "its encoders and tokenizers are used and told",
        "file",
        lambda folder: folder / ONE,
        "text encoders and tokenizers of",
        options=lambda folder: {"text_encoders": folder.parent / "sdxl"},
        differs=True,
    ),
    Row(
        "without-a-vae",
        "an original file without VAE, with `vae=` a folder",
        "its VAE is used and told",
        "file",
        both(
            rewritten(
                ONE, lambda s: {k: v for k, v in s.items() if not k.startswith("first_stage")}
            ),
            lambda folder: folder / ONE,
        ),
        "VAE of",
        options=lambda folder: {
            "text_encoders": folder.parent / "sdxl",
            "vae": folder.parent / "sdxl" / "vae",
        },
        differs=True,
    ),
    Row(
        "a-lora",
        "a LoRA in a model's place",
        "refused, and called that",
        change=rewritten(
            ONE,
            lambda s: {
                "unet.a.attn2.to_k.lora_A.weight": torch.zeros(4, 6),
                "unet.a.attn2.to_k.lora_B.weight": torch.zeros(6, 4),
            },
        ),
        says="tensors of a LoRA of rank",
        refused=True,
        diffusers="refuses",
        **ORIGINAL,
    ),
]
ROWS = FOLDERS + CONFIGURATIONS + FILES


def table() -> str:
    """The table of the page."""
    lines = ["| situation | what happens | diffusers | test |", "|---|---|---|---|"]
    for row in ROWS:
        theirs = THEIRS[row.diffusers][row.refused]
        lines.append(f"| {row.situation} | {row.happens} | {theirs} | `{row.name}` |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n{table()}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
