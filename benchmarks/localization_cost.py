"""What one localisation costs:  python benchmarks/localization_cost.py [--csv FILE]

naive      the official way: source run, target run with a stored cache, then one patched run per site
lock-step  all of them in one batch, reading each other's text keys and values by index

Both make the same latents; that is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import textpatch
from textpatch.localize import Pair, rows_and_plan
from textpatch.sites import find_sites

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a green badge that says "TIGER" on a striped yellow wall'


def naive(pipeline, rows, plan, steps: int) -> dict[str, torch.Tensor]:
    """One run at a time, in the official order, through hooks and a cache of every step."""
    run = lambda row: pipeline.denoise(
        pipeline.noise([row.seed]), pipeline.encode([row.prompt]), steps=steps, guidance=1
    )  # noqa: E731
    source, target, *patched = rows
    latents = {source.name: run(source)[0]}
    with textpatch.capture(pipeline.denoiser, "all", rows=[target]) as cache:
        latents[target.name] = run(target)[0]
    for row, swap in zip(patched, plan.swaps, strict=True):
        with textpatch.patch(pipeline.denoiser, cache, swap.sites, rows=[target], steps=swap.steps):
            latents[row.name] = run(row)[0]
    return latents


def lock_step(pipeline, rows, plan, steps: int) -> dict[str, torch.Tensor]:
    return textpatch.sample(pipeline, rows, plan, steps=steps, guidance=1).latents


def seconds(work, repeats: int) -> list[float]:
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-mmdit")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    pipeline = textpatch.load(options.model)
    steps, groups = pipeline.defaults.steps, [(site.index,) for site in find_sites(pipeline.denoiser)]
    rows, plan = rows_and_plan(Pair(SOURCE, TARGET), 0, groups, steps, 0, "both")

    one, other = naive(pipeline, rows, plan, steps), lock_step(pipeline, rows, plan, steps)
    worst = max(((one[n] - other[n]).abs().max() / one[n].abs().max()).item() for n in one)
    if worst > 1e-4:  # float32, another batch shape; the law is held to 1e-12 in float64 by the tests
        sys.exit(f"naive and lock-step differ by {worst:.1e}; nothing was timed")

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, python {platform.python_version()}, "
          f"torch {torch.__version__}; {options.model}, {len(groups)} sites, {steps} steps; largest difference {worst:.1e}")  # fmt: skip
    table = []
    for name, way in (("naive", naive), ("lock-step", lock_step)):
        taken = seconds(lambda way=way: way(pipeline, rows, plan, steps), options.repeats)
        row = dict(way=name, median_s=statistics.median(taken), low_s=taken[0], high_s=taken[-1])
        table.append(row | {"ratio": table[0]["median_s"] / row["median_s"] if table else 1.0})
    print("| way | median s | least | most | times faster |\n|---|---|---|---|---|")
    for row in table:
        print("| {way} | {median_s:.3f} | {low_s:.3f} | {high_s:.3f} | {ratio:.2f} |".format(**row))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
