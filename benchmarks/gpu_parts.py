"""The parts of on_gpu.sh, which call the scripts beside this one.

A part is called in a process of its own.  It gets the folder of the results, whether this is a dry run,
at toy size on a CPU, and the seconds it has.  It imports what it runs when it is called, so that the
process that keeps the time imports no torch.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from decide import GRAPHS, READS_A_TABLE, Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# what TRITON_IS_FASTER is decided from, most valuable first
OP_SHAPES = ["sdxl-4096", "sd3-4429", "sdxl-1024", "if-1024"]
OP_ROWS = ["8", "26"]  # four pictures with guidance; a whole localisation of SD3 without
GRAPH_ROWS = ["8"]
HALF_ROWS = ["8"]  # in float16, of the first two shapes

MODELS = ["sd3-1024px", "sdxl-1024px"]
COMPILED_ROWS = "8"
WAYS = ["textpatch", "textpatch, one swap", "diffusers"]
STEPS_COMPARED = "2"  # of the localisation that is also run one by one


class Skipped(Exception):
    """The reason why a part cannot run here and has measured nothing."""


@dataclass(frozen=True)
class GPUPart:
    """A part, with the seconds it may take, the packages it cannot do without, and its tables."""

    name: str
    run: Callable[[Path, bool, float], None]
    seconds: float
    needs: tuple[str, ...]
    tables: tuple[str, ...]
    shows: str


def wanted_cases() -> list[Case]:
    """The cases that must be measured before TRITON_IS_FASTER is decided."""
    launched = {"from Python": OP_ROWS, GRAPHS: GRAPH_ROWS}
    return [
        (shape, rows, "bfloat16", case, how)
        for how, counts in launched.items()
        for shape, rows, case in itertools.product(OP_SHAPES, counts, READS_A_TABLE)
    ]


def call(script: str, *words: str) -> Callable[[], None]:
    """A call of a script's main with some words."""
    return lambda: importlib.import_module(script).main(list(words))


def apart(script: str, option: str, values: list[str], *words: str) -> list[Callable[[], None]]:
    """A call for each value of an option, so that what fails for one is measured for the others."""
    return [call(script, *words, option, value) for value in values]


def each(*calls: Callable[[], None]) -> None:
    """Make every call, whatever became of those before it.  Raises RuntimeError with what went wrong."""
    failures = []
    for one in calls:
        try:
            one()
        except (Exception, SystemExit) as reason:
            traceback.print_exc()
            failures.append(f"{type(reason).__name__}: {reason}")
        free_memory()
    if failures:
        raise RuntimeError("; ".join(failures))


def free_memory() -> None:
    """Give back what earlier calls left, a model of several gigabytes among it."""
    import torch  # here, for the process that keeps the time does without

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def on_device(toy: bool) -> list[str]:
    return ["--device", "cpu" if toy else "cuda"]


# --- the parts


def kernels(out: Path, toy: bool, seconds: float) -> None:
    """Hold the Triton kernels to their laws in float32, float16 and bfloat16, in a dry run interpreted.

    Nothing is timed meanwhile, so the compiler works ahead for `full size`.
    """
    until = time.monotonic() + seconds - 5
    ahead = [] if toy else compilers()
    laws = next((ROOT / "tests").rglob("kernels_by_law.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["--rootdir", ROOT, "-c", ROOT / "setup.cfg", laws]
    command += ["-k", "law_the_lse_is_optional"] if toy else ["-k", "not the_law_notices"]
    if not toy and find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    # where no other `textpatch` would be found first
    with tempfile.TemporaryDirectory() as elsewhere:
        tests = subprocess.run(
            list(map(str, command)),
            cwd=elsewhere,
            env={**os.environ, "TRITON_INTERPRET": str(int(toy))},
        )
    finish(ahead, until)
    if tests.returncode:
        raise RuntimeError(
            f"pytest ended with {tests.returncode}; the log says which law does not hold"
        )


def op(out: Path, toy: bool, seconds: float) -> None:
    """Time the attention op against SDPA by each of its backends, and FlashAttention 3 if installed."""
    table = [
        "--resume",
        "--csv",
        str(out / "op.csv"),
        *on_device(toy),
        "--ways",
        "textpatch",
        "sdpa",
        "fa3",
    ]
    if toy:
        size = "--scale 64 --rows 2 --rounds 1 --least 0".split()
        call(
            "attention_op", *table, *size, *"--shapes sdxl-1024 sd3-1357 --cases rows mask".split()
        )()
        return
    quick = ["--rounds", "7", "--least", "0.01"]
    cases = ["--cases", *READS_A_TABLE]
    half = ["--dtype", "float16", "--rows", *HALF_ROWS]
    each(
        *apart("attention_op", "--shapes", OP_SHAPES, *table, *quick, *cases, "--rows", *OP_ROWS),
        *apart(
            "attention_op",
            "--shapes",
            OP_SHAPES,
            *table,
            *quick,
            "--cases",
            "identity",
            "--rows",
            "8",
        ),
        *apart("attention_op", "--shapes", OP_SHAPES[:2], *table, *quick, *cases, *half),
    )


def full_size(out: Path, toy: bool, seconds: float) -> None:
    """Time SDXL and SD3-medium for 1024 pixels beside diffusers with the same weights, eager and compiled."""
    table = ["--resume", "--csv", str(out / "full_size.csv"), *on_device(toy)]
    if toy:
        compiled = "--modes compiled --compiler eager --ways textpatch".split()
        call("full_size", *table, *"--models mmdit-small --rows 2 --rounds 1".split(), *compiled)()
        return
    table += ["--rounds", "7"]
    compiled = ["--modes", "compiled", "--rows", COMPILED_ROWS]
    each(
        *apart("full_size", "--models", MODELS, *table, "--modes", "eager", "--rows", "2", "8"),
        lambda: finish(compilers(), time.monotonic() + seconds),
        *apart("full_size", "--models", MODELS, *table, *compiled),
    )


def localization(out: Path, toy: bool, seconds: float) -> None:
    """Localise in SD3-medium for 1024 pixels, shortly beside runs one by one, and then as a whole."""
    model = "mmdit-small" if toy else "sd3-1024px"
    table = ["--csv", str(out / "localization.csv"), *on_device(toy)]
    compared = "1" if toy else STEPS_COMPARED
    steps = ["--steps", "1"] if toy else []
    each(
        call(
            "full_size",
            *table,
            "--localize",
            "--models",
            model,
            "--modes",
            "eager",
            "--steps",
            compared,
        ),
        call("whole_localization", *table, "--append", model, *steps),
    )


def graphs(out: Path, toy: bool, seconds: float) -> None:
    """Time CUDA graphs of the op, and of whole calls whose plan changes in place."""
    table = ["--csv", str(out / "graphs.csv"), *on_device(toy)]
    if toy:
        call("graphs", *table, *"--models mmdit-small --rows 2 --rounds 1 --least 0".split())()
        return
    op_table = ["--resume", "--csv", str(out / "op-graphs.csv"), *on_device(toy), "--graphs"]
    quick = ["--rounds", "7", "--least", "0.01", "--ways", "textpatch", "sdpa", "fa3"]
    cases = ["--cases", *READS_A_TABLE]
    whole = ["--rows", "2", "--rounds", "7"]
    each(
        *apart(
            "attention_op", "--shapes", OP_SHAPES, *op_table, *quick, *cases, "--rows", *GRAPH_ROWS
        ),
        call("graphs", *table, *whole, "--models", MODELS[0]),
        call("graphs", *table, *whole, "--append", "--models", MODELS[1]),
    )


# --- compiling ahead: a process for each model and way, all at once, into the compiler's cache on disk


def cache() -> Path:
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def compilers() -> list[subprocess.Popen]:
    """Start to compile what `full size` measures, unless that is done, in processes that end some time."""
    if (cache() / "ahead").exists():
        return []
    words = ["--device", "cuda", "--modes", "compiled", "--rows", COMPILED_ROWS, "--only-compile"]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "full_size.py"), *words, "--models", model, "--ways", way],
            env=environment,
        )
        for model, way in itertools.product(MODELS, WAYS)
    ]


def finish(processes: list[subprocess.Popen], until: float) -> None:
    """Wait for processes, and end those that run on after a time of time.monotonic."""
    for process in processes:
        try:
            process.wait(timeout=max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if processes and all(process.returncode == 0 for process in processes):
        cache().mkdir(parents=True, exist_ok=True)
        (cache() / "ahead").touch()


ALWAYS = "torch", "numpy", "safetensors", "transformers", "einops", "PIL", "tqdm"
TESTS = "pytest", "hypothesis"
PARTS = [
    GPUPart(
        "kernels", kernels, 120, (*ALWAYS, "triton", *TESTS), (), "the laws of the Triton kernels"
    ),
    GPUPart("op", op, 85, ALWAYS, ("op.csv",), "the attention op against SDPA and FlashAttention"),
    GPUPart(
        "full size", full_size, 130, ALWAYS, ("full_size.csv",), "SDXL and SD3 beside diffusers"
    ),
    GPUPart(
        "localization",
        localization,
        95,
        ALWAYS,
        ("localization.csv",),
        "exhaustive localisation of SD3",
    ),
    GPUPart("graphs", graphs, 50, ALWAYS, ("op-graphs.csv", "graphs.csv"), "CUDA graphs"),
]
