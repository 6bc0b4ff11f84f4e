"""The verb `textpatch rewrite`."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.actions import GivenSeeds, seeds
from textpatch.cli.adapted import AFTER, BEFORE, Shown, sites_of, tell_projections
from textpatch.cli.models import load_model
from textpatch.cli.opening import open_run
from textpatch.cli.options import (
    OTHER_SENTENCE,
    SENTENCE,
    SITES_HELP,
    Help,
    add_device_option,
    add_folder_option,
    add_loading_options,
    add_model,
    number,
)
from textpatch.cli.outcome import Outcome
from textpatch.errors import PatchError

TOKENS = ["all", "aligned", "last"]  # those of textpatch.tuning.token_pairs
PART = ["kv", "k", "v"]
ADAPTER = "adapter.safetensors"

HELP = Help(
    usage="textpatch rewrite MODEL (--old PROMPT --new PROMPT | --pairs FILE) [options]",
    summary="let the sites that carry the word read one prompt as another",
    about="""\
Make an adapter under which some sites read an old prompt as a new one, by a closed form.

Nothing is trained. adapter.safetensors is read by `textpatch generate --lora`, and by
diffusers. sheet.png shows the old prompts, those preserved and any others before and after.
In SDXL and DeepFloyd IF the text alone settles what a site reads, and the edit is exact. In SD3
the text evolves with the picture: it is captured while each prompt is drawn, and regressed on.

Cost: a linear system, and two generations for each prompt shown. In SD3 one more for each prompt
edited or preserved and each of --capture-seeds.\
""",
    examples=(
        (
            "one word drawn as another",
            f"textpatch rewrite tiny-sdxl --old '{SENTENCE}' --new '{OTHER_SENTENCE}'",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch rewrite`."""
    add_model(command)
    edits = command.add_argument_group("what is read as what")
    edits.add_argument("--old", metavar="PROMPT", help="prompt that is read as another")
    edits.add_argument("--new", metavar="PROMPT", help="the other")
    edits.add_argument(
        "--pairs", type=Path, metavar="FILE", help="several, a line `old<TAB>new` each"
    )
    edits.add_argument(
        "--preserve", nargs="+", metavar="PROMPT", default=[], help="prompts that stay as they are"
    )
    edits.add_argument(
        "--tokens",
        choices=TOKENS,
        default=TOKENS[0],
        help="which tokens are read as which: all by their places (default), aligned, or last",
    )
    _add_places(command)
    shown = command.add_argument_group("what is shown and kept")
    shown.add_argument(
        "--sample", nargs="+", metavar="PROMPT", default=[], help="further prompts that are shown"
    )
    shown.add_argument(
        "--seed", type=int, metavar="SEED", default=0, help="seed of the noise (default: 0)"
    )
    add_device_option(shown)
    shown.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="numbers the model computes in (default: float32)",
    )
    add_folder_option(shown)
    add_loading_options(command)
    command.set_defaults(run=rewrite, height=None, width=None)


def _add_places(command: argparse.ArgumentParser) -> None:
    """Add what is changed, and how strongly."""
    where = command.add_argument_group("what is changed")
    where.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        default=["localized"],
        help=f"sites that read otherwise: {SITES_HELP}, all, or localized, those localised for the model "
        "(default)",
    )
    where.add_argument(
        "--part", choices=PART, default=PART[0], help="keys and values (kv, default), k, or v"
    )
    where.add_argument(
        "--ridge",
        type=number,
        metavar="LAMBDA",
        default=0.1,
        help="weight of the matrices as they are; 0 injects the new text (default: 0.1)",
    )
    where.add_argument(
        "--capture-seeds",
        action=GivenSeeds,
        type=seeds,
        nargs="+",
        metavar="SEED",
        help="seeds, and ranges of them, of pictures in which an evolving text is captured (default: 0)",
    )


def rewrite(options) -> Outcome:
    """Make the adapter, and keep it with pictures made before and under it."""
    from textpatch.tuning.rewriting import rewrite as rewrite_

    edits = _edits(options)
    pipeline = load_model(options)
    sites = sites_of(pipeline, options.sites)
    settings = dict(
        preserve=options.preserve,
        tokens=options.tokens,
        part=options.part,
        ridge=options.ridge,
    )
    if options.capture_seeds is not None:
        settings["seeds"] = options.capture_seeds
    prompts = list(dict.fromkeys([*(old for old, _ in edits), *options.preserve, *options.sample]))
    pipeline.check(prompts, seeds=[options.seed], steps=pipeline.defaults.steps)
    adapter = rewrite_(pipeline, edits, sites=sites, **settings)
    if not options.quiet:
        tell_projections(pipeline, sites, f"{options.part} of the text", adapter.changes)
    request = dict(
        command="rewrite",
        edits=[list(edit) for edit in edits],
        sites=list(sites),
        samples=prompts,
        seed=options.seed,
        **settings,
    )
    run = open_run(options, pipeline, request)
    shown = Shown(run, pipeline, prompts, options.seed)
    shown.draw(BEFORE)
    shown.draw(AFTER, adapter)
    adapter.save(run.folder / ADAPTER)
    result = {
        "schema_version": 1,
        "projections": list(adapter.changes),
        "parameters": adapter.parameters,
        "adapter_sha256": adapter.sha256,
        "residual": adapter.made["residual"],
        "pictures": shown.pictures,
    }
    run.write_json("results.json", result)
    sheet = run.write_bytes("sheet.png", shown.sheet())
    return Outcome(str(run.folder / ADAPTER), result, sheet, run.folder)


def _edits(options) -> list[tuple[str, str]]:
    """Return the pairs of --pairs, or that of --old and --new.   Raises PatchError for both or none."""
    from textpatch.prompts.files import read_pairs

    alone = options.old is not None, options.new is not None
    if options.pairs is not None:
        if any(alone):
            raise PatchError(
                "--pairs names a file of pairs, and --old and --new one pair; give one or the other"
            )
        return read_pairs(options.pairs)
    if not all(alone):
        raise PatchError("rewrite needs --old PROMPT and --new PROMPT, or --pairs FILE")
    return [(options.old, options.new)]
