"""Measure what each reader reads of words whole and broken.

    python benchmarks/readers.py [READER ...]
    python benchmarks/readers.py --limits
    python benchmarks/readers.py --signs
    python benchmarks/readers.py --speed --threads 1

The first runs `textpatch.metrics.calibration`, as `textpatch doctor --readers` does, on more pictures.

  read     pictures in which the word is read, or anything in wordless ones
  low, high  of their share, 95 %
  seconds  a picture, on one thread

The second reads pictures by other dice with `Agreement` at several limits of confidence, of which
`agreement.SURE` was chosen.

  whole, broken  words of the kinds that must and must not be read, and how many of them were

The third does as the first with held-out words on signs as the shipped models draw them, in the box of the
word.  "nearest drawing" is the reader of signs, which knows how these are drawn.

The fourth reads whole words of 96 x 32 pixels, in turns.

  ms         processor time of a picture, that of the programs a reader starts included, the median over the
             rounds, and its quartiles
"""

from __future__ import annotations

import functools
import random
import resource
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from measure import Table, arguments, environment, in_turns, parsed, words_read
from textpatch.metrics import PPOCR, Agreement, Tesseract, alphabet_of, exact, reader_named, wilson
from textpatch.metrics.calibration import KINDS, calibrated, read_of, samples
from textpatch.metrics.readers.broken_words import (
    HEADED,
    LOPSIDED,
    half_erased,
    mirrored,
    upside_down,
    without_stem,
)
from textpatch.metrics.readers.named import READERS
from textpatch.weights.signs.drawing import (
    COLOURS,
    DARK,
    LETTERS,
    LIGHT,
    Sign,
    SignFormat,
    draw_wall,
    luminance,
    painted,
    plate_mask,
    random_sign,
    with_word,
    word_mask,
)
from textpatch.weights.signs.reader import SignReader
from textpatch.weights.signs.words import TEST

COLUMNS = ["reader", "kind", "must", "read", "n", "low", "high", "seconds"]
LIMITS = ["limit", "whole_read", "whole", "broken_read", "broken", "broken_low", "broken_high"]
SPEED = ["reader", "pictures", "n", "ms", "ms_low", "ms_high"]
TRIED = (0.0, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999)


class Remembered:
    """A reader that reads each of some pictures once at each place, whatever limit is tried."""

    def __init__(self, reader):
        self.reader = reader
        self.found = {}

    def read(self, images, boxes=None):
        """Readings of the reader, or those that it gave before."""
        boxes = boxes or [None] * len(images)
        keys = [(image.tobytes(), str(box)) for image, box in zip(images, boxes, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self.found]
        read = self.reader.read([images[i] for i in new], [boxes[i] for i in new])
        self.found |= {keys[i]: one for i, one in zip(new, read, strict=True)}
        return [self.found[key] for key in keys]

    def describe(self) -> dict:
        """The reader's own description."""
        return self.reader.describe()

    def self_test(self) -> None:
        """The reader's own test."""
        self.reader.self_test()


def limits(each: int) -> list[dict]:
    """Words whole and broken that agreement reads at each limit of TRIED."""
    ppocr = PPOCR()
    counts = {limit: {True: [0, 0], False: [0, 0]} for limit in TRIED}
    for kind in KINDS:
        drawn = samples(kind, each, dice=", validation")
        words = [sample.word for sample in drawn if sample.word]
        if not words:
            continue
        finder = Remembered(ppocr)
        confirmer = Remembered(Tesseract(alphabet=alphabet_of(words), blank=True))
        for limit in TRIED:
            reader = Agreement(finder, confirmer, sure=limit)
            count = counts[limit][kind.must]
            count[0] += read_of(reader.read([sample.picture for sample in drawn]), drawn)
            count[1] += len(drawn)
    rows = []
    for limit, count in counts.items():
        read, n = count[False]
        ends = wilson(read / n, n)
        whole = dict(zip(("whole_read", "whole"), count[True], strict=True))
        broken = dict(broken_read=read, broken=n, broken_low=ends.low, broken_high=ends.high)
        rows.append({"limit": limit, **whole, **broken})
    return rows


# --- signs of the shipped models

Change = Callable[[Image.Image], Image.Image] | None
NEAREST = "nearest drawing"
# name, letters of which one is changed, and how
SIGN_KINDS: tuple[tuple[str, str, Change], ...] = (
    ("words on signs", LETTERS, None),
    ("a letter mirrored", LOPSIDED, mirrored),
    ("a letter upside down", HEADED, upside_down),
    ("a letter half erased", LETTERS, half_erased),
    ("a letter without its stem", "BDEFHKLMNPR", without_stem),
    ("another letter", LETTERS, None),
)


def sign_samples(kind: str, among: str, change: Change, each: int) -> list[tuple[str, Image.Image]]:
    """Words, and pictures of signs with each, in which one letter is broken or another."""
    rng = random.Random(f"signs/{kind}")
    words = [word for word in TEST if not set(word).isdisjoint(among)]
    drawn = []
    for word in rng.sample(words, each):
        place = rng.choice([i for i, letter in enumerate(word) if letter in among])
        sign = random_sign(rng, SignFormat(), word)
        if kind == "another letter":
            other = rng.choice([letter for letter in LETTERS if letter != word[place]])
            sign = with_word(sign, word[:place] + other + word[place + 1 :])
        drawn.append((word, broken_sign(sign, place, change)))
    return drawn


def broken_sign(sign: Sign, place: int, change: Change) -> Image.Image:
    """Drawing of a sign with the letter at a place changed."""
    fmt = SignFormat()
    letters = word_mask(sign.word, sign.style, fmt)
    if change is not None:
        left = fmt.left + place * fmt.pitch
        tile = Image.fromarray(np.rint(255 * letters[:, left : left + fmt.pitch]).astype(np.uint8))
        letters[:, left : left + fmt.pitch] = np.asarray(change(tile), np.float32) / 255
    plate = COLOURS[sign.colour]
    picture = painted(
        draw_wall(sign.wall, sign.pattern, fmt, 0), plate, plate_mask(sign.shape, fmt)
    )
    ink = DARK if luminance(plate) > 140 else LIGHT
    return Image.fromarray(np.rint(painted(picture, ink, letters)).astype(np.uint8))


def read_in_signs(reader: str, pictures: Sequence[Image.Image]) -> list[str]:
    """What a reader reads on signs, in the box of the word."""
    if reader == NEAREST:
        return [seen["word"] for seen in SignReader().read(pictures)]
    return words_read(reader, pictures, SignFormat().text_box)


def of_signs(reader: str, each: int) -> list[dict]:
    """Rows of a reader, one for each kind."""
    rows = []
    for kind, among, change in SIGN_KINDS:
        words, pictures = zip(*sign_samples(kind, among, change, each), strict=True)
        begun = time.perf_counter()
        texts = read_in_signs(reader, pictures)
        seconds = (time.perf_counter() - begun) / each
        right = sum(exact(*pair) for pair in zip(texts, words, strict=True))
        ends = wilson(right / each, each)._asdict()
        must = kind == "words on signs"
        counts = dict(must=must, read=right, n=each, **ends, seconds=seconds)
        rows.append({"reader": reader, "kind": kind, **counts})
    return rows


# --- time


def processor_time() -> float:
    """Seconds of processor time of this process, and of those that have read for it."""
    taken = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in taken)


def speed(names: Sequence[str], each: int, options) -> list[dict]:
    """Rows of readers, one for each of two kinds of whole words in small pictures."""
    clean = [sample.picture for sample in samples(KINDS[0], each)]
    signs = [picture for _, picture in sign_samples(*SIGN_KINDS[0], each)]
    boxes = [SignFormat().text_box] * each
    rows = []
    for kind, pictures, places in (
        (KINDS[0].name, clean, None),
        (SIGN_KINDS[0][0], signs, boxes),
    ):
        readings = {
            name: functools.partial(reader_named(name, []).read, pictures, places) for name in names
        }
        for reading in readings.values():
            reading()  # the first reading tests the reader
        taken = in_turns(
            readings, rounds=options.rounds, device=options.device, clock=processor_time
        )
        for name, seconds in taken.items():
            low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e3 / each
            times = dict(ms=float(median), ms_low=float(low), ms_high=float(high))
            rows.append({"reader": name, "pictures": kind, "n": each, **times})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("readers", nargs="*", metavar="READER", help="readers by name (all)")
    parser.add_argument("--each", type=int, default=40, help="pictures of each kind (40)")
    parser.add_argument(
        "--limits", action="store_true", help="try limits of confidence for agreement instead"
    )
    parser.add_argument("--signs", action="store_true", help="read signs of the shipped models")
    parser.add_argument(
        "--speed", action="store_true", help="time readers on small pictures instead"
    )
    options = parsed(parser, argv)
    where = environment(options.device)
    if options.limits:
        table = Table(LIMITS, where, options.csv, options.append)
        for row in limits(options.each):
            table.add(**row)
        return
    if options.speed:
        table = Table(SPEED, where, options.csv, options.append)
        for row in speed(options.readers or list(READERS), options.each, options):
            table.add(**row)
        return
    table = Table(COLUMNS, where, options.csv, options.append)
    names = options.readers or [*READERS, *[NEAREST] * options.signs]
    measured = of_signs if options.signs else calibrated
    for name in names:
        for row in measured(name, options.each):
            table.add(**row)


if __name__ == "__main__":
    main()
