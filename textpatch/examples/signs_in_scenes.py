"""Find the site that carries the word in signs that hang somewhere in a scene, turned, nobody says where.

PP-OCR finds the lettering by itself, and what lies beside it is compared as the background.  The scene
stands for a photograph.

    python -m textpatch.examples.signs_in_scenes

prints

    pictures of 512 x 512, the sign turned by 8 degrees
    the best site is 1
"""

import random
from dataclasses import replace

from PIL import Image

from textpatch import load, localize
from textpatch.metrics.calibration import draw_wall

SIZE = 512
ANGLE = 8
PAIRS = [
    ('a red sign that says "HOUSE" on a blue wall', 'a red sign that says "TIGER" on a blue wall'),
    (
        'a white sign that says "BREAD" on a red wall',
        'a white sign that says "MUSIC" on a red wall',
    ),
]


def hang(sign: Image.Image, wall: Image.Image) -> Image.Image:
    """The wall with the sign on it, turned, of half its width."""
    scene = wall.copy()
    large = sign.resize((SIZE // 2, SIZE // 6), Image.Resampling.BICUBIC).convert("RGBA")
    turned = large.rotate(ANGLE, Image.Resampling.BICUBIC, expand=True)
    scene.paste(turned, (SIZE // 5, SIZE // 3), turned)
    return scene


def main() -> None:
    pipeline = load("tiny-mmdit")
    plain = pipeline.decode
    wall = draw_wall(random.Random(1), (SIZE, SIZE))

    def in_scenes(latents) -> list[Image.Image]:
        return [hang(sign, wall) for sign in plain(latents)]

    pipeline.decode = in_scenes
    pipeline.defaults = replace(pipeline.defaults, text_box=None)  # nobody knows where
    found = localize(pipeline, PAIRS, sites=[0, 1], ocr="ppocr")
    print(f"pictures of {SIZE} x {SIZE}, the sign turned by {ANGLE} degrees")
    print(f"the best site is {found.ranked[0][0]}")


if __name__ == "__main__":
    main()
