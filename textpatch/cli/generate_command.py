"""`textpatch generate`: its options, and what it does."""

from __future__ import annotations

import argparse
import os
from functools import partial

from textpatch.cli.opening import (
    _folder,
    _opened,
    _told_on_interrupt,
    _whole,
    load_sized,
    open_upscaler,
)
from textpatch.cli.options import MODEL_HELP, SENTENCE, add_common_options, add_upscale_option


def add_generate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help=f"for shipped models like: {SENTENCE}"
    )
    command.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="noise seeds; every prompt with every seed"
    )
    command.add_argument(
        "--negative",
        help="negative prompt (default: none; SDXL reads zeros then, the others the empty prompt)",
    )
    add_upscale_option(command)
    add_common_options(command)
    command.set_defaults(run=generate)


def generate(options) -> None:
    """`textpatch generate`: one picture per prompt and seed, and a sheet of all."""
    from textpatch.pictures import open_picture, png
    from textpatch.report.contact_sheet import draw_contact_sheet
    from textpatch.runs.album import Album

    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    request = dict(
        command="generate",
        prompts=options.prompts,
        seeds=options.seed,
        steps=steps,
        guidance=guidance,
        negative=options.negative,
    )
    upscaler = open_upscaler(options, request)
    pipeline.check(options.prompts, seeds=options.seed, steps=steps)
    if upscaler:
        upscaler.check(options.prompts, seeds=options.seed, steps=upscaler.defaults.steps)

    def draw(some: list[tuple[str, int]]) -> list:
        prompts, seeds = zip(*some)
        images = pipeline.generate(
            prompts, seeds=seeds, steps=steps, guidance=guidance, negative=options.negative
        )
        return upscaler.upscale(images, prompts, seeds=seeds) if upscaler else images

    request = _whole(options, pipeline, request)
    stored = _folder(options, request) / "manifest.json"
    album = Album(
        [(prompt, seed) for prompt in options.prompts for seed in options.seed],
        draw,
        partial(_opened, options, request),
        goes_on=os.path.exists(stored),
    )
    with _told_on_interrupt(album):
        album.fill()
        run, images = (
            album.run,
            [open_picture(album.run.folder / made["image"]) for made in album.pictures],
        )
        run.write_json("results.json", {"schema_version": 1, "pictures": album.pictures})
        n = len(options.seed)
        rows = [[(image, None) for image in images[i : i + n]] for i in range(0, len(images), n)]
        run.write_bytes(
            "sheet.png", png(draw_contact_sheet(rows, captions=[f"seed {s}" for s in options.seed]))
        )
    print(run.folder / "sheet.png")
