"""The verb `textpatch compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.options import Help
from textpatch.cli.outcome import Outcome
from textpatch.cli.stored_runs import result_of
from textpatch.errors import PatchError

MOST = 20  # differences that are told

HELP = Help(
    usage="textpatch compare RUN RUN",
    summary="tell what two finished runs differ in",
    about="""\
Tell in what two finished runs of one verb differ, in what was asked for and in what came out.

Of two localisations the sites stand side by side, with the F1 of the letters read towards
the target's word in each run and the difference. Of other runs the results that differ are
listed.

Cost: none to speak of.\
""",
    examples=(
        (
            "two localisations",
            "textpatch compare runs/localize-tiny-mmdit-1a2b3c4d runs/localize-tiny-mmdit-5e6f7a8b",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch compare`."""
    command.add_argument("first", type=Path, metavar="RUN", help="run folder")
    command.add_argument("second", type=Path, metavar="RUN", help="another of the same verb")
    command.set_defaults(run=compare)


def compare(options) -> Outcome:
    """Return what two runs differ in.

    Raises PatchError for runs of two verbs.
    """
    from textpatch.runs.folder import Run
    from textpatch.runs.requests import asked_otherwise, differences

    runs = [Run.load(folder) for folder in (options.first, options.second)]
    results = [result_of(run.folder) for run in runs]
    verbs = [run.manifest["request"].get("command") for run in runs]
    if verbs[0] != verbs[1]:
        raise PatchError(
            f"{runs[0].folder} is a run of {verbs[0]} and {runs[1].folder} one of {verbs[1]}; "
            "give two of one verb"
        )
    asked = asked_otherwise(runs[0].manifest, runs[1].manifest)
    lines = ["asked for otherwise:", *_told(asked)]
    if verbs[0] == "localize":
        sites = _sites(*results)
        lines += ["", *_table(sites)]
        return Outcome("\n".join(lines), {"asked": asked, "sites": sites})
    came = differences(*results)
    lines += ["", "came out otherwise:", *_told(came)]
    return Outcome("\n".join(lines), {"asked": asked, "results": came})


def _told(found: dict[str, tuple]) -> list[str]:
    """A line for each difference, or one that there is none."""
    from textpatch.text import plain

    if not found:
        return ["  nothing"]
    lines = [
        f"  {plain(name.removeprefix('request.'))}: {_short(first)} | {_short(second)}"
        for name, (first, second) in list(found.items())[:MOST]
    ]
    if len(found) > MOST:
        lines.append(f"  and {len(found) - MOST} more")
    return lines


def _short(value) -> str:
    from textpatch.text import plain

    text = plain(value)
    if len(text) > 30:
        return f"{text[:14]}..{text[-14:]}"
    return text


def _sites(first: dict, second: dict) -> list[dict]:
    """F1 towards the target at each site in both runs, None where a run did not try it."""
    scores = [{site["name"]: _f1(site) for site in result["sites"]} for result in (first, second)]
    names = dict.fromkeys([*scores[0], *scores[1]])
    return [
        {"name": name, "first": scores[0].get(name), "second": scores[1].get(name)}
        for name in names
    ]


def _f1(site: dict) -> float | None:
    from textpatch.report.result import value_of

    return value_of(site, "f1_target")


def _table(sites: list[dict]) -> list[str]:
    from textpatch.report.result import decimal
    from textpatch.text import aligned, plain

    rows = []
    for site in sites:
        both = site["first"], site["second"]
        difference = None
        if None not in both:
            difference = both[1] - both[0]
        rows.append([*map(decimal, both), decimal(difference), plain(site["name"])])
    return aligned([("F1 first", "F1 second", "difference", "site"), *rows])
