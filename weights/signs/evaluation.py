"""Evaluation of a shipped model's words, by  python -m textpatch.weights.signs.evaluation tiny-mmdit

Held-out test words on random signs are read by tesseract from the model's pictures and from clean drawings
of the same signs.  The share read from drawings is the most that the reader allows.  A stage II is given
pictures to draw larger, clean drawings or, with --of, those of another model.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.exits import guarded
from textpatch.metrics.readers.strictness import over_reading, told_over_reading
from textpatch.pipelines import picture_size
from textpatch.weights.loading import load
from textpatch.weights.signs.drawing import Sign, SignFormat, draw_sign, random_sign, with_word
from textpatch.weights.signs.words import TEST


def held_out_signs(n: int, fmt: SignFormat, style: str | None = None) -> list[Sign]:
    """Signs with the first n test words, all of four letters or more, drawn from a fixed seed."""
    if not 1 <= n <= len(TEST):
        raise PatchError(f"asked for {n} test words; there are {len(TEST)}")
    rng = random.Random("evaluate")
    if style is not None:
        fmt = SignFormat(styles=(style,))
    return [random_sign(rng, fmt, word) for word in TEST[:n]]


def clean_pictures(signs: Sequence[Sign], fmt: SignFormat) -> list[Image.Image]:
    """Drawings of these signs, as the training data shows them."""
    rng = random.Random("clean")
    pictures = [(draw_sign(sign, fmt, rng) + 1) * 127.5 for sign in signs]
    return [Image.fromarray(picture.clip(0, 255).round().astype(np.uint8)) for picture in pictures]


def generated_pictures(
    pipeline, signs: Sequence[Sign], small: Sequence[Image.Image] | None = None, **options
) -> list[Image.Image]:
    """Pictures that a model makes of the signs' prompts, the i-th with seed i.

    small  pictures that a stage II draws larger
    """
    prompts = [sign.prompt() for sign in signs]
    options |= dict(seeds=range(len(signs)), micro_batch=32)
    if small is None:
        return pipeline.generate(prompts, **options)
    return pipeline.upscale(small, prompts, **options)


def bicubic(pictures: Sequence[Image.Image], fmt: SignFormat) -> list[Image.Image]:
    """Enlarge pictures to a format's size, without a model."""
    size = fmt.width, fmt.height
    return [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]


def mean_square(pictures: Sequence[Image.Image], truth: Sequence[Image.Image]) -> float:
    """Mean squared difference over all pictures, channels in 0..255."""
    pairs = zip(pictures, truth, strict=True)
    return float(np.mean([metrics.mse(picture, true) for picture, true in pairs]))


def reading_accuracy(
    pictures: Sequence[Image.Image], signs: Sequence[Sign], fmt: SignFormat, ocr
) -> np.ndarray:
    """Scores (n,), 1 for a word that was read exactly and 0 for another."""
    readings = ocr.read(pictures, [fmt.text_box] * len(pictures))
    pairs = zip(readings, signs, strict=True)
    return np.array([float(metrics.exact(reading.text, sign.word)) for reading, sign in pairs])


def sign_format(pipeline, *times: int) -> SignFormat:
    """Format of signs at the size of a model's pictures, enlarged by one of `times`.

    Raises PatchError for other sizes.
    """
    height, width = picture_size(pipeline)
    known = {(fmt.height, fmt.width): fmt for fmt in map(SignFormat().enlarged, times)}
    if (height, width) not in known:
        sizes = " or ".join(f"{height}x{width}" for height, width in known)
        raise PatchError(
            f"{pipeline.name} makes pictures of {height}x{width} (height x width), "
            f"words are read in signs of {sizes}; give a model of that size"
        )
    return known[height, width]


def stage_i(pipeline, signs: Sequence[Sign], ocr, **options) -> None:
    """Print how a model's pictures are read, and how clean drawings are."""
    fmt = sign_format(pipeline, 1)
    tell_reader("pictures", ocr)
    tell("clean drawings", clean_pictures(signs, fmt), signs, fmt, ocr)
    tell(pipeline.name, generated_pictures(pipeline, signs, **options), signs, fmt, ocr)


def stage_ii(pipeline, of, signs: Sequence[Sign], ocr, **options) -> None:
    """Print how pictures are read before and after a stage II.

    It draws them with their own prompts, and with those of other words, as after an edit.

    of  pipeline that makes the small pictures; None takes clean drawings, and prints distances from the large
        drawings, too

    Large letters, of 20 px, are read at their own size.  Enlarged to 80 px, tesseract sees grain that is no
    part of a letter, and reads .90 of 48 words of which it reads all at 20 px.
    """
    fmt = SignFormat() if of is None else sign_format(of, 1)
    unscaled = metrics.Tesseract(scale=1)
    large = sign_format(pipeline, 2, 4, 8)
    tell_reader("small pictures", ocr)
    tell_reader("large pictures", unscaled)
    truth = None
    if of is None:
        small = clean_pictures(signs, fmt)
        truth = clean_pictures(signs, large)
        tell("large drawings", truth, signs, large, unscaled)
    else:
        small = generated_pictures(of, signs)
    tell("small", small, signs, fmt, ocr)
    tell("bicubic", bicubic(small, large), signs, large, unscaled, truth)
    drawn = generated_pictures(pipeline, signs, small, **options)
    tell("own word", drawn, signs, large, unscaled, truth)
    donors = [*signs[1:], signs[0]]
    others = [with_word(sign, donors[i].word) for i, sign in enumerate(signs)]
    drawn = generated_pictures(pipeline, others, small, **options)
    tell("another word", drawn, signs, large, unscaled, truth)


def tell_reader(pictures: str, ocr) -> None:
    """Print what reads some pictures, and how often it calls a broken word right."""
    engine = ocr.describe()["engine"]
    print(f"{pictures} are read by {engine}, {told_over_reading(over_reading(ocr))}")


def tell(name: str, pictures, signs: Sequence[Sign], fmt: SignFormat, ocr, truth=None) -> None:
    """Print the share of words read exactly, its interval and, with the truth, the distance from it."""
    right = reading_accuracy(pictures, signs, fmt, ocr)
    low, high = metrics.wilson(right.mean(), len(right))
    share = f"{right.mean():.3f} [{low:.3f}, {high:.3f}] of {len(signs)} words read exactly"
    distance = ""
    if truth is not None:
        distance = f"; mean square from the large drawing {mean_square(pictures, truth):.1f}"
    print(f"{name:<16} {share}{distance}")


def main() -> None:
    """Evaluate the model that the command line names."""
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
    pipeline = load(options.model)
    ocr = metrics.Tesseract()
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
