"""Shared by all tests: one thread, and how hard they search (--long; HYPOTHESIS_PROFILE=ci or deep)."""

import gc
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
common = settings(deadline=None, print_blob=True, suppress_health_check=QUIET)
settings.register_profile("ci", common, derandomize=True, max_examples=10)
settings.register_profile("deep", common, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in `make test &`; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest reads them, and explains in CI without an end: of two files of a megabyte, ten minutes and more
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)


# Files that take more than ten seconds, the longest first.  They begin first, because one begun last would
# keep one process busy while the others have nothing left.
LONGEST = (
    "weights/test_wild_files.py",
    "localization/test_modes.py",
    "house/test_readme.py",
    "core/test_kernels.py",
    "runs/test_sweeps_localize.py",
    "core/test_laws.py",
    "ports/test_ports.py",
    "cli/test_documented.py",
    "core/test_recorded_runs.py",
    "core/test_bank.py",
    "cli/test_written.py",
    "metrics/test_readers.py",
    "benchmarks/test_benchmarks.py",
    "metrics/test_tesseract.py",
    "core/test_mathematics.py",
    "weights/test_training.py",
)
HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="the long forms: more interrupts, mutants and examples"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Collect tests with the garbage collector at rest, and leave what was collected to the end.

    A million objects stay: looking through them took 5 of the 20 seconds, and again in many a test.
    Tests make small models by the thousand, and looking for garbage after every 700 objects more took
    two hundredths of their time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000)
        gc.enable()


def pytest_unconfigure():
    """Let what was collected go, so that libraries find nothing leaked at the end."""
    gc.unfreeze()


def place(item) -> int:
    """The place of an item's file among those that begin first, or the place after them."""
    file = item.path.relative_to(HERE).as_posix()
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config, items):
    """Put the longest files first.  Leave out the tests marked as long, unless --long asks for them."""
    items.sort(key=place)
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def long(request) -> bool:
    """Whether the long form was asked for."""
    return request.config.getoption("--long")


@pytest.fixture(autouse=True)
def _the_same_dice():
    """Numbers drawn without a generator are the same in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def diffusers():
    """The reference; it comes with the extra `reference`, which `make test` installs."""
    return pytest.importorskip("diffusers")
