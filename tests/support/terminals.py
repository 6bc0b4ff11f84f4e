"""Commands typed on a terminal of some width, each a process of its own."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios


def typed(words: list[str], columns: int) -> tuple[int, str]:
    """Exit code, and all that a command writes to a terminal, stdout and stderr alike."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    left_out = ("COLUMNS", "LINES", "NO_COLOR")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 4096):
            written += part
    os.close(ours)
    return process.wait(), written.decode()
