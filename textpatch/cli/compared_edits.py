"""Several prompt pairs or several methods of `textpatch edit`, compared on the same noise."""

from __future__ import annotations

import argparse
import csv
import io

from textpatch.cli.before import announced
from textpatch.cli.functions import given_by, names_function
from textpatch.cli.models import load_sized
from textpatch.cli.opening import open_run
from textpatch.cli.outcome import Outcome
from textpatch.cli.prompt_pairs import READERS, reader_name
from textpatch.cli.workers import require_writer
from textpatch.errors import PatchError
from textpatch.runs.interrupts import told_on_interrupt
from textpatch.text import number_of

# those of editing.methods, which is not imported before it is known that something is to be done
METHODS = ["localized", "injection", "prompt_swap", "prompt_to_prompt", "p2p", "p2p_star"]
DEFAULT = "localized"
TARGET = "prompt_swap"  # the method whose picture is the target's own
SITES = {"sites", "start", "branch", "tokens"}


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
        "--reader",
        type=reader_name,
        metavar="NAME",
        help="what reads the words, as in `textpatch localize` (default: tesseract)",
    )


def is_comparison(options, pairs: list) -> bool:
    """True if several pairs, several seeds or several methods are asked for."""
    given = options.prompts is not None or options.pairs is not None
    return given or len(pairs) > 1 or len(options.seeds) > 1 or len(options.method) > 1


def compare_edits(options, pairs: list[tuple[str, str]]) -> Outcome:
    """Edit all pairs by all methods, and leave a run folder with all pictures and their scores.

    Raises PatchError for --upscale, which draws one edit larger.
    """
    from textpatch.editing.comparing import compare
    from textpatch.localization.preconditions import checked_pairs
    from textpatch.metrics.readers.strictness import over_reading

    if options.upscale:
        raise PatchError(
            "--upscale draws one edit larger, and several are compared here; give one pair, one seed and "
            "one method"
        )
    methods = _methods(options)
    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    # refused before there is a run folder
    checked_pairs(pipeline, pairs, seeds=options.seeds, steps=steps)
    planned = announced(
        options,
        pipeline,
        f"{number_of(len(pairs), 'pair')} x {number_of(len(options.seeds), 'seed')} "
        f"x (source + {', '.join(methods)})",
        len(pairs) * len(options.seeds) * (1 + len(methods)),
        at_once=2,
        steps=steps,
        guidance=guidance,
    )
    if planned is not None:
        return planned
    reader = _tested_reader(options, pairs)
    request = dict(
        command="compare",
        pairs=[list(pair) for pair in pairs],
        methods={name: repr(method) for name, method in methods.items()},
        seeds=options.seeds,
        steps=steps,
        guidance=guidance,
        ocr=reader.describe(),
    )
    run = open_run(options, pipeline, request, over_reading=over_reading(reader))
    there = f"what is finished is in {run.folder}; the same command goes on where it stopped"
    with told_on_interrupt(there):
        found = compare(
            pipeline,
            pairs,
            methods,
            seeds=options.seeds,
            steps=steps,
            guidance=guidance,
            ocr=reader,
            run=run,
            shard=options.worker,
        )
    require_writer(options, run.folder)
    run.write_json("results.json", found.result)
    run.write_bytes("results.csv", _csv(found.result))
    sheet = run.write_bytes("sheet.png", found._repr_png_())
    return Outcome(repr(found), found.result, sheet, run.folder)


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


def reader_of_edits(options, pairs: list[tuple[str, str]]):
    """Return the reader asked for, which knows the letters of the pairs' words."""
    from textpatch.localization.preconditions import reader_for
    from textpatch.metrics.readers.named import reader_named
    from textpatch.prompts.pairs import Pair

    if names_function(options.reader):
        return reader_for([Pair(*pair) for pair in pairs], given_by(options.reader))
    words = [word for pair in pairs for word in Pair(*pair).words]
    return reader_named(options.reader or READERS[0], words)


def _tested_reader(options, pairs: list[tuple[str, str]]):
    """Return the reader asked for after its self-test.   Raises OCRError as that does, and where it hangs."""
    from textpatch.metrics.readers.in_time import InTime

    reader = reader_of_edits(options, pairs)
    InTime(reader).self_test()
    return reader


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
        if isinstance(score, list):
            score = {number: one for number, one in enumerate(score, 1)}
        if not isinstance(score, dict):
            flat[name] = score
        elif "value" in score:
            flat |= {name if end == "value" else f"{name}_{end}": score[end] for end in score}
        else:
            flat |= _flat(score, f"{name}_")
    return flat
