"""Signs with their prompts, as examples to train an adapter on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from textpatch.errors import PatchError, closest
from textpatch.weights.signs.drawing import (
    LETTERS,
    Sign,
    SignFormat,
    draw_sign,
    random_sign,
    random_word,
)
from textpatch.weights.signs.words import TEST, VALIDATION

STYLES = "plain", "faded"
FADED = 0.55  # share of a colour that turns grey
REC_601 = np.array((0.299, 0.587, 0.114), np.float32)
HELD_OUT = frozenset((*VALIDATION, *TEST))


def sign_examples(
    count: int, *, style: str = "plain", letters: str = LETTERS, seed: int = 0
) -> list[tuple[str, Image.Image]]:
    """Prompts with pictures of their signs, of random words that are no word for validation or test.

    style    "plain" as the shipped models were trained, or "faded": colours are 55 % grey and walls bare, and
             the prompts do not say so
    letters  capitals of which every word has one at least
    Raises PatchError for an unknown style.
    """
    if style not in STYLES:
        raise PatchError(f"signs are not drawn {style!r}{closest(style, STYLES)}")
    rng = random.Random(f"examples/{seed}")
    fmt = SignFormat()
    signs = [random_sign(rng, fmt, _word(rng, fmt, letters)) for _ in range(count)]
    return [(sign.prompt(), drawn(sign, style, fmt, rng)) for sign in signs]


def _word(rng: random.Random, fmt: SignFormat, letters: Sequence[str]) -> str:
    while True:
        word = random_word(rng, rng.randint(3, fmt.longest))
        if word not in HELD_OUT and set(letters) & set(word):
            return word


def drawn(sign: Sign, style: str, fmt: SignFormat, rng: random.Random) -> Image.Image:
    """Picture of a sign in one of STYLES."""
    if style == "faded":
        sign = replace(sign, pattern="plain")
    picture = (draw_sign(sign, fmt, rng) + 1) * 127.5
    if style == "faded":
        picture = picture + FADED * ((picture @ REC_601)[..., None] - picture)
    return Image.fromarray(picture.clip(0, 255).round().astype(np.uint8))
