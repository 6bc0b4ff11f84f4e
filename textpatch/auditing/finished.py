"""Audit a finished run folder: its model is loaded again, its first plan run again and replayed in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from textpatch.auditing.replay import AuditReport, audit
from textpatch.disk import read_json
from textpatch.errors import PatchError
from textpatch.groups import row_name, rows_and_plan
from textpatch.pipelines import sized
from textpatch.plan import Plan, Row
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.runs.folder import Run
from textpatch.sampling import sample

TOGETHER = 4  # swaps audited in one batch: all sites of SD3 or SDXL would not fit at once


def audit_run(folder, *, load: Callable[[str, str], tuple]) -> AuditReport:
    """Audit the first prompt pair and seed of a run of `textpatch localize` or `textpatch edit`.

    load    load(model, dtype), names as in the manifest, gives (pipeline, sha256 of its weights)
    Every swapped site is audited at the first, middle and last step at which its swap acts.
    Raises StoreError if the folder is no run; PatchError for a run without a plan, for other weights than the
    run's, and if the plan rebuilt from the request is not the one the run names.
    """
    run = Run.load(folder)
    request = run.manifest["request"]
    pair, seed, plan = _first_plan(run, request)
    pipeline, weights = load(request["model"], request["dtype"])
    if weights != request["weights"]:
        raise PatchError(
            f"{folder} was made with weights {request['weights'][:16]}..., those loaded are {str(weights)[:16]}...; "
            f"load the {request['model']} of that run"
        )
    pipeline = sized(pipeline, request.get("height"), request.get("width"))
    checks = []
    for first in range(0, len(plan.swaps), TOGETHER):
        part = Plan(plan.swaps[first : first + TOGETHER])
        report = audit(
            pipeline,
            _rows(part, pair, seed),
            part,
            sample=sample,
            steps=request["steps"],
            guidance=request["guidance"],
        )
        checks += [
            replace(c, swap=None if c.swap is None else first + c.swap) for c in report.checks
        ]
    return AuditReport(tuple(checks))


def _first_plan(run: Run, request: dict) -> tuple[Pair, int, Plan]:
    if request["command"] == "edit":
        plan = Plan.from_json(json.dumps(request["plan"]))
        return Pair(request["source"], request["target"]), request["seed"], plan
    if request["command"] != "localize":
        raise PatchError(
            f"{run.folder} is a run of {request['command']}, which has no plan; localize and edit have"
        )
    pair, seed = Pair(*request["pairs"][0]), request["seeds"][0]
    first = next(
        (record for record in run.records() if record["id"] == f"0-{seed}"), {"pictures": {}}
    )
    groups = {
        row_name(entry["group"]): entry["group"]
        for entry in read_json(run.folder / "results.json")["sites"]
    }
    made = [
        groups[name] for name in first["pictures"] if name in groups
    ]  # a search may begin with some of the sites
    plan = rows_and_plan(pair, seed, made, request["steps"], request["start"], request["branch"])[1]
    if first.get("plan_sha256") != plan.sha256:
        raise PatchError(
            f"{run.folder} says plan {first.get('plan_sha256')} made its first record; its request gives {plan.sha256}; "
            "the run was changed, or made by another version"
        )
    return pair, seed, plan


def _rows(plan: Plan, pair: Pair, seed: int) -> list[Row]:
    """The source, the target, and every row that reads another, all from the same noise."""
    readers = [name for swap in plan.swaps for name in swap.readers]
    return [
        Row(SOURCE, pair.source, seed),
        Row(TARGET, pair.target, seed),
        *(Row(name, pair.source, seed) for name in readers),
    ]
