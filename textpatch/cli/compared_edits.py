"""Several prompt pairs or several methods of `textpatch edit`, compared on the same noise."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from textpatch.cli.models import load_sized
from textpatch.cli.opening import open_run
from textpatch.cli.prompt_pairs import READERS
from textpatch.errors import PatchError
from textpatch.runs.interrupts import told_on_interrupt

# those of editing.methods, which is not imported before it is known that something is to be done
METHODS = ["localized", "injection", "prompt_swap", "prompt_to_prompt", "p2p", "p2p_star"]
DEFAULT = "localized"
TARGET = "prompt_swap"  # the method whose picture is the target's own
SITES = {"sites", "start", "branch"}


def add_comparison_options(command: argparse.ArgumentParser) -> None:
    """Add which methods edit which pairs."""
    group = command.add_argument_group("several pairs, several methods")
    group.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        default=[DEFAULT],
        metavar="NAME",
        help=f"methods of editing, of {', '.join(METHODS)} (default: {DEFAULT}); several are compared",
    )
    group.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="edit every pair of a file of lines `source<TAB>target`, and score the pictures",
    )
    group.add_argument(
        "--reader",
        choices=READERS,
        help="what reads the words, as in `textpatch localize` (default: tesseract)",
    )


def is_comparison(options) -> bool:
    """True if several pairs or several methods are asked for."""
    return options.pairs is not None or len(options.method) > 1


def compare_edits(options) -> None:
    """Edit all pairs by all methods, print the table, and leave a run folder with all pictures."""
    from textpatch.editing.comparing import compare

    pairs = _pairs(options)
    methods = _methods(options)
    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    reader = _reader(options, pairs)
    request = dict(
        command="compare",
        pairs=[list(pair) for pair in pairs],
        methods={name: repr(method) for name, method in methods.items()},
        seeds=[options.seed],
        steps=steps,
        guidance=guidance,
        ocr=reader.describe(),
    )
    run = open_run(options, pipeline, request)
    there = f"what is finished is in {run.folder}; the same command goes on where it stopped"
    with told_on_interrupt(there):
        found = compare(
            pipeline,
            pairs,
            methods,
            seeds=[options.seed],
            steps=steps,
            guidance=guidance,
            ocr=reader,
            run=run,
        )
    run.write_json("results.json", found.result)
    run.write_bytes("results.csv", _csv(found.result))
    run.write_bytes("sheet.png", found._repr_png_())
    print(found)
    print(run.folder / "sheet.png")


def _pairs(options) -> list[tuple[str, str]]:
    """Return the pairs of --pairs, or that of --source and --target.

    Raises PatchError for both, and for --upscale, which draws one edit larger.
    """
    from textpatch.prompts.files import read_pairs

    if options.upscale:
        raise PatchError(
            "--upscale draws one edit larger, and several are compared here; give one pair and one method"
        )
    if options.pairs is None:
        return [(options.source, options.target)]
    if options.source or options.target:
        raise PatchError(
            "--pairs names a file of pairs, and --source and --target one pair; give one or the other"
        )
    return read_pairs(options.pairs)


def _methods(options) -> dict:
    """Return the methods by name, each with the options that it has, the target's own picture last."""
    from textpatch.editing.methods import METHODS as kinds
    from textpatch.editing.methods import method_named, options_of

    given = {name: getattr(options, name) for name in SITES}
    names = [*options.method, TARGET]
    taken = {name: options_of(kinds[name]) & SITES for name in names}
    for option, value in given.items():
        if value is not None and not any(option in some for some in taken.values()):
            raise PatchError(
                f"--{option} {value} is of the method {DEFAULT}, and the methods are "
                f"{', '.join(options.method)}; leave it out, or add {DEFAULT}"
            )
    return {
        name: method_named(name, **{option: given[option] for option in taken[name]})
        for name in names
    }


def _reader(options, pairs: list[tuple[str, str]]):
    from textpatch.metrics.readers.named import reader_named
    from textpatch.prompts.pairs import Pair

    words = [word for pair in pairs for word in Pair(*pair).words]
    return reader_named(options.reader or READERS[0], words)


def _csv(result: dict) -> bytes:
    """A line for each method, with every score."""
    lines = [
        {"method": name, **_flat(scores)}
        for name, scores in {"source": result["source"], **result["methods"]}.items()
    ]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def _flat(scores: dict, prefix: str = "") -> dict:
    """Numbers of nested scores, their names joined by underscores, a score's mean under its own name."""
    flat: dict = {}
    for name, score in scores.items():
        name = f"{prefix}{name}"
        if not isinstance(score, dict):
            flat[name] = score
        elif "value" in score:
            flat |= {name if end == "value" else f"{name}_{end}": score[end] for end in score}
        else:
            flat |= _flat(score, f"{name}_")
    return flat
