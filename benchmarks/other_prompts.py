"""Try the shipped models on prompts and sizes they were not made for.

    python benchmarks/other_prompts.py [MODEL ...]

mixing  At the localised sites the source's run reads a prompt with the template of one side and the text
        of one side.  Measured are the F1 of what is read towards either text, the SSIM to the
        source outside the lettering, and how much of the scene (colour, shape, wall, pattern) is the
        source's and the target's.
words   Texts of several words, of 6 or 8 letters.  Measured is how the source's run reads, and the edit at
        the localised sites.
sizes   Pictures of other heights and widths, or why there are none.  They are read where the model's
        letters stand, counted from the upper left corner as `corner` and from the middle as `middle`.
"""

from __future__ import annotations

import random

import numpy as np

import textpatch
from measure import (
    Table,
    arguments,
    environment,
    parsed,
    reader_option,
    without_card,
    words_read,
)
from textpatch.errors import PatchError
from textpatch.groups import row_name
from textpatch.localization.scores import column, values
from textpatch.localization.trials import Trials
from textpatch.metrics import exact, f1, f1_of_means
from textpatch.metrics.intervals import share_interval
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, mix, word_scores
from textpatch.weights.signs.drawing import PATTERNS, Sign, SignFormat, random_sign
from textpatch.weights.signs.pairs import sign_pairs
from textpatch.weights.signs.reader import read_sign
from textpatch.weights.signs.words import TEST

SCENE = ("colour", "shape", "wall", "pattern")
SIZES = [
    (32, 96),
    (32, 64),
    (64, 32),
    (64, 64),
    (48, 96),
    (96, 48),
    (96, 96),
    (32, 128),
    (30, 90),
    (8, 8),
]
COLUMNS = {
    "mixing": [
        "model",
        "reader",
        "template",
        "text",
        "f1_source",
        "f1_source_low",
        "f1_source_high",
        "f1_target",
        "f1_target_low",
        "f1_target_high",
        "ssim",
        "scene_source",
        "scene_target",
        "pairs",
    ],
    "words": [
        "model",
        "reader",
        "text",
        "example",
        "exact",
        "f1",
        "edit_exact",
        "edit_f1",
        "edit_ssim",
        "pairs",
        "refused",
    ],
    "sizes": [
        "model",
        "reader",
        "height",
        "width",
        "exact_corner",
        "f1_corner",
        "exact_middle",
        "f1_middle",
        "words",
        "refused",
    ],
}


def mixing(pipeline, n: int, guidance: float, reader: str) -> list[dict]:
    """The table of ICLR 2025, fig. 4, and its fourth row."""
    pairs = [Pair(*pair) for pair in sign_pairs(n, split="test")]
    site = pipeline.defaults.localized
    scenes = {
        SOURCE: [said(pair.source) for pair in pairs],
        TARGET: [said(pair.target) for pair in pairs],
    }
    rows = []
    for template, text in mix(pairs[0]):
        own = (template, text) == (SOURCE, SOURCE)  # what the run reads anyway
        mixed, group = (
            (pairs, ())
            if own
            else ([Pair(pair.source, mix(pair)[template, text]) for pair in pairs], site)
        )
        trials = Trials(pipeline, mixed, guidance=guidance, ocr=reader)
        trials.measure([group], own=True)
        cells = [record["pictures"][row_name(group)] for record in trials.records]
        signs = [read_sign(cell["image"]) for cell in cells]
        rows.append(
            dict(
                template=template,
                text=text,
                **towards([cell["read"] for cell in cells], pairs),
                ssim=float(column(trials.records, row_name(group), "ssim").mean()),
                **{f"scene_{side}": alike(signs, wanted) for side, wanted in scenes.items()},
                pairs=n,
            )
        )
    return rows


def towards(readings: list[str], pairs: list[Pair]) -> dict:
    """F1 of the readings towards the source's and the target's text, with intervals over pairs."""
    scores = [word_scores(read, pair.words) for read, pair in zip(readings, pairs, strict=True)]
    found = {}
    for side in (SOURCE, TARGET):
        columns = np.array(
            [[score[f"{part}_{side}"] for part in ("precision", "recall")] for score in scores]
        )
        ends = share_interval(columns, f1_of_means)
        found |= {
            f"f1_{side}": ends["value"],
            f"f1_{side}_low": ends["low"],
            f"f1_{side}_high": ends["high"],
        }
    return found


def said(prompt: str) -> dict[str, str]:
    """The scene that a prompt asks for."""
    _, colour, shape, *_, before, wall, _ = prompt.split()
    pattern = before if before in PATTERNS else PATTERNS[0]
    return dict(zip(SCENE, (colour, shape, wall, pattern), strict=True))


def alike(signs: list[Sign], wanted: list[dict]) -> float:
    """The share of the scenes' attributes that are as wanted."""
    return float(
        np.mean(
            [
                getattr(sign, name) == scene[name]
                for sign, scene in zip(signs, wanted, strict=True)
                for name in SCENE
            ]
        )
    )


# --- several words


def phrases(n: int) -> dict[str, list[Pair]]:
    """Pairs by how their texts are written.

    One word of six letters, its halves as two words, and two words of four letters.  The tokenizers drop
    blanks, so one word and its halves in one pair of quotes are the same tokens.
    """
    six, four = ([word for word in TEST if len(word) == length] for length in (6, 4))
    if 2 * n > len(six) or 4 * n > len(four):
        raise PatchError(
            f"asked for {n} pairs of texts; the words make {min(len(six) // 2, len(four) // 4)}"
        )
    whole = list(zip(six[:n], six[n : 2 * n], strict=True))
    halves = [[(word[:3], word[3:]) for word in words] for words in whole]
    twice = [[four[i : i + 2], four[i + 2 : i + 4]] for i in range(0, 4 * n, 4)]
    return {
        "one word of 6": [_pair(*words) for words in whole],
        "its halves, one text": [_pair(*(" ".join(two) for two in both)) for both in halves],
        "its halves, two texts": [_pair(*('" "'.join(two) for two in both)) for both in halves],
        "two words of 4": [_pair(*(" ".join(two) for two in both)) for both in twice],
    }


def _pair(source: str, target: str) -> Pair:
    """A pair on signs without pattern and style, or eight letters would not fit into 22 tokens."""
    sign = random_sign(random.Random("".join(filter(str.isalpha, source))), SignFormat(), source)
    return Pair(
        *(Sign(text, sign.colour, sign.shape, sign.wall).prompt() for text in (source, target))
    )


def several_words(pipeline, n: int, guidance: float, reader: str) -> list[dict]:
    """The table of how texts of one and of two words are written, and edited at the localised sites."""
    site = pipeline.defaults.localized
    rows = []
    for text, pairs in phrases(n).items():
        row = dict(text=text, example=pairs[0].source.split(" says ")[1].split(" on ")[0], pairs=n)
        try:
            trials = Trials(pipeline, pairs, guidance=guidance, ocr=reader)
        except PatchError as error:
            rows.append(row | {"refused": error})
            continue
        trials.measure([site], own=True)
        edited = row_name(site)
        records = trials.records
        scores = {"exact": (SOURCE, SOURCE), "edit_exact": (edited, TARGET)}
        row |= {
            name: float(column(records, of, f"exact_{side}").mean())
            for name, (of, side) in scores.items()
        }
        row["f1"] = f1(
            (record["pictures"][SOURCE]["read"], "".join(pair.words[0].split()))
            for record, pair in zip(records, pairs, strict=True)
        )
        row["edit_f1"] = float(f1_of_means(*values(records, edited).T))
        row["edit_ssim"] = float(column(records, edited, "ssim").mean())
        rows.append(row)
    return rows


# --- sizes


def sizes(pipeline, n: int, guidance: float, reader: str) -> list[dict]:
    """The table of what is read in pictures of every size.

    The letters stand where they were trained, counted from the corner or from the middle.
    """
    rng = random.Random("sizes")
    signs = [random_sign(rng, SignFormat(), word) for word in TEST[:n]]
    rows = []
    for height, width in SIZES:
        row = dict(height=height, width=width, words=n)
        try:
            pictures = pipeline.at(height, width).generate(
                [sign.prompt() for sign in signs], seeds=list(range(n)), guidance=guidance
            )
        except PatchError as error:
            rows.append(row | {"refused": error})
            continue
        for place, box in boxes(pipeline.defaults.text_box, height, width).items():
            read = words_read(reader, pictures, box)
            pairs = list(zip(read, [sign.word for sign in signs], strict=True))
            row |= {
                f"exact_{place}": float(np.mean([exact(*pair) for pair in pairs])),
                f"f1_{place}": f1(pairs),
            }
        rows.append(row)
    return rows


def boxes(box: tuple, height: int, width: int) -> dict[str, tuple]:
    """A box of the trained size from the corner and one in the middle, as far as inside the picture."""
    fmt = SignFormat()
    right = (width - fmt.width) // 2
    down = (height - fmt.height) // 2
    moved = {
        "corner": box,
        "middle": (box[0] + right, box[1] + down, box[2] + right, box[3] + down),
    }
    return {
        place: (max(left, 0), max(top, 0), min(far, width), min(low, height))
        for place, (left, top, far, low) in moved.items()
        if left < width and top < height
    }


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="shipped models (tiny-mmdit tiny-sdxl)"
    )
    parser.add_argument(
        "--tables", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="which (all)"
    )
    parser.add_argument("--pairs", type=int, default=24, help="test pairs of mixing (24)")
    parser.add_argument(
        "--words", type=int, default=7, help="pairs of texts, and words of sizes (7)"
    )
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance (1)")
    reader_option(parser)
    options = parsed(parser, argv)
    where = environment(options.device)
    path = options.csv
    pipelines = [
        without_card(textpatch.load(name, device=options.device, dtype=options.dtype))
        for name in options.models or ["tiny-mmdit", "tiny-sdxl"]
    ]
    measures = {
        "mixing": (mixing, options.pairs),
        "words": (several_words, options.words),
        "sizes": (sizes, options.words),
    }
    for name in options.tables:
        table = Table(
            COLUMNS[name], where, path and path.with_name(f"{path.stem}-{name}.csv"), options.append
        )
        measure, n = measures[name]
        for pipeline in pipelines:
            for row in measure(pipeline, n, options.guidance, options.reader):
                table.add(model=pipeline.name, reader=options.reader, **row)


if __name__ == "__main__":
    main()
