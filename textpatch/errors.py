"""The one exception family, whose messages say what was asked, what was found, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 8  # known names that an error lists where none is near
# near names that an error lists: a slip of the hand has one, and sites of one make come in down, mid and up
NEAREST = 3
LIKENESS = 0.5  # least share of two names that is alike, 0 to 1, for one to be near the other


class PatchError(RuntimeError):
    """A request that textpatch cannot carry out.  Every error it raises on purpose is one of these."""


class WeightsError(PatchError):
    """A weights folder or file that is missing, damaged, or not what was asked for.

    code  names the fault, "" if the fault has no name
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class PromptError(PatchError):
    """A prompt that cannot be used, such as one with no quoted word, or with words no vocabulary holds."""


class OCRError(PatchError):
    """Text that cannot be read from pictures, because no engine is there or it fails its self-test."""


class StoreError(PatchError):
    """A run folder that cannot be written, or holds another run than the one asked for."""


class DiskError(StoreError):
    """A disk that is full or fails.

    Everything written before is whole, and the same request goes on from there.
    numbers: the system's errors that mean this.
    """

    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Unfinished(PatchError):
    """One part of a divided run that is done while others are not, so that there is no result yet."""


def closest(name: object, known: Iterable[object]) -> str:
    """End of an error about an unknown name.

    That is `; closest: a, b`, or `; known: ...` if nothing is near.
    """
    names = [str(one) for one in known]
    near = get_close_matches(str(name), names, n=NEAREST, cutoff=LIKENESS)
    if near:
        return f"; closest: {', '.join(near)}"
    shown = names[:SHOWN]
    if len(names) > SHOWN:
        shown.append("...")
    return f"; known: {', '.join(shown)}"
