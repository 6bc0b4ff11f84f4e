"""The verb `textpatch generate`."""

from __future__ import annotations

import argparse
import itertools
import os
from contextlib import nullcontext
from functools import partial

from textpatch.cli.models import load_sized, load_upscaler
from textpatch.cli.opening import folder_of, open_folder, upscaled_by, whole_request
from textpatch.cli.options import (
    SENTENCE,
    Help,
    add_folder_option,
    add_model,
    add_sampling_options,
    add_upscale_option,
    number,
)
from textpatch.exits import warn
from textpatch.runs.interrupts import told_on_interrupt

ON_SHEET = 256  # prompts, since a sheet holds all its pictures in memory

HELP = Help(
    usage="textpatch generate MODEL PROMPT [PROMPT ...] [options]",
    summary="make pictures of prompts",
    about="""\
Make a picture of every prompt with every seed, and a sheet of all, of 256 prompts at most.

Cost: one generation for every prompt and seed. Guidance doubles it, because every step then
predicts twice. Pictures are kept as they are made, in batches of eight: after Ctrl-C the
same command goes on with the rest.\
""",
    examples=(
        (
            "one prompt from three noises",
            f"textpatch generate tiny-mmdit '{SENTENCE}' --seed 0 1 2",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch generate`."""
    add_model(command)
    command.add_argument(
        "prompts",
        nargs="+",
        metavar="PROMPT",
        help=f"what to draw; the shipped models understand sentences like: {SENTENCE}",
    )
    command.add_argument(
        "--prompts-from",
        metavar="LAYOUT",
        help="take PROMPT for the path of a benchmark's prompts, a file or a folder of the layout cvtg-2k, "
        "longtext-bench, toxicbench, simplebench or creativebench; for the first three the pictures also "
        "get the names that the scorer looks for, in the run folder's LAYOUT/",
    )
    pictures = command.add_argument_group("how pictures are made")
    pictures.add_argument(
        "--seed",
        type=int,
        nargs="+",
        metavar="SEED",
        default=[0],
        help="seeds of the noise; every prompt is drawn with every seed (default: 0)",
    )
    pictures.add_argument(
        "--negative",
        metavar="PROMPT",
        help="negative prompt (default: none; SDXL reads zeros then, the others the empty prompt)",
    )
    pictures.add_argument(
        "--lora",
        metavar="FILE",
        help="adapter that acts on the model, of textpatch, peft, diffusers, kohya or ComfyUI",
    )
    pictures.add_argument(
        "--lora-scale", type=number, metavar="SCALE", default=1.0, help="its scale (default: 1)"
    )
    add_sampling_options(pictures)
    add_upscale_option(pictures)
    add_folder_option(command.add_argument_group("what is kept"))
    command.set_defaults(run=generate)


def generate(options) -> None:
    """Make a picture per prompt and seed, and a sheet of all."""
    from textpatch.cli.benchmark_prompts import asked_prompts, keep_for_scorer
    from textpatch.runs.album import Album

    asked = asked_prompts(options)
    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    upscaler = load_upscaler(options)
    adapter, adapted_by = _adapter(options)
    request = dict(
        command="generate",
        prompts=asked.prompts,
        seeds=options.seed,
        steps=steps,
        guidance=guidance,
        negative=options.negative,
        **upscaled_by(options, upscaler),
        **adapted_by,
    )
    under = nullcontext
    if adapter is not None:
        under = partial(adapter.applied, pipeline, scale=options.lora_scale)
        under()  # an adapter of another model is refused before anything is drawn
    pipeline.check(asked.prompts, seeds=options.seed, steps=steps)
    if upscaler is not None:
        upscaler.check(asked.prompts, seeds=options.seed, steps=upscaler.defaults.steps)

    def draw(some: list[tuple[str, int]]) -> list:
        prompts, seeds = zip(*some, strict=True)
        with under():
            images = pipeline.generate(
                prompts, seeds=seeds, steps=steps, guidance=guidance, negative=options.negative
            )
        if upscaler is None:
            return images
        return upscaler.upscale(images, prompts, seeds=seeds)

    request = whole_request(options, pipeline, request)
    album = Album(
        list(itertools.product(asked.prompts, options.seed)),
        draw,
        partial(open_folder, options, request, loaded=list(pipeline.notes)),
        goes_on=os.path.exists(folder_of(options, request) / "manifest.json"),
    )
    with told_on_interrupt(album):
        album.fill()
        album.run.write_json("results.json", {"schema_version": 1, "pictures": album.pictures})
        keep_for_scorer(asked, album)
        shown = album.pictures[: ON_SHEET * len(options.seed)]
        album.run.write_bytes("sheet.png", _sheet(album.run, shown, options.seed))
    print(album.run.folder / "sheet.png")


def _adapter(options) -> tuple:
    """Return the adapter of --lora, or None, and what it adds to a request."""
    if options.lora is None:
        return None, {}
    from textpatch.weights import load_adapter

    adapter = load_adapter(options.lora)
    for note in adapter.notes:
        warn(f"{options.lora}: {note}")
    return adapter, {"lora": adapter.sha256, "lora_scale": options.lora_scale}


def _sheet(run, pictures: list[dict], seeds: list[int]) -> bytes:
    """Draw pictures as PNG, a line per prompt and a column per seed."""
    from textpatch.pictures import open_picture, png
    from textpatch.report.contact_sheet import draw_contact_sheet

    cells = [(open_picture(run.folder / made["image"]), None) for made in pictures]
    lines = [cells[first : first + len(seeds)] for first in range(0, len(cells), len(seeds))]
    return png(draw_contact_sheet(lines, captions=[f"seed {seed}" for seed in seeds]))
