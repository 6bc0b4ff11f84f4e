"""Record a denoiser's call as one CUDA graph, and let it carry out two plans.

    python benchmarks/graphs.py --device cuda

A plan is a tensor that the graph reads, so a graph recorded once carries out every plan of the same
shape. The ways, each with row 0 reading the text of row 1 at the middle site:

  eager sdpa      called from Python, text gathered before torch's attention
  eager triton    called from Python, text read through the table by the kernels
  graph sdpa      recorded. Torch cannot ask there whether a table hides a token, and always masks
  graph triton    recorded, by the kernels

Before anything is timed each way is held to `eager sdpa` under two plans. For the second one, by which
row 1 reads row 0, the plan is written into the graphs' table and they are replayed. Row 0 must then not
be what it was. A way that refuses is listed with its reason and not timed. On a CPU there are no graphs,
and the table says so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from full_size import TOLERANCE
from measure import (
    TIMES,
    Table,
    Unequal,
    arguments,
    environment,
    in_turns,
    parsed,
    replayed,
    require_alike,
    timed,
)
from random_models import MODELS, denoiser, inputs, slots_of
from textpatch.attention import use_backend
from textpatch.errors import PatchError
from textpatch.plan import Row, Swap
from textpatch.ports.shipped import find_sites

BASELINE = "eager sdpa"
WAYS = [BASELINE, "eager triton", "graph sdpa", "graph triton"]
REFUSALS = ImportError, NotImplementedError, RuntimeError, PatchError
COLUMNS = ["model", "rows", "dtype", "way", "difference", *TIMES, "note"]
Slots = list[Tensor | None]


class Call:
    """One call of a denoiser, with a table of slots in place that plans are written into."""

    def __init__(self, name: str, model: nn.Module, rows: int):
        self.model = model
        self.given = inputs(name, model, rows)
        self.plans = [self._plan(reader="0", donor="1"), self._plan(reader="1", donor="0")]
        self.slots = [None if table is None else table.clone() for table in self.plans[0]]

    def _plan(self, reader: str, donor: str) -> Slots:
        rows = [Row(str(b), str(b)) for b in range(len(self.given[0]))]
        middle = len(find_sites(self.model)) // 2
        return slots_of([Swap(middle, reader, donor)], rows, self.model, self.given[2])

    def write(self, plan: Slots) -> None:
        """Let the table that graphs read be that of a plan."""
        for there, wanted in zip(self.slots, plan, strict=True):
            if there is not None:
                there.copy_(wanted)

    def eager(self, backend: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with use_backend(backend):
                return self.model(*self.given, slots=self.slots)

        return call


def made(call: Call, way: str) -> Callable[[], Tensor]:
    """A way by its name.  Raises one of REFUSALS where it cannot be had on this device."""
    launched, backend = way.split()
    eager = call.eager(backend)
    eager()  # compiles the kernels, which no graph can record
    if launched == "eager":
        return eager
    device = call.given[0].device
    if device.type != "cuda":
        raise NotImplementedError(f"CUDA graphs need a GPU, and this is {device}")
    return replayed(eager, device)


def results(call: Call, way: Callable[[], Tensor]) -> list[Tensor]:
    """The outputs of a way under each of the two plans.

    A graph writes every result into the same memory, so each is copied.
    """
    found = []
    for plan in call.plans:
        call.write(plan)
        found.append(way().clone())
    call.write(call.plans[0])
    return found


def require_both_plans(way: str, found: list[Tensor], expected: list[Tensor]) -> float:
    """The larger difference from what is expected under either plan, of the largest output.

    Raises Unequal where that is above full_size.TOLERANCE.
    Raises Unequal where the second plan left row 0 as the first made it.
    """
    tolerance = TOLERANCE[expected[0].dtype]
    largest = max(
        require_alike(way, *pair, tolerance) for pair in zip(found, expected, strict=True)
    )
    if torch.equal(found[0][0], found[1][0]):
        raise Unequal(f"{way}: row 0 is the same under both plans")
    return largest


@torch.no_grad()
def measure_model(table: Table, name: str, rows: int, options) -> None:
    """Check and time all ways of one model's call, and add them to the table."""
    call = Call(name, denoiser(name, options.device, options.dtype), rows)
    expected = results(call, call.eager("sdpa"))
    ways = {}
    differences = {}
    refused = {}
    for way in WAYS:
        try:
            ready = made(call, way)
        except REFUSALS as reason:
            refused[way] = " ".join(str(reason).split())[:90]
            continue
        differences[way] = require_both_plans(way, results(call, ready), expected)
        ways[way] = ready
    taken = in_turns(ways, rounds=options.rounds, device=options.device, least=options.least)
    same = dict(model=name, rows=rows, dtype=str(options.dtype).removeprefix("torch."))
    for way in ways:
        table.add(**same, way=way, difference=differences[way], **timed(taken, way, BASELINE))
    for way, reason in refused.items():
        table.add(**same, way=way, note=reason)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        metavar="MODEL",
        default=["sdxl-1024px", "sd3-1024px"],
        help=f"of {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[2, 8], help="batch rows of a call (2 8)"
    )
    parser.add_argument(
        "--least", type=float, default=0.05, help="least seconds of a measurement (0.05)"
    )
    options = parsed(parser, argv)
    if min(options.rows) < 2:
        parser.error(f"--rows {min(options.rows)}; a swap needs two rows at least")
    table = Table(COLUMNS, environment(options.device, "triton"), options.csv, options.append)
    for name in options.models:
        for rows in options.rows:
            measure_model(table, name, rows, options)


if __name__ == "__main__":
    main()
