"""`textpatch edit`: its options, and what it does."""

from __future__ import annotations

import argparse
import json

from textpatch.cli.opening import load_sized, open_run, open_upscaler
from textpatch.cli.options import (
    MODEL_HELP,
    SITES_HELP,
    add_common_options,
    add_swap_options,
    add_upscale_option,
)


def add_edit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument("--source", required=True, help="prompt whose picture is kept")
    command.add_argument("--target", required=True, help="prompt whose word is wanted")
    command.add_argument(
        "--sites", nargs="+", help=f"{SITES_HELP}; swapped together (those localised for the model)"
    )
    command.add_argument("--seed", type=int, default=0)
    add_swap_options(command)
    add_upscale_option(command)
    add_common_options(command)
    command.set_defaults(run=edit)


def edit(options) -> None:
    """`textpatch edit`: source, edited and target picture side by side, and the plan that made them."""
    from textpatch.editing.localized import edit as edit_
    from textpatch.editing.localized import upscaled
    from textpatch.pictures import png
    from textpatch.report.contact_sheet import draw_contact_sheet

    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    upscaler = open_upscaler(options, said := {})
    made = edit_(
        pipeline,
        options.source,
        options.target,
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
        **said,
    )
    made = upscaled(made, upscaler) if upscaler else made
    run = open_run(options, pipeline, request)
    pictures = {"source": made.source, "edited": made.image, "target": made.target}
    paths = {name: run.image(image) for name, image in pictures.items()}
    run.write_json(
        "results.json",
        {"schema_version": 1, **request, "plan_sha256": made.plan.sha256, "pictures": paths},
    )
    sheet = draw_contact_sheet(
        [[(image, None) for image in pictures.values()]], captions=list(pictures), best=1
    )
    run.write_bytes("sheet.png", png(sheet))
    print(run.folder / "sheet.png")
