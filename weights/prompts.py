"""Prompt pairs for the shipped models: source and target signs, from words kept for validation or for test."""

from __future__ import annotations

import random
from dataclasses import replace

from textpatch.errors import PatchError, closest
from textpatch.weights.signs import Sign, SignFormat, random_sign
from textpatch.weights.words import TEST, VALIDATION

SPLITS = {"validation": VALIDATION, "test": TEST}


def sign_pairs(
    n: int, *, split: str = "validation", seed: int = 0, same_scene: bool = False
) -> list[tuple[str, str]]:
    """n (source, target) prompts, the same ones for the same arguments.

    Words of a pair differ and no word is used twice.  With `same_scene` only the word differs, as in the
    paper's main experiment; without, sign, wall and lettering differ too, so that one sees what else a site
    carries.  Raises PatchError for an unknown split or more pairs than it has words for.
    """
    if split not in SPLITS:
        raise PatchError(f"no split {split!r}{closest(split, SPLITS)}")
    words = list(SPLITS[split])
    if not 1 <= n <= len(words) // 2:
        raise PatchError(f"asked for {n} pairs; the {split} words make 1 to {len(words) // 2}")
    rng = random.Random(f"{split}/{seed}")
    rng.shuffle(words)
    return [_pair(rng, words[2 * i], words[2 * i + 1], same_scene) for i in range(n)]


def _pair(rng: random.Random, word: str, other: str, same_scene: bool) -> tuple[str, str]:
    source = random_sign(rng, SignFormat(), word)
    target = replace(source, word=other) if same_scene else _another_scene(rng, source, other)
    return source.prompt(), target.prompt()


def _another_scene(rng: random.Random, source: Sign, word: str) -> Sign:
    """A sign with another colour, shape, wall and pattern than the source's; its lettering is drawn anew."""
    while True:
        target = random_sign(rng, SignFormat(), word)
        if all(getattr(target, f) != getattr(source, f) for f in ("colour", "shape", "wall", "pattern")):
            return target
