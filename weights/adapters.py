"""Adapters read from files of other programs, without trust: every tensor is used, or refused by name.

What spellings there are is told in `textpatch.tuning.writing`.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown  # short and shallow, for what other people wrote
from typing import Any

from torch import Tensor

from textpatch.changes import LowRank
from textpatch.errors import PatchError, WeightsError
from textpatch.tuning.fused import PARTS, is_block_diagonal, parted
from textpatch.tuning.low_rank import Adapter
from textpatch.tuning.spellings import projections, role_of
from textpatch.tuning.writing import CONFIG, HEADER, METADATA, MODEL
from textpatch.weights.reading.entry import opened
from textpatch.weights.reading.files import inside, open_tensors, read_json
from textpatch.weights.reading.header import HEADER_BYTES, unique
from textpatch.weights.reading.tensors import Tensors

# what a LoraConfig may ask for that is no plain change, with the value that is
PLAIN = {
    "use_dora": (False, "DoRA rescales the rows of the sum"),
    "use_rslora": (False, "rsLoRA divides alpha by the root of the rank"),
    "lora_bias": (False, "B has a bias"),
    "bias": ("none", "biases are trained, too"),
}
RANKS = {"r", "lora_alpha", "rank_pattern", "alpha_pattern"}
OF_RUN = "adapter.safetensors"  # what `textpatch finetune` and `rewrite` leave in a run folder
PATTERN = re.compile(r"[A-Za-z0-9_.]+")
SHA256 = re.compile(r"[0-9a-f]{64}|")


def load_adapter(where: str | os.PathLike[str], *, layers_per_block: int = 2) -> Adapter:
    """Load an adapter that this library, peft, diffusers, kohya or ComfyUI wrote.

    where             a .safetensors file, a folder of peft's, or a run folder that holds an adapter
    layers_per_block  of the U-Net, by which kohya and ComfyUI count blocks.  SDXL's is 2

    A file without alpha is read as alpha = r, and `notes` says so.
    Raises PatchError for a tensor that no low-rank change of a denoiser has (text encoders, DoRA, rsLoRA,
    LoHa, convolutions), for a projection twice or by halves, and as `LowRank`.  Raises WeightsError for a
    damaged file.
    """
    path = Path(where)
    config: dict[str, Any] = {}
    if path.is_dir():
        path, config = _of_folder(path)
    tensors = open_tensors(path)
    header = _metadata(path)
    if METADATA in header:
        config |= _of_component(path, _object(path, METADATA, header[METADATA]))
    _require_plain(path, config)
    own = _object(path, HEADER, header.get(HEADER, "{}"))
    read = _Reading(path, header, config, layers_per_block)
    for name, parts in _by_projection(path, tensors).items():
        read.add(name, parts)
    made = own.get("made", {})
    base = own.get("base", "")
    if not isinstance(made, dict) or not isinstance(base, str) or not SHA256.fullmatch(base):
        raise WeightsError(f"{path}: the header's {HEADER!r} is not what this library writes")
    return Adapter(read.changes, base, made, tuple(read.notes))


def _of_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Path of the adapter in a folder, and peft's configuration beside it, {} in a run folder."""
    if (folder / CONFIG).exists():
        return inside(folder, MODEL), read_json(folder, CONFIG)
    if (folder / OF_RUN).exists():
        return inside(folder, OF_RUN), {}
    raise WeightsError(
        f"{folder} has neither peft's {CONFIG} nor {OF_RUN}, which a run of `textpatch finetune` or "
        "`rewrite` leaves once it has ended; give the file, or let the run end",
        "no-file",
    )


def _by_projection(path: Path, tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """A, B and alpha of each projection, by its name in the file."""
    if not tensors:
        raise WeightsError(f"{path} holds no tensor, and so no adapter")
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in tensors:
        name, role = role_of(key)
        if role in found[name]:
            raise PatchError(f"{path} has {role} of {name!r} twice, in two spellings; keep one")
        found[name][role] = tensors.read(key)
    for name, parts in found.items():
        lacking = sorted({"down", "up"} - parts.keys())
        if lacking:
            raise PatchError(
                f"{path} has {', '.join(sorted(parts))} of {name!r} and no {' and '.join(lacking)}; "
                "it is incomplete, fetch it again"
            )
    return dict(found)


class _Reading:
    """Changes of a file by projection, and the notes on what it left unsaid.

    header  metadata of the safetensors file
    config  fields of peft's LoraConfig, {} where the file has none
    """

    def __init__(
        self, path: Path, header: Mapping[str, str], config: Mapping[str, Any], layers: int
    ) -> None:
        self.path = path
        self.split = _was_split(path, header)
        self.ours = HEADER in header
        self.config = config
        self.layers = layers
        self.changes: dict[str, LowRank] = {}
        self.notes: list[str] = []

    def add(self, spelled: str, parts: dict[str, Tensor]) -> None:
        """Take in the change that the file has for one of its names."""
        names = projections(spelled, self.layers)
        down, up = parts["down"], parts["up"]
        if max(down.dim(), up.dim()) > 2:
            raise PatchError(
                f"{self.path}: {spelled!r} changes a convolution, {tuple(down.shape)}, and adapters here "
                "change linear layers alone"
            )
        if len(names) == 1:
            self._put(names[0], LowRank(down, up, self._alpha(names[0], len(down), parts)))
            return
        whole = LowRank(down, up, self._alpha(spelled, len(down), parts))
        if is_block_diagonal(whole):
            whole = self._of_joined(whole)
        for place, change in parted(spelled, whole).items():
            self._put(names[place], change)

    def _put(self, name: str, change: LowRank) -> None:
        if name in self.changes:
            raise PatchError(f"{self.path} changes {name!r} twice, by two names; keep one")
        self.changes[name] = change

    def _alpha(self, name: str, rank: int, parts: Mapping[str, Tensor]) -> float:
        """Alpha of a projection, from its own tensor, the configuration, or by convention the rank."""
        if "alpha" in parts:
            if parts["alpha"].numel() != 1:
                raise PatchError(
                    f"{self.path}: alpha of {name!r} holds {parts['alpha'].numel()} numbers, not one"
                )
            return float(parts["alpha"])
        if "lora_alpha" not in self.config:
            self._note("no alpha in the file: alpha = r is assumed, as others read it")
            return float(rank)
        said = _for(self.path, name, self.config, "r", "rank_pattern")
        if said != rank:
            raise PatchError(
                f"{self.path} says rank {said} of {name!r}, and its tensors have {rank}; fetch it again"
            )
        return _for(self.path, name, self.config, "lora_alpha", "alpha_pattern")

    def _of_joined(self, whole: LowRank) -> LowRank:
        """Change of q, k and v that were trained apart, each with rank r, and saved as one of rank 3 r.

        sd-scripts' split_qkv leaves alpha as it was, so that alpha / r is a third of what it trained.
        """
        if self.split:
            self._note(
                "split_qkv: alpha belongs to a third of the ranks, and s is alpha / r of these"
            )
            return LowRank(whole.down, whole.up, PARTS * whole.alpha)
        if not self.ours:
            self._note(
                "q, k and v are block-diagonal: if split_qkv of sd-scripts made the file, it was trained "
                "three times as strong as it is read here"
            )
        return whole

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _for(path: Path, name: str, config: Mapping[str, Any], field: str, pattern: str) -> float:
    """Number of a projection, that of the first pattern that it ends in, or that of all."""
    patterns = config.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise WeightsError(f"{path}: {pattern} is {shown(patterns)}; expected names and numbers")
    value = config[field]
    for end, own in patterns.items():
        if not PATTERN.fullmatch(end):
            raise PatchError(
                f"{path}: {pattern} has the regular expression {shown(end)}; name projections in full"
            )
        if f".{name}".endswith(f".{end}"):
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WeightsError(f"{path}: {field} of {name!r} is {shown(value)}; expected a number")
    return value


def _require_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Raise PatchError for what a LoraConfig asks beyond s B A with s = alpha / r."""
    for field, (plain, what) in PLAIN.items():
        value = config.get(field, plain)
        if value not in (plain, None):
            raise PatchError(f"{path} has {field} = {shown(value)}: {what}, which is not read here")
    if config and ("r" not in config or "lora_alpha" not in config):
        raise WeightsError(f"{path}: its LoraConfig has no r or no lora_alpha; fetch it again")


def _of_component(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the denoiser's LoraConfig, of all that diffusers' header holds."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        component, _, field = key.partition(".")
        if component in ("unet", "transformer") and field in {*RANKS, *PLAIN}:
            if field in fields:
                raise PatchError(f"{path} describes a U-Net and a transformer; keep one")
            fields[field] = value
    return fields


def _was_split(path: Path, header: Mapping[str, str]) -> bool:
    """True if sd-scripts says that it trained q, k and v apart."""
    arguments = _object(path, "ss_network_args", header.get("ss_network_args", "{}"))
    return str(arguments.get("split_qkv")) == "True"


def _object(path: Path, name: str, text: str) -> dict[str, Any]:
    """JSON object in a field of the header."""
    try:
        body = json.loads(text, object_pairs_hook=unique)
    except (WeightsError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: {name} in the header is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise WeightsError(f"{path}: {name} in the header is {shown(body)}; expected an object")
    return body


def _metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file whose header was found right."""
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, HEADER_BYTES))
    header = _object(path, "all", text.decode("utf-8", "replace"))
    return header.get("__metadata__", {})
