"""The verb `textpatch edit`."""

from __future__ import annotations

import argparse
import json

from textpatch.cli.compared_edits import add_comparison_options, compare_edits, is_comparison
from textpatch.cli.models import load_sized, load_upscaler
from textpatch.cli.opening import open_run, upscaled_by
from textpatch.cli.options import (
    OTHER_SENTENCE,
    SENTENCE,
    SITES_HELP,
    Help,
    add_folder_option,
    add_model,
    add_sampling_options,
    add_swap_options,
    add_upscale_option,
)
from textpatch.cli.real_picture import (
    add_picture_options,
    edit_real_picture,
    require_no_picture,
    require_no_picture_options,
)
from textpatch.errors import PatchError

HELP = Help(
    usage="textpatch edit MODEL (--source PROMPT --target PROMPT | --pairs FILE) [options]",
    summary="keep the picture of one prompt, write the word of another",
    about="""\
Keep the picture of one prompt, and write the word of another into it.

The source prompt is generated again from the same noise, but the sites that carry the word
read the text of the target prompt. sheet.png shows source, edited and target picture side
by side, and results.json keeps the plan that made them, which `textpatch audit` checks.

Several pairs or several methods are compared: the words are read, a table is printed, and
the sheet has a line for each pair. After Ctrl-C the same command goes on with the rest.

With --picture the picture of a file is kept, which the source prompt describes. Its noise is
found first, and the sheet shows beside the edit what comes back from it without one.

Cost: three generations, in one batch; of a comparison one or two for each pair and method,
and two more for each pair; of --picture two more, and as many calls as its inversion takes.\
""",
    examples=(
        (
            "another word on the same sign",
            f"textpatch edit planted-mmdit --source '{SENTENCE}' --target '{OTHER_SENTENCE}'",
        ),
        (
            "the swap beside drawing the target's prompt, on the pairs of a file",
            "textpatch edit planted-mmdit --pairs pairs.tsv --method localized prompt_swap",
        ),
        (
            "another word in the picture of a file",
            "textpatch edit planted-mmdit --picture sign.png --source '...' --target '...'",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch edit`."""
    add_model(command)
    swap = command.add_argument_group("what is swapped")
    swap.add_argument("--source", metavar="PROMPT", help="prompt whose picture is kept")
    swap.add_argument("--target", metavar="PROMPT", help="prompt whose word is wanted")
    swap.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        help=f"sites swapped together: {SITES_HELP} (default: those localised for the model)",
    )
    add_swap_options(swap)
    add_comparison_options(command)
    add_picture_options(command)
    pictures = command.add_argument_group("how pictures are made")
    pictures.add_argument(
        "--seed", type=int, metavar="SEED", default=0, help="seed of the noise (default: 0)"
    )
    add_sampling_options(pictures)
    add_upscale_option(pictures)
    add_folder_option(command.add_argument_group("what is kept"))
    # None, so that a start of 0 that is given is told from none
    command.set_defaults(run=edit, start=None, branch=None)


def edit(options) -> None:
    """Make source, edited and target picture, and keep them with the plan that made them."""
    from textpatch.editing.methods import edit as edit_
    from textpatch.editing.result import upscaled

    if options.picture is None:
        require_no_picture_options(options)
    if is_comparison(options):
        require_no_picture(options)
        compare_edits(options)
        return
    _require_alone(options)
    if options.picture is not None:
        show(*edit_real_picture(options))
        return
    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    upscaler = load_upscaler(options)
    made = edit_(
        pipeline,
        options.source,
        options.target,
        method=options.method[0],
        start=options.start,
        seed=options.seed,
        steps=steps,
        guidance=guidance,
        branch=options.branch,
        sites=options.sites,
    )
    request = dict(
        command="edit",
        source=options.source,
        target=options.target,
        seed=options.seed,
        steps=steps,
        guidance=guidance,
        plan=json.loads(made.plan.to_json()),
        **_made_otherwise(made),
        **upscaled_by(options, upscaler),
    )
    if upscaler is not None:
        made = upscaled(made, upscaler)
    run = open_run(options, pipeline, request)
    pictures = made.pictures
    paths = {name: run.image(image) for name, image in pictures.items()}
    run.write_json(
        "results.json",
        {"schema_version": 1, **request, "plan_sha256": made.plan.sha256, "pictures": paths},
    )
    show(run, pictures)


def _made_otherwise(made) -> dict:
    """The method in a request, nothing for the localized one, so that older run folders go on."""
    if made.method == "localized":
        return {}
    return {"method": made.method}


def _require_alone(options) -> None:
    """Raise PatchError for a prompt that is missing, and for --reader where nothing is read."""
    for name in ("source", "target"):
        if getattr(options, name) is None:
            raise PatchError(f"edit needs --{name} PROMPT beside the other prompt, or --pairs FILE")
    if options.reader is not None:
        raise PatchError(
            f"--reader {options.reader} reads the pictures of several pairs or methods, and there is one of "
            "each; leave it out"
        )


def show(run, pictures: dict) -> None:
    """Write the pictures side by side, the edited one marked, as sheet.png, and print its path."""
    from textpatch.pictures import png
    from textpatch.report.contact_sheet import draw_contact_sheet

    row = [(image, None) for image in pictures.values()]
    captions = list(pictures)
    sheet = draw_contact_sheet([row], captions=captions, best=captions.index("edited"))
    run.write_bytes("sheet.png", png(sheet))
    print(run.folder / "sheet.png")
