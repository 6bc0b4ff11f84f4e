"""Adapter, a low-rank change of named projections of a model.

    y = W x + b + s B A x,   s = scale x alpha / r,   A (r, in), B (out, r)        (LoRA, arXiv 2106.09685)

It is put beside the projections (`applied`) or into their weights (`merged`), as long as a block is open.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from textpatch.changes import LowRank, beside, changes_of, original_weight, within
from textpatch.errors import PatchError, closest
from textpatch.finite import is_finite
from textpatch.tuning.writing import write_changes

VERSION = 1  # of what files say beside the tensors
SHOWN = 12  # hex digits of an adapter's hash in messages and marks


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank change of named projections.

    changes  LowRank of each projection, by the name of the linear layer in the diffusers layout
    base     `base_sha256` of the weights that it was made for, "" where nobody knows
    made     how it was made, as JSON
    notes    what a file left unsaid, and how it was read, a sentence each

    Raises PatchError for no projections.
    """

    changes: Mapping[str, LowRank]
    base: str = ""
    made: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.changes:
            raise PatchError("an adapter of no projections would have no effect; name some")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the attention modules that its projections belong to, each once."""
        return tuple(dict.fromkeys(_attention(name) for name in self.changes))

    @property
    def parameters(self) -> int:
        """Number of entries of all A and B."""
        return sum(change.down.numel() + change.up.numel() for change in self.changes.values())

    @property
    def sha256(self) -> str:
        """Hash of names, factors and alphas."""
        digest = hashlib.sha256()
        for name in sorted(self.changes):
            change = self.changes[name]
            digest.update(f"{name}\0{float(change.alpha)!r}\0".encode())
            for factor in (change.down, change.up):
                digest.update(f"{tuple(factor.shape)} {factor.dtype}\0".encode() + _bytes(factor))
        return digest.hexdigest()

    def applied(
        self, model: nn.Module, *, scale: float = 1.0, any_base: bool = False
    ) -> AbstractContextManager[None]:
        """Block in which the adapter acts beside the projections of a model.

            with adapter.applied(pipeline, scale=0.5), other.applied(pipeline):
                pipeline.generate(prompt, seeds=0)

        model     a pipeline, or a model whose linear layers bear the adapter's names
        scale     factor of the whole change.  0 is the base, bit for bit
        any_base  True for weights that the adapter was not made for

        Hooks see the projections' true outputs, and nothing is left behind.
        Raises PatchError as `layers_of` does, for an adapter that acts on the model already, and on leaving
        if the model was not called.
        """
        layers = self._layers(model, scale, any_base)
        return beside(layers, self.changes, scale, self._mark(scale))

    def merged(
        self, model: nn.Module, *, scale: float = 1.0, any_base: bool = False
    ) -> AbstractContextManager[None]:
        """Block in which the adapter is in the weights of a model.

        The sum is made in float32, or in float64 for weights in float64, and rounded once.  On leaving the
        original weights are put back, bit for bit.
        Arguments and errors are those of `applied`.  A sum that is not finite is an error, too.
        """
        layers = self._layers(model, scale, any_base)
        return within(layers, self.changes, scale, self._mark(scale))

    def save(
        self,
        path: str | os.PathLike[str],
        spelling: str = "diffusers",
        *,
        layers_per_block: int = 2,
    ) -> None:
        """Write the adapter for this library and for others.

        spelling          "diffusers", "peft" (a folder), "old-diffusers", "kohya" or "comfyui"
        layers_per_block  of the U-Net, by which kohya and ComfyUI count blocks.  SDXL's is 2

        The file or folder is there whole or as it was.
        Raises PatchError for an unknown spelling and for one that cannot name a projection.
        """
        said = {"version": VERSION, "base": self.base, "made": dict(self.made)}
        write_changes(self.changes, said, path, spelling, layers_per_block)

    def _layers(self, model: nn.Module, scale: float, any_base: bool) -> dict[str, nn.Linear]:
        """Linear layers of a model that the adapter changes, after all checks."""
        if not is_finite(scale):
            raise PatchError(f"the scale of an adapter is {scale!r}; give a finite number")
        denoiser = getattr(model, "denoiser", model)
        layers = layers_of(denoiser, self.changes)
        if self.base and not any_base and base_sha256(layers) != self.base:
            raise PatchError(
                f"the adapter was made for weights {self.base[:SHOWN]}, and those of this "
                f"{type(denoiser).__name__} are {base_sha256(layers)[:SHOWN]}; load the model it was made "
                "for, or give any_base=True"
            )
        name = self.sha256[:SHOWN]
        if any(mark.startswith(name) for mark in changes_of(denoiser)):
            raise PatchError(
                f"adapter {name} acts on this model already; give its whole effect as one scale"
            )
        return layers

    def _mark(self, scale: float) -> str:
        return f"{self.sha256[:SHOWN]} at scale {float(scale)}"


def layers_of(model: nn.Module, changes: Mapping[str, LowRank]) -> dict[str, nn.Linear]:
    """Linear layers of a model that changes name.

    Raises PatchError unless all are there, are linear layers, and have the changes' widths.
    """
    if not isinstance(model, nn.Module):
        raise PatchError(
            f"an adapter was given a {type(model).__name__}; give a pipeline, or its denoiser"
        )
    modules = dict(model.named_modules())
    missing = [name for name in changes if not isinstance(modules.get(name), nn.Linear)]
    if missing:
        linear = [name for name, part in modules.items() if isinstance(part, nn.Linear)]
        raise PatchError(
            f"{len(changes) - len(missing)} of {len(changes)} projections of the adapter are linear layers "
            f"of this {type(model).__name__}; missing: {missing[0]!r}{closest(missing[0], linear)}"
        )
    for name, change in changes.items():
        weight = modules[name].weight
        wanted = (len(change.up), change.down.shape[1])
        if tuple(weight.shape) != wanted:
            raise PatchError(
                f"the adapter changes {name!r} as {wanted[0]} x {wanted[1]}, and that of this "
                f"{type(model).__name__} is {weight.shape[0]} x {weight.shape[1]}; it is another model's"
            )
    return {name: modules[name] for name in changes}


def base_sha256(layers: Mapping[str, nn.Linear]) -> str:
    """Hash of the weights of linear layers, without adapters.

    Weights are rounded to bfloat16 first, so that one model has one hash, whichever dtype it is loaded in.
    """
    digest = hashlib.sha256()
    for name in sorted(layers):
        weight = original_weight(layers[name])
        digest.update(f"{name}\0{tuple(weight.shape)}\0".encode() + _bytes(weight.bfloat16()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _attention(projection: str) -> str:
    """Name of the module that a projection belongs to, `X.attn` of `X.attn.to_out.0`."""
    return projection.removesuffix(".0").rpartition(".")[0]
