"""Rewrite one word into another at the sites found, at all, at all others, and at as many of these by lot.

    python benchmarks/rewriting.py [MODEL ...]

Each edit is a validation pair in one scene, `rewrite(pipeline, [(source, target)], sites=...)`.  Under it the
source's prompt and a neighbour's, the source of the next pair, are drawn and read.  One arm
preserves the sources of some further pairs.  Evolving text is captured in pictures of other seeds.

  written    edits after which the source's prompt draws the target's word, of n
  neighbour  edits after which the neighbour's prompt still draws its own
  low, high  of each share, 95 %
"""

from __future__ import annotations

import random
from itertools import pairwise

import textpatch
from measure import Table, arguments, environment, parsed, reader_option, words_read
from textpatch.metrics import wilson
from textpatch.prompts.pairs import Pair
from textpatch.weights.signs.pairs import sign_pairs

MODELS = "tiny-sdxl", "planted-sdxl", "tiny-if", "planted-if", "tiny-mmdit", "planted-mmdit"
CAPTURED = [1, 2]  # seeds; pictures are drawn of seed 0
PRESERVED = 6  # further prompts
COLUMNS = [
    "model",
    "reader",
    "arm",
    "sites",
    "preserved",
    "n",
    "steps",
    "ridge",
    "written",
    "written_low",
    "written_high",
    "neighbour",
    "neighbour_low",
    "neighbour_high",
]


def arms(pipeline) -> dict[str, tuple[list[int], int]]:
    """Sites of each arm, and how many prompts it preserves."""
    found = list(pipeline.defaults.localized)
    every = [site.index for site in pipeline.denoiser.sites]
    others = [site for site in every if site not in found]
    lot = sorted(random.Random(0).sample(others, len(found)))
    return {
        "none": ([], 0),
        "found": (found, 0),
        "found, some preserved": (found, PRESERVED),
        "all": (every, 0),
        "all but found": (others, 0),
        "by lot": (lot, 0),
    }


def pictures(
    pipeline, pair: Pair, neighbour: Pair, sites: list[int], preserve: list[str], options
) -> list:
    """Pictures of the source's prompt and the neighbour's, under the edit at some sites."""
    prompts = [pair.source, neighbour.source]
    asked = dict(seeds=0, steps=options.steps, guidance=1.0)
    if not sites:
        return pipeline.generate(prompts, **asked)
    edits = [(pair.source, pair.target)]
    runs = {}
    if not all(site.text_is_static for site in pipeline.denoiser.sites):
        runs = {"seeds": CAPTURED, "steps": options.steps}
    adapter = textpatch.rewrite(
        pipeline, edits, sites=sites, ridge=options.ridge, preserve=preserve, **runs
    )
    with adapter.applied(pipeline):
        return pipeline.generate(prompts, **asked)


def row(pipeline, pairs: list[Pair], kept: list[str], sites: list[int], options) -> dict:
    """Shares of an arm that preserves some prompts."""
    beside = list(pairwise([*pairs, pairs[0]]))
    drawn = [pictures(pipeline, *two, sites, kept, options) for two in beside]
    flat = [picture for two in drawn for picture in two]
    read = words_read(options.reader, flat, pipeline.defaults.text_box)
    wanted = [word for pair, other in beside for word in (pair.words[1], other.words[0])]
    right = [text == word for text, word in zip(read, wanted, strict=True)]
    return shares_of({"written": right[::2], "neighbour": right[1::2]})


def shares_of(right: dict[str, list[bool]]) -> dict[str, float]:
    """Columns of the share of each list that is right, with the ends of its interval."""
    shares = {}
    for name, of in right.items():
        share = sum(of) / len(of)
        ends = wilson(share, len(of))
        shares |= {name: share, f"{name}_low": ends.low, f"{name}_high": ends.high}
    return shares


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"shipped models {MODELS}")
    parser.add_argument("--pairs", type=int, default=16, help="edits (16)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (4)")
    parser.add_argument("--ridge", type=float, default=0.1, help="lambda (0.1)")
    reader_option(parser)
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    drawn = [Pair(*pair) for pair in sign_pairs(options.pairs + PRESERVED, same_scene=True)]
    pairs, further = drawn[: options.pairs], drawn[options.pairs :]
    for name in options.models or MODELS:
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        for arm, (sites, preserved) in arms(pipeline).items():
            kept = [pair.source for pair in further[:preserved]]
            shares = row(pipeline, pairs, kept, sites, options)
            asked = dict(n=len(pairs), steps=options.steps, ridge=options.ridge)
            asked["preserved"] = preserved
            asked["reader"] = options.reader
            table.add(model=name, arm=arm, sites=len(sites), **asked, **shares)


if __name__ == "__main__":
    main()
