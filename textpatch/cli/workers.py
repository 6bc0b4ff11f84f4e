"""Which worker of a run a command is, by --shard or by the environment of torchrun."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from textpatch.errors import PatchError, Unfinished

GROUP = "MASTER_ADDR"  # where processes of torchrun meet
OPTION = "--shard"


def add_shard_option(group) -> None:
    """Add which part of the work this process does."""
    group.add_argument(
        OPTION,
        metavar="I/N",
        help="do the I-th of N parts, 0/N to N-1/N, into the run folder they share (default: the part of a "
        "process of torchrun, else all)",
    )


@contextlib.contextmanager
def worker_of(options) -> Iterator:
    """Yield the `Worker` that options or environment ask for, and join torchrun's group for it.

    Of torchrun's processes the first alone says what it does.
    Raises PatchError for a shard that there is not, and for processes of several versions.
    """
    told = _told(options)
    if told is None:
        from textpatch.runs.workers import Worker

        yield Worker()
    elif options.shard is None and GROUP in os.environ:
        with group_of_processes() as rank, _hushed(rank.index):
            yield rank
    else:
        from textpatch.runs.workers import Shard

        yield Shard(*_numbers(told))


def _told(options) -> str | None:
    """Text of --shard, or of the number and count of torchrun's processes where they are several."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    if options.shard is None and ranks != "1":
        return f"{os.environ.get('RANK')}/{ranks}"
    return options.shard


def _numbers(told: str) -> tuple[int, int]:
    index, _, count = told.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise PatchError(f"no shard {told!r}; give I/N, such as 0/4 to 3/4 for four parts")
    return int(index), int(count)


@contextlib.contextmanager
def group_of_processes(backend: str = "gloo") -> Iterator:
    """Join torchrun's group of processes, see that all have the same versions, and yield a `Rank`."""
    from textpatch.runs.packages import versions
    from textpatch.runs.ranks import Rank, joined_group, require_alike

    with joined_group(backend):
        require_alike("versions", versions())
        yield Rank()


@contextlib.contextmanager
def _hushed(rank: int) -> Iterator[None]:
    """Print and show no progress inside the block, but in the first process."""
    from textpatch.progress import quiet

    if rank == 0:
        yield
        return
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield


def require_writer(options, folder: Path) -> None:
    """Raise Unfinished, to end here, where another process writes what follows from all records."""
    if not options.worker.writes(folder):
        raise Unfinished(
            f"{options.worker} is done; the first that is at work writes the results to {folder}"
        )


def require_one_process(options, what: str) -> None:
    """Raise PatchError for a shard of work that cannot be divided, and Unfinished in all but one process."""
    if options.shard is not None:
        raise PatchError(f"{OPTION} {options.shard} of {what} was asked for; leave {OPTION} out")
    if options.worker.index:
        raise Unfinished(f"{what} is done by the first process")


def undivided(argv: list[str]) -> list[str]:
    """Arguments without --shard, the same for all parts."""
    words = iter(argv)
    kept = []
    for word in words:
        if word == OPTION:
            next(words, None)
        elif not word.startswith(f"{OPTION}="):
            kept.append(word)
    return kept
