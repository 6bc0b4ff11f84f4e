"""Compare what one backward pass a step says of every site with what swapping says.

    python benchmarks/attribution.py [MODEL ...]

It runs `textpatch.localization.attribution` on validation pairs, with the target's word asked for in the
source's own prompt.  The sites that carry the word were found by exhaustive swaps.

  share      of the change that all swaps promise, the mean over pairs
  first      in how many pairs the site's share is the largest
  localized  whether the site is among those that swapping found
  times      how many times as long a pair takes as the source's picture alone, the median
"""

from __future__ import annotations

import time

import numpy as np

import textpatch
from measure import Table, arguments, environment, parsed
from textpatch.cli.prompt_pairs import drawn_pairs
from textpatch.localization.attribution import attributions
from textpatch.prompts.pairs import Pair, in_its_words
from textpatch.weights import shipped_models

ENLARGES = "tiny-if-ii"
COLUMNS = [
    "model",
    "scene",
    "pairs",
    "steps",
    "guidance",
    "site",
    "share",
    "first",
    "localized",
    "times",
]


def seconds(act) -> tuple[float, object]:
    began = time.perf_counter()
    made = act()
    return time.perf_counter() - began, made


def one_pair(pipeline, pair: Pair, **options) -> tuple[float, list[float]]:
    """The time it takes, in times of the source's picture, and the share of every site."""
    plain, _ = seconds(lambda: pipeline.generate([pair.source], seeds=[0], **options))
    taken, (found, _) = seconds(
        lambda: attributions(pipeline, pair.source, in_its_words(pair), **options)
    )
    return taken / plain, [found[site]["share"] for site in sorted(found)]


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="shipped models (all)")
    parser.add_argument("--pairs", type=int, default=12, help="validation pairs (12)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (4)")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance (1)")
    parser.add_argument(
        "--scenes",
        nargs="+",
        choices=["same", "other"],
        default=["same", "other"],
        help="whether the target differs in its word alone (both)",
    )
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for name in options.models or [name for name in shipped_models() if name != ENLARGES]:
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        for scene in options.scenes:
            drawn = drawn_pairs(name, options.pairs, same_scene=scene == "same")
            pairs = [Pair(*pair) for pair in drawn]
            asked = dict(steps=options.steps, guidance=options.guidance)
            times, shares = map(
                np.array, zip(*(one_pair(pipeline, pair, **asked) for pair in pairs), strict=True)
            )
            first = np.bincount(shares.argmax(axis=1), minlength=shares.shape[1])
            for site, share in enumerate(shares.mean(axis=0)):
                table.add(
                    model=name,
                    scene=scene,
                    pairs=len(pairs),
                    **asked,
                    site=site,
                    share=float(share),
                    first=int(first[site]),
                    localized=site in pipeline.defaults.localized,
                    times=float(np.median(times)),
                )


if __name__ == "__main__":
    main()
