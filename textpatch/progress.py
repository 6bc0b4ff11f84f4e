"""One progress line on a terminal for the whole of a phase of work; none where stderr is no terminal."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterable, Iterator, Sequence

from tqdm import tqdm

_open: ContextVar[tqdm | None] = ContextVar("open", default=None)


@contextmanager
def phase(name: str, unit: str = "pair") -> Iterator[None]:
    """Show one line for all that is `counted` inside the block, and wipe it at the end.

    unit  what is counted.  The total grows where the work itself decides how much there is to do.  A phase within a phase adds to the outer's line.
    """
    if _open.get() is not None:
        yield
        return
    with tqdm(total=0, desc=name, unit=unit, disable=None, leave=False, dynamic_ncols=True) as line:
        token = _open.set(line)
        try:
            yield
        finally:
            _open.reset(token)


def counted(items: Sequence, name: str, unit: str = "pair") -> Iterable:
    """The items one by one, each done when the next is asked for, on the line of the open phase or of one of that name."""
    if not items:
        return
    with phase(name, unit):
        line = _open.get()
        line.total += len(items)
        line.refresh()
        for item in items:
            yield item
            line.update()
