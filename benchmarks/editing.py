"""Compare methods of editing a word, the paper's table 3 in miniature.

    python benchmarks/editing.py [MODEL ...]

The start step of the localized swap is chosen on validation words, as the last whose F1 towards the target is
not clearly below the best.  Every method then edits the same pairs of test words from the same noise.  The
pairs of one scene differ in the word alone.  In another scene the target's prompt asks for another sign, and
Prompt-to-Prompt aligns the prompts by refinement, since they have no common structure of words.  Of
"tiny-words" every sign has a word on each of two lines.
With --runs the same command goes on where it stopped.  Models and scenes are shared among processes, one for
each core.

  scene      "same" or "other"
  start      first swapped step
  exact      pictures in which the target's word is read
  f1_target, f1_source  official F1 of the letters read towards the target's and the source's word
  ssim, psnr  of the background beside the source's picture, over windows and pixels free of lettering
  psnr_official  as the paper's code computes it, over the whole picture
  seconds    of processor time, of one picture without encoding the prompts, the median over a few pairs
  rows       generations of one picture by the method alone
  cpu        seconds of processor time that the scene took with all methods, the choice of a start and the
             readings.  Empty where a part of it was found in --runs
  more_f1, more_ssim  differences to the localized swap over the same pairs
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

import textpatch
from measure import (
    Table,
    arguments,
    cpu,
    environment,
    in_processes,
    parsed,
    processes_option,
    reader_option,
)
from textpatch.bank import prompt_settles_text
from textpatch.cli.prompt_pairs import drawn_pairs
from textpatch.editing.localized import Injection, Localized
from textpatch.editing.methods import Method, PromptSwap
from textpatch.editing.prompt_to_prompt import PRESETS, REFINE
from textpatch.localization.trials import Trials
from textpatch.prompts.pairs import Pair
from textpatch.runs.folder import Run
from textpatch.runs.remembered import remembering

MODELS = "tiny-mmdit", "tiny-sdxl", "tiny-if"
SCENES = "same", "other"
# column -> name of the score; those of which the ends of the interval are kept, too
SCORES = {
    "exact": "exact_target",
    "f1_target": "f1_target",
    "f1_source": "f1_source",
    "ssim": "ssim",
    "psnr": "psnr",
    "psnr_official": "psnr_uint8_wrapped",
}
WITH_ENDS = "f1_target", "ssim"
MORE = {"more_f1": "f1_target", "more_ssim": "ssim"}
COLUMNS = "model steps guidance scene method start n reader".split()
COLUMNS += [*SCORES, *(f"{name}_{end}" for name in WITH_ENDS for end in ("low", "high"))]
COLUMNS += [f"{name}{end}" for name in MORE for end in ("", "_low", "_high")]
COLUMNS += ["seconds", "rows", "cpu"]
TRIED = 8  # start steps, at most, of which one is chosen


def opened(folder: Path | None, name: str, request: dict) -> Run | None:
    """Run folder of that name in --runs, None without one."""
    if folder is None:
        return None
    return Run.open(folder / name, {"request": request})


def chosen_start(pipeline, scene: str, options) -> int:
    """Start step that a curve on validation words chooses."""
    pairs = drawn_pairs(pipeline.name, options.validation, same_scene=scene == "same")
    name = f"start-{pipeline.name}-{scene}"
    asked = {"pairs": options.validation, "steps": options.steps, "guidance": options.guidance}
    run = opened(options.runs, name, {"start": name, **asked})
    trials = Trials(
        pipeline,
        pairs,
        steps=options.steps,
        guidance=options.guidance,
        ocr=options.reader,
        run=run,
    )
    starts = range(0, trials.steps, math.ceil(trials.steps / TRIED))
    return textpatch.start_curve(trials, pipeline.defaults.localized, starts)["chosen"]


def methods(pipeline, scene: str, start: int) -> dict[str, Method]:
    """Methods by name that a model admits, the localized swap first."""
    aligned = {}
    if scene == "other":
        aligned["edit"] = REFINE
    presets = {name: preset(**aligned) for name, preset in PRESETS.items()}
    chosen = {"localized": Localized(start=start), "prompt_swap": PromptSwap(), **presets}
    if prompt_settles_text(pipeline.denoiser):
        chosen["injection"] = Injection()
    return chosen


def line(scores: dict) -> dict:
    """Cells of a method's scores."""
    cells = {name: scores[key]["value"] for name, key in SCORES.items()}
    for name in WITH_ENDS:
        cells |= {f"{name}_{end}": scores[name][end] for end in ("low", "high")}
    more = scores.get("more_than_first", {})
    for name, key in MORE.items():
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            cells[f"{name}{suffix}"] = more.get(key, {}).get(end)
    return cells | {"rows": scores["generations"]}


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"models ({', '.join(MODELS)})")
    parser.add_argument("--pairs", type=int, default=48, help="test pairs of each scene (48)")
    parser.add_argument("--validation", type=int, default=24, help="pairs that choose a start (24)")
    parser.add_argument("--timed", type=int, default=4, help="pairs of each scene that time (4)")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES, help="(both)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's own)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (the model's own)")
    parser.add_argument("--start", type=int, help="first swapped step (that chosen)")
    reader_option(parser)
    processes_option(parser)
    parser.add_argument("--runs", type=Path, help="folder that keeps the pictures")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device, "numpy"), options.csv, options.append)
    parts = [
        (model, scene, options) for model in options.models or MODELS for scene in options.scenes
    ]
    for rows in in_processes(rows_of, parts, options.processes):
        for row in rows:
            table.add(**row)


def rows_of(part: tuple) -> list[dict]:
    """Rows of one model and scene, a method each."""
    model, scene, options = part
    before = cpu()
    pipeline = textpatch.load(model, device=options.device)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    start = options.start
    if start is None:
        start = chosen_start(pipeline, scene, options)
    asked = {"pairs": options.pairs, "steps": steps, "guidance": guidance}
    request = {"edits": model, "scene": scene, "start": start, **asked}
    run = opened(options.runs, f"edits-{model}-{scene}", request)
    resumed = run is not None and bool(run.records())
    pairs = drawn_pairs(model, options.pairs, split="test", same_scene=scene == "same")
    named = methods(pipeline, scene, start)
    found = textpatch.compare(
        pipeline,
        pairs,
        named,
        steps=steps,
        guidance=guidance,
        ocr=options.reader,
        run=run,
        timed=1,  # by wall time, which other work on the machine lengthens
    )
    seconds = seconds_of(pipeline, pairs[: options.timed], named, steps, guidance)
    shared = dict(model=model, steps=steps, guidance=guidance, scene=scene, start=start)
    shared |= {"reader": options.reader, "cpu": None if resumed else cpu() - before}
    return [
        {**shared, "method": name, "n": scores["n"], **line(scores), "seconds": seconds[name]}
        for name, scores in found.result["methods"].items()
    ]


def seconds_of(pipeline, pairs, named: dict[str, Method], steps, guidance) -> dict[str, float]:
    """Median processor time of one picture by each method alone, the prompts encoded before."""
    taken: dict[str, list[float]] = {name: [] for name in named}
    remembered = remembering(pipeline)
    for pair in (Pair(*pair) for pair in pairs):
        remembered.encode([pair.source, pair.target])
        for name, method in named.items():
            begun = time.process_time()
            method(remembered, pair, seed=0, steps=steps, guidance=guidance, also=())
            taken[name].append(time.process_time() - begun)
    return {name: float(np.median(one)) for name, one in taken.items()}


if __name__ == "__main__":
    main()
