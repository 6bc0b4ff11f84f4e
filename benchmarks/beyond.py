"""Ask of editing by a swap what it was not made for: to remove, add, move or restyle a word, and more.

    python benchmarks/beyond.py [MODEL ...] --csv benchmarks/results/beyond.csv
    python benchmarks/beyond.py tiny-words --csv benchmarks/results/beyond-words.csv

The second is of a model that writes a word on each of two lines, and is asked to move words between them.
The text of the target's prompt is swapped in at the sites that carry the word, at every step, whatever the
prompts differ in.

  way    how far the edited picture went from the source's to the target's own, the mean over seeds of
         d(edited, source) / (d(edited, source) + d(edited, target)) with root mean squared distances d.
         It is 0 at the source's picture and 1 at the target's
  text   edited pictures in which the target's text is read, of n; empty where there is none to read
  own    the same of the target's own pictures

Beside the CSV file a picture of the same name shows source, edited and target picture of each request, from
the first seed.
"""

from __future__ import annotations

import math

from PIL import Image

from measure import Table, arguments, environment, parsed, reader_option, words_read
from textpatch import load
from textpatch.editing.localized import Localized
from textpatch.editing.result import Edit
from textpatch.metrics import exact, mse
from textpatch.metrics.readers.reading import line_boxes
from textpatch.prompts.pairs import Pair, quoted_texts
from textpatch.quotes import quotations
from textpatch.report.contact_sheet import draw_contact_sheet

MODELS = "tiny-mmdit", "tiny-sdxl"
COLUMNS = ["model", "reader", "asked", "source", "target", "way", "text", "own", "n"]
HOUSE = 'a red sign that says "HOUSE" on a blue wall'
BARE = "a red sign on a blue wall"
REQUESTS = {
    "another word": (HOUSE, HOUSE.replace("HOUSE", "TIGER")),
    "a longer word": (HOUSE.replace("HOUSE", "SUN"), HOUSE.replace("HOUSE", "PLANET")),
    "no word": (HOUSE, BARE),
    "a first word": (BARE, HOUSE),
    "in serif": (HOUSE, HOUSE.replace('"HOUSE"', '"HOUSE" in serif')),
    "on a green badge": (HOUSE, HOUSE.replace("red sign", "green badge")),
    "on a pink wall": (HOUSE, HOUSE.replace("blue", "pink")),
}
TWO = 'a red sign that says "HOUSE" and "TIGER" on a blue wall'
ONE = 'a red sign that says "HOUSE" on a blue wall'
REQUESTS_OF_LINES = {
    "another second word": (TWO, TWO.replace("TIGER", "LEMON")),
    "two other words": (TWO, TWO.replace("HOUSE", "PIANO").replace("TIGER", "LEMON")),
    "words exchanged": (TWO, 'a red sign that says "TIGER" and "HOUSE" on a blue wall'),
    "first word down": (TWO, 'a red sign that says "LEMON" and "HOUSE" on a blue wall'),
    "second word up": (TWO, 'a red sign that says "TIGER" and "LEMON" on a blue wall'),
    "no second word": (TWO, ONE),
    "a second word": (ONE, TWO),
}


def edited(pipeline, pair: Pair, seed: int) -> Edit:
    """Edit of any two prompts, with or without quoted text."""
    steps, guidance = pipeline.defaults.run(None, None)
    return Localized()(pipeline, pair, seed=seed, steps=steps, guidance=guidance)


def way(made: Edit) -> float:
    """How far the edited picture is on the way from the source's to the target's."""
    from_source = math.sqrt(mse(made.image, made.source))
    from_target = math.sqrt(mse(made.image, made.target))
    return from_source / ((from_source + from_target) or 1)


def read_as_asked(pipeline, prompt: str, pictures: list[Image.Image], reader: str) -> int | None:
    """Pictures in which every text of a prompt is read in its line, None for a prompt without text."""
    if not quotations(prompt):
        return None
    texts = quoted_texts(prompt)
    boxes = line_boxes(pipeline.defaults.text_box)
    if len(boxes) == 1:
        texts = ["".join(texts)]
    lines = [words_read(reader, pictures, box) for box in boxes]
    wanted = [*texts, *[""] * (len(boxes) - len(texts))]
    return sum(all(map(exact, read, wanted)) for read in zip(*lines, strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"models ({', '.join(MODELS)})")
    parser.add_argument("--seeds", type=int, default=12, help="pictures of each request (12)")
    reader_option(parser)
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device, "numpy"), options.csv, options.append)
    lines = []
    for model in options.models or MODELS:
        pipeline = load(model, device=options.device)
        lines_drawn = len(line_boxes(pipeline.defaults.text_box))
        requests = REQUESTS if lines_drawn == 1 else REQUESTS_OF_LINES
        for asked, prompts in requests.items():
            pair = Pair(*prompts)
            made = [edited(pipeline, pair, seed) for seed in range(options.seeds)]
            edits, targets = [one.image for one in made], [one.target for one in made]
            table.add(
                model=model,
                reader=options.reader,
                asked=asked,
                source=pair.source,
                target=pair.target,
                way=sum(map(way, made)) / len(made),
                text=read_as_asked(pipeline, pair.target, edits, options.reader),
                own=read_as_asked(pipeline, pair.target, targets, options.reader),
                n=len(made),
            )
            lines.append(list(zip(made[0].pictures.values(), (asked, model, None), strict=True)))
    if options.csv:
        names = ["source", "edited", "target"]
        draw_contact_sheet(lines, captions=names).save(options.csv.with_suffix(".png"))


if __name__ == "__main__":
    main()
