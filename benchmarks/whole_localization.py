"""Time one exhaustive localisation from prompts to scores.

    python benchmarks/whole_localization.py MODEL

It is textpatch.localize of one prompt pair on a denoiser of random weights. Texts are encoded, all rows
run in lock-step, and every picture is decoded, read and compared with the source's. Random weights write
no words, so the reader names a picture by its pixels. The scores mean nothing, and no OCR is in the time.
Every swapped picture must differ from the source's, or nothing is written down.

It is one run, the first of its process unless localization_cost.py ran before in it. So low, median and
high are the same number, and there is no ratio. localization_cost.py holds lock-step to runs one by one,
on fewer steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image

import textpatch
from localization_cost import COLUMNS, SOURCE, TARGET, Job
from measure import (
    Table,
    Unequal,
    arguments,
    environment,
    in_turns,
    megabytes,
    parsed,
    timed,
    with_peak,
)
from random_models import MODELS, pipeline

WAY = "localize, pictures made, no OCR"


class Digest:
    """A reader whose text of a picture is the start of its pixels' sha256."""

    def read(self, images: Sequence[Image.Image], boxes=None, *, box=None) -> list[str]:
        """Read the whole pictures, wherever their text stands."""
        return [hashlib.sha256(image.tobytes()).hexdigest()[:8] for image in images]

    def describe(self) -> dict:
        return {"engine": "sha256 of the pixels"}

    def self_test(self) -> None:
        """Pass, since nothing could be absent."""


def require_every_swap_shows(found: textpatch.Localization) -> None:
    """Raise Unequal if some swapped picture is the source's, pixel by pixel."""
    for record in found.records:
        source = record["pictures"]["source"]["image"].tobytes()
        for name, picture in record["pictures"].items():
            if name != "source" and picture["image"].tobytes() == source:
                raise Unequal(f"{name}: the picture is the source's")


def measure_model(table: Table, name: str, options) -> None:
    """Time one localisation of a model, and add it to the table."""
    made = pipeline(name, options.device, options.dtype)
    steps = options.steps or made.defaults.steps
    job = Job(made, steps, made.defaults.guidance, options.micro_batch)
    kept = {}

    def run() -> None:
        kept["localization"], kept["peak"] = with_peak(
            lambda: textpatch.localize(
                made, [(SOURCE, TARGET)], steps=steps, ocr=Digest(), micro_batch=options.micro_batch
            ),
            options.device,
        )

    taken = in_turns({WAY: run}, rounds=1, device=options.device)
    require_every_swap_shows(kept["localization"])
    times = timed(taken, WAY, WAY)
    table.add(
        model=name,
        sites=len(job.sites),
        steps=steps,
        guidance=job.guidance,
        way=WAY,
        generations=kept["localization"].result["generations"]["made"],
        calls=len(job.batches()) * steps,
        rows_per_call=2 * max(map(len, job.batches())),
        cache_bytes=0,
        peak_mb=megabytes(kept["peak"]),
        **{column: times[column] for column in ("median_ms", "low_ms", "high_ms")},
    )


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "models", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (the paper's 28 or 50)")
    parser.add_argument(
        "--micro-batch", type=int, default=64, help="batch rows of one forward at most (64)"
    )
    options = parsed(parser, argv)
    if options.rounds != 1:
        parser.error(f"--rounds {options.rounds}; the localisation runs once")
    table = Table(COLUMNS, environment(options.device, "triton"), options.csv, options.append)
    for name in options.models:
        measure_model(table, name, options)


if __name__ == "__main__":
    main()
