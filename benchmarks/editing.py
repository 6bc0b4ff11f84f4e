"""Compare methods of editing a word, the paper's table 3 in miniature.

    python benchmarks/editing.py [MODEL ...]

The start step of the localized swap is chosen on validation words, as the last whose F1 towards the target is
not clearly below the best.  Every method then edits the same pairs of test words from the same noise.  The
pairs of one scene differ in the word alone.  In another scene the target's prompt asks for another sign, and
Prompt-to-Prompt aligns the prompts by refinement, since they have no common structure of words.
With --runs the same command goes on where it stopped.

  scene      "same" or "other"
  start      first swapped step
  exact      pictures in which the target's word is read
  f1_target, f1_source  official F1 of the letters read towards the target's and the source's word
  ssim, psnr  of the background beside the source's picture, over windows and pixels free of lettering
  psnr_official  as the paper's code computes it, over the whole picture
  seconds    of one picture, without encoding the prompts, the median over pairs
  rows       generations of one picture
  more_f1, more_ssim  differences to the localized swap over the same pairs
"""

from __future__ import annotations

from pathlib import Path

import textpatch
from measure import Table, arguments, environment, parsed, reader_option
from textpatch.editing.localized import Localized
from textpatch.editing.methods import Method, PromptSwap
from textpatch.editing.prompt_to_prompt import PRESETS, REFINE
from textpatch.localization.trials import Trials
from textpatch.runs.folder import Run
from textpatch.weights.signs.pairs import sign_pairs

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
COLUMNS += ["seconds", "rows"]


def opened(folder: Path | None, name: str, request: dict) -> Run | None:
    """Run folder of that name in --runs, None without one."""
    if folder is None:
        return None
    return Run.open(folder / name, {"request": request})


def chosen_start(pipeline, scene: str, options) -> int:
    """Start step that a curve on validation words chooses."""
    pairs = sign_pairs(options.validation, same_scene=scene == "same")
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
    return textpatch.start_curve(trials, pipeline.defaults.localized)["chosen"]


def methods(scene: str, start: int) -> dict[str, Method]:
    """Methods by name, the localized swap first."""
    aligned = {}
    if scene == "other":
        aligned["edit"] = REFINE
    presets = {name: preset(**aligned) for name, preset in PRESETS.items()}
    return {"localized": Localized(start=start), "prompt_swap": PromptSwap(), **presets}


def line(scores: dict) -> dict:
    """Cells of a method's scores."""
    cells = {name: scores[key]["value"] for name, key in SCORES.items()}
    for name in WITH_ENDS:
        cells |= {f"{name}_{end}": scores[name][end] for end in ("low", "high")}
    more = scores.get("more_than_first", {})
    for name, key in MORE.items():
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            cells[f"{name}{suffix}"] = more.get(key, {}).get(end)
    return cells | {"seconds": scores["seconds"], "rows": scores["generations"]}


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"models ({', '.join(MODELS)})")
    parser.add_argument("--pairs", type=int, default=48, help="test pairs of each scene (48)")
    parser.add_argument("--validation", type=int, default=12, help="pairs that choose a start (12)")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES, help="(both)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's own)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (the model's own)")
    parser.add_argument("--start", type=int, help="first swapped step (that chosen)")
    reader_option(parser)
    parser.add_argument("--runs", type=Path, help="folder that keeps the pictures")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device, "numpy"), options.csv, options.append)
    for model in options.models or MODELS:
        pipeline = textpatch.load(model, device=options.device)
        steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
        for scene in options.scenes:
            start = options.start
            if start is None:
                start = chosen_start(pipeline, scene, options)
            asked = {"pairs": options.pairs, "steps": steps, "guidance": guidance}
            request = {"edits": model, "scene": scene, "start": start, **asked}
            found = textpatch.compare(
                pipeline,
                sign_pairs(options.pairs, split="test", same_scene=scene == "same"),
                methods(scene, start),
                steps=steps,
                guidance=guidance,
                ocr=options.reader,
                run=opened(options.runs, f"edits-{model}-{scene}", request),
            )
            shared = dict(model=model, steps=steps, guidance=guidance, scene=scene, start=start)
            for name, scores in found.result["methods"].items():
                table.add(
                    **shared,
                    method=name,
                    n=scores["n"],
                    reader=options.reader,
                    **line(scores),
                )


if __name__ == "__main__":
    main()
