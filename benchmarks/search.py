"""What the three ways of localising find, and what they cost:  python benchmarks/search.py [MODEL ...]

The responsible set by every mode of `textpatch.localize` on disjoint sets of prompt pairs.  The exhaustive search's set
is the truth.  A generation is one picture's way through all steps.

  same_set       on how many of the sets of pairs the mode's set is the exhaustive one
  recall         how much of the exhaustive set the mode's holds, the mean over sets of pairs
  best_kept      how often the exhaustive search's best site was not screened out
  measured       how many sites were measured on all pairs, the mean
  generations    of all sets of pairs together
  fewer          how many times as many 1 + sites for each pair would be
  fewer_than_exhaustive  how many times as many the exhaustive search made, its set and the source's pictures included
"""

from __future__ import annotations

import time

import numpy as np
import torch
from measure import Table, arguments, environment, parsed

import textpatch
from textpatch.localize import FIRST, MODES
from textpatch.metrics import Tesseract
from textpatch.weights import shipped_models
from textpatch.weights.prompts import sign_pairs

COLUMNS = ["model", "scene", "mode", "sets", "pairs", "same_set", "recall", "best_kept", "measured", "generations",
           "fewer", "fewer_than_exhaustive", "seconds", "found"]  # fmt: skip


def searches(pipeline, mode: str, sets: list[list], first: int, steps: int | None, ocr) -> tuple[list[dict], float]:
    """The result of a mode on each set of pairs, and the seconds of all."""
    began = time.perf_counter()
    options = dict(mode=mode, steps=steps, ocr=ocr, first=None if mode == "exhaustive" else first)
    return [textpatch.localize(pipeline, pairs, **options).result for pairs in sets], time.perf_counter() - began


def compared(results: list[dict], truth: list[dict]) -> dict:
    """A mode's columns, against the exhaustive results on the same pairs."""
    both = [(set(found["set"]["sites"]), set(wanted["set"]["sites"])) for found, wanted in zip(results, truth)]
    measured = [[site["site"] for site in r["sites"] if site["status"]["state"] == "measured"] for r in results]
    made, all_made = (sum(result["generations"]["made"] for result in some) for some in (results, truth))
    one_by_one = sum(result["generations"]["one_by_one"] for result in results)
    return dict(
        same_set=f"{sum(found == wanted for found, wanted in both)} of {len(both)}",
        recall=float(np.mean([len(found & wanted) / len(wanted) if wanted else 1 for found, wanted in both])),
        best_kept=f"{sum(wanted['ranked'][0] in sites for wanted, sites in zip(truth, measured))} of {len(both)}",
        measured=float(np.mean([len(sites) for sites in measured])), generations=made, fewer=one_by_one / made,
        fewer_than_exhaustive=all_made / made,
        found="; ".join(" ".join(map(str, sorted(found))) or "none" for found, _ in both),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="shipped models (all)")
    parser.add_argument("--sets", type=int, default=5, help="disjoint sets of test pairs (5)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs in each (24)")
    parser.add_argument("--first", type=int, default=FIRST, help=f"pairs that a screening begins with ({FIRST})")
    parser.add_argument("--scenes", nargs="+", choices=["same", "other"], default=["same", "other"],
                        help="whether the target differs in its word alone (both)")  # fmt: skip
    parser.add_argument("--steps", type=int, help="denoising steps (the model's own)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(torch.device("cpu")), options.csv, options.append)
    ocr = Tesseract()
    for name in options.models or shipped_models():
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        for scene in options.scenes:
            pairs = sign_pairs(options.sets * options.pairs, split="test", same_scene=scene == "same")
            sets = [pairs[i : i + options.pairs] for i in range(0, len(pairs), options.pairs)]
            truth = None
            for mode in MODES:
                results, seconds = searches(pipeline, mode, sets, options.first, options.steps, ocr)
                truth = truth or results
                table.add(model=name, scene=scene, mode=mode, sets=len(sets), pairs=options.pairs,
                          **compared(results, truth), seconds=seconds)  # fmt: skip


if __name__ == "__main__":
    main()
