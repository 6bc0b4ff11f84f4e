"""The verb `textpatch export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.models import chosen
from textpatch.cli.options import READING, Help, add_reading_options
from textpatch.cli.outcome import Outcome
from textpatch.errors import PatchError

# those of textpatch.tuning, which is not imported before it is known that something is to be done
TOOLS = ["peft", "kohya", "musubi", "lycoris", "diffusers"]
TARGETS = ["text_kv", "qkvo", "text_all", "all"]

HELP = Help(
    usage="textpatch export RUN --for TRAINER [options]",
    summary="write the sites found as another trainer selects them",
    about="""\
Write the option by which another trainer trains the projections of the sites found.

RUN is a run folder of `localize`, of which the responsible sites are taken, or one of
`finetune` or `rewrite`, whose projections are taken. What is written is read back by the
trainer's own rule, and its modules are counted. A selector that would take others is refused.

Cost: none to speak of. The model's names are read, and no weights.\
""",
    examples=(
        (
            "the sites found, for peft",
            "textpatch export runs/localize-planted-mmdit-1a2b3c4d --for peft",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch export`."""
    command.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    command.add_argument(
        "--for", dest="tool", choices=TOOLS, required=True, metavar="TRAINER", help=", ".join(TOOLS)
    )
    command.add_argument(
        "--targets",
        choices=TARGETS,
        help="projections of a localised site: text_kv, keys and values of the text (default), qkvo, "
        "text_all or all",
    )
    command.add_argument(
        "--model", metavar="MODEL", help="the run's model, where it is none of the shipped ones"
    )
    add_reading_options(command)
    command.set_defaults(run=export)


def export(options) -> Outcome:
    """Write the selection, and tell how many modules it takes."""
    from torch import nn

    from textpatch.disk import read_json
    from textpatch.runs.folder import Run
    from textpatch.tuning.selectors import selection
    from textpatch.weights.loading import outline

    run = Run.load(options.folder)
    request = run.manifest["request"]
    model = outline(options.model or request["model"], **chosen(options, READING))
    result = read_json(run.folder / "results.json")
    wanted = _projections(options, request["command"], result, model)
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    made = selection(options.tool, wanted, linear, rank=request.get("rank", 4))
    path = run.write_text(f"selectors/{options.tool}.txt", f"{made.text}\n")
    told = f"{made.text}\n{made.count} of {made.count} modules, as {options.tool} reads it"
    result = {"trainer": options.tool, "selection": made.text, "modules": wanted}
    return Outcome(told, result, path, run.folder)


def _projections(options, command: str, result: dict, model) -> list[str]:
    """Names of the projections that a run is about.

    Raises PatchError for --targets of a run that has its own, and for a run of another command.
    """
    from textpatch.ports.shipped import find_sites
    from textpatch.report.result import credited
    from textpatch.tuning.targets import target_names

    if "projections" in result:
        if options.targets is not None:
            raise PatchError(
                f"--targets {options.targets} chooses projections of localised sites, and {options.folder} "
                f"is a run of {command}, which names its own; leave it out"
            )
        return result["projections"]
    if command != "localize":
        raise PatchError(
            f"{options.folder} is a run of {command}, which finds no sites; give one of localize, finetune "
            "or rewrite"
        )
    sites = [find_sites(model)[index] for index in credited(result)]
    return target_names(model, sites, options.targets or TARGETS[0])
