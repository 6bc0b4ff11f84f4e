"""Train shipped models anew from other seeds, and measure in each what words it writes and where they enter.

    python benchmarks/seeds.py [MODEL ...] --seeds 2 3 --runs FOLDER --csv results/seeds.csv --append

The stored model, of its recipe's own seed, stands beside them.  A training goes on where it stopped, and a
model whose rows are there already is left out.

  seed     of weights and data
  minutes  from the first line of the training's log to the last, without breaks of over ten minutes
  words    share of held-out signs whose text is drawn whole, read by the nearest drawing.  low and high are
           the ends of its 95 % interval
  target   share of pairs, in one scene, whose word is read where the target's own prompt is drawn
  set      sites of the set that carries the word, by the exhaustive search, empty where no gain is clear
  carried  the same share with the set swapped, with its interval
  alone    the same with the best site alone, which `site` names
  others   the same with the best site alone that is outside the set, empty where the set has all
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import textpatch
from measure import Table, arguments, environment, kept, parsed, reader_option
from textpatch.groups import group_name, row_name
from textpatch.localization.scores import all_scores
from textpatch.metrics import wilson
from textpatch.weights.signs.drawing import SignFormat
from textpatch.weights.signs.evaluation import generated_pictures, held_out_signs
from textpatch.weights.signs.pairs import line_pairs, sign_pairs
from textpatch.weights.signs.reader import read_text
from textpatch.weights.training.loop import train
from textpatch.weights.training.recipes import RECIPES
from two_lines import signs as signs_of_two_lines

COLUMNS = (
    "model reader seed images minutes signs words words_low words_high pairs target set carried "
    "carried_low carried_high alone site others"
).split()
KEY = ["model", "reader", "seed", "images", "signs", "pairs"]
PAUSE = 600  # seconds between two lines of a log, above which the training had stopped
# a stage II draws the pictures of other models larger, and writes no words of its own
MODELS = [name for name in RECIPES if name != "tiny-if-ii"]


def trained(name: str, seed: int, options: argparse.Namespace) -> tuple[object, Path | None]:
    """A model of some seed, and the folder of its training.  None for the stored model."""
    if seed == RECIPES[name].seed:
        return textpatch.load(name), None
    folder = options.runs / f"{name}-{seed}"
    made = train(name, folder, seed=seed, images=options.images)
    return textpatch.load(made), folder


def minutes(folder: Path) -> float:
    """How long a training took, by its log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    times = [json.loads(line)["seconds"] for line in lines]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return sum(gap for gap in gaps if 0 <= gap <= PAUSE) / 60


def words(pipeline, fmt: SignFormat, n: int) -> dict:
    """Share of held-out signs whose text is drawn whole, of one word or, on two lines, of two."""
    drawn = held_out_signs(n, fmt) if fmt.lines == 1 else signs_of_two_lines(n, 2)
    pictures = generated_pictures(pipeline, drawn)
    right = [
        read_text(picture, sign, fmt) == sign.word
        for picture, sign in zip(pictures, drawn, strict=True)
    ]
    share = sum(right) / n
    low, high = wilson(share, n)
    return {"words": share, "words_low": low, "words_high": high}


def sites(pipeline, fmt: SignFormat, n: int, reader: str) -> dict:
    """What the exhaustive search finds on pairs in one scene."""
    make = sign_pairs if fmt.lines == 1 else line_pairs
    found = textpatch.localize(pipeline, make(n, split="test", same_scene=True), ocr=reader)
    group = found.result["set"]
    carrying = tuple(group["sites"]) if group else ()
    carried = all_scores(found.records, row_name(carrying))["exact_target"] if group else {}
    alone = {one["site"]: one["exact_target"]["value"] for one in found.result["sites"]}
    best = max(alone, key=alone.__getitem__)
    return {
        "target": found.result["baselines"]["target"]["exact_target"]["value"],
        "set": group_name(carrying),
        "carried": carried.get("value"),
        "carried_low": carried.get("low"),
        "carried_high": carried.get("high"),
        "alone": alone[best],
        "site": best,
        "others": max((alone[site] for site in alone if site not in carrying), default=None),
    }


def key_of(name: str, seed: int, options: argparse.Namespace) -> dict:
    """What a row is known by.  The stored model was trained on the recipe's pictures, whatever is asked."""
    recipe = RECIPES[name]
    images = recipe.images
    if seed != recipe.seed:
        images = options.images or images
    own = (name, options.reader, seed, images, options.signs, options.pairs)
    return dict(zip(KEY, own, strict=True))


def row(name: str, seed: int, options: argparse.Namespace) -> dict:
    """Row of a model of some seed, which is trained first where that is not done."""
    recipe = RECIPES[name]
    pipeline, folder = trained(name, seed, options)
    return {
        **key_of(name, seed, options),
        "minutes": None if folder is None else minutes(folder),
        **words(pipeline, recipe.signs, options.signs),
        **sites(pipeline, recipe.signs, options.pairs, options.reader),
    }


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3], help="of trainings (2 3)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/seeds"), help="folder of the trainings (runs/seeds)"
    )
    parser.add_argument("--images", type=int, help="pictures to train on (the recipe's)")
    parser.add_argument("--signs", type=int, default=96, help="held-out signs (96)")
    parser.add_argument("--pairs", type=int, default=24, help="prompt pairs (24)")
    reader_option(parser)
    options = parsed(parser, argv)
    if unknown := sorted(set(options.models) - set(MODELS)):
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(MODELS)}")
    done = kept(options.csv, KEY) if options.append else set()
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for name in options.models or MODELS:
        for seed in dict.fromkeys([RECIPES[name].seed, *options.seeds]):
            if tuple(map(str, key_of(name, seed, options).values())) not in done:
                table.add(**row(name, seed, options))


if __name__ == "__main__":
    main()
