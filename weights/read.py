"""Safe reading of weights and configurations from a folder: nothing unpickled, no path leaves the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from textpatch.errors import WeightsError

CONFIG_BYTES = 1 << 20


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, which must be a regular file that does not leave the folder.  Raises WeightsError."""
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"no file {name!r} in {folder}; the folder is incomplete or is no model")
    if folder.resolve() not in path.resolve().parents:
        raise WeightsError(f"{path} leads out of its folder to {path.resolve()}; copy the file itself")
    return path


def read_json(folder: Path, name: str) -> dict:
    """A JSON object of at most 1 MB.  Raises WeightsError."""
    path = inside(folder, name)
    try:
        body = json.loads(path.read_bytes()) if path.stat().st_size <= CONFIG_BYTES else None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(body, dict):
        raise WeightsError(f"{path} holds no JSON object of at most {CONFIG_BYTES} bytes")
    return body


def read_config(folder: Path, allowed: Iterable[str], name: str = "config.json") -> dict:
    """The allowed entries of a configuration; numbers, strings, flags and lists of numbers only, the rest unread."""
    body, allowed = read_json(folder, name), set(allowed)
    chosen = {key: tuple(v) if isinstance(v, list) else v for key, v in body.items() if key in allowed}
    for key, value in chosen.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(item is None or isinstance(item, (int, float, str, bool)) for item in items):
            raise WeightsError(
                f"{folder / name}: {key} is {value!r}; expected numbers, strings or lists of numbers"
            )
    return chosen


def load_tensors(
    model: nn.Module, folder: Path, name: str, *, tied: Iterable[str] = (), dtype: torch.dtype
) -> nn.Module:
    """Put a file's tensors into a model made on the meta device, each parameter and buffer exactly once.

    tied: names the file leaves out because they are another name of a tensor it holds.
    Raises WeightsError listing every missing, unexpected and mismatched tensor.
    """
    path, tied = inside(folder, name), set(tied)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items() if key not in tied}
    try:
        with safe_open(path, "pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            _require_same(path, wanted, {key: shape for key, shape in found.items() if key not in tied})
            tensors = {key: _cast(file.get_tensor(key), dtype) for key in wanted}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from None
    model.load_state_dict(tensors, strict=not tied, assign=True)
    return model


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _require_same(path: Path, wanted: dict, found: dict) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    shapes = [
        f"{k} {found[k]} for {wanted[k]}" for k in sorted(set(wanted) & set(found)) if wanted[k] != found[k]
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    said = [
        f"{len(v)} {k}: {', '.join(v[:10])}{', ...' if len(v) > 10 else ''}" for k, v in problems.items() if v
    ]
    if said:
        raise WeightsError(f"{path} does not fit its configuration; {'; '.join(said)}")
