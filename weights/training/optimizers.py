"""Optimizers of the shipped models, Muon for matrices and AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from textpatch.weights.training.families import FAMILIES
from textpatch.weights.training.recipes import Recipe


class Optimizers:
    """Muon on the matrices inside blocks and encoder layers, convolutions flattened, AdamW on the rest."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        places = (*FAMILIES[type(recipe.denoiser)].matrices, ".layers.", ".block.")
        inner = {name: p for name, p in model.named_parameters() if _is_inner(name, p, places)}
        outer = [p for name, p in model.named_parameters() if name not in inner]
        self.inner = list(inner.values())
        # views of the same numbers
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.inner]
        self.rates = {"muon": recipe.muon_rate, "adam": recipe.adam_rate}
        self.all = {
            "muon": torch.optim.Muon(self.matrices, lr=recipe.muon_rate, weight_decay=0.0),
            "adam": torch.optim.AdamW(
                outer, lr=recipe.adam_rate, weight_decay=0.0, betas=(0.9, 0.98)
            ),
        }

    def step(self, factor: float) -> None:
        """Update all parameters from their gradients, at the recipe's rates times a factor."""
        for matrix, p in zip(self.matrices, self.inner, strict=True):
            # SDXL reads the last layer of no encoder but for the pooled text, so the other has no gradient
            matrix.grad = None
            if p.grad is not None:
                matrix.grad = p.grad.flatten(1)
            p.grad = None
        for name, optimizer in self.all.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Whole state of the optimizers as named tensors, for a safetensors file."""
        return {
            f"{name}.{i}.{key}": value
            for name, optimizer in self.all.items()
            for i, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state that `tensors` gave."""
        for name, optimizer in self.all.items():
            state = optimizer.state_dict()
            for key, value in tensors.items():
                owner, i, field = key.split(".", 2)
                if owner == name:
                    state["state"].setdefault(int(i), {})[field] = value
            optimizer.load_state_dict(state)


def _is_inner(name: str, p: nn.Parameter, places: tuple[str, ...]) -> bool:
    """True for a matrix or convolution inside a block or an encoder layer."""
    if p.ndim < 2 or "relative_attention_bias" in name:
        return False
    return any(place in name for place in places)
