"""A toy sweep over a run folder, and processes in which one of its system calls is its last, or fails."""

import faulthandler
import itertools
import os
import signal

from PIL import Image

from textpatch import disk
from textpatch.runs.folder import Run

REQUEST = {"request": {"model": "toy", "pairs": 3}}
# all by which the store changes a disk; `open` is the builtin, as the store sees it
CALLS = "open write fsync ftruncate replace link unlink mkdir close".split()
HANGS_AFTER = 240  # seconds, less than a test has


def sweep(folder, units: int = 3, worker: str = "0", began=lambda unit: None) -> None:
    """What a localisation does with its run folder: pictures and a record per unit, then one file
    made of all.
    """
    run = Run.open(folder, REQUEST, worker=worker)
    done = run.done()
    for unit in map(str, range(units)):
        if unit not in done:
            began(unit)
            picture = run.image(Image.new("L", (2, 2), int(unit)))
            run.append({"id": unit, "score": int(unit) / 3, "picture": picture})
    records = sorted(run.records(), key=lambda record: int(record["id"]))
    run.write_json("results.json", records)


def watch(patch, before) -> None:
    """Call before(name, arguments) ahead of each system call; what it returns, unless None,
    replaces the call.

    fsync does nothing: a kill does not lose what the system holds, and a power loss cannot be made here.
    """

    def wrapped(name, real):
        def call(*arguments, **options):
            instead = before(name, arguments)
            return (
                (None if name == "fsync" else real(*arguments, **options))
                if instead is None
                else instead
            )

        return call

    for name in CALLS:
        patch.setattr(os, name, wrapped(name, getattr(os, name)))
    patch.setattr(disk, "open", wrapped("open", open), raising=False)


def forked(work) -> int:
    """Do the work in a process of its own; its exit code, or minus the signal that ended it."""
    return waited(fork(work))


def fork(work) -> int:
    """Begin the work in a process of its own, which says where it is and ends if it hangs."""
    child = os.fork()
    if child:
        return child
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=2)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def waited(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(patch, n: int, work) -> int:
    """The work in a process of its own, killed ahead of its n-th system call (from 0)."""

    def child():
        count = itertools.count()
        kill, me = os.kill, os.getpid()
        watch(patch, lambda *_: kill(me, signal.SIGKILL) if next(count) == n else None)
        work()

    return forked(child)
