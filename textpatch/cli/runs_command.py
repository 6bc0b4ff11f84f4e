"""The verb `textpatch runs`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from textpatch.cli.options import Help
from textpatch.cli.outcome import Outcome
from textpatch.cli.stored_runs import run_folders, told_run

HELP = Help(
    usage="textpatch runs [FOLDER]",
    summary="list run folders, the newest first",
    about="""\
List the run folders below a folder, the newest first.

The table has the day, the verb, the model, whether the run is finished, the number of its
records, and its folder.

Cost: none to speak of. Manifests and records are read.\
""",
    examples=(("all runs made here", "textpatch runs"),),
)
TITLES = ("day", "verb", "model", "state", "records", "folder")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch runs`."""
    command.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where to look (default: runs)",
    )
    command.set_defaults(run=runs)


def runs(options) -> Outcome:
    """Return the table of run folders."""
    from textpatch.text import aligned, plain

    found = [told_run(folder) for folder in run_folders(options.folder)]
    if not found:
        return Outcome(f"no run folders below {options.folder}", {"runs": []})
    rows = [[plain(run[title]) for title in TITLES] for run in found]
    lines = aligned([TITLES, *rows])
    if max(map(len, lines)) > shutil.get_terminal_size().columns:  # the folder tells verb and model
        lines = aligned([[row[0], row[3], row[5]] for row in [list(TITLES), *rows]])
    return Outcome("\n".join(lines), {"runs": found})
