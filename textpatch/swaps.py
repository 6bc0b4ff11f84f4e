"""Swaps, each of which lets some rows read the text keys and values of another row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

from textpatch.errors import PatchError
from textpatch.rows import CONDITIONAL, Row
from textpatch.sites import Selectors, Site, plain_selectors
from textpatch.windows import Window

BRANCHES = ("both", CONDITIONAL)
NUMBERED = ("steps", "heads", "tokens")
# steps, heads or tokens of a swap, far beyond what any run or model has
MOST = 100_000


@dataclass(frozen=True)
class Swap:
    """Let `readers` read the text keys and values of `donor` at `sites`.

    Patching of ICLR 2025, sec. 4.1.

    sites    what `select_sites` understands: index, range, name, glob, kind, group, or several of
             these, or "all"
    readers  name of a row, or several
    donor    name of the row whose text K and V are read, at the same step and in the same branch
    steps    loop indices, 0 = noisiest, or a Window of timesteps or sigmas.  All when None.
             `range(s, n)` starts at s
    heads    head indices.  All when None
    tokens   text token indices.  All when None
    part     "kv", or only "k" or only "v"
    branch   "both" guidance branches, as the official code does, or "cond" alone
    Raises PatchError for a field that is empty, or of another kind.
    """

    # What may be given.  All become tuples.
    sites: Selectors
    readers: str | Sequence[str]
    donor: str
    steps: Sequence[int] | Window | None = None
    heads: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    part: str = "kv"
    branch: str = "both"

    def __post_init__(self) -> None:
        plain: dict[str, tuple] = {
            "sites": plain_selectors(self.sites),
            "readers": _names(self.readers, self.donor),
        }
        for name in NUMBERED:
            value = getattr(self, name)
            if value is not None and not (name == "steps" and isinstance(value, Window)):
                plain[name] = _counted(name, value)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.part not in ("kv", "k", "v") or self.branch not in BRANCHES:
            raise PatchError(
                f"part is {self.part!r} and branch {self.branch!r}; known: kv, k, v and both, cond"
            )
        for name, value in plain.items():
            if value == ():
                raise PatchError(
                    f"{name} is empty in {self}; give some.  Steps, heads and tokens left out mean all"
                )

    @property
    def loop_indices(self) -> Sequence[int] | None:
        """Steps as loop indices, None for all.  Raises PatchError for a window."""
        if isinstance(self.steps, Window):
            raise PatchError(
                f"steps are those of {self.steps}, known in a run alone; take plan.at(schedule, steps)"
            )
        return self.steps

    def in_step(self, step: int) -> bool:
        """True where the swap names a step.  Raises PatchError for a window."""
        indices = self.loop_indices
        return indices is None or step in indices

    def acts(self, step: int, row: Row) -> bool:
        """True where a row reads the donor at a step.  Raises PatchError for a window."""
        in_branch = self.branch == "both" or row.branch == CONDITIONAL
        return self.in_step(step) and in_branch and row.name in self.readers

    def require_cells(self, site: Site, tokens: int) -> None:
        """Raise PatchError unless a site has the heads, and a text of so many tokens the tokens."""
        require_in_range("head", self.heads, site.text_heads, site)
        require_in_range("token", self.tokens, tokens, site)


def _names(readers: object, donor: object) -> tuple[str, ...]:
    """Sorted readers, each once.  Raises PatchError unless they and the donor are names."""
    given = [readers]
    if isinstance(readers, Iterable) and not isinstance(readers, str):
        given = list(readers)
    names = [name for name in given if isinstance(name, str)]
    if len(names) != len(given) or not isinstance(donor, str):
        raise PatchError(
            f"readers are {given!r} and the donor {donor!r}; give names, one or several to read, "
            "and one to be read"
        )
    return tuple(sorted(set(names)))


def _counted(name: str, values: Iterable) -> tuple[int, ...]:
    """Sorted integers, each once, counted from 0.

    Raises PatchError for anything else.  A negative one would be counted from the end, and -1 in a
    slots table hides a token.
    """
    numbers = integers(name, values)
    if numbers and numbers[0] < 0:
        raise PatchError(
            f"{name} hold {numbers[0]}; they are counted from 0: give 0 or more, or None for all"
        )
    return numbers


def integers(name: str, values: Iterable) -> tuple[int, ...]:
    """Sorted integers, each once, of any integer type.

    Raises PatchError for anything else, and for a range of more than MOST, which is never written out.
    """
    if isinstance(values, range) and values[MOST:]:
        raise PatchError(f"{name} is {values!r}; give at most {MOST:,}, or None for all")
    try:
        return tuple(sorted({int(index(value)) for value in values}))
    except TypeError:
        raise PatchError(
            f"{name} is {values!r}; give a sequence of integers, or None for all"
        ) from None


def require_in_range(what: str, asked: Sequence[int] | None, size: int, site: Site) -> None:
    """Raise PatchError unless sorted numbers are all among 0..size - 1.

    what   "step", "head" or "token"
    asked  numbers in ascending order.  None passes
    """
    if not asked or 0 <= asked[0] <= asked[-1] < size:
        return
    bad = asked[0] if asked[0] < 0 else asked[-1]
    raise PatchError(
        f"no {what} {bad} at site {site.name!r}; there are {size}: "
        f"give {what}s of 0..{size - 1}, or None for all"
    )
