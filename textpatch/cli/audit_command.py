"""The verb `textpatch audit`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from textpatch.cli.models import load_model
from textpatch.cli.opening import loaded_by, weights_of
from textpatch.cli.options import (
    BORROWING,
    CHOSEN,
    Help,
    add_borrowing_options,
    add_device_option,
    add_links_option,
)
from textpatch.cli.outcome import Outcome
from textpatch.errors import PatchError

COLUMNS = """\
error: of the run against float64, allowed by those of torch's eager and sdpa
effect: how far the swap moved the output; none: the rows that no swap names\
"""
HELP = Help(
    usage="textpatch audit RUN [--model MODEL] [--device DEVICE]",
    summary="carry a finished run's swaps out again and hold each against float64",
    about="""\
Carry the swaps of a finished run out again, and hold each against float64.

Audited are the first prompt pair and seed of a run folder that `localize` or `edit` made.
They run again. At the first, middle and last step of every swap, what attention gave is
computed anew in float64 from the queries, keys and values that went into it. The table
shows each difference beside what plain torch differs by on the same numbers. The exit code
is 2 if a check fails.

Cost: a generation for each swap, and two more for every four of them.\
""",
    examples=(("a run of edit", "textpatch audit runs/edit-planted-mmdit-1a2b3c4d"),),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch audit`."""
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="run folder of localize or edit"
    )
    command.add_argument(
        "--model",
        metavar="MODEL",
        help="where the run's own model is, if it is not a shipped one",
    )
    add_borrowing_options(command)
    add_links_option(command)
    add_device_option(command)
    command.set_defaults(run=audit)


def audit(options) -> Outcome:
    """Return the audit of a run's first pair and seed, with a fault if a check fails."""
    from textpatch.auditing.finished import audit_run

    def load(request: dict) -> tuple:
        options.model = options.model or request["model"]
        for name in ("dtype", *CHOSEN):
            setattr(options, name, request.get(name))
        pipeline = load_model(options)
        _require_same_parts(options, request)
        return pipeline, weights_of(options, pipeline)

    report = audit_run(options.run_folder, load=load)
    return Outcome(f"{report}\n{COLUMNS}", json.loads(report.to_json()), fault=report.fault())


def _require_same_parts(options, request: dict) -> None:
    """Raise PatchError unless the parts of other models are those of the run."""
    held = loaded_by(options)
    for name in BORROWING:
        if held.get(name) != request.get(name):
            option = name.replace("_", "-")
            raise PatchError(
                f"--{option}: {options.run_folder} was made with {_told(request.get(name))}, "
                f"and the audit with {_told(held.get(name))}; give the same"
            )


def _told(weights: str | None) -> str:
    return "the model's own" if weights is None else f"weights {weights[:16]}..."
