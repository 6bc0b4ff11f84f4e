"""Time the published denoisers beside diffusers' with the same weights.

    python benchmarks/full_size.py --device cuda

The weights are random, of the published sizes, and made on the device: SDXL and SD3-medium for 1024 and
512 pixels, IF-I-XL for 64.  A block is one model, one number of rows, and one mode, eager or compiled by
torch.compile of the whole model with fullgraph=True.  Its ways run in turns, in one process, on the same
tensors:

  textpatch              the model as it is
  textpatch, one swap    row 0 reads the text keys and values of row 1 at the middle site
                         (from two rows on)
  diffusers              its model (the extra `reference`, left out where that is not installed)

A call is one denoising step of so many batch rows, both guidance branches counted.  `peak_mb` is what it
takes beside weights and inputs.  Outputs are compared before anything is timed.

  --resume --csv FILE  goes on after the blocks that FILE holds
  --minutes 8          starts no block later
  --only-compile       times nothing.  What is compiled stays in torch's cache on disk, so that several
                       processes, each with one of the --ways, compile at the same time what a later one
                       then measures
  --localize           runs one whole exhaustive localisation in place of blocks, as localization_cost.py
  --scale small        is for trying the script out
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from localization_cost import COLUMNS as LOCALIZATION
from localization_cost import Job, measure_job
from measure import (
    TIMES,
    Table,
    Unequal,
    arguments,
    environment,
    in_turns,
    kept,
    megabytes,
    parsed,
    require_alike,
    timed,
    with_peak,
)
from random_models import MODELS, apart, call_twin, denoiser, inputs, pipeline, slots_of, twin
from textpatch.plan import Row, Swap
from textpatch.ports.shipped import find_sites

SCALES = {
    "published": ["sdxl-1024px", "sdxl-512px", "sd3-1024px", "sd3-512px", "if-64px"],
    "small": ["sdxl-small", "mmdit-small", "if-small"],
}
# of the largest output: roundings of a whole model in another order
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
BARE = "textpatch"
SWAPPED = "textpatch, one swap"
THEIRS = "diffusers"
WAYS = [BARE, SWAPPED, THEIRS]
KEYS = ["model", "rows", "dtype", "mode"]
COLUMNS = [*KEYS, "way", "difference", *TIMES, "peak_mb", "note"]


def made(model: nn.Module, mode: str, compiler: str = "inductor") -> nn.Module:
    """The model, or a compiled copy that shares its tensors."""
    if mode == "eager":
        return model
    copied = apart(model)
    copied.compile(fullgraph=True, dynamic=False, backend=compiler)
    return copied


def ways_of(block: dict, model: nn.Module, options) -> dict[str, Callable[[], Tensor]]:
    """A call of each of the ways asked for, by its name."""
    name = block["model"]
    rows = block["rows"]
    mode = block["mode"]
    given = inputs(name, model, rows)
    called = made(model, mode, options.compiler)
    ways = {BARE: lambda: called(*given)}
    if rows > 1:
        labelled = [Row(str(b), str(b)) for b in range(rows)]
        slots = slots_of([Swap(len(find_sites(model)) // 2, "0", "1")], labelled, model, given[2])
        ways[SWAPPED] = lambda: called(*given, slots=slots)
    try:
        import diffusers
    except ImportError as reason:
        print(f"diffusers is left out: {reason}")
    else:
        theirs = made(twin(diffusers, name, model), mode, options.compiler)
        ways[THEIRS] = lambda: call_twin(theirs, *given)
    return {way: call for way, call in ways.items() if way in options.ways}


def differences(outputs: dict[str, Tensor], expected: Tensor) -> dict[str, float]:
    """The difference of each way from our eager model, over the largest output.

    Raises Unequal where that is above TOLERANCE, and if a swap moved another row than row 0, or not row 0.
    """
    tolerance = TOLERANCE[expected.dtype]
    found = {}
    for way, out in outputs.items():
        others = slice(1, None) if way == SWAPPED else slice(None)
        found[way] = require_alike(way, out[others], expected[others], tolerance)
    if SWAPPED in outputs and torch.equal(outputs[SWAPPED][0], outputs[BARE][0]):
        raise Unequal(f"{SWAPPED}: row 0 is what it was without")
    return found


def first_calls(ways: dict[str, Callable[[], Tensor]]) -> str:
    """Call each way once, which compiles it.  Drop diffusers' where that fails, and return why.

    Memory that does not reach is no failure of a way, and comes through.
    """
    refused = ""
    for name, way in list(ways.items()):
        try:
            way()
        except torch.OutOfMemoryError:
            raise
        except Exception as reason:
            if name != THEIRS:
                raise
            refused = " ".join(f"{type(reason).__name__}: {reason}".split())[:90]
            del ways[name]
    return refused


@torch.no_grad()
def measure_block(table: Table, block: dict, model: nn.Module, options) -> None:
    torch._dynamo.reset()  # torch stops compiling a model past eight shapes
    ways = ways_of(block, model, options)
    expected = model(*inputs(block["model"], model, block["rows"]))
    refused = first_calls(ways)
    first = {way: with_peak(call, options.device) for way, call in ways.items()}
    found = differences({way: out for way, (out, _) in first.items()}, expected)
    peaks = {way: peak for way, (_, peak) in first.items()}
    del first, expected
    taken = in_turns(ways, rounds=options.rounds, device=options.device, least=0.05)
    for way in ways:
        table.add(
            **block,
            way=way,
            difference=found[way],
            peak_mb=megabytes(peaks[way]),
            **timed(taken, way, BARE),
        )
    if THEIRS in options.ways and THEIRS not in ways:
        table.add(**block, way=THEIRS, note=refused or "diffusers is not installed")


@torch.no_grad()
def compile_block(block: dict, model: nn.Module, options) -> None:
    """Call each way once, for what that leaves in the compiler's cache."""
    for way in ways_of(block, model, options).values():
        way()


def run_blocks(options, until: float) -> None:
    where = environment(options.device, "diffusers", "triton")
    names = options.models or SCALES[options.scale]
    kind = str(options.dtype).removeprefix("torch.")
    blocks = [
        dict(zip(KEYS, (name, rows, kind, mode), strict=True))
        for name, mode, rows in itertools.product(names, options.modes, options.rows)
    ]
    there = kept(options.csv, KEYS) if options.resume else set()
    left = [block for block in blocks if tuple(map(str, block.values())) not in there]
    table = Table(COLUMNS, where, options.csv, options.append or options.resume)
    model = None
    of = None
    for i, block in enumerate(left):
        if time.monotonic() > until:
            print(f"{len(left) - i} blocks are left; the same command with --resume goes on")
            return
        if of != block["model"]:
            model = None  # its memory first
            model = denoiser(block["model"], options.device, options.dtype)
            of = block["model"]
        if options.only_compile:
            compile_block(block, model, options)
            continue
        try:
            measure_block(table, block, model, options)
        except torch.OutOfMemoryError:
            table.add(**block, note="out of memory")
        if options.device.type == "cuda":
            torch.cuda.empty_cache()


def requested(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line.  Requests without effect end it."""
    parser = arguments(__doc__, rounds=9)
    add_options(parser)
    options = parsed(parser, argv)
    if options.resume and not options.csv:
        parser.error("--resume needs --csv, the file that holds what was measured")
    if BARE not in options.ways and not options.only_compile:
        parser.error(f"ratios are against {BARE!r}; name it among the --ways")
    return options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark asks for beside the options of all."""
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="published", help="which models, if none is named"
    )
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[1, 8, 26], help="batch rows of a call (1 8 26)"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"]
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=WAYS,
        metavar="WAY",
        help=f"of {', '.join(map(repr, WAYS))}; ratios are against the first",
    )
    parser.add_argument(
        "--compiler",
        default="inductor",
        help="torch.compile's backend (inductor; eager only traces)",
    )
    parser.add_argument(
        "--only-compile", action="store_true", help="call every way once, and time none"
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip the blocks that the CSV file holds"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no block after so many"
    )
    parser.add_argument(
        "--localize", action="store_true", help="one localisation of each model, in place of blocks"
    )
    parser.add_argument("--steps", type=int, help="of that localisation (the paper's 28 or 50)")


def run_localizations(options: argparse.Namespace) -> None:
    """Measure one localisation of each model asked for, or of the scale's usual one."""
    table = Table(
        LOCALIZATION,
        environment(options.device, "triton"),
        options.csv,
        options.append or options.resume,
    )
    usual = {"published": "sd3-512px", "small": "mmdit-small"}[options.scale]
    for name in options.models or [usual]:
        ours = pipeline(name, options.device, options.dtype)
        steps = options.steps or ours.defaults.steps
        job = Job(ours, steps, ours.defaults.guidance, micro_batch=64)
        compiled = "compiled" in options.modes
        measure_job(table, job, rounds=1, device=options.device, with_compiled=compiled)


def main(argv: list[str] | None = None) -> None:
    options = requested(argv)
    until = time.monotonic() + 60 * options.minutes
    if options.localize:
        run_localizations(options)
    else:
        run_blocks(options, until)


if __name__ == "__main__":
    main()
