"""Adapters as files of other programs, whole or not at all.

    diffusers      unet.X.lora_A.weight, with ranks and alphas in the header
    peft           a folder of adapter_config.json and adapter_model.safetensors
    old-diffusers  unet.Y.processor.to_k_lora.down.weight, with the scale in B
    kohya          lora_unet_Z.lora_down.weight and .alpha, by original names
    comfyui        diffusion_model.Z.lora_A.weight and .alpha, by original names

Each has the header key "textpatch", JSON of what this library knows beside: the base, and how it was made.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from textpatch.changes import LowRank
from textpatch.disk import as_json, placed
from textpatch.errors import PatchError, closest
from textpatch.tuning.fused import joined
from textpatch.tuning.spellings import KOHYA, is_transformer, original, stream_of

HEADER = "textpatch"
METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
MODEL = "adapter_model.safetensors"
Tensors = dict[str, Tensor]
Changes = Mapping[str, LowRank]


def write_changes(
    changes: Changes,
    said: Mapping[str, Any],
    path: str | os.PathLike[str],
    spelling: str,
    layers_per_block: int,
) -> None:
    """Write the changes of an adapter in one of the spellings.

    said  what else the adapter knows, as JSON
    The other arguments and the errors are those of `Adapter.save`.
    """
    if spelling != "peft" and spelling not in SPELLINGS:
        known = ["peft", *SPELLINGS]
        raise PatchError(
            f"adapters are not written as {spelling!r}{closest(spelling, known)}; "
            f"spellings: {', '.join(known)}"
        )
    path = Path(path)
    _require_place(path, folder=spelling == "peft")
    header = {"format": "pt", HEADER: as_json(dict(said)).decode()}
    changes = {name: _on_cpu(changes[name]) for name in sorted(changes)}
    if spelling == "peft":
        _write_folder(path, changes, header)
        return
    tensors, more = SPELLINGS[spelling](changes, layers_per_block)
    with placed(path) as temporary:
        save_file(tensors, temporary, metadata=header | more)


def _require_place(path: Path, folder: bool) -> None:
    """Raise PatchError for a folder where a file is to be, and the other way round."""
    if not folder and (path.is_dir() or path.suffix != ".safetensors"):
        raise PatchError(f"an adapter was to be written to {path}; give a file's name.safetensors")
    holds_adapter = path.is_dir() and (path / CONFIG).is_file()
    if folder and path.exists() and not holds_adapter and not _is_empty(path):
        raise PatchError(f"{path} holds something and no adapter; give a new folder for this one")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _on_cpu(change: LowRank) -> LowRank:
    """Copy of a change, because no two tensors of a file may share memory."""
    down = change.down.detach().cpu().clone().contiguous()
    up = change.up.detach().cpu().clone().contiguous()
    return LowRank(down, up, change.alpha)


def _component(changes: Changes) -> str:
    """Name of the model in diffusers' pipelines.  Raises PatchError for changes of two models."""
    kinds = {is_transformer(name) for name in changes}
    if len(kinds) != 1:
        raise PatchError(
            f"the adapter changes a transformer and a U-Net ({', '.join(list(changes)[:3])}, ...); "
            "save one adapter for each"
        )
    return "transformer" if kinds.pop() else "unet"


def _lora_config(changes: Changes) -> dict[str, Any]:
    """Fields of peft's LoraConfig that settle the mathematics.

    The rank and alpha are those of the first projection.  Patterns name each that has others.
    """
    first = next(iter(changes.values()))
    ranks = {name: change.rank for name, change in changes.items()}
    alphas = {name: _number(change.alpha) for name, change in changes.items()}
    alpha = _number(first.alpha)
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": alpha,
        "target_modules": list(changes),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != first.rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "bias": "none",
        "lora_bias": False,
        "lora_dropout": 0.0,
        "use_dora": False,
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _number(alpha: float) -> float | int:
    """alpha as a whole number where it is one, as peft's own files have it."""
    if float(alpha).is_integer():
        return int(alpha)
    return float(alpha)


def _factors(changes: Changes, prefix: str) -> Tensors:
    """Tensors X.lora_A.weight and X.lora_B.weight."""
    tensors = {}
    for name, change in changes.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = change.down
        tensors[f"{prefix}{name}.lora_B.weight"] = change.up
    return tensors


def _write_folder(path: Path, changes: Changes, header: dict[str, str]) -> None:
    config = _lora_config(changes) | {"base_model_name_or_path": None, "inference_mode": True}
    with placed(path) as temporary:
        temporary.mkdir()
        (temporary / CONFIG).write_bytes(as_json(config, indent=1))
        tensors = _factors(changes, "base_model.model.")
        save_file(tensors, temporary / MODEL, metadata=header)


def _diffusers(changes: Changes, layers: int) -> tuple[Tensors, dict[str, str]]:
    component = _component(changes)
    config = {f"{component}.{field}": value for field, value in _lora_config(changes).items()}
    return _factors(changes, f"{component}."), {METADATA: json.dumps(config, sort_keys=True)}


def _old_diffusers(changes: Changes, layers: int) -> tuple[Tensors, dict[str, str]]:
    """Attention processors, which have no alpha: the scale is multiplied into B."""
    component = _component(changes)
    tensors = {}
    for name, change in changes.items():
        module, _, part = name.removesuffix(".0").rpartition(".")
        if not part.startswith(("to_", "add_")):
            raise PatchError(
                f"{name!r} is no projection of an attention, and attention processors name no others; "
                "save it as 'diffusers'"
            )
        stem = f"{component}.{module}.processor.{part}_lora"
        tensors[f"{stem}.down.weight"] = change.down
        tensors[f"{stem}.up.weight"] = change.scale * change.up
    return tensors, {}


def _kohya(changes: Changes, layers: int) -> tuple[Tensors, dict[str, str]]:
    tensors = {}
    for name, change in _by_original_name(changes, layers).items():
        stem = KOHYA + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = change.down
        tensors[f"{stem}.lora_up.weight"] = change.up
        tensors[f"{stem}.alpha"] = torch.tensor(float(change.alpha))
    return tensors, {"ss_network_module": "networks.lora", "ss_network_args": "{}"}


def _comfyui(changes: Changes, layers: int) -> tuple[Tensors, dict[str, str]]:
    own = _by_original_name(changes, layers)
    tensors = _factors(own, "diffusion_model.")
    for name, change in own.items():
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(float(change.alpha))
    return tensors, {}


def _by_original_name(changes: Changes, layers: int) -> dict[str, LowRank]:
    """Changes by original names, q, k and v of SD3 as one."""
    if _component(changes) == "unet":
        return {original(name, layers): change for name, change in changes.items()}
    whole: dict[str, LowRank] = {}
    parts: dict[str, dict[int, LowRank]] = defaultdict(dict)
    for name, change in changes.items():
        module, place = stream_of(name)
        if place is None:
            whole[module] = change
        else:
            parts[module][place] = change
    return whole | {module: joined(own) for module, own in parts.items()}


SPELLINGS: dict[str, Callable[[Changes, int], tuple[Tensors, dict[str, str]]]] = {
    "diffusers": _diffusers,
    "old-diffusers": _old_diffusers,
    "kohya": _kohya,
    "comfyui": _comfyui,
}
