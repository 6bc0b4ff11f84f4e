"""Ctrl-C between pieces of work instead of within one."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def told_on_interrupt(there) -> Iterator[None]:
    """Let a Ctrl-C inside the block say what there is and how to go on.

    there  the text, or an object whose `str` is asked for at that moment
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(str(there)) from None


@contextlib.contextmanager
def finishing():
    """Let a block end before a first Ctrl-C is heard.

    KeyboardInterrupt is raised behind the block.  A second Ctrl-C raises it at once.
    Yields a function that says whether there was a Ctrl-C, for a block that has something left to put away.
    Acts in the main thread only, because Python delivers signals there, and never replaces a handler that
    somebody else has set.
    """
    if not _may_handle():
        yield lambda: False
        return
    asked = False

    def wait(number, frame):
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if sys.stderr.isatty():
            sys.stderr.write("\nfinishing what is begun; Ctrl-C again to stop at once\n")

    signal.signal(signal.SIGINT, wait)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


def _may_handle() -> bool:
    """True in the main thread while Python's own handler of Ctrl-C is in place."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
