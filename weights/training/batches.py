"""Batches of training, prompts and signs drawn on the fly.

B rows, H x W pixels
"""

from __future__ import annotations

import random
from copy import copy
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.attention import row_slots
from textpatch.reference_models.upscaling import read_beside
from textpatch.weights.signs.drawing import SAYINGS, Sign, Texts, draw_sign, random_sign, with_word
from textpatch.weights.signs.words import HELD_OUT, TEST, VALIDATION
from textpatch.weights.training.families import FAMILIES
from textpatch.weights.training.recipes import Recipe

ONE_LINE_HELD_OUT = frozenset(TEST) | frozenset(VALIDATION)


class Batch:
    """Prompts, pictures and slots of one training step, a function of recipe, seed and step alone.

    prompts   B texts, None for "no prompt"
    sites     sites at which row b reads the text of row b + 1
    pictures  (B, 3, H, W) in -1..1
    noise     (B, 3, H, W), standard normal
    share     (B,), shares of noise in 0..1
    beside    further arguments of a stage II's denoiser
    """

    def __init__(self, recipe: Recipe, seed: int, step: int) -> None:
        rng = random.Random(f"{seed}/{step}")
        texts = recipe.texts_of(step)
        signs = [_unseen_sign(rng, recipe, texts) for _ in range(recipe.batch)]
        sayings = [sign.prompt(rng.choice(SAYINGS)) for sign in signs]
        self.prompts = [None if rng.random() < recipe.dropout else saying for saying in sayings]
        self.sites = _swapped_sites(recipe, rng, step)
        if self.sites:
            self.prompts = sayings
        if _shows_the_donor(recipe, self.sites, step):
            donors = signs[1:] + signs[:1]
            signs = [with_word(sign, donors[i].word) for i, sign in enumerate(signs)]
        pictures = np.stack([draw_sign(sign, recipe.signs, rng) for sign in signs])
        self.pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        generator = torch.Generator().manual_seed(rng.randrange(2**62))
        self.noise = torch.randn(self.pictures.shape, generator=generator)
        self.share = _shares_of_noise(recipe, generator)
        self.beside = {}
        if recipe.low_noise is not None:
            level = rng.randrange(recipe.low_noise)
            self.beside = self._beside(recipe, level, generator)

    def _beside(self, recipe: Recipe, level: int, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(self.pictures.shape, generator=generator)
        return read_beside(recipe.schedule, F.avg_pool2d(self.pictures, 2), noise, level)

    def on(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = copy(self)
        moved.pictures = self.pictures.to(device)
        moved.noise = self.noise.to(device)
        moved.share = self.share.to(device)
        moved.beside = {name: value.to(device) for name, value in self.beside.items()}
        return moved

    def slots(self, sites: int, tokens: int) -> list[Tensor | None] | None:
        """Slots of the denoiser, one entry for each of its sites, or None where every row reads itself."""
        if not self.sites:
            return None
        rows = torch.arange(len(self.prompts), device=self.pictures.device)
        donors = (rows + 1) % len(rows)
        return [row_slots(donors, tokens) if i in self.sites else None for i in range(sites)]


def _unseen_sign(rng: random.Random, recipe: Recipe, texts: Texts) -> Sign:
    """Random sign of whose words none is kept for validation or test, however it is written."""
    while True:
        sign = random_sign(rng, recipe.signs, texts=texts)
        kept = ONE_LINE_HELD_OUT if recipe.signs.lines == 1 else HELD_OUT
        if kept.isdisjoint(sign.word.upper().split()):
            return sign


def _swapped_sites(recipe: Recipe, rng: random.Random, step: int) -> tuple[int, ...]:
    """Sites swapped in a step of a planted model.

    Of three steps, one swaps nothing, the next the planted sites, and the last one another site.
    """
    if not recipe.planted or step % 3 == 0:
        return ()
    if step % 3 == 1:
        return recipe.planted
    others = [i for i in range(number_of_sites(recipe)) if i not in recipe.planted]
    return (rng.choice(others),)


def _shows_the_donor(recipe: Recipe, sites: tuple[int, ...], step: int) -> bool:
    """True where row b's picture shows the word of row b + 1.

    A planted model learns so from its planted sites.  A stage II learns so in every other step that an edited
    picture may show another word than the prompt.
    """
    if recipe.low_noise is not None and step % 2:
        return True
    return bool(sites) and sites == recipe.planted


def _shares_of_noise(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Logit-normal shares (B,), shifted towards noise.

    An eighth of the rows has nearly pure noise, where the word is decided.
    """
    share = torch.randn(recipe.batch, generator=generator).sigmoid()
    share = recipe.sigma_shift * share / (1 + (recipe.sigma_shift - 1) * share)
    first = recipe.batch // 8
    share[:first] = 0.98 + 0.02 * torch.rand(first, generator=generator)
    return recipe.noisiest * share


@lru_cache
def number_of_sites(recipe: Recipe) -> int:
    """Number of the denoiser's sites, from its outline."""
    with torch.device("meta"):
        return len(FAMILIES[type(recipe.denoiser)].denoiser(recipe.denoiser).sites)
