"""The verb `textpatch audit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.models import load_model
from textpatch.cli.opening import weights_of
from textpatch.cli.options import Help, add_device_option

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
    add_device_option(command)
    command.set_defaults(run=audit)


def audit(options) -> None:
    """Print the audit of a run's first pair and seed.

    Raises PatchError if a check fails.
    """
    from textpatch.auditing.finished import audit_run

    def load(name: str, dtype: str):
        options.model = options.model or name
        options.dtype = dtype
        pipeline = load_model(options)
        return pipeline, weights_of(options.model, pipeline)

    report = audit_run(options.run_folder, load=load)
    print(report)
    report.require()
