"""When, how long and on what machine a run was worked on, session by session.

A manifest lists them under "sessions".  They decide no result.  A session that was killed has no seconds.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from textpatch.progress import spoken
from textpatch.runs.folder import Run

SESSIONS = "sessions"


@contextmanager
def noted_session(run: Run, device) -> Iterator[None]:
    """Note the work inside the block in the manifest of a run.

    It is noted when it begins, without its seconds, so that a killed session is seen as one.  A session in
    which nothing was made is taken out again.

    device  where the model computes
    """
    began = datetime.datetime.now(datetime.timezone.utc)
    start = time.monotonic()
    before = run.sizes()
    session = {
        "began": began.isoformat(timespec="milliseconds"),
        "seconds": None,
        "hardware": hardware(device),
        "worker": run.worker,
    }
    run.note(SESSIONS, session)
    try:
        yield
    finally:
        ended = None
        if run.sizes() != before:
            ended = {**session, "seconds": round(time.monotonic() - start, 1)}
        run.note_instead(SESSIONS, session, ended)


def hardware(device) -> str:
    """Name of a device, and of the processor and system around it."""
    import torch

    around = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({around})"
    return f"{torch.device(device).type}: {around}"


def _processor() -> str:
    """Name of the processor, as Linux tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        return platform.processor() or "processor"
    return platform.processor() or "processor"


def told_sessions(sessions: Sequence[dict]) -> str:
    """Date, duration and hardware of all sessions, in words."""
    first = sessions[0]["began"][:10]
    last = sessions[-1]["began"][:10]
    when = first
    if last != first:
        when = f"{first} to {last}"
    ended = [session["seconds"] for session in sessions if session["seconds"] is not None]
    worked = spoken(sum(ended))
    if len(sessions) > 1:
        worked = f"{worked} in {len(sessions)} sessions"
    wordless = len(sessions) - len(ended)
    if wordless:
        worked = f"{worked}, of which {wordless} ended without a word"
    where = "; ".join(dict.fromkeys(session["hardware"] for session in sessions))
    return f"{when}, {worked}, on {where}"
