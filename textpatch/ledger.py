"""Ledger of a run, which tells who read whose text keys and values, and how much that changed.

Hits are counted in the slots that the denoiser was given.  Changes are measured on the output of the
text projections, before any norm of the keys, as the largest |K read - K own| and |V read - V own|
over the hits.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from textpatch.errors import PatchError
from textpatch.html import fragment, safe, table
from textpatch.text import aligned

SCHEMA_VERSION = 1
LINES = 30  # of a printed table
SHOWN = 5  # lines of it at a prompt
TITLES = (
    "step",
    "site",
    "timestep",
    "sigma",
    "reader <- donor",
    "K hits",
    "V hits",
    "K change",
    "V change",
)
UNKNOWN = "?"  # a timestep or sigma
UNWATCHED = "unwatched"  # a change
# reasons of a silent swap
ITSELF = "its readers are its donor"
OVERRIDDEN = "later swaps take all it names"
SAME_TEXT = "readers and donor have the same text"
NO_EFFECT = "the texts differ, yet everything read equals the reader's own"


@dataclass(frozen=True)
class Entry:
    """Reads of one row from another at one site and step, in all guidance branches together.

    timestep, sigma     those of the schedule at the step.  None where no schedule is known
    hits_k, hits_v      number of (row, head, token) entries read
    change_k, change_v  largest change, in the units of K and V.  None where a compiled model could
                        not be watched
    backend             backend of `segment_attention` that carried out the swap
    """

    site: int
    name: str
    step: int
    timestep: float | None
    sigma: float | None
    reader: str
    donor: str
    branches: tuple[str, ...]
    hits_k: int
    hits_v: int
    change_k: float | None
    change_v: float | None
    dtype: str
    backend: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Line of a table, in the order of `TITLES`."""
        return (
            str(self.step),
            str(self.site),
            _number(self.timestep, ".1f", UNKNOWN),
            _number(self.sigma, ".4f", UNKNOWN),
            f"{self.reader} <- {self.donor}",
            str(self.hits_k),
            str(self.hits_v),
            _number(self.change_k, ".3g", UNWATCHED),
            _number(self.change_v, ".3g", UNWATCHED),
        )


def _number(value: float | None, form: str, otherwise: str) -> str:
    if value is None:
        return otherwise
    return format(value, form)


@dataclass(frozen=True)
class Silence:
    """Swap without effect, since every key and value it supplied equals the reader's own.

    swap  index of the swap in the plan
    what  readers, donor and sites of the swap
    why   reason, one of ITSELF, OVERRIDDEN, SAME_TEXT and NO_EFFECT
    """

    swap: int
    what: str
    why: str


@dataclass(frozen=True, repr=False)
class Ledger:
    """All entries of a run and its silent swaps.

    Both are empty for a run without a plan.
    """

    entries: tuple[Entry, ...] = ()
    silent: tuple[Silence, ...] = ()

    def fill(self, other: Ledger) -> None:
        """Take in all of another ledger.  For whoever gives a ledger away before the run is over."""
        object.__setattr__(self, "entries", other.entries)
        object.__setattr__(self, "silent", other.silent)

    def require(self) -> None:
        """Raise PatchError if a swap between different texts changed nothing.

        Other silence has a good reason.
        """
        dead = [silence for silence in self.silent if silence.why == NO_EFFECT]
        if dead:
            raise PatchError(
                f"{len(dead)} of the plan's swaps had no effect, first swap {dead[0].swap} ({dead[0].what}): "
                f"{dead[0].why}; name other sites, heads or tokens, or leave the swap out"
            )

    def to_json(self) -> str:
        """Ledger as JSON, which `from_json` reads."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Read a ledger from JSON.

        Raises PatchError for text that is no ledger or too deeply nested for one, or of another schema.
        """
        try:
            body = json.loads(text)
            if body["schema_version"] != SCHEMA_VERSION:
                raise PatchError(
                    f"ledger of schema {body['schema_version']!r}; this version reads {SCHEMA_VERSION}"
                )
            entries = [
                Entry(**{**entry, "branches": tuple(entry["branches"])})
                for entry in body["entries"]
            ]
            return cls(tuple(entries), tuple(Silence(**silence) for silence in body["silent"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PatchError(
                f"not a ledger: {error}; ledgers are written by Ledger.to_json"
            ) from None

    def __str__(self) -> str:
        """Table of the first LINES entries, the number of further ones, and every silent swap."""
        lines = self._first(LINES)
        for silence in self.silent:
            lines.append(f"silent: swap {silence.swap} ({silence.what}): {silence.why}")
        return "\n".join(lines)

    def _first(self, most: int) -> list[str]:
        """Table of the first entries, and the number of further ones."""
        lines = aligned([TITLES, *(entry.cells for entry in self.entries[:most])])
        more = len(self.entries) - most
        if more > 0:
            lines.append(f"... and {more} more")
        return lines

    def __repr__(self) -> str:
        """Table of the first entries with the number of silent swaps, in eight lines at most."""
        lines = self._first(SHOWN) if self.entries else ["Ledger without entries"]
        if self.silent:
            lines.append(f"silent swaps: {len(self.silent)}; print the ledger to see why")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [[safe(cell) for cell in entry.cells] for entry in self.entries[:LINES]]
        further = "<br>".join(safe(line) for line in str(self).splitlines()[1 + len(rows) :])
        return fragment(table([safe(title) for title in TITLES], rows) + f"<p>{further}</p>")
