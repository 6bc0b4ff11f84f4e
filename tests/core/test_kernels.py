"""The Triton kernels: every law of kernels_by_law.py, compilation for GPUs, and life without triton."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from textpatch import kernels

HERE = Path(__file__).parents[1]
DEVICES = ["interpreter", *(["gpu"] if torch.cuda.is_available() else [])]
# bytes a block may have (CUDA programming guide, table of capabilities)
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@pytest.fixture(scope="module")
def triton():
    """It comes with the extra `test` where it has a wheel, which is Linux."""
    return pytest.importorskip("triton")


def process(*command, **environment) -> str:
    """The output of a Python process of its own, which must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("device", DEVICES)
def test_laws(device, triton, long):
    """The laws hold by Triton's interpreter, and on a GPU where there is one.

    Each planted fault breaks its law, which is seen on the CPU alone.
    The short form holds the errors against those of eager in 2 random cases of 25.  It leaves out what takes
    the interpreter seconds and has a shorter case beside it.
    """
    interpreted = {"TRITON_INTERPRET": str(int(device == "interpreter"))}
    command = ["-m", "pytest", "-p", "no:cacheprovider", HERE / "support" / "kernels_by_law.py"]
    command += ["--long"] if long else []
    assert " passed" in process(*command, **interpreted)


@pytest.mark.long
def test_the_kernels_compile(triton, tmp_path):
    """For sm_80 and sm_90, without a GPU: half precision goes to the tensor cores, and every kernel fits
    its block.

    By default the interpreter runs the same sources.
    """
    wanted = [
        ":".join(each)
        for each in product(["80", "90"], ["bfloat16", "float16", "float32"], ["64", "128"])
    ]
    lines = process(
        HERE / "support" / "compile_kernels.py",
        *wanted,
        TRITON_CACHE_DIR=str(tmp_path),
        TRITON_INTERPRET="0",
    )
    found = [json.loads(line) for line in lines.splitlines()]
    names = [kernel["name"] for kernel in found]
    assert len(found) == 7 * len(wanted) and set(names) == {
        "_forward",
        "_queries",
        "_keys",
        "_donors",
    }
    for kernel in found:
        assert kernel["shared"] <= SHARED[kernel["target"]] and kernel["spilled"] <= 128, kernel
        attends = kernel["name"] != "_donors" and kernel["dtype"] != "float32"
        assert kernel["tensor_cores"] == attends, kernel


def test_without_triton(monkeypatch):
    """The refusal says what to install; that nothing imports it before, house/test_structure.py shows."""
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in kernels._missing.__wrapped__()


@pytest.mark.parametrize(
    "dtype, width, why",
    [
        (torch.float64, 64, "torch.float64"),
        (torch.float16, 300, "300"),
        (torch.float16, 64, "on cpu"),
    ],
)
def test_refusals(dtype, width, why, triton):
    """Before any launch: dtype, head dim, device, each with what was found."""
    q = torch.zeros(1, 1, 2, width, dtype=dtype)
    assert why in kernels.refusal(q) and not kernels.available(q)
