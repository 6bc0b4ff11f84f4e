"""The verb `textpatch edit`."""

from __future__ import annotations

import argparse
import json

from textpatch.cli.asked_edits import add_pair_options, asked_pairs
from textpatch.cli.before import announced
from textpatch.cli.compared_edits import (
    add_comparison_options,
    compare_edits,
    is_comparison,
    reader_of_edits,
)
from textpatch.cli.models import load_sized, load_upscaler
from textpatch.cli.opening import open_run, require_same_run, upscaled_by
from textpatch.cli.options import (
    OTHER_SENTENCE,
    SENTENCE,
    SITES_HELP,
    Help,
    add_folder_option,
    add_loading_options,
    add_model,
    add_plan_option,
    add_sampling_options,
    add_seeds_option,
    add_swap_options,
    add_upscale_option,
)
from textpatch.cli.outcome import Outcome
from textpatch.cli.real_picture import (
    add_picture_options,
    edit_real_picture,
    require_no_picture,
    require_no_picture_options,
)
from textpatch.cli.workers import add_shard_option, require_one_process
from textpatch.errors import OCRError

HELP = Help(
    usage="textpatch edit MODEL (--source PROMPT --word WORD | --prompts FILE) [options]",
    summary="keep the picture of one prompt, write the word of another",
    about="""\
Keep the picture of one prompt, and write the word of another into it.

The source prompt is generated again from the same noise, but the sites that carry the word
read the text of the target prompt. The word is read in the result. sheet.png shows source,
edited and target picture side by side, and results.json keeps the plan that made them, which
`textpatch audit` checks.

Several pairs, seeds or methods are compared: a table is printed, and the sheet has a line
for each pair and seed. After Ctrl-C the same command goes on with the rest.

With --picture the picture of a file is kept, which the source prompt describes. Its noise is
found first, and the sheet shows beside the edit what comes back from it without one.

Cost: three generations, in one batch; of a comparison one or two for each pair and method,
and two more for each pair; of --picture two more, and as many calls as its inversion takes.\
""",
    examples=(
        (
            "another word on the same sign",
            f"textpatch edit planted-mmdit --source '{SENTENCE}' --word WORLD",
        ),
        (
            "another sign's text on the same sign",
            f"textpatch edit planted-mmdit --source '{SENTENCE}' --target '{OTHER_SENTENCE}'",
        ),
        (
            "another word on the second line of a sign",
            "textpatch edit tiny-words --word 2=TIGER "
            '--source \'a red sign that says "OPEN" and "DAILY" on a blue wall\'',
        ),
        (
            "the swap beside drawing the target's prompt, on the pairs of a file",
            "textpatch edit planted-mmdit --prompts pairs.tsv --method localized prompt_swap",
        ),
        (
            "another word in the picture of a file",
            "textpatch edit planted-mmdit --picture sign.png --source '...' --target '...'",
        ),
    ),
)


CHANGED = "changed"  # of editing.localized, which is not imported before something is to be done


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch edit`."""
    add_model(command)
    add_pair_options(command)
    swap = command.add_argument_group("what is swapped")
    swap.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        help=f"sites swapped together: {SITES_HELP} (default: those localised for the model)",
    )
    swap.add_argument(
        "--tokens",
        choices=["all", CHANGED],
        help="which tokens are swapped: all (default), or changed, those of the words that differ",
    )
    add_swap_options(swap)
    add_comparison_options(command)
    add_picture_options(command)
    pictures = command.add_argument_group("how pictures are made")
    add_seeds_option(pictures)
    add_sampling_options(pictures)
    add_upscale_option(pictures)
    kept = command.add_argument_group("what is kept, and by how many processes")
    add_folder_option(kept)
    add_plan_option(kept)
    add_shard_option(kept)
    # None, so that a start of 0 that is given is told from none
    add_loading_options(command)
    command.set_defaults(run=edit, start=None, branch=None)


def edit(options) -> Outcome:
    """Make source, edited and target picture, and keep them with the plan that made them."""
    if options.picture is None:
        require_no_picture_options(options)
    pairs = asked_pairs(options)
    if is_comparison(options, pairs):
        require_no_picture(options)
        return compare_edits(options, pairs)
    require_one_process(options, "one edit")
    ((options.source, options.target),) = pairs
    if options.picture is not None:
        return shown(options, *edit_real_picture(options))
    return _edit_one(options)


def _edit_one(options) -> Outcome:
    """Make and keep the pictures of one pair, one seed and one method."""
    from textpatch.editing.methods import edit as edit_
    from textpatch.editing.result import upscaled

    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    upscaler = load_upscaler(options)
    request = dict(
        command="edit",
        source=options.source,
        target=options.target,
        seed=options.seeds[0],
        steps=steps,
        guidance=guidance,
        **upscaled_by(options, upscaler),
    )
    require_same_run(options, pipeline, request)
    run = {"at_once": 3, "steps": steps, "guidance": guidance}
    planned = announced(options, pipeline, "source + edited + target", 3, **run)
    if planned is not None:
        return planned
    made = edit_(
        pipeline,
        options.source,
        options.target,
        method=options.method[0],
        start=options.start,
        seed=options.seeds[0],
        steps=steps,
        guidance=guidance,
        branch=options.branch,
        sites=options.sites,
        tokens=options.tokens,
    )
    request |= {"plan": json.loads(made.plan.to_json()), **_made_otherwise(made)}
    if upscaler is not None:
        made = upscaled(made, upscaler)
    run = open_run(options, pipeline, request)
    pictures = made.pictures
    paths = {name: run.image(image) for name, image in pictures.items()}
    told = {"plan_sha256": made.plan.sha256, "pictures": paths}
    result = {"schema_version": 1, **request, **told}
    # those of larger pictures are not known
    place = None if upscaler is not None else pipeline.defaults.text_box
    return shown(options, run, pictures, result, place)


def _made_otherwise(made) -> dict:
    """The method in a request, nothing for the localized one, so that older run folders go on."""
    if made.method == "localized":
        return {}
    return {"method": made.method}


def shown(options, run, pictures: dict, result: dict, text_box=None) -> Outcome:
    """Write results.json and sheet.png with the pictures side by side, the edited one marked.

    text_box  where words stand.  Several lines are read line by line
    Beside each picture stands what is read in it, where something can read here.
    """
    from textpatch.pictures import png
    from textpatch.report.contact_sheet import draw_contact_sheet

    read, told = _read(options, pictures, text_box)
    if read:
        result = {**result, "read": read}
    run.write_json("results.json", result)
    row = [(image, read.get(name)) for name, image in pictures.items()]
    captions = list(pictures)
    sheet = draw_contact_sheet([row], captions=captions, best=captions.index("edited"))
    made = run.write_bytes("sheet.png", png(sheet))
    return Outcome(told, result, made, run.folder)


def _read(options, pictures: dict, text_box) -> tuple[dict[str, str], str]:
    """Return what is read in each picture, {} where nothing can read here, and the sentence about it."""
    from textpatch.metrics.readers.in_time import InTime
    from textpatch.metrics.readers.reading import line_boxes, readings_of
    from textpatch.prompts.pairs import Pair
    from textpatch.text import plain

    try:
        reader = reader_of_edits(options, [(options.source, options.target)])
        lines = line_boxes(text_box)
        boxes = [lines] * len(pictures) if len(lines) > 1 else None
        seen = InTime(reader).read(list(pictures.values()), boxes)
        found = readings_of(seen, len(pictures), reader)
    except OCRError as error:
        return {}, f"nothing was read: {error}"
    read = {name: plain(one.text) for name, one in zip(pictures, found, strict=True)}
    before, wanted = Pair(options.source, options.target).words
    now = read["edited"] or "nothing"
    if now.split() == wanted.split():
        return read, f"The edited picture reads {now}, as was asked; the source's word is {before}."
    return (
        read,
        f"The edited picture reads {now}; {wanted} was asked for, in the place of {before}.",
    )
