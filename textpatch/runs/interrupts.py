"""Ctrl-C between pieces of work instead of within one."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading


@contextlib.contextmanager
def finishing():
    """The block ends before a first Ctrl-C does: KeyboardInterrupt comes behind it.  A second one comes at once.

    Yields a function that says whether there has been one, for a block that has something left to put away.
    Acts in the main thread alone, where Python delivers signals, and leaves a handler of somebody else's alone.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
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
