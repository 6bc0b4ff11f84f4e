"""How well a shipped model's words are read:  python -m textpatch.weights.signs.evaluation tiny-mmdit

Held-out test words on random signs, read by tesseract from the model's pictures and from clean drawings of
the same signs; the second number is the reader's own ceiling.  A stage II is given pictures to draw larger: clean
drawings, or with --of those of another model.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.exits import guarded
from textpatch.pipelines import picture_size
from textpatch.weights.loading import load
from textpatch.weights.signs.drawing import Sign, SignFormat, draw_sign, random_sign, with_word
from textpatch.weights.signs.words import TEST


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
    pipeline, signs: Sequence[Sign], small: Sequence[Image.Image] | None = None, **options
) -> list[Image.Image]:
    """What the model makes of their prompts, the i-th with seed i; a stage II of small pictures, too."""
    draw = pipeline.generate if small is None else partial(pipeline.upscale, small)
    return draw(
        [sign.prompt() for sign in signs], seeds=range(len(signs)), micro_batch=32, **options
    )


def bicubic(pictures: Sequence[Image.Image], fmt: SignFormat) -> list[Image.Image]:
    """The pictures at a format's size, without a model."""
    return [
        picture.resize((fmt.width, fmt.height), Image.Resampling.BICUBIC) for picture in pictures
    ]


def mean_square(pictures: Sequence[Image.Image], truth: Sequence[Image.Image]) -> float:
    """Mean squared difference over all pictures, channels in 0..255."""
    pairs = zip(pictures, truth, strict=True)
    return float(np.mean([metrics.mse(picture, true) for picture, true in pairs]))


def reading_accuracy(
    pictures: Sequence[Image.Image], signs: Sequence[Sign], fmt: SignFormat, ocr
) -> np.ndarray:
    """Whether each word was read exactly, (n,) of 0 and 1."""
    readings = ocr.read(pictures, box=fmt.text_box)
    return np.array([float(metrics.exact(read, sign.word)) for read, sign in zip(readings, signs)])


def sign_format(pipeline, *times: int) -> SignFormat:
    """The signs at the size of the model's pictures, enlarged by one of `times`.  Raises PatchError for other sizes."""
    made = picture_size(pipeline)
    known = {(fmt.height, fmt.width): fmt for fmt in map(SignFormat().enlarged, times)}
    if made not in known:
        sizes = " or ".join(f"{height}x{width}" for height, width in known)
        raise PatchError(
            f"{pipeline.name} makes pictures of {made[0]}x{made[1]} (height x width), words are read in signs "
            f"of {sizes}; give a model of that size"
        )
    return known[made]


def stage_i(pipeline, signs: Sequence[Sign], ocr, **options) -> None:
    """Print how the model's pictures are read, and clean drawings."""
    fmt = sign_format(pipeline, 1)
    tell("clean drawings", clean_pictures(signs, fmt), signs, fmt, ocr)
    tell(pipeline.name, generated_pictures(pipeline, signs, **options), signs, fmt, ocr)


def stage_ii(pipeline, of, signs: Sequence[Sign], ocr, **options) -> None:
    """Print how pictures are read before and after, with their own prompts and with other words' as in an edit.

    of: the pipeline that makes the small pictures; drawings when None, whose distance from the large drawing is printed.
    Large letters, of 20 px, are read as they are: at 80 px tesseract sees grain that is no part of a letter, and reads
    .90 of 48 words of a model of which it then reads all.
    """
    fmt = SignFormat() if of is None else sign_format(of, 1)
    as_they_are = metrics.Tesseract(scale=1)
    large, truth = sign_format(pipeline, 2, 4, 8), None
    small = clean_pictures(signs, fmt) if of is None else generated_pictures(of, signs)
    if of is None:
        truth = clean_pictures(signs, large)
        tell("large drawings", truth, signs, large, as_they_are)
    others = [with_word(sign, other.word) for sign, other in zip(signs, [*signs[1:], signs[0]])]
    tell("small", small, signs, fmt, ocr)
    tell("bicubic", bicubic(small, large), signs, large, as_they_are, truth)
    tell(
        "own word",
        generated_pictures(pipeline, signs, small, **options),
        signs,
        large,
        as_they_are,
        truth,
    )
    tell(
        "another word",
        generated_pictures(pipeline, others, small, **options),
        signs,
        large,
        as_they_are,
        truth,
    )


def tell(name: str, pictures, signs: Sequence[Sign], fmt: SignFormat, ocr, truth=None) -> None:
    right = reading_accuracy(pictures, signs, fmt, ocr)
    low, high = metrics.wilson(right.mean(), len(right))
    distance = (
        ""
        if truth is None
        else f"; mean square from the large drawing {mean_square(pictures, truth):.1f}"
    )
    print(
        f"{name:<16} {right.mean():.3f} [{low:.3f}, {high:.3f}] of {len(signs)} words read exactly{distance}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m textpatch.weights.signs.evaluation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model", help="a shipped model or a folder")
    parser.add_argument(
        "--words", type=int, default=len(TEST), help=f"how many test words (all {len(TEST)})"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--style", help="one style of lettering instead of all")
    parser.add_argument(
        "--of", metavar="MODEL", help="whose pictures a stage II draws larger (clean drawings)"
    )
    options = parser.parse_args()
    pipeline, ocr = load(options.model), metrics.Tesseract()
    signs = held_out_signs(options.words, SignFormat(), options.style)
    asked = dict(steps=options.steps, guidance=options.guidance)
    if pipeline.upscales:
        stage_ii(pipeline, load(options.of) if options.of else None, signs, ocr, **asked)
    elif options.of:
        raise PatchError(f"--of gives small pictures to a stage II; {pipeline.name} draws its own")
    else:
        stage_i(pipeline, signs, ocr, **asked)


if __name__ == "__main__":
    sys.exit(guarded(main))
