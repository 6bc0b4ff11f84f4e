"""Measure every figure that the pages state about the shipped models.

    python benchmarks/shipped_models.py [MODEL ...]

Reading accuracy by steps and guidance, sites alone with one and with another scene, and the start step,
all on held-out test words.  It writes benchmarks/results/MODEL-*.csv and the contact sheets of the README.
Of a U-Net the sites that carry its word are swapped together, in one scene, and nothing else is measured.
A row names its reader, and rows of other readers stay in the file.
"""

from __future__ import annotations

import csv
from pathlib import Path

import textpatch
from measure import arguments, parsed, reader_option
from textpatch import metrics
from textpatch.groups import group_name, row_name
from textpatch.localization.scores import all_scores
from textpatch.localization.trials import Trials
from textpatch.report.contact_sheet import draw_contact_sheet
from textpatch.weights.signs import evaluation
from textpatch.weights.signs.drawing import SignFormat
from textpatch.weights.signs.pairs import sign_pairs
from textpatch.weights.signs.words import TEST

RESULTS = Path(__file__).parent / "results"
# (steps, guidance)
SAMPLING = [(4, 1.0), (8, 1.0), (16, 1.0), (8, 2.0), (8, 3.0), (8, 4.0), (8, 5.0)]
PAIRS = 48
UNET_PAIRS = 24
PARTS = "reading", "same-scene", "other-scene", "start", "sheets"
MMDITS = "tiny-mmdit", "planted-mmdit"
SCORES = ("exact_target", "exact_source", "f1_target", "f1_source", "ssim", "psnr")


def reading(pipeline, ocr) -> list[dict]:
    """Exact match on all test words in clean drawings, and then of the model at each setting."""
    fmt = SignFormat()
    signs = evaluation.held_out_signs(len(TEST), fmt)
    rows = [
        _accuracy("clean drawings", None, None, evaluation.clean_pictures(signs, fmt), signs, ocr)
    ]
    for steps, guidance in SAMPLING:
        made = evaluation.generated_pictures(pipeline, signs, steps=steps, guidance=guidance)
        rows.append(_accuracy(pipeline.name, steps, guidance, made, signs, ocr))
    return rows


def _accuracy(name, steps, guidance, pictures, signs, ocr) -> dict:
    right = evaluation.reading_accuracy(pictures, signs, SignFormat(), ocr)
    low, high = metrics.wilson(right.mean(), len(right))
    return dict(
        pictures=name,
        steps=steps,
        guidance=guidance,
        exact=right.mean(),
        low=low,
        high=high,
        n=len(signs),
    )


def alone(pipeline, ocr, *, same_scene: bool) -> list[dict]:
    """Source and target run, and every site alone."""
    pairs = sign_pairs(PAIRS, split="test", same_scene=same_scene)
    result = textpatch.localize(pipeline, pairs, ocr=ocr).result
    rows = [(side, scores) for side, scores in result["baselines"].items()]
    rows += [(site["name"], site) for site in result["sites"]]
    return [{"run": name, **_flat(scores)} for name, scores in rows]


def start_steps(pipeline, ocr, site: int) -> list[dict]:
    """The best site patched from step s on, for every s, in one scene."""
    pairs = sign_pairs(PAIRS, split="test", same_scene=True)
    rows = []
    for start in range(pipeline.defaults.steps):
        result = textpatch.localize(pipeline, pairs, sites=[site], start=start, ocr=ocr).result
        sigma = pipeline.schedule.sigmas(pipeline.defaults.steps)[start].item()
        rows.append({"site": site, "start": start, "sigma": sigma, **_flat(result["sites"][0])})
    return rows


def _flat(scores: dict) -> dict:
    cells = {
        f"{name}{end}": scores[name][key]
        for name in SCORES
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    return {**cells, "n": scores["n"]}


def picture(pipeline, ocr, *, same_scene: bool) -> None:
    """The first four pairs as a contact sheet, for the README."""
    found = textpatch.localize(
        pipeline, sign_pairs(4, split="test", same_scene=same_scene), ocr=ocr
    )
    # sets that the search tried have pictures in some records alone, and no column here
    names = ["source", "target", *(row_name((site["site"],)) for site in found.result["sites"])]
    cells = [
        [(record["pictures"][name]["image"], record["pictures"][name]["read"]) for name in names]
        for record in found.records
    ]
    words = [(pair["word"], pair["target_word"]) for pair in found.result["pairs_list"]]
    best = 2 + [site["site"] for site in found.result["sites"]].index(found.result["ranked"][0])
    sheet = draw_contact_sheet(
        cells, captions=[name.replace("-", " ") for name in names], words=words, best=best, scale=2
    )
    sheet.quantize(256).save(
        RESULTS / f"{pipeline.name}-{'same' if same_scene else 'other'}-scene.png", optimize=True
    )


def together(pipeline, ocr) -> list[dict]:
    """Source and target run, and the sites that carry the word together, in one scene."""
    pairs = sign_pairs(UNET_PAIRS, split="test", same_scene=True)
    trials = Trials(pipeline, pairs, ocr=ocr)
    sites = pipeline.defaults.localized
    trials.measure([sites], own=True)
    rows = {"source": "source", "target": "target", group_name(sites): row_name(sites)}
    return [{"run": run, **_flat(all_scores(trials.records, row))} for run, row in rows.items()]


def write(name: str, reader: str, rows: list[dict]) -> None:
    """Put rows by a reader into benchmarks/results/NAME.csv, in the place of those that it gave before."""
    print(f"\n{name}")
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
                if not key.endswith(("_low", "_high"))
            )
        )
    path = RESULTS / f"{name}.csv"
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["reader"] != reader]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["reader", *rows[0]])
        writer.writeheader()
        writer.writerows(kept)
        writer.writerows({"reader": reader, **row} for row in rows)


def measure(pipeline, reader: str, parts) -> None:
    """Measure some parts of a model, and write them."""
    ocr = metrics.reader_named(reader, [])
    if pipeline.name not in MMDITS:
        write(f"{pipeline.name}-same-scene", reader, together(pipeline, ocr))
        return
    if "reading" in parts:
        write(f"{pipeline.name}-reading", reader, reading(pipeline, ocr))
    for part in ("same-scene", "other-scene"):
        if part in parts:
            write(
                f"{pipeline.name}-{part}",
                reader,
                alone(pipeline, ocr, same_scene=part == "same-scene"),
            )
    if "start" in parts:
        (site,) = pipeline.defaults.localized
        write(f"{pipeline.name}-start", reader, start_steps(pipeline, ocr, site))
    if "sheets" in parts:
        for same_scene in (True, False):
            picture(pipeline, ocr, same_scene=same_scene)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"models ({', '.join(MMDITS)})")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which (all)")
    reader_option(parser)
    options = parsed(parser, argv)
    RESULTS.mkdir(exist_ok=True)
    for model in options.models or MMDITS:
        measure(textpatch.load(model), options.reader, options.parts)


if __name__ == "__main__":
    main()
