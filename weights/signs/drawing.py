"""Signs with words on walls, the prompts that the shipped models know and the pictures they learned from.

A sign is drawn as a person would describe it, by a colour and a shape, a word in a style of lettering, and a
wall with a colour and a pattern.  The prompt fixes everything that it names.  It does not name the phase of
the wall's pattern, which the noise therefore decides.
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
# a rectangle, a rounded plate, a pointed plate
SHAPES = ("sign", "badge", "arrow")
PATTERNS = ("plain", "striped", "dotted")
PHASES = range(8)  # where a pattern may begin, in pixels
# colours of letters
DARK = (20, 20, 20)
LIGHT = (250, 250, 250)
SAYINGS = ("that says", "that reads", "with text")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SMALL = LETTERS.lower()
SHORTEST = 3  # letters of a random word
STYLES = {
    "plain": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "italic": "DejaVuSans-BoldOblique.ttf",
    "serif": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono-Bold.ttf",
}
# token of a space between quotes, the sign that T5 writes for it
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# what describes a sign beside its word
FACTORS = dict(colour=COLOURS, shape=SHAPES, wall=COLOURS, pattern=PATTERNS, style=STYLES)
# DejaVu's bold capitals are wider than a letter's place.  At 0.84 of its width, W just fits the pitch.
SQUEEZE = 0.84
# pixels per unit of the large drawings that masks are reduced from
OVERSAMPLING = 8


@dataclass(frozen=True)
class SignFormat:
    """Size of a picture and places of its letters, in pixels.

    Every line of text is left-aligned at a fixed pitch, as the models learn best.   A space takes the place
    of a letter.
    """

    height: int = 32
    width: int = 96
    cap: int = 10  # height of a capital
    top: int = 11
    left: int = 8
    pitch: int = 12  # a multiple of the patch, so that every letter meets the patch grid alike
    longest: int = 6  # letters and spaces of a line
    styles: tuple[str, ...] = tuple(STYLES)
    unit: int = 1  # of margins and patterns
    lines: int = 1
    leading: int = 16  # from the top of one line to the top of the next
    margin: int = 6  # of the plate, above and below the letters
    corner: int = 11  # radius of a badge's corners
    letters: str = LETTERS
    shapes: tuple[str, ...] = SHAPES
    phases: int = 8  # how many of PHASES a pattern may begin at

    def __post_init__(self) -> None:
        # the divisors of OVERSAMPLING
        if self.unit not in (1, 2, 4, 8):
            raise PatchError(
                f"signs are drawn 1, 2, 4 or 8 times as large, not {self.unit!r}; give one of these"
            )

    @property
    def oversampling(self) -> int:
        """Pixels drawn first for one of the picture, along either side.   There are fewer in an enlarged
        one."""
        return OVERSAMPLING // self.unit

    def enlarged(self, times: int) -> SignFormat:
        """Format in which a sign is drawn 1, 2, 4 or 8 times as large.   Raises PatchError for others."""
        sizes = (
            "height",
            "width",
            "cap",
            "top",
            "left",
            "pitch",
            "unit",
            "leading",
            "margin",
            "corner",
        )
        return replace(self, **{name: times * getattr(self, name) for name in sizes})

    @property
    def tops(self) -> tuple[int, ...]:
        """Tops of the capitals of each line."""
        return tuple(self.top + line * self.leading for line in range(self.lines))

    @property
    def plate(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the sign's plate."""
        near = 2 * self.unit
        bottom = self.tops[-1] + self.cap + self.margin
        return near, self.top - self.margin, self.width - near, bottom

    @property
    def text_box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the part of the plate where letters stand."""
        left, top, right, _ = self.line_boxes[0]
        return left, top, right, self.line_boxes[-1][3]

    @property
    def line_boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Left, top, right, bottom of each line's part of the plate.   They do not overlap."""
        unit = self.unit
        left = self.left - unit
        right = min(self.left + self.longest * self.pitch + unit, self.width)
        boxes = []
        above = 0
        for top in self.tops:
            bottom = top + self.cap + 3 * unit
            boxes.append((left, max(top - 2 * unit, above), right, bottom))
            above = bottom
        return tuple(boxes)


@dataclass(frozen=True)
class Texts:
    """How texts of several lines are drawn at random.

    longest  letters of a word
    alone    share of texts of one line where more would fit
    twos     share of lines with two words
    cases    names of the cases, of which one is chosen for a text
    """

    longest: int = 8
    alone: float = 0.2
    twos: float = 0.3
    cases: tuple[str, ...] = ("upper", "upper", "upper", "lower", "title")


@dataclass(frozen=True)
class Sign:
    """Description of a sign, as a prompt gives it.

    word  text of the sign, its lines separated by newlines

    Raises PatchError for a colour, shape, wall, pattern or style that nobody can draw.
    """

    word: str
    colour: str = "red"
    shape: str = "sign"
    wall: str = "blue"
    pattern: str = "plain"
    style: str = "plain"

    def __post_init__(self) -> None:
        for what, known in FACTORS.items():
            value = getattr(self, what)
            if value not in known:
                raise PatchError(f"signs have no {what} {value!r}{closest(value, known)}")

    @property
    def lines(self) -> tuple[str, ...]:
        """Text of each line."""
        return tuple(self.word.split("\n"))

    def prompt(self, saying: str = "that says") -> str:
        style = "" if self.style == "plain" else f" in {self.style}"
        pattern = "" if self.pattern == "plain" else f"{self.pattern} "
        quoted = " and ".join(f'"{line}"' for line in self.lines)
        plate = f"a {self.colour} {self.shape} {saying} {quoted}{style}"
        return f"{plate} on a {pattern}{self.wall} wall"


def vocabulary(fmt: SignFormat = SignFormat()) -> list[str]:
    """Every token of the prompts of a format's signs, single letters included, in a fixed order."""
    plain = '" a on in wall'.split() + " ".join(SAYINGS).split()
    words = [*plain, *COLOURS, *SHAPES, *PATTERNS[1:], *[s for s in STYLES if s != "plain"]]
    if fmt.lines > 1:
        words += ["and", SPACE]
    return list(dict.fromkeys([*words, *fmt.letters]))


def random_sign(
    rng: random.Random, fmt: SignFormat, word: str | None = None, texts: Texts = Texts()
) -> Sign:
    """Random sign with independent factors.   Sign and wall never share a colour.

    word   its text; a random one when None
    texts  how that is drawn, in a format of several lines
    """
    colour, wall = rng.sample(list(COLOURS), 2)
    word = word or random_text(rng, fmt, texts)
    return Sign(
        word, colour, rng.choice(fmt.shapes), wall, rng.choice(PATTERNS), rng.choice(fmt.styles)
    )


def random_text(rng: random.Random, fmt: SignFormat, texts: Texts = Texts()) -> str:
    """Random letters on as many lines as a format has, or fewer."""
    if fmt.lines == 1:
        return random_word(rng, rng.randint(SHORTEST, fmt.longest))
    cased = getattr(str, rng.choice(texts.cases))
    lines = 1 if rng.random() < texts.alone else fmt.lines
    return "\n".join(cased(_random_line(rng, fmt, texts)) for _ in range(lines))


def _random_line(rng: random.Random, fmt: SignFormat, texts: Texts) -> str:
    """One random word of three letters or more, or two that fit on a line together."""
    if rng.random() < texts.twos:
        first = rng.randint(SHORTEST, fmt.longest - SHORTEST - 1)
        second = rng.randint(SHORTEST, fmt.longest - 1 - first)
        return f"{random_word(rng, first)} {random_word(rng, second)}"
    return random_word(rng, rng.randint(SHORTEST, texts.longest))


def random_word(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(length))


@functools.cache
def _letters(style: str, fmt: SignFormat) -> dict[str, np.ndarray]:
    """Coverage masks (cap + 4 units, pitch) in 0..1 of a format's letters, drawn large and reduced."""
    font = _font(style, fmt.cap * fmt.oversampling)
    return {letter: _letter(letter, font, fmt) for letter in fmt.letters}


def _font(style: str, cap_pixels: int) -> ImageFont.FreeTypeFont:
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
            f"drawing signs needs the fonts in matplotlib ({error}); pip install matplotlib"
        ) from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _letter(letter: str, font, fmt: SignFormat) -> np.ndarray:
    """Coverage mask (cap + 4 units, pitch) of one letter."""
    big = fmt.oversampling
    unit = fmt.unit
    height = fmt.cap + 4 * unit
    pitch = fmt.pitch // unit  # in units, as are width and start
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    picture = Image.new("L", (right - left, height * big))
    base = (fmt.cap + unit) * big  # so that J and Q fit below
    ImageDraw.Draw(picture).text((-left, base), letter, fill=255, font=font, anchor="ls")
    width = min(max(round((right - left) / OVERSAMPLING * SQUEEZE), 1), pitch)
    start = (pitch - width) // 2
    mask = np.zeros((height, fmt.pitch), np.float32)
    reduced = picture.resize((width * unit, height), Image.Resampling.BOX)
    mask[:, start * unit : (start + width) * unit] = np.asarray(reduced, np.float32) / 255
    return mask


@functools.cache
def plate_mask(shape: str, fmt: SignFormat) -> np.ndarray:
    """Coverage (height, width) in 0..1 of the sign's plate."""
    big = fmt.oversampling
    left, top, right, bottom = fmt.plate
    picture = Image.new("L", (fmt.width * big, fmt.height * big))
    draw = ImageDraw.Draw(picture)
    box = (left * big, top * big, right * big - 1, bottom * big - 1)
    if shape == "sign":
        draw.rectangle(box, fill=255)
    elif shape == "badge":
        draw.rounded_rectangle(box, radius=fmt.corner * big, fill=255)
    else:
        middle = (box[1] + box[3]) // 2
        nose = box[2] - (bottom - top) * big // 2
        draw.polygon(
            [(box[0], box[1]), (nose, box[1]), (box[2], middle), (nose, box[3]), (box[0], box[3])],
            fill=255,
        )
    reduced = picture.resize((fmt.width, fmt.height), Image.Resampling.BOX)
    return np.asarray(reduced, np.float32) / 255


def draw_wall(wall: str, pattern: str, fmt: SignFormat, phase: int) -> np.ndarray:
    """Bare wall, float32 (height, width, 3) in 0..255, its pattern beginning at `phase`, one of PHASES."""
    colour = np.array(COLOURS[wall], np.float32)
    shade = np.where(colour.mean() > 60, colour * 0.72, colour + 45)
    shaded = _shaded(pattern, fmt, phase)[..., None]
    return colour * (1 - shaded) + shade * shaded


def _shaded(pattern: str, fmt: SignFormat, phase: int) -> np.ndarray:
    """Mask (height, width), 1 where the wall is shaded and 0 elsewhere."""
    y, x = np.mgrid[: fmt.height, : fmt.width] / fmt.unit
    if pattern == "striped":
        return ((x + y + phase) % 8 < 4).astype(np.float32)
    if pattern == "dotted":
        return (((x + phase) % 6 < 3) & ((y + phase) % 6 < 3)).astype(np.float32)
    return np.zeros((fmt.height, fmt.width), np.float32)


def painted(picture: np.ndarray, colour, cover: np.ndarray) -> np.ndarray:
    """Picture with a colour over it, by its coverage (height, width) in 0..1."""
    cover = cover[..., None]
    return picture * (1 - cover) + np.array(colour, np.float32) * cover


def draw_sign(sign: Sign, fmt: SignFormat, rng: random.Random) -> np.ndarray:
    """Draw a sign, float32 (height, width, 3) in -1..1.   Raises PatchError for a word that does not fit."""
    _require_drawable(sign.word, fmt)
    picture = draw_wall(sign.wall, sign.pattern, fmt, rng.choice(PHASES[: fmt.phases]))
    picture = painted(picture, COLOURS[sign.colour], plate_mask(sign.shape, fmt))
    return painted(picture, ink_on(sign.colour), word_mask(sign.word, sign.style, fmt)) / 127.5 - 1


def ink_on(colour: str) -> tuple[int, int, int]:
    """Colour of the letters on a plate of this colour."""
    return DARK if luminance(COLOURS[colour]) > 140 else LIGHT


def _require_drawable(text: str, fmt: SignFormat) -> None:
    if fmt.lines == 1:
        if not 1 <= len(text) <= fmt.longest or set(text) - set(fmt.letters):
            raise PatchError(f"cannot draw {text!r}: signs hold 1 to {fmt.longest} capitals A to Z")
        return
    lines = text.split("\n")
    if len(lines) > fmt.lines:
        raise PatchError(f"cannot draw {text!r} on {len(lines)} lines: signs hold {fmt.lines}")
    for line in lines:
        if not 1 <= len(line) <= fmt.longest or set(line) - {" ", *fmt.letters}:
            raise PatchError(
                f"cannot draw the line {line!r}: lines hold 1 to {fmt.longest} letters and spaces"
            )
        if "" in line.split(" "):
            raise PatchError(f"cannot draw the line {line!r}: one of its words is empty")


def word_mask(word: str, style: str, fmt: SignFormat) -> np.ndarray:
    """Coverage (height, width) in 0..1 of the letters of a text, its lines separated by newlines."""
    mask = np.zeros((fmt.height, fmt.width), np.float32)
    letters = _letters(style, fmt)
    for top, line in zip(fmt.tops, word.split("\n"), strict=False):
        rows = slice(top - fmt.unit, top + fmt.cap + 3 * fmt.unit)
        for i, letter in enumerate(line):
            left = fmt.left + i * fmt.pitch
            if letter != " ":
                mask[rows, left : left + fmt.pitch] = letters[letter]
    return mask


def luminance(colour) -> float:
    """Rec. 601 luma of an RGB triple, 0..255."""
    return float(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


def with_word(sign: Sign, word: str) -> Sign:
    """Same sign with another word."""
    return replace(sign, word=word)
