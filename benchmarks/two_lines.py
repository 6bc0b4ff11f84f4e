"""Read signs of two lines as a model draws them, beside clean drawings of the same signs.

Held-out test words and random letters stand on two lines each, by the model's default steps and guidance.

Columns
  pictures  clean drawings, or the model's
  words     held-out words, or random letters of as many
  reader    what reads them, each line in its box
  n         pictures
  lines     share of lines read exactly
  both      share of pictures of which both lines are read exactly
"""

from __future__ import annotations

import random

from PIL import Image

import textpatch
from measure import Table, arguments, environment, parsed
from textpatch import metrics
from textpatch.metrics.readers.reading import line_boxes
from textpatch.weights.signs.drawing import Sign, random_sign, random_word
from textpatch.weights.signs.evaluation import clean_pictures, generated_pictures
from textpatch.weights.signs.pairs import SHORT, SPLITS_OF_LINES
from textpatch.weights.signs.reader import read_text
from textpatch.weights.signs.two_lines import TWO_LINES

COLUMNS = ["pictures", "words", "reader", "n", "lines", "both"]
WORDS = "held-out words", "random letters"


def signs(n: int, words: str) -> list[Sign]:
    """Signs with two held-out test words, or with as many random letters."""
    rng = random.Random(f"two lines/{words}")
    held_out = SPLITS_OF_LINES["test"]
    made = []
    for _ in range(n):
        lines = rng.sample(held_out, 2)
        if words == "random letters":
            lines = [random_word(rng, rng.randint(3, SHORT)) for _ in lines]
        made.append(random_sign(rng, TWO_LINES, "\n".join(lines)))
    return made


def by_drawing(pictures: list[Image.Image], drawn: list[Sign], boxes) -> list[tuple[str, ...]]:
    """Lines of each picture by the nearest drawn letters, whose style and colours are known."""
    texts = [read_text(*pair, TWO_LINES) for pair in zip(pictures, drawn, strict=True)]
    return [tuple(text.split("\n")) for text in texts]


def by(reader):
    """Reading of each line in its box by a reader of words."""

    def lines_of(pictures, drawn, boxes):
        each = [picture for picture in pictures for _ in boxes]
        found = reader.read(each, [box for _ in pictures for box in boxes])
        texts = [reading.text.replace(" ", "").upper() for reading in found]
        return [tuple(texts[i : i + len(boxes)]) for i in range(0, len(texts), len(boxes))]

    return lines_of


def shares(found: list[tuple[str, ...]], drawn: list[Sign]) -> dict[str, float]:
    """Shares of lines, and of pictures with all lines, that are read exactly."""
    right = [
        [read == line for read, line in zip(lines, sign.lines, strict=False)]
        for lines, sign in zip(found, drawn, strict=True)
    ]
    lines = [one for each in right for one in each]
    whole = [all(each) and len(each) == 2 for each in right]
    return {"lines": sum(lines) / (2 * len(drawn)), "both": sum(whole) / len(drawn)}


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--model", default="tiny-words", help="a model of two lines (tiny-words)")
    parser.add_argument("--signs", type=int, default=96, help="pictures of each kind (96)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device, "ocrust"), options.csv, options.append)
    pipeline = textpatch.load(options.model, device=options.device, dtype=options.dtype)
    boxes = line_boxes(pipeline.defaults.text_box)
    readers = {
        "nearest drawing": by_drawing,
        "tesseract": by(metrics.Tesseract()),
        "ppocr": by(metrics.PPOCR()),
    }
    for words in WORDS:
        drawn = signs(options.signs, words)
        pictures = {
            "clean drawings": clean_pictures(drawn, TWO_LINES),
            pipeline.name: generated_pictures(pipeline, drawn),
        }
        for name, images in pictures.items():
            for reader, read in readers.items():
                table.add(
                    pictures=name,
                    words=words,
                    reader=reader,
                    n=len(drawn),
                    **shares(read(images, drawn, boxes), drawn),
                )


if __name__ == "__main__":
    main()
