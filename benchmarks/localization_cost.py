"""Time one exhaustive localisation of a prompt pair, in lock-step and one run after the other.

    python benchmarks/localization_cost.py [MODEL ...]

  naive                as the official code does it, each run on its own: the source, the target with the
                       text keys and values of all sites and steps stored, and a run for each site that
                       reads them there
  lock-step            textpatch.sample has all of these in one batch and reads by index.  Nothing is
                       stored, and text keys and values that depend on the text alone are made once
  lock-step, compiled  the same with a compiled denoiser (--compiled)

Both encode the prompts, denoise with the model's guidance and make every picture.  Reading the pictures is
not included, as it is the same for both.  All rows' latents are compared before anything is timed.

A generation is one picture's way through all steps.  `cache_bytes` is what is stored, counted exactly.
tiny-mmdit and planted-mmdit are trained.  The others have random weights, which changes no cost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import textpatch
from measure import (
    TIMES,
    Table,
    arguments,
    environment,
    in_turns,
    megabytes,
    parsed,
    require_alike,
    timed,
    with_peak,
)
from random_models import MODELS, apart
from random_models import pipeline as random_pipeline
from textpatch.groups import rows_and_plan
from textpatch.guidance import as_guidance, branch_rows
from textpatch.packing import pack
from textpatch.plan import Row
from textpatch.ports.shipped import find_sites
from textpatch.prompts.pairs import Pair
from textpatch.reference_models.pipeline import Pipeline

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a green badge that says "TIGER" on a striped yellow wall'
SHIPPED = ["tiny-mmdit", "planted-mmdit"]
# of the largest latent, after all steps: what another batch shape alone does to a run in this precision
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Job:
    """One localisation of a pipeline, as its rows and its plan."""

    def __init__(self, pipeline: Pipeline, steps: int, guidance: float, micro_batch: int):
        self.pipeline = pipeline
        self.steps = steps
        self.guidance = guidance
        self.micro_batch = micro_batch
        self.sites = find_sites(pipeline.denoiser)
        groups = [(site.index,) for site in self.sites]
        self.rows, self.plan = rows_and_plan(Pair(SOURCE, TARGET), 0, groups, steps, 0, "both")

    def with_guidance(self, row: Row) -> list[Row]:
        return branch_rows([row], as_guidance(self.guidance))

    def batches(self) -> list[list[Row]]:
        """The rows that run together in lock-step."""
        limit = self.micro_batch // len(as_guidance(self.guidance).branches)
        return [group for group, _ in pack(self.rows, self.plan, max(limit, 1))]


def alone(job: Job, row: Row) -> Tensor:
    """Latents (C, H, W) of one row's run, from its prompt to its picture."""
    pipeline = job.pipeline
    noises = job.pipeline.noises([row.seed])
    text = pipeline.encode([each.prompt for each in job.with_guidance(row)])
    latents = pipeline.denoise(
        next(noises), text, steps=job.steps, guidance=job.guidance, noises=noises
    )
    pipeline.decode(latents)
    return latents[0]


def naive(job: Job) -> tuple[dict[str, Tensor], int]:
    """Run one row at a time, in the official order, by hooks and a cache of every step.

    Returns the latents by row, and the cache's bytes.
    """
    source, target, *patched = job.rows
    latents = {source.name: alone(job, source)}
    donors = job.with_guidance(target)
    with textpatch.capture(job.pipeline.denoiser, "all", rows=donors) as cache:
        latents[target.name] = alone(job, target)
    for row, swap in zip(patched, job.plan.swaps, strict=True):
        with textpatch.patch(
            job.pipeline.denoiser, cache, swap.sites, rows=donors, steps=swap.steps
        ):
            latents[row.name] = alone(job, row)
    return latents, cache.bytes


def lock_step(job: Job) -> tuple[dict[str, Tensor], int]:
    options = dict(steps=job.steps, guidance=job.guidance, micro_batch=job.micro_batch)
    return textpatch.sample(job.pipeline, job.rows, job.plan, **options).latents, 0


def compiled(job: Job) -> Job:
    """The same job on a compiled denoiser that shares the weights."""
    old = job.pipeline
    denoiser = apart(job.pipeline.denoiser)
    denoiser.compile(fullgraph=True, dynamic=False)
    new = Pipeline(old.encoders, denoiser, old.schedule, old.decoder, old.defaults, old.name)
    return Job(new, job.steps, job.guidance, job.micro_batch)


def require_same_latents(name: str, made: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise Unequal where the latents of a row differ by more than another batch shape explains.

    No plan touches source and target, so they show what the shape alone does.  Swaps may do little more.
    """
    floor = TOLERANCE[made["source"].dtype]

    def alike(row: str, tolerance: float) -> float:
        return require_alike(f"{name}, {row}", made[row], expected[row], tolerance)

    shape_alone = max(alike(row, 8 * floor) for row in ("source", "target"))
    for row in expected:
        alike(row, max(floor, 8 * shape_alone))


COLUMNS = [
    "model",
    "sites",
    "steps",
    "guidance",
    "way",
    "generations",
    "calls",
    "rows_per_call",
    "cache_bytes",
    "peak_mb",
    *TIMES,
    "times_faster",
]


def measure_job(
    table: Table, job: Job, *, rounds: int, device: torch.device, with_compiled: bool
) -> None:
    """Check and time the ways of one job, and add them to the table."""
    jobs = {"naive": job, "lock-step": job} | (
        {"lock-step, compiled": compiled(job)} if with_compiled else {}
    )
    ways: dict[str, Callable] = {
        name: lambda job=job, run=naive if name == "naive" else lock_step: run(job)
        for name, job in jobs.items()
    }
    first = {name: with_peak(way, device) for name, way in ways.items()}
    (expected, _), _ = first["naive"]
    for name, ((latents, _), _) in first.items():
        require_same_latents(name, latents, expected)
    taken = in_turns(ways, rounds=rounds, device=device)
    branches = len(as_guidance(job.guidance).branches)
    for name in ways:
        batches = [[row] for row in job.rows] if name == "naive" else job.batches()
        times = timed(taken, name, "naive")
        table.add(
            model=job.pipeline.name,
            sites=len(job.sites),
            steps=job.steps,
            guidance=job.guidance,
            way=name,
            generations=sum(map(len, batches)),
            calls=len(batches) * job.steps,
            rows_per_call=max(map(len, batches)) * branches,
            cache_bytes=first[name][0][1],
            peak_mb=megabytes(first[name][1]),
            **times,
            times_faster=1 / times["ratio"],
        )


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=7)
    known = [*SHIPPED, *MODELS]
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)} (tiny-mmdit)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (the model's own)")
    parser.add_argument(
        "--guidance", type=float, help="guidance scale; 1 is none (the model's own)"
    )
    parser.add_argument(
        "--micro-batch", type=int, default=64, help="batch rows of one forward at most (64)"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="compile the denoiser, too; takes a minute or more"
    )
    options = parsed(parser, argv)
    if unknown := sorted(set(options.models) - set(known)):
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(known)}")
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for name in options.models or SHIPPED[:1]:
        if name in SHIPPED:
            made = textpatch.load(name, device=options.device, dtype=options.dtype)
        else:
            made = random_pipeline(name, options.device, options.dtype)
        steps = made.defaults.steps if options.steps is None else options.steps
        guidance = made.defaults.guidance if options.guidance is None else options.guidance
        job = Job(made, steps, guidance, options.micro_batch)
        measure_job(
            table, job, rounds=options.rounds, device=options.device, with_compiled=options.compiled
        )


if __name__ == "__main__":
    main()
