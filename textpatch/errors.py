"""The one exception family: what was asked, what was found, what to do."""

import errno
from difflib import get_close_matches


class PatchError(RuntimeError):
    """A request textpatch cannot carry out; every error it raises on purpose is one of these."""


class WeightsError(PatchError):
    """A weights folder or file is missing, damaged, or is not what was asked for; code, if any, names the fault."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


class PromptError(PatchError):
    """A prompt cannot be used: no quoted word, or words the model's vocabulary does not hold."""


class OCRError(PatchError):
    """Text cannot be read from pictures: no engine, or an engine that fails its self-test."""


class StoreError(PatchError):
    """A run folder cannot be written, or holds another run than the one asked for."""


class DiskError(StoreError):
    """A disk that is full or fails; what was written before is whole, and the same request goes on from there."""

    numbers = (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EROFS,
    )  # the system's, of which it is one


class Unfinished(PatchError):
    """One part of a divided run is done, and other parts are not: there is no result yet."""


def closest(name: str, known, limit: int = 3) -> str:
    """`; closest: a, b` for an error about an unknown name, or `; known: ...` if nothing is near."""
    known = [str(k) for k in known]
    near = get_close_matches(str(name), known, n=limit, cutoff=0.5)
    shown = near or [*known[:8], *(["..."] if len(known) > 8 else [])]
    return f"; {'closest' if near else 'known'}: {', '.join(shown)}"
