"""Localise the word of signs that hang somewhere in a scene, turned, without telling anybody where.

    python benchmarks/scenes.py --csv benchmarks/results/scenes.csv

tiny-mmdit draws a sign, which is hung on a wall of soft light, blurred shapes and grain, turned, and half as
wide as the wall.  Every wall has its own place and angle.  The model's card names no place of the word, so
that the reader finds it, and what lies beside the lettering of both pictures is the background.

  angle     degrees by which the sign is turned
  best      the site that is ranked first, of all
  exact     share of pictures in which the best site writes the word of the target, and
  others    the same of the best of all other sites
  plain     the same of the whole target run
  ssim      of the background with the best site
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

import textpatch
from measure import Table, arguments, environment, parsed
from textpatch.metrics.calibration import draw_wall
from textpatch.metrics.readers.named import READERS
from textpatch.weights.signs.pairs import sign_pairs

COLUMNS = ["model", "reader", "size", "wall", "angle", "n", "best", "exact", "others", "plain"]
COLUMNS += ["ssim"]
MODEL = "tiny-mmdit"
ANGLES = (-8, 4, 8)  # of each wall's sign


@functools.cache
def place_and_ground(size: int, wall: int) -> tuple[tuple[int, int], Image.Image]:
    """Where the sign of a wall hangs, and the wall without it."""
    dice = random.Random(wall)
    left, top = (round(dice.uniform(0.02, limit) * size) for limit in (0.45, 0.7))
    return (left, top), draw_wall(dice, (size, size))


def hung(signs: Sequence[Image.Image], size: int, wall: int) -> list[Image.Image]:
    """Scenes of size x size pixels, each with a sign at the place and the angle of the wall."""
    place, ground = place_and_ground(size, wall)
    scenes = []
    for sign in signs:
        large = sign.resize((size // 2, size // 6), Image.Resampling.BICUBIC).convert("RGBA")
        turned = large.rotate(ANGLES[wall], Image.Resampling.BICUBIC, expand=True)
        scene = ground.copy()
        scene.paste(turned, place, turned)
        scenes.append(scene)
    return scenes


def localised(size: int, wall: int, reader: str, count: int) -> dict:
    """The cells of one localisation."""
    pipeline = textpatch.load(MODEL)
    pipeline.defaults = replace(pipeline.defaults, text_box=None)
    plain = pipeline.decode
    pipeline.decode = lambda latents: hung(plain(latents), size, wall)
    pairs = sign_pairs(count, split="test", same_scene=True)
    result = textpatch.localize(pipeline, pairs, ocr=reader).result
    best = result["ranked"][0]
    exact = {site["site"]: site["exact_target"]["value"] for site in result["sites"]}
    of_best = next(site for site in result["sites"] if site["site"] == best)
    return {
        "best": best,
        "exact": exact.pop(best),
        "others": max(exact.values()),
        "plain": result["baselines"]["target"]["exact_target"]["value"],
        "ssim": of_best["ssim"]["value"],
    }


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help="readers by name (ppocr agreement)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="(512 1024)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of signs on each wall (3)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for reader in options.readers or [name for name in READERS if name != "tesseract"]:
        for size in options.sizes:
            for wall, angle in enumerate(ANGLES):
                found = localised(size, wall, reader, options.pairs)
                told = dict(model=MODEL, reader=reader, size=size, wall=wall, angle=angle)
                table.add(**told, n=options.pairs, **found)


if __name__ == "__main__":
    main()
