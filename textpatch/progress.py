"""One progress line on a terminal for the whole of a phase of work; none where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

_open: ContextVar[tqdm | None] = ContextVar("open", default=None)


@contextmanager
def phase(name: str, unit: str = "pair") -> Iterator[None]:
    """Show one line for all that is `counted` inside the block, and wipe it at the end.

    unit  what is counted
    The total grows where the work itself decides how much there is to do.
    A phase within a phase adds to the line there is.
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


def counted(items: Sequence) -> Iterator:
    """The items one by one, inside a phase, on its line.  Each is done when the next is asked for."""
    line = _open.get()
    line.total += len(items)
    line.refresh()
    for item in items:
        yield item
        line.update()
