"""One progress line on a terminal for a whole phase of work.

Nothing is shown where stderr is no terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

from textpatch.errors import PatchError

Item = TypeVar("Item")
_open: ContextVar[tqdm[Any] | None] = ContextVar("open", default=None)


@contextmanager
def phase(name: str, unit: str = "pair") -> Iterator[None]:
    """Show one line for all items that are `counted` inside the block, and wipe it at the end.

    unit  name of one item

    The total grows where the work itself decides how much there is to do.
    A phase within a phase adds to the line of the outer one.
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


def counted(items: Sequence[Item]) -> Iterator[Item]:
    """The items one by one, counted on the line of the open phase.

    An item is done when the next is asked for.
    """
    line = _open.get()
    if line is None:
        raise PatchError("items are counted inside a `phase` alone; open one around them")
    line.total += len(items)
    line.refresh()
    for item in items:
        yield item
        line.update()
