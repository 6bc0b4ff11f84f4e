"""One progress line for a whole phase of work, with its total and the time it will still take.

On a terminal and in a notebook the line is written over and wiped at the end.  Anywhere else, as in a log,
a line is written every so often, and none by work that ends before the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from textpatch.errors import PatchError

EVERY = 30.0  # seconds between the lines of a log

Item = TypeVar("Item")


class Line(Protocol):
    """What shows how far a phase is."""

    total: Any

    def refresh(self) -> Any:
        """Show the line as it is now."""

    def update(self, n: int) -> Any:
        """Count n items as done, and show it where it is time."""

    def close(self) -> Any:
        """Take the line away."""


_open: ContextVar[Line | None] = ContextVar("open", default=None)
_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress inside the block."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


@contextmanager
def phase(name: str, unit: str = "pair") -> Iterator[None]:
    """Show one line for all items that are `counted` inside the block.

    unit  name of one item

    The total grows where the work itself decides how much there is to do.
    A phase within a phase adds to the line of the outer one.
    """
    if _open.get() is not None:
        yield
        return
    line = _line(name, unit)
    token = _open.set(line)
    try:
        yield
    finally:
        _open.reset(token)
        line.close()


def counted(items: Sequence[Item], weight: Callable[[Item], int] | None = None) -> Iterator[Item]:
    """The items one by one, counted on the line of the open phase.

    An item is done when the next is asked for.
    weight  how many an item counts, 1 when None
    """
    line = _open.get()
    if line is None:
        raise PatchError("items are counted inside a `phase` alone; open one around them")
    weights = [1] * len(items)
    if weight is not None:
        weights = [weight(item) for item in items]
    line.total += sum(weights)
    line.refresh()
    for item, counts in zip(items, weights, strict=True):
        yield item
        line.update(counts)


def _line(name: str, unit: str) -> Line:
    """The line of a phase, as it can be shown here."""
    if _is_quiet.get():
        return tqdm(total=0, disable=True)
    if not (sys.stderr.isatty() or _in_a_notebook()):
        return Log(name, unit)
    return tqdm(total=0, desc=name, unit=unit, leave=False, dynamic_ncols=True)


def _in_a_notebook() -> bool:
    """True inside a kernel of Jupyter, whose cells show a line that is written over."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class Log:
    """Progress of a phase in a log, a line of its own every EVERY seconds."""

    def __init__(self, name: str, unit: str) -> None:
        self.name = name
        self.unit = unit
        self.total = 0
        self.done = 0
        self.began = time.monotonic()
        self.told = self.began

    def refresh(self) -> None:
        """Do nothing, since a line of a log stays as it is."""

    def update(self, n: int) -> None:
        """Count n items as done, and write a line where the last is EVERY seconds old."""
        self.done += n
        now = time.monotonic()
        if now - self.told < EVERY or self.done >= self.total:
            return
        self.told = now
        passed = now - self.began
        left = passed / self.done * (self.total - self.done)
        sys.stderr.write(
            f"{self.name}: {self.done} of {self.total} {self.unit}s, {spoken(passed)} passed, "
            f"about {spoken(left)} left\n"
        )
        sys.stderr.flush()

    def close(self) -> None:
        """Do nothing, since a line of a log stays."""


def spoken(seconds: float) -> str:
    """A time as people say it, such as 40 s, 5 min or 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
