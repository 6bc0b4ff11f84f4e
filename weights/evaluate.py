"""How well a shipped model's words are read:  python -m textpatch.weights.evaluate tiny-mmdit

Held-out test words on random signs, read by tesseract from the model's pictures and from clean drawings of
the same signs; the second number is the reader's own ceiling.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from textpatch import metrics
from textpatch.cli import guarded
from textpatch.errors import PatchError
from textpatch.weights.load import load
from textpatch.weights.signs import Sign, SignFormat, draw_sign, random_sign
from textpatch.weights.words import TEST


def held_out_signs(n: int, fmt: SignFormat, style: str | None = None) -> list[Sign]:
    """The first n test words, all of four letters or more, on signs drawn from a fixed seed."""
    if not 1 <= n <= len(TEST):
        raise PatchError(f"asked for {n} test words; there are {len(TEST)}")
    rng = random.Random("evaluate")
    fmt = fmt if style is None else SignFormat(styles=(style,))
    return [random_sign(rng, fmt, word) for word in TEST[:n]]


def clean_pictures(signs: Sequence[Sign], fmt: SignFormat) -> list[Image.Image]:
    """What the training data shows for these signs."""
    rng = random.Random("clean")
    pictures = [(draw_sign(sign, fmt, rng) + 1) * 127.5 for sign in signs]
    return [Image.fromarray(picture.clip(0, 255).round().astype(np.uint8)) for picture in pictures]


def generated_pictures(
    pipeline, signs: Sequence[Sign], *, steps=None, guidance=None, batch: int = 32
) -> list[Image.Image]:
    """What the model makes of their prompts, the i-th with seed i."""
    pictures = []
    for first in tqdm(range(0, len(signs), batch), desc=pipeline.name, disable=None):
        prompts = [sign.prompt() for sign in signs[first : first + batch]]
        seeds = range(first, first + len(prompts))
        pictures += pipeline.generate(prompts, seeds=seeds, steps=steps, guidance=guidance)
    return pictures


def reading_accuracy(
    pictures: Sequence[Image.Image], signs: Sequence[Sign], fmt: SignFormat, ocr
) -> np.ndarray:
    """Whether each word was read exactly, (n,) of 0 and 1."""
    readings = ocr.read(pictures, box=fmt.text_box)
    return np.array([float(metrics.exact(read, sign.word)) for read, sign in zip(readings, signs)])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m textpatch.weights.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model", help="a shipped model or a folder")
    parser.add_argument("--words", type=int, default=len(TEST), help=f"how many test words (all {len(TEST)})")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--style", help="one style of lettering instead of all")
    options = parser.parse_args()
    fmt, ocr, pipeline = SignFormat(), metrics.Tesseract(), load(options.model)
    signs = held_out_signs(options.words, fmt, options.style)
    made = generated_pictures(pipeline, signs, steps=options.steps, guidance=options.guidance)
    for name, pictures in (("clean drawings", clean_pictures(signs, fmt)), (pipeline.name, made)):
        right = reading_accuracy(pictures, signs, fmt, ocr)
        low, high = metrics.bootstrap(right)
        print(f"{name:<16} {right.mean():.3f} [{low:.3f}, {high:.3f}] of {len(signs)} words read exactly")


if __name__ == "__main__":
    sys.exit(guarded(main))
