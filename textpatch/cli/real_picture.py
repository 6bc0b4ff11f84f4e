"""The part of `textpatch edit` that edits a picture file."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from textpatch.cli.models import load_sized
from textpatch.cli.opening import open_run
from textpatch.errors import PatchError

# the names of textpatch.editing.inverting, which imports torch
INVERSIONS = (
    "ddim",
    "fixed_point",
    "renoise",
    "negative_prompt",
    "euler",
    "midpoint",
    "rf_solver",
    "fireflow",
    "rf_inversion",
    "rf_inversion_two_clocks",
    "flowedit",
)
DEFAULT = "fixed_point"


def add_picture_options(command: argparse.ArgumentParser) -> None:
    """Add which picture is edited, and how its noise is found."""
    group = command.add_argument_group("a real picture")
    group.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="PNG, JPEG or WebP file of the model's size to edit, which the source prompt describes",
    )
    group.add_argument(
        "--inversion",
        choices=INVERSIONS,
        metavar="METHOD",
        help=f"how the noise of --picture is found: {', '.join(INVERSIONS)} (default: {DEFAULT})",
    )


def require_no_picture_options(options) -> None:
    """Raise PatchError for an inversion without a picture."""
    if options.inversion is not None:
        raise PatchError(
            f"--inversion {options.inversion} was given without --picture; name a picture, or leave it out"
        )


def require_no_picture(options) -> None:
    """Raise PatchError for a picture beside several pairs or methods, which are of generated ones."""
    if options.picture is not None:
        raise PatchError(
            f"--picture {options.picture} was given with several pairs or methods, which are compared on "
            "generated pictures; leave one of them out"
        )


def edit_real_picture(options) -> tuple:
    """Edit --picture, and keep what was made.

    Return the open run, the pictures by name, the result, and where the model's lines of text stand.
    Raises PatchError beside --upscale and another --method, which begin from a seed.
    """
    from textpatch.editing.real_pictures import edit_picture

    if options.method != ["localized"]:
        raise PatchError(
            f"--method {' '.join(options.method)} edits generated pictures, and --picture was given; "
            "leave one of them out"
        )
    if options.upscale is not None:
        raise PatchError(
            "--upscale draws generated pictures larger, and --picture was given; leave one of them out"
        )
    if options.tokens is not None:
        raise PatchError(
            f"--tokens {options.tokens} edits generated pictures, and --picture was given; leave one of them "
            "out"
        )
    pipeline = load_sized(options)
    made = edit_picture(
        pipeline,
        options.picture,
        options.source,
        options.target,
        sites=options.sites,
        start=options.start or 0,
        method=options.inversion or DEFAULT,
        seed=options.seeds[0],
        steps=options.steps,
        guidance=options.guidance,
        branch=options.branch or "both",
    )
    request = _request(options, made)
    run = open_run(options, pipeline, request)
    paths = {name: run.image(image) for name, image in made.pictures.items()}
    told = {"plan_sha256": made.plan.sha256, "errors": _errors(made), "pictures": paths}
    result = {"schema_version": 1, **request, **told}
    return run, made.pictures, result, pipeline.defaults.text_box


def _request(options, made) -> dict:
    """Return everything that decides an edit of a picture, whose pixels stand for it."""
    from textpatch.editing.inverting import settings
    from textpatch.guidance import described

    return dict(
        command="edit",
        source=options.source,
        target=options.target,
        picture=hashlib.sha256(made.picture.tobytes()).hexdigest(),
        inversion=settings(made.method),
        seed=made.seed,
        steps=made.steps,
        guidance=described(made.guidance),
        plan=json.loads(made.plan.to_json()),
    )


def _errors(made) -> dict | None:
    """Return how much of the picture its inversion lost.  None for a method that inverts nothing."""
    if made.inversion is None:
        return None
    return vars(made.inversion.errors)
