"""Components under the names of their original files, and in shards under an index."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from textpatch.weights.layouts import SINGLE_FILES
from textpatch.weights.layouts.tensors import HeadRows, Rows, swapped


def originals(kind: str, component: str, state: dict) -> dict:
    """A component's tensors under the names, and fused as, its original file has them."""
    single = next(single for single in SINGLE_FILES if single.name == kind)
    part = next(part for part in single.parts if part.component == component)
    made, left = {}, dict(state)  # of two spellings in a table, the first
    for key, targets in part.layout.table.items():
        held = [(function, left.pop(name)) for name, function in targets if name in left]
        if held:
            made[part.prefix + key] = whole(held, key)
    assert sum(tensor.numel() for tensor in made.values()) == sum(
        tensor.numel() for tensor in state.values()
    )
    return made


def whole(held: list, key: str) -> torch.Tensor:
    """The tensor whose parts, by their functions, are those held."""
    (function, tensor), *_ = held
    if isinstance(function, Rows):
        return torch.cat([tensor for _, tensor in sorted(held, key=lambda pair: pair[0].start)])
    if isinstance(function, HeadRows):
        heads = [
            tensor.unflatten(0, (-1, 64))
            for _, tensor in sorted(held, key=lambda pair: pair[0].index)
        ]
        fused = torch.stack(heads, dim=1).flatten(0, 2)
        return fused if fused.dim() == 1 else fused[..., None]
    if function is swapped:
        return swapped(tensor)
    if function.__name__ == "transposed":
        return tensor.T.contiguous()
    if function.__name__ == "linear" and tensor.dim() == 2:
        return tensor[..., None] if kind_of_convolution(key) == 1 else tensor[..., None, None]
    return tensor


def kind_of_convolution(key: str) -> int:
    """IF's attention is a convolution over a line, the VAE's over a plane."""
    return 2 if "mid.attn_1" in key else 1


def write_shards(folder: Path, stem: str, state: dict, count: int = 3) -> None:
    names, width = list(state), f"-of-{count:05d}.safetensors"
    shards = {f"{stem}-{i + 1:05d}{width}": names[i::count] for i in range(count)}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, folder / file)
    body = {
        "metadata": {"total_size": sum(t.nbytes for t in state.values())},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(body))
