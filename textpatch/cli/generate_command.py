"""The verb `textpatch generate`."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from textpatch.cli.asked_words import warn_of_bare_prompts
from textpatch.cli.before import announced, fitting
from textpatch.cli.models import import_heavy, load_sized, load_upscaler
from textpatch.cli.opening import folder_of, notes_of, open_folder, upscaled_by, whole_request
from textpatch.cli.options import (
    SENTENCE,
    Help,
    add_batch_option,
    add_folder_option,
    add_loading_options,
    add_model,
    add_plan_option,
    add_prompts_options,
    add_sampling_options,
    add_seeds_option,
    add_upscale_option,
    number,
)
from textpatch.cli.outcome import Outcome
from textpatch.cli.workers import add_shard_option, require_writer
from textpatch.exits import warn
from textpatch.runs.interrupts import told_on_interrupt
from textpatch.text import number_of

ON_SHEET = 256  # pictures, since a sheet holds them all in memory

HELP = Help(
    usage="textpatch generate MODEL (PROMPT [PROMPT ...] | --prompts FILE) [options]",
    summary="make pictures of prompts",
    about="""\
Make a picture of every prompt with every seed, and a sheet of the first 256. The folder
pictures/ has them by names such as prompt-0002-seed-0007.png.

Cost: one generation for every prompt and seed. Guidance doubles it, because every step then
predicts twice. --plan says how long it takes. Pictures are kept as they are made, in batches
of eight: after Ctrl-C the same command goes on with the rest.\
""",
    examples=(
        (
            "one prompt from three noises",
            f"textpatch generate tiny-mmdit '{SENTENCE}' --seeds 0-2",
        ),
        (
            "how long the prompts of a file would take",
            "textpatch generate tiny-mmdit --prompts prompts.txt --seeds 0-9 --plan",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch generate`."""
    add_model(command)
    asked = command.add_argument_group("what is drawn")
    asked.add_argument(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help=f"what to draw; the shipped models understand sentences like: {SENTENCE}",
    )
    add_prompts_options(asked, "prompts, one a line")
    asked.add_argument(
        "--prompts-from",
        metavar="LAYOUT",
        help="take PROMPT for the path of a benchmark's prompts, a file or a folder of the layout cvtg-2k, "
        "longtext-bench, toxicbench, simplebench or creativebench; for the first three the pictures also "
        "get the names that the scorer looks for, in the run folder's LAYOUT/",
    )
    pictures = command.add_argument_group("how pictures are made")
    add_seeds_option(pictures)
    pictures.add_argument(
        "--negative",
        metavar="PROMPT",
        help="negative prompt (default: none; SDXL reads zeros then, the others the empty prompt)",
    )
    pictures.add_argument(
        "--lora",
        metavar="PATH",
        help="adapter that acts on the model, a file of textpatch, peft, diffusers, kohya or ComfyUI, or "
        "a run folder of finetune or rewrite",
    )
    pictures.add_argument(
        "--lora-scale", type=number, metavar="SCALE", default=1.0, help="its scale (default: 1)"
    )
    add_sampling_options(pictures)
    add_upscale_option(pictures)
    add_batch_option(pictures)
    kept = command.add_argument_group("what is kept, and by how many processes")
    add_folder_option(kept)
    add_plan_option(kept)
    add_shard_option(kept)
    add_loading_options(command)
    command.set_defaults(run=generate)


def generate(options) -> Outcome:
    """Make a picture per prompt and seed, and a sheet of all."""
    from textpatch.cli.benchmark_prompts import asked_prompts, keep_for_scorer

    asked = asked_prompts(options)
    warn_of_bare_prompts(options, asked.prompts)
    import_heavy()
    from textpatch.runs.album import AT_ONCE, Album

    pipeline = load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    run = {"steps": steps, "guidance": guidance}
    draw, drawn_by = _drawing(
        options, pipeline, asked.prompts, {**run, "negative": options.negative}
    )
    request = dict(command="generate", prompts=asked.prompts, seeds=options.seeds, **drawn_by)
    request = whole_request(options, pipeline, request)
    album = Album(
        list(itertools.product(asked.prompts, options.seeds)),
        draw,
        partial(open_folder, options, request, loaded=notes_of(pipeline)),
        goes_on=os.path.exists(folder_of(options, request) / "manifest.json"),
        at_once=fitting(options, pipeline, guidance, AT_ONCE),
        worker=options.worker,
    )
    prompts = number_of(len(asked.prompts), "prompt")
    made = f"{prompts} x {number_of(len(options.seeds), 'seed')}{_there(album)}"
    left = len(album.asked) - len(album.pictures)
    planned = announced(options, pipeline, made, left, at_once=album.at_once, **run)
    if planned is not None:
        return planned
    with told_on_interrupt(album):
        album.fill()
        require_writer(options, album.run.folder)
        result = {"schema_version": 1, "pictures": album.pictures}
        album.name_pictures()
        album.run.write_json("results.json", result)
        keep_for_scorer(asked, album)
        sheet = album.run.write_bytes("sheet.png", _sheet(album.run, album.pictures[:ON_SHEET]))
    made = number_of(len(album.pictures), "picture is", "pictures are")
    told = f"{made} in {album.run.folder / 'pictures'}"
    return Outcome(told, result, sheet, album.run.folder)


def _drawing(options, pipeline, prompts: list[str], run: dict) -> tuple[Callable, dict]:
    """Return the function that draws some prompts and seeds, and what decides its pictures.

    run  steps, guidance and negative prompt
    Raises PatchError for prompts that cannot be drawn, and for an adapter of another model.
    """
    upscaler = load_upscaler(options)
    adapter, adapted_by = _adapter(options)
    under = nullcontext
    if adapter is not None:
        under = partial(adapter.applied, pipeline, scale=options.lora_scale)
        under()  # an adapter of another model is refused before anything is drawn
    pipeline.check(prompts, seeds=options.seeds, steps=run["steps"])
    if upscaler is not None:
        upscaler.check(prompts, seeds=options.seeds, steps=upscaler.defaults.steps)

    def draw(some: list[tuple[str, int]]) -> list:
        prompts, seeds = zip(*some, strict=True)
        with under():
            images = pipeline.generate(prompts, seeds=seeds, **run)
        if upscaler is None:
            return images
        return upscaler.upscale(images, prompts, seeds=seeds)

    return draw, {**run, **upscaled_by(options, upscaler), **adapted_by}


def _there(album) -> str:
    """How many pictures need not be made, as a part of a sum."""
    if not album.pictures:
        return ""
    return f" - {len(album.pictures)} that are there"


def _adapter(options) -> tuple:
    """Return the adapter of --lora, or None, and what it adds to a request."""
    if options.lora is None:
        return None, {}
    from textpatch.weights import load_adapter

    adapter = load_adapter(options.lora)
    for note in adapter.notes:
        warn(f"{options.lora}: {note}")
    return adapter, {"lora": adapter.sha256, "lora_scale": options.lora_scale}


def _sheet(run, pictures: list[dict]) -> bytes:
    """Draw pictures as PNG, in lines that wrap, the name of each below it."""
    from textpatch.pictures import png
    from textpatch.report.contact_sheet import draw_gallery_sheet

    return png(
        draw_gallery_sheet(
            [run.picture(made["image"]) for made in pictures],
            [made["file"].removeprefix("pictures/").removesuffix(".png") for made in pictures],
        )
    )
