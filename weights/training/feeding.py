"""Batches of training in the order of its steps, drawn and tokenized ahead in processes beside it.

A batch is a function of recipe, seed and step alone, so that the number of processes changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Dataset

from textpatch.reference_models.text_encoders import TextEncoders
from textpatch.weights.training.batches import Batch
from textpatch.weights.training.recipes import Recipe

if TYPE_CHECKING:
    from textpatch.reference_models.text_encoders import Tokens


class _Steps(Dataset):
    """Batch and tokens of each step."""

    def __init__(self, recipe: Recipe, seed: int, encoders: TextEncoders) -> None:
        self.recipe = recipe
        self.seed = seed
        self.encoders = encoders

    def __getitem__(self, step: int) -> tuple[Batch, Tokens]:
        batch = Batch(self.recipe, self.seed, step)
        return batch, self.encoders.tokenized(batch.prompts)


def batches(
    recipe: Recipe, seed: int, encoders: TextEncoders, steps: range, workers: int
) -> Iterator[tuple[Batch, Tokens]]:
    """Give the batch of each step with the tokens of its prompts.

    encoders  whose tokenizers read the prompts
    workers   processes that work ahead, two batches each; 0 draws in this one
    """
    drawn = _Steps(recipe, seed, encoders)
    return iter(DataLoader(drawn, batch_size=None, sampler=steps, num_workers=workers))
