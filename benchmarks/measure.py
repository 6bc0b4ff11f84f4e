"""Time several ways of doing one thing in turns, and keep the table of what came of it.

Each round runs every way once, in an order drawn anew.  So a machine that slows down slows all alike, and
no way always follows the same neighbour through its caches.  A ratio is taken within a round, against the
way named in the table.  Median and quartiles are those of all rounds.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import os
import platform
import random
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Piece = TypeVar("Piece")  # of a table, that is measured on its own
Made = TypeVar("Made")
# low and high are quartiles
TIMES = ["median_ms", "low_ms", "high_ms", "ratio", "ratio_low", "ratio_high"]


class Unequal(Exception):
    """Different results of two ways of doing one thing.  Then nothing is timed."""


def require_close(what: str, made: Tensor, expected: Tensor, bound: Tensor | float) -> float:
    """The largest |made - expected|.  Raises Unequal where that is above `bound`, or is no number."""
    difference = (made - expected).abs()
    if not bool((difference <= bound).all()):
        allowed = torch.as_tensor(bound).max().item()
        raise Unequal(
            f"{what}: differs by {difference.max().item():.1e}, at most {allowed:.1e} was allowed"
        )
    return difference.max().item()


def require_alike(what: str, made: Tensor, expected: Tensor, tolerance: float) -> float:
    """The ratio max |made - expected| / max |expected|.  Raises Unequal if it is above `tolerance`."""
    largest = expected.abs().max().item()
    return require_close(what, made, expected, tolerance * largest) / largest


def in_turns(
    ways: dict[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of one call of each way, one number per round.

    Every way is to have been called before, to be checked.  A way that takes less than `least` seconds is
    called again and again for that long, and the mean is taken.

    clock  `time.process_time` for ways that compute on one CPU thread of a machine with other work
    """
    calls = {
        name: max(1, math.ceil(least / _seconds(way, 1, device))) if least else 1
        for name, way in ways.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            taken[name].append(_seconds(ways[name], calls[name], device, clock))
    return taken


def _seconds(
    way: Callable[[], object],
    calls: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The mean of some calls in a row."""
    _wait(device)
    start = clock()
    for _ in range(calls):
        way()
    _wait(device)
    return (clock() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cpu() -> float:
    """Seconds of processor time of this process, and of those that have read for it."""
    taken = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in taken)


def timed(taken: dict[str, list[float]], name: str, against: str) -> dict:
    """The columns TIMES of one way, in milliseconds and in times of `against` in the same round."""
    low, median, high = np.percentile(taken[name], [25, 50, 75]) * 1e3
    quotients = np.divide(taken[name], taken[against])
    ratios = np.percentile(quotients, [50, 25, 75])
    return dict(zip(TIMES, map(float, (median, low, high, *ratios)), strict=True))


def with_peak(way: Callable[[], object], device: torch.device) -> tuple[object, int | None]:
    """The result of a call, and the bytes it takes at most beyond those there before it.

    None on a CPU, where torch keeps no count.
    """
    if device.type != "cuda":
        return way(), None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    made = way()
    _wait(device)
    return made, torch.cuda.max_memory_allocated(device) - before


def megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def replayed(way: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same work as a CUDA graph, so that the GPU is timed and not the launching from Python."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # the inputs may still be on their way
    with torch.cuda.stream(side):
        way()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = way()

    def again() -> object:
        graph.replay()
        return made

    return again


class Table:
    """A table that prints each row as Markdown, and with a path keeps it as CSV at once."""

    def __init__(
        self, columns: list[str], environment: str, path: Path | None = None, append: bool = False
    ):
        self.columns = columns
        self.environment = environment
        self.path = path
        if path and not (append and path.exists()):
            path.write_text(",".join([*columns, "environment"]) + "\n")
        print(f"{environment}\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, **row) -> None:
        """Add a row, empty where it says nothing.  Raises ValueError for a name that is no column."""
        cells = {name: "" if value is None else value for name, value in row.items()}
        print(
            "| " + " | ".join(_cell(cells.get(name, "")) for name in self.columns) + " |",
            flush=True,
        )
        if self.path:
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, [*self.columns, "environment"], restval="")
                writer.writerow(cells | {"environment": self.environment})


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def kept(path: Path | None, columns: list[str]) -> set[tuple[str, ...]]:
    """The cells of some columns in each row of a CSV file, none where there is no file."""
    if path is None or not path.exists():
        return set()
    with path.open(newline="") as file:
        return {tuple(row[name] for name in columns) for row in csv.DictReader(file)}


def environment(device: torch.device, *packages: str) -> str:
    """The machine's make, the versions and the commit, on one line, without the names of hosts or paths."""
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()
        machine = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    else:
        threads = torch.get_num_threads()
        machine = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    versions = [f"{name} {found}" for name in ("torch", *packages) if (found := _version(name))]
    return (
        f"{machine}; {', '.join(versions)}, python {platform.python_version()}; commit {_commit()}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit checked out, with `+` where files differ from it.

    Where git cannot tell, it is what the variable COMMIT holds.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, changes = (
            subprocess.run(
                [*git, *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")
    return commit + ("+" if changes else "")


EPILOG = """columns:
  median_ms, low_ms, high_ms    median and quartiles over the rounds
  ratio, ratio_low, ratio_high  the same of this way's time over that of the way it is against, in a round
"""


def arguments(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share, for `parsed` to read."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, epilog=EPILOG, formatter_class=shape)
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="float32 on a CPU, bfloat16 on a GPU unless given",
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"how often every way is timed ({rounds})"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of torch (what torch chooses)")
    parser.add_argument("--csv", type=Path, help="file that the table is written to, row by row")
    parser.add_argument(
        "--append", action="store_true", help="add to that file, where it is there already"
    )
    return parser


def processes_option(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option that says how many processes share the parts of a table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument(
        "--processes",
        type=int,
        default=cores,
        help=f"processes that measure parts side by side ({cores}, one for each core)",
    )


def in_processes(fn: Callable[[Piece], Made], parts: Sequence[Piece], count: int) -> Iterator[Made]:
    """Yield fn(part) of each part, in order, measured by so many processes side by side.

    A process computes on as many threads as there are for each of them, at least one.
    One process measures here.
    """
    count = min(count, len(parts))
    if count <= 1:
        yield from map(fn, parts)
        return
    threads = max(1, torch.get_num_threads() // count)
    with ProcessPoolExecutor(
        count, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        yield from pool.map(fn, parts)


def reader_option(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option that says what reads the words."""
    from textpatch.metrics.readers.named import DEFAULT, READERS

    parser.add_argument(
        "--reader", choices=READERS, default=DEFAULT, help=f"what reads the words ({DEFAULT})"
    )


def words_read(reader: str, pictures: Sequence, box: tuple) -> list[str]:
    """What a reader reads in one box of each picture, without blanks, which words do not have."""
    from textpatch.metrics import reader_named

    readings = reader_named(reader, []).read(pictures, [box] * len(pictures))
    return ["".join(reading.text.split()) for reading in readings]


def without_card(pipeline):
    """A copy of a pipeline that takes any prompt, whatever its card says of the words it draws."""
    free = copy.copy(pipeline)
    free.defaults = replace(pipeline.defaults, draws=None)
    return free


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options, the dtype as torch's, and the threads set."""
    options = parser.parse_args(argv)
    options.dtype = getattr(
        torch, options.dtype or ("bfloat16" if options.device.type == "cuda" else "float32")
    )
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}; give at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options
