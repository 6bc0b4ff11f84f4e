"""Ask whether a misread word is the reader's fault or the model's, with pictures.

    python benchmarks/misread.py [MODEL ...] --csv benchmarks/results/misread.csv

Models draw held-out words, and every reader reads the same pictures, and clean drawings of the same signs.

  read       words read exactly, blanks aside, of n
  low, high  of their share, 95 %
  misread    the other words, and what was read of each

Beside the CSV file a picture of the same name shows every word of a model that tesseract or PP-OCR misread,
and what each reader read.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from measure import Table, arguments, environment, parsed
from textpatch import load
from textpatch.metrics import exact, reader_named, wilson
from textpatch.report.contact_sheet import draw_contact_sheet
from textpatch.weights.signs import evaluation
from textpatch.weights.signs.words import TEST

COLUMNS = ["pictures", "reader", "read", "n", "low", "high", "misread"]
READERS = ["tesseract", "ppocr", "agreement"]  # the last reads what both others do
MODELS = ["tiny-if", "tiny-mmdit"]
DRAWINGS = "clean drawings"


@dataclass(frozen=True)
class Drawn:
    """A word as a model drew it, and what each reader read, without blanks."""

    word: str
    picture: Image.Image
    read: tuple[str, ...]

    @property
    def is_misread(self) -> bool:
        """True if a single reader read another word, or none.

        Two that must agree read nothing where one of them is in doubt.
        """
        return not all(exact(text, self.word) for text in self.read[: READERS.index("agreement")])


def read_by_all(pictures: list[Image.Image], signs: list, fmt, readers: list) -> list[Drawn]:
    """Pictures of signs with what each reader reads in the box of their word."""
    boxes = [fmt.text_box] * len(pictures)
    columns = [
        ["".join(one.text.split()) for one in reader.read(pictures, boxes)] for reader in readers
    ]
    found = zip(signs, pictures, zip(*columns, strict=True), strict=True)
    return [Drawn(sign.word, picture, read) for sign, picture, read in found]


def rows_of(name: str, drawn: list[Drawn]) -> list[dict]:
    """A row for each reader."""
    rows = []
    for i, reader in enumerate(READERS):
        wrong = [one for one in drawn if not exact(one.read[i], one.word)]
        right = len(drawn) - len(wrong)
        ends = wilson(right / len(drawn), len(drawn))._asdict()
        told = "; ".join(f"{one.word} as {one.read[i] or 'nothing'}" for one in wrong)
        rows.append(
            dict(pictures=name, reader=reader, read=right, n=len(drawn), **ends, misread=told)
        )
    return rows


def sheet(misread: list[Drawn]) -> Image.Image:
    """Misread words, a line each, with the word that was asked for and what each reader read."""
    cells = []
    for one in misread:
        wanted = Image.new("RGB", one.picture.size, "white")
        cells.append([(wanted, one.word), *((one.picture, text) for text in one.read)])
    words = [("", one.word) for one in misread]
    captions = ["asked for", *READERS]
    return draw_contact_sheet(cells, captions=captions, words=words, scale=1.4).quantize(256)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "models", nargs="*", default=MODELS, metavar="MODEL", help="models by name (both)"
    )
    parser.add_argument("--words", type=int, default=len(TEST), help=f"words (all {len(TEST)})")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    misread: list[Drawn] = []
    for place, model in enumerate(options.models):
        pipeline = load(model)
        fmt = evaluation.sign_format(pipeline, 1)
        signs = evaluation.held_out_signs(options.words, fmt)
        readers = [reader_named(name, []) for name in READERS]
        if not place:
            clean = read_by_all(evaluation.clean_pictures(signs, fmt), signs, fmt, readers)
            for row in rows_of(DRAWINGS, clean):
                table.add(**row)
        drawn = read_by_all(evaluation.generated_pictures(pipeline, signs), signs, fmt, readers)
        for row in rows_of(pipeline.name, drawn):
            table.add(**row)
        misread += [one for one in drawn if one.is_misread]
    if options.csv and misread:
        sheet(misread).save(options.csv.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
