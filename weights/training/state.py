"""State of a training on disk, written as one file and read back to go on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textpatch.disk import placed
from textpatch.errors import PatchError, WeightsError
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.training.optimizers import Optimizers
from textpatch.weights.training.recipes import Recipe

MEASURED = "localized", "replaced"  # fields that are found on a finished model


def in_words(recipe: Recipe) -> dict:
    """Fields of a recipe as JSON has them, to tell the runs of two recipes apart.

    What is MEASURED makes no other run.
    """
    fields = json.loads(json.dumps(asdict(recipe)))
    return {f"recipe.{name}": value for name, value in fields.items() if name not in MEASURED}


def save(
    out: Path, run: dict, model: nn.Module, optimizers: Optimizers, average: dict[str, Tensor]
) -> None:
    """Write model, average and optimizers to one file, as a whole.   Raises DiskError for a full disk."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    tensors |= {f"optimizer.{key}": value for key, value in optimizers.tensors().items()}
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    metadata = {key: json.dumps(value) for key, value in run.items()}
    with placed(out / "state.safetensors") as temporary:
        save_file(tensors, temporary, metadata=metadata)


def resume(
    out: Path, run: dict, model: nn.Module, optimizers: Optimizers, average: dict[str, Tensor]
) -> int:
    """Load the state in `out`, if there is one, into model, optimizers and average.

    Returns the step to go on with, 0 where there is no state.
    Raises PatchError for the state of another run, WeightsError for a damaged one and for other files.
    """
    path = out / "state.safetensors"
    if not os.path.lexists(path):
        return 0
    tensors = open_tensors(path)
    step = _step_of(path, run)
    held = {key: entry.shape for key, entry in tensors.items() if not key.startswith("optimizer.")}
    wanted = {f"model.{key}": value.shape for key, value in average.items()}
    wanted |= {f"average.{key}": value.shape for key, value in average.items()}
    if held != wanted:
        raise WeightsError(
            f"{path} holds other tensors than {run['model']} has; give another --out"
        )

    def below(prefix: str) -> dict[str, Tensor]:
        keys = [key for key in tensors if key.startswith(prefix)]
        return {key.removeprefix(prefix): tensors.read(key) for key in keys}

    model.load_state_dict(below("model."))
    optimizers.load(below("optimizer."))
    for key, value in below("average.").items():
        average[key].copy_(value)
    return step


def _step_of(path: Path, run: dict) -> int:
    """Step of a state.   Raises PatchError if it is of another run, WeightsError if it is no state."""
    with safe_open(path, "pt") as file:
        held = file.metadata() or {}
    lacking = [key for key in (*run, "step") if key not in held]
    if lacking:
        raise WeightsError(
            f"{path} says nothing of {', '.join(lacking[:3])}: no state, or one of an older version; "
            "give another --out"
        )
    asked = {key: json.dumps(value) for key, value in run.items()}
    differ = [key for key in asked if held[key] != asked[key]]
    if differ == ["steps"] and _before_decay(held, asked):
        return json.loads(held["step"])
    if differ:
        raise PatchError(
            f"{path} holds a run of {_values(held, differ)}, asked for {_values(asked, differ)}; "
            "give another --out, or the same options"
        )
    return json.loads(held["step"])


def _before_decay(held: dict[str, str], asked: dict[str, str]) -> bool:
    """True for a state before the fall of both runs' rates, up to which they are one run."""
    shorter = min(json.loads(run["steps"]) for run in (held, asked))
    return json.loads(held["step"]) <= (1 - json.loads(asked["recipe.decay"])) * shorter


def _values(run: dict[str, str], keys: list[str]) -> str:
    return ", ".join(f"{key} {run[key]}" for key in keys)
