"""Read signs of one to four words as a model of two lines draws them, beside clean drawings of the same.

Held-out test words and random letters as long stand there, by the model's default steps and guidance.
Lines are read in their boxes.   Readers of words are compared without blanks and cases.

Columns
  pictures  clean drawings, or the model's
  words     of a sign: one, two on a line each, three with two on the first line, four
  letters   held-out words, or random letters
  case      of a sign's letters: upper, lower, or title for a capital at the beginning of each word
  reader    what reads them
  n         pictures
  lines     share of lines read exactly
  whole     share of pictures of which all lines are read exactly
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

import textpatch
from measure import Table, arguments, environment, parsed
from textpatch.metrics import reader_named
from textpatch.metrics.readers.named import READERS
from textpatch.weights.signs.drawing import Sign, random_sign, random_word
from textpatch.weights.signs.evaluation import clean_pictures, generated_pictures
from textpatch.weights.signs.pairs import SPLITS_OF_LINES, WORDS_OF_LINES, texts_of
from textpatch.weights.signs.reader import read_text
from textpatch.weights.signs.two_lines import TWO_LINES

COLUMNS = ["pictures", "words", "letters", "case", "reader", "n", "lines", "whole"]
LETTERS = "held-out words", "random letters"
NEAREST = "nearest drawing"
NAMES = NEAREST, *READERS


def signs(n: int, words: int, letters: str = LETTERS[0], case: str = "upper") -> list[Sign]:
    """Signs with so many held-out test words each, or with as many random letters."""
    rng = random.Random(f"two lines/{words}/{letters}")
    made = []
    for _ in range(n):
        (text,) = texts_of(rng, SPLITS_OF_LINES["test"], words)
        if letters == "random letters":
            text = "".join(random_word(rng, 1) if one.isalpha() else one for one in text)
        made.append(random_sign(rng, TWO_LINES, getattr(text, case)()))
    return made


def by_drawing(pictures: list[Image.Image], drawn: list[Sign], boxes) -> list[list[bool]]:
    """Whether each line is that of the nearest drawn letters, whose style and colours are known."""
    texts = [read_text(*pair, TWO_LINES) for pair in zip(pictures, drawn, strict=True)]
    return [right(text.split("\n"), sign) for text, sign in zip(texts, drawn, strict=True)]


def by(reader):
    """Whether each line is read so by a reader of words, in its box, blanks and cases aside."""

    def lines_right(pictures, drawn, boxes):
        placed = [
            (picture, box)
            for picture, sign in zip(pictures, drawn, strict=True)
            for box, _ in zip(boxes, sign.lines, strict=False)
        ]
        found = iter(reader.read(*map(list, zip(*placed, strict=True))))
        wanted = [Sign(plain(sign.word)) for sign in drawn]
        return [right([plain(next(found).text) for _ in sign.lines], sign) for sign in wanted]

    return lines_right


def plain(text: str) -> str:
    """A text in capitals without blanks, its lines kept."""
    return text.replace(" ", "").upper()


def right(lines: list[str], sign: Sign) -> list[bool]:
    """Whether each of a sign's lines is read exactly, and no line beside them."""
    lines = [*lines, *[""] * (len(sign.lines) - len(lines))]
    only = len(lines) == len(sign.lines)
    return [only and read == line for read, line in zip(lines, sign.lines, strict=False)]


def shares(found: list[list[bool]]) -> dict[str, float]:
    """Shares of lines, and of pictures with all lines, that are right."""
    lines = [one for each in found for one in each]
    return {"lines": sum(lines) / len(lines), "whole": sum(map(all, found)) / len(found)}


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--model", default="tiny-words", help="a model of two lines (tiny-words)")
    parser.add_argument("--signs", type=int, default=96, help="pictures of each kind (96)")
    parser.add_argument("--cases", nargs="+", default=["upper"], help="upper, lower, title (upper)")
    parser.add_argument(
        "--readers", nargs="+", choices=NAMES, default=NAMES, help=f"({', '.join(NAMES)})"
    )
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device, "ocrust"), options.csv, options.append)
    pipeline = textpatch.load(options.model, device=options.device, dtype=options.dtype)
    for case in options.cases:
        for words in WORDS_OF_LINES:
            for letters in LETTERS:
                kind = {"words": words, "letters": letters, "case": case}
                for row in rows(pipeline, signs(options.signs, **kind), options.readers):
                    table.add(**kind, **row)


def reader_of(name: str, drawn: list[Sign]):
    """What reads the lines of some signs, by its name."""
    if name == NEAREST:
        return by_drawing
    return by(reader_named(name, [sign.word for sign in drawn]))


def rows(pipeline, drawn: list[Sign], names: Sequence[str]) -> list[dict]:
    """Rows of some signs, drawn clean and by the model, by readers of these names."""
    boxes = TWO_LINES.line_boxes
    readers = {name: reader_of(name, drawn) for name in names}
    pictures = {
        "clean drawings": clean_pictures(drawn, TWO_LINES),
        pipeline.name: generated_pictures(pipeline, drawn),
    }
    return [
        {
            **{"pictures": name, "reader": reader, "n": len(drawn)},
            **shares(read(images, drawn, boxes)),
        }
        for name, images in pictures.items()
        for reader, read in readers.items()
    ]


if __name__ == "__main__":
    main()
