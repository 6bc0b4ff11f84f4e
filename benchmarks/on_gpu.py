"""Run the parts of on_gpu.sh in order, each in a process of its own with a time limit.

What a part came to is kept in parts.json in the folder of the results. A part that is done is not run
again unless --again names it. One that failed, was skipped or ran out of time is run again, and goes on
in the tables it left. A part may take its own seconds, and what earlier parts left of theirs. Nothing is
installed or downloaded. What is missing is named, and a part that cannot do without it is skipped.

The exit status is 0 if every part is done, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from decide import decide, rows_of
from gpu_parts import HERE, PARTS, ROOT, GPUPart, Skipped, wanted_cases

TO_LEAVE = 10  # seconds a process has to end by itself after its last word
DONE = "done"
FAILED = "failed"
LATE = "out of time"
SKIPPED = "skipped"
# what parts can do without, and then measure less
BESIDE = ["diffusers", "flash_attn_interface", "xdist"]
OUTER = ["reference_models", "weights"]  # folders of this checkout that belong into the package
# imported once for all parts; none starts a thread or touches a GPU
PRELOADED = ["attention_op", "full_size", "graphs", "whole_localization"]


# --- one part


def carried_out(part: GPUPart, out: Path, toy: bool, seconds: float) -> dict:
    """Carry a part out, and return its state, the reason, and the seconds it took.

    A part that runs on after its time is ended with all that it started.
    """
    start = time.monotonic()
    missing = [name for name in part.needs if not is_installed(name)]
    if missing:
        return {"state": SKIPPED, "reason": f"not installed: {', '.join(missing)}", "seconds": 0.0}
    context = get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(part, out, toy, seconds, sender))
    process.start()
    sender.close()
    state, reason = awaited(receiver, seconds)
    if state != LATE:
        process.join(timeout=TO_LEAVE)
    end(process.pid)
    process.join()
    return {"state": state, "reason": reason, "seconds": round(time.monotonic() - start, 1)}


def awaited(receiver: Connection, seconds: float) -> tuple[str, str]:
    """The state and the reason that a part's process tells, or that its silence means."""
    if not receiver.poll(seconds):
        return LATE, f"stopped after {seconds:.0f} s; run again, it goes on where its tables end"
    try:
        return receiver.recv()
    except EOFError:
        return FAILED, "its process ended without a word; see the log"


def child(part: GPUPart, out: Path, toy: bool, seconds: float, sender: Connection) -> None:
    """Run a part and send what came of it.  All that it prints goes to the log."""
    os.setsid()  # so that all it starts can be ended with it
    with (out / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    print(f"\n--- {part.name}", flush=True)
    try:
        if not toy:
            require_gpu()
        part.run(out, toy, seconds)
        said = DONE, ""
    except Skipped as reason:
        said = SKIPPED, str(reason)
    except BaseException as reason:
        traceback.print_exc()
        said = FAILED, " ".join(f"{type(reason).__name__}: {reason}".split())[:500]
    sys.stdout.flush()
    sender.send(said)


def end(process: int) -> None:
    """End a part's process and all that it started, where they have not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def require_gpu() -> None:
    """Raise Skipped where torch sees no GPU."""
    import torch  # here, for the process that keeps the time does without

    if not torch.cuda.is_available():
        raise Skipped(f"torch {torch.__version__} sees no GPU")


# --- what is there


def is_installed(name: str) -> bool:
    return find_spec(name) is not None


def make_importable() -> None:
    """Let processes that are started find the scripts here, and by `import textpatch` this checkout's.

    An installed one serves where it is this checkout's. Else a folder of links stands in for an installation.
    """
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *others])
    if is_of_this_checkout():
        return
    links = Path(tempfile.mkdtemp(prefix="textpatch-")) / "textpatch"
    links.mkdir()
    for entry in (ROOT / "textpatch").iterdir():
        (links / entry.name).symlink_to(entry)
    for name in OUTER:
        (links / name).symlink_to(ROOT / name)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(links.parent), os.environ["PYTHONPATH"]])
    sys.path.insert(0, str(links.parent))


def is_of_this_checkout() -> bool:
    """True where the textpatch that would be imported is made of this checkout's folders."""
    try:
        found = find_spec("textpatch.reference_models")
    except ModuleNotFoundError:
        return False
    return found is not None and Path(found.origin).resolve().is_relative_to(ROOT)


# --- the run


class Marks:
    """The record of what became of each part, in parts.json.

    Raises SystemExit where a dry run and a real one would share a folder.
    """

    def __init__(self, out: Path, toy: bool):
        self.path = out / "parts.json"
        self.kept = {"dry run": toy, "parts": {}}
        if self.path.exists():
            self.kept = json.loads(self.path.read_text())
        if self.kept["dry run"] != toy:
            kind = "a dry run" if self.kept["dry run"] else "a real run"
            raise SystemExit(f"{out} holds {kind}; give another OUT")

    @property
    def parts(self) -> dict[str, dict]:
        return self.kept["parts"]

    def is_done(self, part: GPUPart) -> bool:
        return self.parts.get(part.name, {}).get("state") == DONE

    def enter(self, part: GPUPart, came: dict) -> None:
        self.parts[part.name] = came
        self.path.write_text(json.dumps(self.kept, indent=2) + "\n")

    def forget(self, part: GPUPart, out: Path) -> None:
        """Let a part and its tables be as if it had never run."""
        self.parts.pop(part.name, None)
        for table in part.tables:
            (out / table).unlink(missing_ok=True)


def allotted(part: GPUPart, later: list[GPUPart], left: float) -> float:
    """The seconds a part may take, which are its own and those that no later part needs."""
    return max(left - sum(other.seconds for other in later), min(part.seconds, left))


def run_parts(marks: Marks, out: Path, toy: bool, minutes: float) -> None:
    """Run what is not done, in order, until the minutes are over."""
    until = time.monotonic() + 60 * minutes
    pending = [part for part in PARTS if not marks.is_done(part)]
    for i, part in enumerate(pending):
        seconds = allotted(part, pending[i + 1 :], until - time.monotonic())
        if seconds <= 0:
            came = {
                "state": LATE,
                "reason": f"not begun within {minutes:g} minutes",
                "seconds": 0.0,
            }
        else:
            print(f"{part.name}: {part.shows}, at most {seconds:.0f} s", flush=True)
            came = carried_out(part, out, toy, seconds)
        marks.enter(part, came)
        print(
            f"{part.name}: {came['state']} after {came['seconds']:.0f} s. {came['reason']}",
            flush=True,
        )
        (out / "summary.md").write_text(summary(marks, out))


# --- the summary


def summary(marks: Marks, out: Path) -> str:
    """One page with what became of the parts, the proposal, and the main columns of the tables."""
    dry = ", a dry run at toy size: no number here means anything" if marks.kept["dry run"] else ""
    lines = [
        f"# On a GPU{dry}",
        "",
        "| part | what it measures | state | s | reason |",
        "|---" * 5 + "|",
    ]
    for part in PARTS:
        came = marks.parts.get(part.name, {"state": "not begun", "seconds": 0.0, "reason": ""})
        cells = part.name, part.shows, came["state"], f"{came['seconds']:.0f}", came["reason"]
        lines.append(f"| {' | '.join(cells)} |")
    absent = [name for name in BESIDE if not is_installed(name)]
    if absent:
        lines += ["", f"Not installed, and left out: {', '.join(absent)}."]
    measured = rows_of(out / "op.csv") + rows_of(out / "op-graphs.csv")
    proposal = decide(measured, wanted_cases()).lines()
    lines += ["", "## attention.TRITON_IS_FASTER", "", *(f"- {line}" for line in proposal)]
    for part in PARTS:
        for table in part.tables:
            lines += page_of(table, rows_of(out / table))
    return "\n".join(lines) + "\n"


NOT_SHOWN = {  # named apart, or not at all
    "median_ms",
    "low_ms",
    "high_ms",
    "ratio",
    "ratio_low",
    "ratio_high",
    "environment",
    "cache_bytes",
    "times_faster",
}


def page_of(table: str, rows: list[dict]) -> list[str]:
    """A table as Markdown, with times and ratios as median [quartiles], [] where there are no rows."""
    if not rows:
        return []
    named = [column for column in rows[0] if column not in NOT_SHOWN]
    environments = sorted({row["environment"] for row in rows})
    head = [*named, "ms", "ratio"]
    lines = [
        "",
        f"## {table}",
        "",
        *environments,
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        cells = [shortened(row[column]) for column in named]
        cells.append(spread(row, "median_ms", "low_ms", "high_ms"))
        cells.append(spread(row, "ratio", "ratio_low", "ratio_high"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(row: dict, middle: str, low: str, high: str) -> str:
    """The cell `median [lower quartile, upper quartile]`, empty where nothing was timed."""
    if not row[middle]:
        return ""
    return f"{float(row[middle]):.4g} [{float(row[low]):.4g}, {float(row[high]):.4g}]"


def shortened(cell: str) -> str:
    """A number in three digits, anything else as it is."""
    try:
        return f"{float(cell):.3g}" if "." in cell else cell
    except ValueError:
        return cell


def main(argv: list[str] | None = None) -> int:
    """Run the parts, write the summary, and give the exit status."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="on_gpu.sh", description=__doc__, formatter_class=shape)
    parser.add_argument("--dry-run", action="store_true", help="every part at toy size on a CPU")
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--again",
        nargs="+",
        default=[],
        metavar="PART",
        choices=names,
        help=f"run these anew, though they are done: {', '.join(names)}",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="end everything after so many (8)"
    )
    options = parser.parse_args(argv)
    toy = options.dry_run
    out = folder(toy)
    marks = Marks(out, toy)
    for part in PARTS:
        if part.name in options.again:
            marks.forget(part, out)
    make_importable()
    if toy:
        os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="textpatch-compiled-") as compiled:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        get_context("forkserver").set_forkserver_preload(PRELOADED)
        run_parts(marks, out, toy, options.minutes)
    (out / "summary.md").write_text(summary(marks, out))
    print(f"{out / 'summary.md'} says what came of it")
    return 0 if all(map(marks.is_done, PARTS)) else 1


def folder(toy: bool) -> Path:
    """The folder of the results, which is OUT or a place of its own for each kind of run."""
    given = os.environ.get("OUT")
    if toy and not given:
        given = tempfile.mkdtemp(prefix="on-gpu-dry-run-")
    out = Path(given or HERE / "results" / "gpu").absolute()
    out.mkdir(parents=True, exist_ok=True)
    return out


if __name__ == "__main__":
    sys.exit(main())
