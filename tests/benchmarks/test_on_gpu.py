"""The one script that measures on a GPU: what it does without one, how it keeps its time, and what it
concludes.
"""

import json
import os
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.scripts import FOLDER, importer

CPU = torch.device("cpu")


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark's module by name, imported as a script finds its neighbours."""
    return importer(monkeypatch)


def shell(out: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    command = [str(FOLDER / "on_gpu.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def state_of(out: Path) -> dict[str, str]:
    parts = json.loads((out / "parts.json").read_text())["parts"]
    return {name: part["state"] for name, part in parts.items()}


# --- as a whole


def test_dry_run(tmp_path, benchmark):
    """Every part runs at toy size and leaves its table, the summary has all, a second run runs nothing."""
    parts = benchmark("gpu_parts").PARTS
    first = shell(tmp_path, "--dry-run")
    log = (tmp_path / "log.txt").read_text()
    assert first.returncode == 0, first.stdout + first.stderr + log
    assert state_of(tmp_path) == {part.name: "done" for part in parts}
    assert " passed" in log
    # a CPU has no graphs
    tables = {table for part in parts for table in part.tables} - {"op-graphs.csv"}
    assert {path.name for path in tmp_path.glob("*.csv")} == tables
    summary = (tmp_path / "summary.md").read_text()
    assert (
        all(f"## {table}" in summary for table in tables)
        and "TRITON_IS_FASTER is not decided" in summary
    )
    said = "naive", "lock-step", "localize, pictures made", "CUDA graphs need a GPU"
    assert all(words in summary for words in said)
    assert len(list(tmp_path.iterdir())) <= 8

    second = shell(tmp_path, "--dry-run")
    assert second.returncode == 0 and "at most" not in second.stdout
    assert (tmp_path / "log.txt").read_text() == log


def test_dry_and_real_results_do_not_mix(tmp_path, benchmark):
    """A folder of one kind of run refuses the other."""
    (tmp_path / "parts.json").write_text('{"dry run": true, "parts": {}}')
    with pytest.raises(SystemExit, match="holds a dry run"):
        benchmark("on_gpu").Marks(tmp_path, toy=False)


# --- time, and what becomes of a part

FAKES = """
import os, subprocess, sys, time

def well(out, toy, seconds):
    (out / "table.csv").write_text("kept")

def late(out, toy, seconds):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (out / "child").write_text(str(child.pid))
    time.sleep(600)

def wrong(out, toy, seconds):
    raise ValueError("two results differ")

def dead(out, toy, seconds):
    os._exit(7)
"""


@pytest.fixture
def part(benchmark, tmp_path, monkeypatch):
    """A part by the name of one of the FAKES."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(FOLDER)]))
    fakes, kind = benchmark("fakes"), benchmark("gpu_parts").GPUPart
    yield lambda name, needs=(): kind(
        name, getattr(fakes, name), 60.0, needs, ("table.csv",), "nothing"
    )
    del sys.modules["fakes"]
    forkserver._forkserver._stop()  # the next one is to find the next test's fakes


@pytest.mark.parametrize(
    "name, state, says",
    [
        ("well", "done", ""),
        ("wrong", "failed", "ValueError: two results differ"),
        ("dead", "failed", "without a word"),
    ],
)
def test_what_becomes_of_a_part(name, state, says, part, benchmark, tmp_path):
    """Done, an error by its sentence, and a process that is gone."""
    came = benchmark("on_gpu").carried_out(part(name), tmp_path, True, 60.0)
    assert came["state"] == state and says in came["reason"]


def test_a_part_that_is_late_is_ended_with_all_it_started(part, benchmark, tmp_path):
    """After its seconds neither it nor its child runs on."""
    start = time.monotonic()
    came = benchmark("on_gpu").carried_out(part("late"), tmp_path, True, 6.0)
    assert came["state"] == "out of time" and 6 <= time.monotonic() - start < 60
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # the system takes it away when it likes
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} runs on")


def test_what_is_missing_is_named(part, benchmark, tmp_path):
    """A part without a package it needs is skipped before it starts."""
    needy = part("well", needs=("torch", "no_such_package"))
    came = benchmark("on_gpu").carried_out(needy, tmp_path, True, 60.0)
    assert came["state"] == "skipped" and came["reason"] == "not installed: no_such_package"


def test_without_a_gpu_a_part_says_so(part, benchmark, tmp_path, monkeypatch):
    """It is not run: skipped, with the torch that sees none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    came = benchmark("on_gpu").carried_out(part("well"), tmp_path, False, 60.0)
    assert came["state"] == "skipped" and came["reason"] == f"torch {torch.__version__} sees no GPU"
    assert not (tmp_path / "table.csv").exists()


def test_what_is_not_done_is_no_success(part, benchmark, tmp_path, monkeypatch):
    """A part that fails does not keep the next from running, and the exit status is 1."""
    on_gpu = benchmark("on_gpu")
    monkeypatch.setattr(on_gpu, "PARTS", [part("wrong"), part("well", needs=("no_such_package",))])
    monkeypatch.setattr(on_gpu, "make_importable", lambda: None)
    monkeypatch.setattr(on_gpu, "PRELOADED", [])
    for name, value in {
        "OUT": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": "",
    }.items():
        monkeypatch.setenv(name, value)
    assert on_gpu.main(["--dry-run"]) == 1
    summary = (tmp_path / "summary.md").read_text()
    assert "two results differ" in summary and "not installed: no_such_package" in summary


def test_marks_outlast_the_run_and_are_forgotten_on_demand(part, benchmark, tmp_path):
    """What is done stays done for the next run, unless it is asked for again, tables and all."""
    on_gpu, well = benchmark("on_gpu"), part("well")
    marks = on_gpu.Marks(tmp_path, toy=True)
    (tmp_path / "table.csv").write_text("kept")
    for state in ("failed", "out of time", "skipped", "done"):
        assert not on_gpu.Marks(tmp_path, toy=True).is_done(well)
        marks.enter(well, {"state": state, "reason": "", "seconds": 1.0})
    again = on_gpu.Marks(tmp_path, toy=True)
    assert again.is_done(well)
    again.forget(well, tmp_path)
    assert not again.is_done(well) and not (tmp_path / "table.csv").exists()


def test_the_parts_fit_into_eight_minutes(benchmark):
    """Whatever each takes of what it is given, all end in time, and none gets less than its own seconds."""
    on_gpu, parts = benchmark("on_gpu"), benchmark("gpu_parts").PARTS
    assert sum(part.seconds for part in parts) <= 480
    for share in (0.0, 0.3, 1.0):
        left = 480.0
        for i, part in enumerate(parts):
            given = on_gpu.allotted(part, parts[i + 1 :], left)
            assert part.seconds <= given <= left
            left -= share * given
    assert on_gpu.allotted(parts[0], parts[1:], 30.0) == 30.0


def test_a_bare_copy_is_importable(benchmark, monkeypatch):
    """Where textpatch is not installed a process that is started finds this checkout's, outer folders too."""
    on_gpu = benchmark("on_gpu")
    monkeypatch.setattr(on_gpu, "is_of_this_checkout", lambda: False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    on_gpu.make_importable()
    code = "from importlib.util import find_spec\nprint(find_spec('textpatch.weights').origin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER)
    found = Path(done.stdout.strip())
    links, scripts = os.environ["PYTHONPATH"].split(os.pathsep)
    assert found.parents[2] == Path(links) and scripts == str(FOLDER)
    assert found.resolve() == FOLDER.parent / "weights" / "__init__.py"


@pytest.mark.parametrize(
    "codes, seconds, all_done",
    [
        (["pass", "pass"], 60, True),
        (["pass", "raise SystemExit(1)"], 60, False),
        (["pass", "import time; time.sleep(600)"], 3, False),
        ([], 60, False),
    ],
)
def test_compiled_ahead_is_marked(codes, seconds, all_done, benchmark, tmp_path, monkeypatch):
    """No process runs on; the mark is there if every one ended well, and then nothing is compiled again."""
    parts = benchmark("gpu_parts")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) for code in codes
    ]
    parts.finish(processes, time.monotonic() + seconds)
    assert all(process.returncode is not None for process in processes)
    assert (tmp_path / "cache" / "ahead").exists() is all_done
    if all_done:
        assert parts.compilers() == []


# --- TRITON_IS_FASTER

GPU = "NVIDIA H200, CUDA 13.0, cuDNN 91002; torch 2.11.0"
OTHER = "NVIDIA L4, CUDA 13.0, cuDNN 91002; torch 2.11.0"
AS_GRAPHS = f"{GPU}, CUDA graphs"


def rows(
    kernels=(0.8, 0.9), sdpa=(1.0, 1.1), case="rows", environment=GPU, shape="sdxl-4096"
) -> list[dict]:
    """Both ways' rows of one case, by their quartiles; None: refused."""
    same = dict(shape=shape, rows="8", dtype="bfloat16", case=case, environment=environment)
    made = []
    for way, quartiles in (("textpatch triton", kernels), ("textpatch sdpa", sdpa)):
        low, high = ("", "") if quartiles is None else map(str, quartiles)
        made.append({**same, "way": way, "median_ms": low, "low_ms": low, "high_ms": high})
    return made


def wanted(shape="sdxl-4096", launched="from Python") -> tuple:
    return shape, "8", "bfloat16", "rows", launched


@pytest.mark.parametrize(
    "tables, wants, value",
    [
        ([rows()], [wanted()], {"NVIDIA H200"}),
        (
            [rows(), rows(environment=AS_GRAPHS)],
            [wanted(), wanted(launched="CUDA graphs")],
            {"NVIDIA H200"},
        ),
        ([rows(kernels=(0.8, 1.0))], [wanted()], set()),  # quartiles that touch
        ([rows(), rows(kernels=(1.2, 1.3), case="mask")], [wanted()], set()),
        ([rows(kernels=None)], [wanted()], set()),  # the kernels refused
        ([rows(), rows(kernels=(1.2, 1.3), environment=AS_GRAPHS)], [wanted()], set()),
        # no table is read
        (
            [rows(), rows(kernels=(1.2, 1.3), case="identity")],
            [wanted()],
            {"NVIDIA H200"},
        ),
        ([rows()], [wanted(), wanted("sd3-4429")], None),  # one was not measured
        ([rows()], [wanted(launched="CUDA graphs")], None),
        ([rows(sdpa=None)], [wanted()], None),
        ([rows(environment="some CPU, 1 thread; torch 2.11.0")], [], None),
        ([rows(), rows(environment=OTHER)], [wanted()], None),  # two machines
        ([rows(), rows(kernels=(1.2, 1.3), environment=OTHER)], [wanted()], None),
        ([], [], None),
    ],
)
def test_triton_is_faster_only_where_it_always_is(tables, wants, value, benchmark):
    """Named if the kernels' upper quartile is below sdpa's lower one in every case, and all are measured."""
    found = benchmark("decide").decide([row for table in tables for row in table], wants)
    assert found.value == (None if value is None else frozenset(value))
    first = found.lines()[0]
    assert ("not decided" in first) is (value is None)
    if value is not None:
        name, literal = first.split(" = ")
        assert eval(literal) == value  # what is proposed can be pasted


def test_every_case_wanted_is_measured(benchmark, monkeypatch, tmp_path):
    """The cases TRITON_IS_FASTER waits for are among those that the parts ask attention_op.py for."""
    parts, op = benchmark("gpu_parts"), benchmark("attention_op")
    asked = set()

    def asking(table, options, name, shape, kind, rows):
        how = parts.GRAPHS if options.graphs else "from Python"
        asked.add((name, str(rows), str(options.dtype).removeprefix("torch."), kind, how))

    monkeypatch.setattr(op, "measure_case", asking)
    monkeypatch.setattr(op, "environment", lambda *device: "some GPU")
    monkeypatch.setattr(benchmark("graphs"), "main", lambda words: None)
    monkeypatch.setattr(parts, "free_memory", lambda: None)  # seconds in a process of many tests
    parts.op(tmp_path, False, 60.0)
    parts.graphs(tmp_path, False, 60.0)
    assert set(parts.wanted_cases()) <= asked


# --- the scripts it adds


def test_graphs_hold_every_way_to_both_plans(benchmark):
    """The wrong second plan, and a plan that moved nothing, raise Unequal."""
    graphs, measure = benchmark("graphs"), benchmark("measure")
    one, other = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])
    assert graphs.require_both_plans("graph", [one, other], [one, other]) == 0
    with pytest.raises(measure.Unequal, match="graph"):
        graphs.require_both_plans("graph", [one, one], [one, other])
    with pytest.raises(measure.Unequal, match="the same under both plans"):
        graphs.require_both_plans("graph", [one, one], [one, one])


def test_a_plan_is_written_into_the_table_that_is_read(benchmark):
    """Slots stay the same tensor while plans change, as a graph needs it; at the end the first is back."""
    graphs, models = benchmark("graphs"), benchmark("random_models")
    call = graphs.Call("mmdit-small", models.denoiser("mmdit-small", CPU, torch.float32), 2)
    (table,) = (slots for slots in call.slots if slots is not None)
    place = table.data_ptr()
    with torch.no_grad():
        first, second = graphs.results(call, call.eager("sdpa"))
    assert table.data_ptr() == place and torch.equal(table, call.plans[0][1])
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_a_localisation_whose_swap_does_not_show_is_refused(benchmark):
    """A swapped picture equal to the source's raises Unequal."""
    whole, measure = benchmark("whole_localization"), benchmark("measure")
    white, grey = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "grey")

    class Found:
        def __init__(self, swapped):
            pictures = {
                "source": {"image": white},
                "target": {"image": grey},
                "site-0": {"image": swapped},
            }
            self.records = [{"pictures": pictures}]

    whole.require_every_swap_shows(Found(grey))
    with pytest.raises(measure.Unequal, match="site-0"):
        whole.require_every_swap_shows(Found(white))
