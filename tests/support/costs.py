"""Refusals within .2 s of the processor and 50 MB, for the long tests of all files that are refused."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from textpatch.errors import PatchError

SECONDS = 0.2
MEGABYTES = 50
FORGET = Path("/proc/self/clear_refs")


def memory(name: str) -> float:
    """Megabytes of this process: VmRSS those it has, VmHWM the most since they were counted anew."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1e3


def require_cheap(call: Callable, *args, **options) -> None:
    """Raise unless a call is refused within the limits, at its second time, when all is imported.

    The garbage collector rests, because it looks through what all tests before have left.  Memory is asked of
    Linux, which counts torch's, too.
    """
    if not FORGET.exists():
        pytest.skip("no Linux")
    with pytest.raises(PatchError):
        call(*args, **options)
    gc.collect()
    gc.disable()
    try:
        FORGET.write_text("5")
        held = memory("VmRSS")
        began = time.process_time()
        with pytest.raises(PatchError):
            call(*args, **options)
        seconds = time.process_time() - began
        megabytes = memory("VmHWM") - held
    finally:
        gc.enable()
    assert seconds < SECONDS and megabytes < MEGABYTES, (seconds, megabytes)
