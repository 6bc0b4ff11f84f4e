"""Compare the modes of localising by what they find and what they cost.

    python benchmarks/search.py [MODEL ...]

Every mode of `textpatch.localize` looks for the responsible set on disjoint sets of prompt pairs.  Their
words are test words, which may come again in other pairs and scenes.  The exhaustive search's set is the
truth.  A generation is one picture's way through all steps.  A picture that several modes make is read
once, so that `seconds` of the later ones hold no reading of it.  With --runs the same command goes on
where it stopped, and `seconds` are then of the last go alone.

  same_set       on how many of the sets of pairs the mode's set is the exhaustive one
  recall         how much of the exhaustive set the mode's holds, the mean over sets of pairs
  best_kept      how often the exhaustive search's best site was not screened out
  measured       how many sites were measured on all pairs, the mean
  generations    of all sets of pairs together
  fewer          how many times as many 1 + sites for each pair would be
  fewer_than_exhaustive  how many times as many the exhaustive search made, with its set and the
                 source's pictures
  bound          what `fewer` could be at most, with one site verified on every pair, and the target's run
                 where that is needed
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np

import textpatch
from measure import Table, arguments, environment, parsed, reader_option
from readers import Remembered
from textpatch.bank import prompt_settles_text
from textpatch.cli.prompt_pairs import drawn_pairs
from textpatch.errors import PatchError
from textpatch.localization.modes import FIRST, MODES
from textpatch.metrics import reader_named
from textpatch.runs.folder import Run
from textpatch.weights import shipped_models

# a model that enlarges pictures, and one whose words make no more than 41 pairs of two lines
LEFT_OUT = "tiny-if-ii", "tiny-words"
COLUMNS = [
    "model",
    "reader",
    "steps",
    "guidance",
    "scene",
    "mode",
    "sets",
    "pairs",
    "same_set",
    "recall",
    "best_kept",
    "measured",
    "generations",
    "fewer",
    "fewer_than_exhaustive",
    "bound",
    "seconds",
    "found",
]


def searches(
    pipeline, mode: str, sets: list[list], screening: dict, runs: Path | None, reader, **options
) -> tuple[list[dict], float]:
    """The result of a mode on each set of pairs, and the seconds of all.

    screening  options of the modes that screen
    reader     reads the pictures, and options name it as ocr
    """
    began = time.perf_counter()
    results = []
    options |= dict(mode=mode) | ({} if mode == "exhaustive" else screening)
    for pairs in sets:
        asked = {
            "model": pipeline.name,
            "pairs": pairs,
            **options,
        }
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        run = None if runs is None else Run.open(runs / name, {"request": asked})
        asked = options | {"ocr": reader}
        results.append(textpatch.localize(pipeline, pairs, run=run, **asked).result)
    return results, time.perf_counter() - began


def disjoint(model: str, sets: int, pairs: int, same_scene: bool) -> list[list]:
    """Sets of test pairs for a model, no pair of prompts in two of them."""
    made = [
        drawn_pairs(model, pairs, split="test", seed=seed, same_scene=same_scene)
        for seed in range(sets)
    ]
    if len({pair for some in made for pair in some}) < sets * pairs:
        raise PatchError(f"{sets} sets of {pairs} pairs repeat a pair; ask for fewer")
    return made


def compared(results: list[dict], truth: list[dict], static: bool) -> dict:
    """A mode's columns, against the exhaustive results on the same pairs.

    static  True where the model's text does not change with the picture
    """
    both = [
        (set(found["set"]["sites"]), set(wanted["set"]["sites"]))
        for found, wanted in zip(results, truth, strict=True)
    ]
    measured = [
        [site["site"] for site in r["sites"] if site["status"]["state"] == "measured"]
        for r in results
    ]
    made, all_made = (
        sum(result["generations"]["made"] for result in some) for some in (results, truth)
    )
    one_by_one = sum(result["generations"]["one_by_one"] for result in results)
    pairs = sum(result["pairs"] for result in results)
    kept = [found["ranked"][0] in sites for found, sites in zip(truth, measured, strict=True)]
    return dict(
        steps=results[0]["steps"],
        guidance=results[0]["guidance"],
        same_set=f"{sum(found == wanted for found, wanted in both)} of {len(both)}",
        recall=float(
            np.mean([len(found & wanted) / len(wanted) if wanted else 1 for found, wanted in both])
        ),
        best_kept=f"{sum(kept)} of {len(both)}",
        measured=float(np.mean([len(sites) for sites in measured])),
        generations=made,
        fewer=one_by_one / made,
        fewer_than_exhaustive=all_made / made,
        bound=one_by_one / pairs / (1 if static else 2),
        found="; ".join(" ".join(map(str, sorted(found))) or "none" for found, _ in both),
    )


def told(mode: str, keep: int | None) -> str:
    """Name of a mode in the table, with the number of sites that it is asked to keep."""
    if mode == "exhaustive" or keep is None:
        return mode
    return f"{mode}, keep {keep}"


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="shipped models (all)")
    parser.add_argument("--sets", type=int, default=5, help="disjoint sets of test pairs (5)")
    parser.add_argument("--pairs", type=int, default=48, help="pairs in each (48)")
    parser.add_argument(
        "--first", type=int, default=FIRST, help=f"pairs that a screening begins with ({FIRST})"
    )
    parser.add_argument(
        "--keep", type=int, help="sites that a screening keeps (those that it cannot leave out)"
    )
    parser.add_argument(
        "--scenes",
        nargs="+",
        choices=["same", "other"],
        default=["same", "other"],
        help="whether the target differs in its word alone (both)",
    )
    parser.add_argument("--steps", type=int, help="denoising steps (the model's own)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (the model's own)")
    parser.add_argument(
        "--runs",
        type=Path,
        help="folder that keeps what is made, for the same command to go on from",
    )
    reader_option(parser)
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for name in options.models or [name for name in shipped_models() if name not in LEFT_OUT]:
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        for scene in options.scenes:
            sets = disjoint(name, options.sets, options.pairs, scene == "same")
            truth = None
            reader = Remembered(reader_named(options.reader, []))
            for mode in MODES:
                results, seconds = searches(
                    pipeline,
                    mode,
                    sets,
                    {"first": options.first, "keep": options.keep},
                    options.runs,
                    reader,
                    steps=options.steps,
                    guidance=options.guidance,
                    ocr=options.reader,
                )
                truth = truth or results
                static = prompt_settles_text(pipeline.denoiser)
                table.add(
                    model=name,
                    reader=options.reader,
                    scene=scene,
                    mode=told(mode, options.keep),
                    sets=len(sets),
                    pairs=options.pairs,
                    **compared(results, truth, static),
                    seconds=seconds,
                )


if __name__ == "__main__":
    main()
