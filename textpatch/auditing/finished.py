"""Audit a finished run folder, whose model is loaded again and whose first plan is run again and replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from textpatch.auditing.replay import AuditReport, Check, audit
from textpatch.disk import read_json
from textpatch.errors import PatchError
from textpatch.groups import row_name, rows_and_plan
from textpatch.pipelines import sized
from textpatch.plan import Plan, Row
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.runs.folder import Run
from textpatch.sampling import sample

# What a request of the command line says of every run, and what by command.
_NEEDED = ("command", "model", "weights", "dtype", "steps", "guidance")
_PLANNED = {
    "edit": ("source", "target", "seed", "plan"),
    "localize": ("pairs", "seeds", "start", "branch"),
}
TOGETHER = 4  # swaps audited in one batch: all sites of SD3 or SDXL would not fit at once


def audit_run(folder, *, load: Callable[[dict], tuple]) -> AuditReport:
    """Audit the first prompt pair and seed of a run of `textpatch localize` or `textpatch edit`.

    load  load(request) gives (pipeline, sha256 of its weights) for the request of a manifest
    Every swapped site is audited at the first, middle and last step at which its swap acts.  Raises
    StoreError if the folder is no run.  Raises PatchError for a run made in Python or without a plan, for
    other weights than the run's, and if the plan rebuilt from the request is not the one the run names.
    """
    run = Run.load(folder)
    request = run.manifest["request"]
    _require_told(run, request)
    pair, seed, plan = _first_plan(run, request)
    if not plan.swaps:
        raise PatchError(
            f"{folder} was made by the method {request.get('method')}, which swaps nothing, so there is "
            "nothing to audit"
        )
    pipeline, weights = load(request)
    if weights != request["weights"]:
        raise PatchError(
            f"{folder} was made with weights {request['weights'][:16]}..., those loaded are "
            f"{str(weights)[:16]}...; load the {request['model']} of that run"
        )
    pipeline = sized(pipeline, request.get("height"), request.get("width"))
    checks: list[Check] = []
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
        checks += [_counted_from(check, first) for check in report.checks]
    return AuditReport(tuple(checks))


def _counted_from(check: Check, first: int) -> Check:
    """The check of a part of a plan, with the swap's place in the whole plan."""
    if check.swap is None:
        return check
    return replace(check, swap=first + check.swap)


def _require_told(run: Run, request) -> None:
    """Raise PatchError for a request that does not say what an audit needs, as one written in Python may."""
    told = request if isinstance(request, dict) else {}
    lacking = [name for name in _NEEDED if name not in told]
    lacking += [name for name in _PLANNED.get(told.get("command"), ()) if name not in told]
    if lacking:
        raise PatchError(
            f"the request of {run.folder} does not say {', '.join(lacking)}, as that of `textpatch localize` "
            "or `edit` does; where a run was made in Python, audit it there: "
            "textpatch.auditing.replay.audit(pipeline, rows, plan, sample=textpatch.sample, ...)"
        )


def _first_plan(run: Run, request: dict) -> tuple[Pair, int, Plan]:
    """Pair, seed and plan of the first record of a run."""
    if "picture" in request:
        raise PatchError(
            f"{run.folder} edits a real picture, and an audit begins from a seed's noise; audit it in "
            "Python, by textpatch.auditing.replay.audit(...) of rows with the inverted latents"
        )
    if request["command"] == "edit":
        plan = Plan.from_json(json.dumps(request["plan"]))
        return Pair(request["source"], request["target"]), request["seed"], plan
    if request["command"] == "localize":
        return _first_localized(run, request)
    raise PatchError(
        f"{run.folder} is a run of {request['command']}, which has no plan; localize and edit have"
    )


def _first_localized(run: Run, request: dict) -> tuple[Pair, int, Plan]:
    """Pair, seed and plan of the first record of a localisation, the plan rebuilt from the request."""
    pair = Pair(*request["pairs"][0])
    seed = request["seeds"][0]
    made = [record for record in run.records() if record["id"] == f"0-{seed}"]
    first = (made or [{}])[0]
    sites = read_json(run.folder / "results.json")["sites"]
    by_name = {row_name(entry["group"]): entry["group"] for entry in sites}
    # a search may begin with some of the sites
    groups = [by_name[name] for name in first.get("pictures", {}) if name in by_name]
    _, plan = rows_and_plan(
        pair, seed, groups, request["steps"], request["start"], request["branch"]
    )
    if first.get("plan_sha256") != plan.sha256:
        raise PatchError(
            f"{run.folder} says plan {first.get('plan_sha256')} made its first record; its request gives "
            f"{plan.sha256}; the run was changed, or made by another version"
        )
    return pair, seed, plan


def _rows(plan: Plan, pair: Pair, seed: int) -> list[Row]:
    """Source, target, and every row that reads another, all from the same noise."""
    readers = [name for swap in plan.swaps for name in swap.readers]
    return [
        Row(SOURCE, pair.source, seed),
        Row(TARGET, pair.target, seed),
        *(Row(name, pair.source, seed) for name in readers),
    ]
