"""The verb `textpatch report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.options import Help
from textpatch.cli.outcome import Outcome
from textpatch.cli.stored_runs import result_of
from textpatch.errors import PatchError

HELP = Help(
    usage="textpatch report RUN",
    summary="write the page of a finished localisation anew",
    about="""\
Write the page, the sheet, the heat map and the table of a finished localisation anew.

They are made from results.json and the records of the run, and no picture is generated. So
a page of an older version becomes one of this version.

Cost: seconds.\
""",
    examples=(("the page of a run", "textpatch report runs/localize-planted-mmdit-1a2b3c4d"),),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch report`."""
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="run folder of a finished `localize`"
    )
    command.set_defaults(run=report)


def report(options) -> Outcome:
    """Write the page of a run anew.

    Raises PatchError for a run that has no page, and StoreError for one that is not finished.
    """
    from textpatch.localization.layers import Localization
    from textpatch.report.page import publish
    from textpatch.runs.folder import Run

    run = Run.load(options.run_folder)
    verb = run.manifest["request"].get("command")
    if verb != "localize":
        raise PatchError(
            f"{run.folder} is a run of {verb}, which has a sheet and no page; give a run of localize"
        )
    found = Localization(result_of(run.folder), joined(run.finished()))
    publish(run, found.result, found.records)
    return Outcome(repr(found), found.result, run.folder / "report.html", run.folder)


def joined(records: list[dict]) -> list[dict]:
    """One record for each pair and seed, with the pictures of all its records."""
    by_task: dict[tuple[int, int], dict] = {}
    for record in records:
        task = (record["pair"], record["seed"])
        empty = {"id": f"{task[0]}-{task[1]}", "pair": task[0], "seed": task[1], "pictures": {}}
        by_task.setdefault(task, empty)["pictures"] |= record["pictures"]
    return [by_task[task] for task in sorted(by_task)]
