"""Whole runs of Prompt-to-Prompt, without maps and with them, beside a plain run of the same rows.

    python benchmarks/edited_runs.py --csv benchmarks/results/edited_runs.csv

Random denoisers of middle size draw a source and a target with guidance, which is four rows.  All steps are
edited, half of the text columns, and the columns of the image too where a map has at most as many as the
published limit.

  plain      both rows, of which none is edited
  two calls  the target edited as `textpatch.editing` does it, which makes no map
  maps       the maps of all rows made at every attention, as published code does it, and the target's edited
  image_tokens, text_tokens  of the largest attention
  mb         megabytes of the largest tensor that a way makes
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor

import random_models
from edited_maps import Largest
from measure import TIMES, Table, arguments, environment, in_turns, parsed, require_alike, timed
from textpatch.bank import encode
from textpatch.editing.edited_run import EditedRun
from textpatch.editing.mappers import identity_mapper
from textpatch.editing.pair_edit import SELF_LIMIT, PairEdit
from textpatch.editing.replacing import TextStep, text_steps
from textpatch.guidance import ClassifierFree, branch_rows
from textpatch.plan import Row
from textpatch.reference_models import mmdit, sdxl

MODELS = "sdxl-middle", "mmdit-middle"
STEPS = 2
TOLERANCE = 1e-3  # float32, of the largest latent
ROWS = [Row("source", "one"), Row("edited", "other")]
COLUMNS = ["model", "image_tokens", "text_tokens", "way", "mb", *TIMES]


def half_of_the_text(tokens: int) -> TextStep:
    """Half of the text columns edited, as in a swap of some words in their window."""
    edited = (torch.arange(tokens) < tokens // 2).double()
    (step,) = text_steps(identity_mapper(tokens), edited[None], torch.ones(tokens).double())
    return step


def softmax_map(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def self_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the picture to itself by its maps, the target's the source's up to the limit."""
    maps = softmax_map(q, k)
    if k.shape[2] <= SELF_LIMIT:
        maps[-1] = maps[-2]
    return maps @ v


def site_attention(step: TextStep, q, k, v, slots_k=None, slots_v=None) -> tuple:
    """Attention of a site by its maps, the target's with text columns of the source's."""
    texts = [x if slots_k is None else x[slots_k[:, 0, 0] // x.shape[2]] for x in (k[1], v[1])]
    k, v = (
        torch.cat([x for x in (pair[0], text) if x is not None], dim=2)
        for pair, text in zip((k, v), texts, strict=True)
    )
    queries = torch.cat([x for x in q if x is not None], dim=2)
    count = q[0].shape[2]
    maps = softmax_map(queries, k)
    image = k.shape[2] - texts[0].shape[2]
    of_source, of_target = (maps[row, :, :count, image:] for row in (-2, -1))
    taken = step.taken.to(maps) * (of_source @ step.matrix.to(maps))
    maps[-1, :, :count, image:] = taken + step.kept.to(maps) * of_target
    if image > 0:
        maps[-1, :, :count, :image] = maps[-2, :, :count, :image]
    image, text = (maps @ v).split([count, queries.shape[2] - count], dim=2)
    return image, text


def by_maps(plain: Callable[[], Tensor], step: TextStep) -> Tensor:
    """A plain run in which every attention goes by its maps."""
    attend = partial(site_attention, step)
    with (
        mock.patch.object(sdxl, "segment_attention", attend),
        mock.patch.object(mmdit, "segment_attention", attend),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", self_attention),
    ):
        return plain()


def ways_of(name: str, device, dtype) -> dict[str, Callable[[], Tensor]]:
    """Latents of the target by each way."""
    pipeline = random_models.pipeline(name, device, dtype)
    guidance = ClassifierFree(pipeline.defaults.guidance)
    texts = encode(pipeline, branch_rows(ROWS, guidance))
    run = EditedRun(pipeline, ROWS, texts, "source", "edited", STEPS, guidance)
    step = half_of_the_text(texts.tokens)
    edit = PairEdit([step] * STEPS, image=range(STEPS))
    nothing = PairEdit([None] * STEPS)

    def plain() -> Tensor:
        with mock.patch("textpatch.editing.carrying.Carrier.require_edited"):
            return run.latents(nothing)["edited"]

    return {
        "plain": plain,
        "two calls": lambda: run.latents(edit)["edited"],
        "maps": partial(by_maps, plain, step),
    }


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"({' '.join(MODELS)})")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[32, 64], help="latents along a side (32 64)"
    )
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    clock = time.process_time if options.device.type == "cpu" else time.perf_counter
    for name in options.models or MODELS:
        for side in options.sides:
            size = dataclasses.replace(random_models.MODELS[name], side=side)
            with mock.patch.dict(random_models.MODELS, {name: size}):
                ways = ways_of(name, options.device, options.dtype)
            largest = {}
            for way, act in ways.items():
                with Largest() as seen:
                    act()
                largest[way] = seen.bytes / 1e6
            require_alike("two calls", ways["two calls"](), ways["maps"](), TOLERANCE)
            taken = in_turns(ways, rounds=options.rounds, device=options.device, clock=clock)
            for way in ways:
                table.add(
                    model=name,
                    image_tokens=(side // 2) ** 2,
                    text_tokens=size.tokens,
                    way=way,
                    mb=largest[way],
                    **timed(taken, way, "plain"),
                )


if __name__ == "__main__":
    main()
