"""Compile the kernels ahead of time, as their own launchers call them, for GPUs that are not there.

    python compile_kernels.py 90:bfloat16:64 80:float32:128

prints one line of JSON per compiled kernel: its name, registers per thread, bytes spilled, bytes of shared
memory, and whether it multiplies in the tensor cores.  The driver is replaced by one that names a target.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from textpatch.kernels.backward import backward
from textpatch.kernels.forward import forward

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Target:
    """What triton asks of a driver before it launches anything."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(capability: int, dtype: torch.dtype, width: int) -> list:
    """Every kernel of one forward and backward: joint attention with slots, SD3's shapes at 512 px."""
    made = []
    run = JITFunction.run

    def warm_up(self, *args, warmup, **kwargs):
        made.append(run(self, *args, warmup=True, **kwargs))

    def tensor(*shape):
        b, h, n, d = shape
        return torch.empty(b, n, h, d, dtype=dtype).transpose(1, 2)

    driver.set_active(Target(capability))
    JITFunction.run = warm_up
    q, text, keys, bank = (tensor(2, 24, n, width) for n in (1024, 333, 1024, 333))
    slots = torch.zeros(2, 1, 333, dtype=torch.int32)
    inputs = q, text, keys, bank, keys, bank, slots, None, width**-0.5
    results = forward(*inputs)
    backward(*results[:2], *inputs, *forward(*inputs, wide=True))
    JITFunction.run = run
    return made


def described(kernel) -> dict:
    """Registers and spilled bytes as the bundled cuobjdump reads them from the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
    said = usage.stdout + usage.stderr
    registers, stack = (int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))
    return {
        "name": kernel.metadata.name,
        "registers": registers,
        "spilled": stack,
        "shared": kernel.metadata.shared,
        "tensor_cores": "mma" in kernel.asm["ptx"],
    }


for argument in sys.argv[1:]:
    target, kind, dim = argument.split(":")
    for found in compiled(int(target), getattr(torch, kind), int(dim)):
        print(
            json.dumps(
                {"target": int(target), "dtype": kind, "head_dim": int(dim), **described(found)}
            ),
            flush=True,
        )
