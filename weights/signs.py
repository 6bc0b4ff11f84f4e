"""Signs with words on walls: the prompts the shipped models know, and the pictures they were trained on.

A sign is drawn as a person would describe it: a colour and a shape, a word in a style of lettering, a wall
with a colour and a pattern.  Everything named in the prompt is fixed by it; the phase of the wall's pattern
is named nowhere, so that it is the noise that decides it.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from textpatch.errors import PatchError, closest

COLOURS = {
    "red": (200, 30, 35),
    "orange": (245, 140, 25),
    "yellow": (245, 220, 50),
    "green": (30, 140, 60),
    "blue": (35, 75, 190),
    "purple": (120, 45, 150),
    "pink": (250, 160, 195),
    "brown": (115, 70, 35),
    "black": (25, 25, 28),
    "white": (245, 245, 240),
}
SHAPES = ("sign", "badge", "arrow")  # rectangle, rounded plate, pointed plate: the noun names the shape
PATTERNS = ("plain", "striped", "dotted")
SAYINGS = ("that says", "that reads", "with text")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STYLES = {
    "plain": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "italic": "DejaVuSans-BoldOblique.ttf",
    "serif": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono-Bold.ttf",
}
# DejaVu's bold capitals are wider than a letter cell; at 0.84 of their width W just fits its pitch.
SQUEEZE = 0.84


@dataclass(frozen=True)
class SignFormat:
    """Where a word stands in a picture, in pixels; left-aligned at a fixed pitch, as the models learn best."""

    height: int = 32
    width: int = 96
    cap: int = 10  # height of a capital
    top: int = 11
    left: int = 8
    pitch: int = 12  # a multiple of the patch, so that every letter meets the patch grid alike
    longest: int = 6
    styles: tuple[str, ...] = tuple(STYLES)

    @property
    def plate(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the sign's plate."""
        return 2, self.top - 6, self.width - 2, self.top + self.cap + 6

    @property
    def text_box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the part of the plate where letters stand."""
        right = min(self.left + self.longest * self.pitch + 1, self.width)
        return self.left - 1, self.top - 2, right, self.top + self.cap + 3


@dataclass(frozen=True)
class Sign:
    """What a prompt says."""

    word: str
    colour: str = "red"
    shape: str = "sign"
    wall: str = "blue"
    pattern: str = "plain"
    style: str = "plain"

    def prompt(self, saying: str = "that says") -> str:
        style = "" if self.style == "plain" else f" in {self.style}"
        pattern = "" if self.pattern == "plain" else f"{self.pattern} "
        return f'a {self.colour} {self.shape} {saying} "{self.word}"{style} on a {pattern}{self.wall} wall'


def vocabulary() -> list[str]:
    """Every token of the prompts, single capitals included, in a fixed order."""
    plain = '" a on in wall'.split() + " ".join(SAYINGS).split()
    words = [*plain, *COLOURS, *SHAPES, *PATTERNS[1:], *[s for s in STYLES if s != "plain"]]
    return list(dict.fromkeys(words)) + list(LETTERS)


def random_sign(rng: random.Random, fmt: SignFormat, word: str | None = None) -> Sign:
    """A sign with every factor drawn independently; sign and wall never share a colour."""
    colour, wall = rng.sample(list(COLOURS), 2)
    word = word or random_word(rng, rng.randint(3, fmt.longest))
    return Sign(word, colour, rng.choice(SHAPES), wall, rng.choice(PATTERNS), rng.choice(fmt.styles))


def random_word(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(length))


@functools.lru_cache(maxsize=None)
def _letters(style: str, cap: int, pitch: int) -> dict[str, np.ndarray]:
    """Coverage masks (cap + 4, pitch) in 0..1 of the 26 capitals, drawn eight times larger and reduced."""
    big = 8
    font = _font(style, cap * big)
    return {letter: _letter(letter, font, cap, pitch, big) for letter in LETTERS}


def _font(style: str, cap_pixels: int) -> ImageFont.FreeTypeFont:
    if style not in STYLES:
        raise PatchError(f"no lettering style {style!r}{closest(style, STYLES)}")
    path = _font_folder() / STYLES[style]
    size = cap_pixels
    while ImageFont.truetype(path, size).getbbox("H", anchor="ls")[1] > -cap_pixels:
        size += 1
    return ImageFont.truetype(path, size)


def _font_folder() -> Path:
    try:
        import matplotlib
    except Exception as error:
        raise PatchError(
            f"drawing signs needs the fonts in matplotlib ({error}); pip install textpatch[plots]"
        ) from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _letter(letter: str, font, cap: int, pitch: int, big: int) -> np.ndarray:
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    picture = Image.new(
        "L", (right - left, (cap + 4) * big)
    )  # baseline at cap + 1, so that J and Q fit below
    ImageDraw.Draw(picture).text((-left, (cap + 1) * big), letter, fill=255, font=font, anchor="ls")
    width = min(max(round((right - left) / big * SQUEEZE), 1), pitch)
    mask = np.zeros((cap + 4, pitch), np.float32)
    start = (pitch - width) // 2
    reduced = picture.resize((width, cap + 4), Image.Resampling.BOX)
    mask[:, start : start + width] = np.asarray(reduced, np.float32) / 255
    return mask


@functools.lru_cache(maxsize=None)
def _plate(shape: str, fmt: SignFormat) -> np.ndarray:
    """Coverage (height, width) in 0..1 of the sign's plate."""
    big, (left, top, right, bottom) = 8, fmt.plate
    picture = Image.new("L", (fmt.width * big, fmt.height * big))
    draw = ImageDraw.Draw(picture)
    box = (left * big, top * big, right * big - 1, bottom * big - 1)
    if shape == "sign":
        draw.rectangle(box, fill=255)
    elif shape == "badge":
        draw.rounded_rectangle(box, radius=(bottom - top) * big // 2, fill=255)
    else:
        middle, nose = (box[1] + box[3]) // 2, box[2] - (bottom - top) * big // 2
        draw.polygon(
            [(box[0], box[1]), (nose, box[1]), (box[2], middle), (nose, box[3]), (box[0], box[3])], fill=255
        )
    return np.asarray(picture.resize((fmt.width, fmt.height), Image.Resampling.BOX), np.float32) / 255


def _wall(pattern: str, fmt: SignFormat, rng: random.Random) -> np.ndarray:
    """Where the wall is shaded, 0 or 1 (height, width); the pattern's phase comes from `rng`."""
    y, x = np.mgrid[: fmt.height, : fmt.width]
    phase = rng.randrange(8)
    if pattern == "striped":
        return ((x + y + phase) % 8 < 4).astype(np.float32)
    if pattern == "dotted":
        return (((x + phase) % 6 < 3) & ((y + phase) % 6 < 3)).astype(np.float32)
    return np.zeros((fmt.height, fmt.width), np.float32)


def draw_sign(sign: Sign, fmt: SignFormat, rng: random.Random) -> np.ndarray:
    """The picture of a sign, float32 (height, width, 3) in -1..1.  Raises PatchError for a word that does not fit."""
    if not 1 <= len(sign.word) <= fmt.longest or set(sign.word) - set(LETTERS):
        raise PatchError(f"cannot draw {sign.word!r}: signs hold 1 to {fmt.longest} capitals A to Z")
    wall, plate = np.array(COLOURS[sign.wall], np.float32), np.array(COLOURS[sign.colour], np.float32)
    shade = np.where(wall.mean() > 60, wall * 0.72, wall + 45)
    patterned = _wall(sign.pattern, fmt, rng)[..., None]
    picture = wall * (1 - patterned) + shade * patterned
    cover = _plate(sign.shape, fmt)[..., None]
    picture = picture * (1 - cover) + plate * cover
    ink = np.array((20, 20, 20) if luminance(plate) > 140 else (250, 250, 250), np.float32)
    cover = word_mask(sign.word, sign.style, fmt)[..., None]
    return (picture * (1 - cover) + ink * cover) / 127.5 - 1


def word_mask(word: str, style: str, fmt: SignFormat) -> np.ndarray:
    """Coverage (height, width) in 0..1 of the letters of a word."""
    mask, letters = np.zeros((fmt.height, fmt.width), np.float32), _letters(style, fmt.cap, fmt.pitch)
    for i, letter in enumerate(word):
        left = fmt.left + i * fmt.pitch
        mask[fmt.top - 1 : fmt.top + fmt.cap + 3, left : left + fmt.pitch] = letters[letter]
    return mask


def luminance(colour) -> float:
    """Rec. 601 luma of an RGB triple, 0..255."""
    return float(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


def with_word(sign: Sign, word: str) -> Sign:
    """The same sign saying something else."""
    return replace(sign, word=word)
