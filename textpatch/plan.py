"""Interventions as data, which say what rows read whose text keys and values.

    read[b, h, t] = (donor, t)   where a swap names the row, site, step, head and token
    read[b, h, t] = (b, t)       elsewhere

Later swaps win where two overlap.  A plan can be printed, compared, hashed, stored and replayed.

B batch rows, H heads of K and V, T text tokens, D head width
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.explaining import IDENTITY, as_html, explained
from textpatch.rows import CONDITIONAL, UNCONDITIONAL, Row
from textpatch.sites import Site, plain_selectors, select_sites
from textpatch.swaps import Swap, integers, require_in_range
from textpatch.windows import NoiseSchedule, Window

__all__ = [
    "CONDITIONAL",
    "UNCONDITIONAL",
    "Plan",
    "Row",
    "SiteSlots",
    "Swap",
    "Window",
    "integers",
    "require_in_range",
]

# version 2 brought windows.  A plan without one is written as version 1, so that its hash stays
SCHEMA_VERSION = 2

SiteSlots = Tensor | tuple[Tensor, Tensor] | None  # one for K and V, or a pair, (B, H or 1, T) each
Tokens = int | Mapping[Site, int]  # number of text tokens of all sites, or of each
Made = TypeVar("Made")


class Plan:
    """Sequence of swaps, of which later ones win.

    Raises PatchError for anything but swaps.
    """

    def __init__(self, swaps: Iterable[Swap] = ()) -> None:
        given = tuple(swaps) if isinstance(swaps, Iterable) else None
        if given is None or not all(isinstance(swap, Swap) for swap in given):
            shown = swaps if given is None else list(given)
            raise PatchError(
                f"a plan is a list of swaps, and was given {shown!r}; give Plan([Swap(...), ...])"
            )
        self.swaps = given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.swaps == other.swaps

    def __hash__(self) -> int:
        return hash(self.swaps)

    def __add__(self, other: Plan) -> Plan:
        if not isinstance(other, Plan):
            return NotImplemented
        return Plan(self.swaps + other.swaps)

    def __repr__(self) -> str:
        return f"Plan({list(self.swaps)})"

    def _repr_html_(self) -> str:
        """HTML for a notebook, of the equation and every swap.

        `explain` adds a model's sites and tensors.
        """
        return as_html(self.swaps)

    @property
    def selectors(self) -> tuple[int | str, ...]:
        """Selectors of sites that any swap names."""
        return plain_selectors([one for swap in self.swaps for one in plain_selectors(swap.sites)])

    # --- as text

    def to_json(self) -> str:
        """Canonical JSON, the same for a plan whatever the order of its lists was."""
        version = 1
        if any(isinstance(swap.steps, Window) for swap in self.swaps):
            version = SCHEMA_VERSION
        body = {"schema_version": version, "swaps": [asdict(swap) for swap in self.swaps]}
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | dict[str, object]) -> Plan:
        """Read a plan from JSON.

        text  JSON, or the dict that was read from it, such as results.json holds under "plan"
        Raises PatchError for text that is no plan or too deeply nested for one, a newer schema, or an
        unknown field.
        """
        try:
            body: Any = text if isinstance(text, dict) else json.loads(text)
            if body["schema_version"] not in range(1, SCHEMA_VERSION + 1):
                raise PatchError(
                    f"plan of schema {body['schema_version']!r}; this version reads 1 to {SCHEMA_VERSION}; "
                    "read it with the textpatch that wrote it, or a newer one"
                )
            return cls(_swap(**fields) for fields in body["swaps"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PatchError(f"not a plan: {error}; plans are written by Plan.to_json") from None

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON, as hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def explain(
        self,
        sites: Sequence[Site] | None = None,
        *,
        schedule: NoiseSchedule | None = None,
        steps: int | None = None,
        tokens: int | str = "T",
    ) -> str:
        """Explain every swap by its equation, its sites, and every tensor it touches.

        A tensor is told by its module, text tokens, channels and shape.

        sites            those of a model.  Without them tensors are not known, and sites are told
                         as they were asked for
        schedule, steps  the run, as for `at`.  Its loop indices stand beside every window
        tokens           number of text tokens, or a letter for it
        Raises PatchError for one of schedule and steps alone, and for sites that are not there.
        """
        if (schedule is None) != (steps is None):
            found = schedule if schedule is None else type(schedule).__name__
            raise PatchError(
                f"{steps=} and schedule {found}; give both, so that windows are told in steps, or neither"
            )
        run = self
        if schedule is not None and steps is not None:
            run = self.at(schedule, steps)
        said = []
        for swap, acting in zip(self.swaps, run.swaps, strict=True):
            chosen = None if sites is None else select_sites(sites, swap.sites)
            said.append(explained(swap, acting, chosen, tokens))
        return "\n".join(said) or IDENTITY

    # --- in a run

    def at(self, schedule: NoiseSchedule, steps: int) -> Plan:
        """Plan for a run of so many steps, with loop indices in the place of every window.

        schedule  its i-th timestep and sigma are those of step i.  See `Window.among` for a loop
                  that differs
        Raises PatchError for a window that holds no step.
        """
        return Plan(_in_run(swap, schedule, steps) for swap in self.swaps)

    def check(self, rows: Sequence[Row], sites: Sequence[Site], steps: int, tokens: int) -> None:
        """Raise PatchError unless all that the swaps name is there.

        That is rows, sites, steps as loop indices, heads and tokens.
        """
        self.check_rows(rows)
        self.check_steps(sites, steps)
        for swap in self.swaps:
            for site in select_sites(sites, swap.sites):
                swap.require_cells(site, tokens)

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Raise PatchError unless all rows that the swaps name are there."""
        names = [row.name for row in rows]  # in their order, for the message
        for swap in self.swaps:
            for name in (*swap.readers, swap.donor):
                if name not in names:
                    raise PatchError(f"no row {name!r} in this run{closest(name, names)}")

    def check_steps(self, sites: Sequence[Site], steps: int) -> None:
        """Raise PatchError unless all sites and all steps, as loop indices, that the swaps name are there."""
        for swap in self.swaps:
            for site in select_sites(sites, swap.sites):
                require_in_range("step", swap.loop_indices, steps, site)

    def kept(self, make: Callable[[int], Made]) -> Callable[[int], Made]:
        """Function of a step that calls make(step) once for all steps at which the same swaps act."""
        made: dict[tuple[bool, ...], Made] = {}
        known: dict[int, Made] = {}  # a step is asked for several times at every site

        def of_step(step: int) -> Made:
            if step not in known:
                acting = tuple(swap.in_step(step) for swap in self.swaps)
                if acting not in made:
                    made[acting] = make(step)
                known[step] = made[acting]
            return known[step]

        return of_step

    def slots(
        self, step: int, rows: Sequence[Row], sites: Sequence[Site], *, tokens: Tokens
    ) -> list[SiteSlots] | None:
        """Slots tables of a step for a denoiser, one entry per site, None where no swap acts.

        An entry is None, int32 (B, H or 1, T), or a pair of these for K and V.

        rows    may be a part of a run's.  A swap with no reader among them does nothing, and unknown
                names are for `check` to refuse
        tokens  number T of text tokens, or one for each of some sites, the others being left out
        Raises PatchError for
        - a reader whose donor is not among `rows` in the reader's branch
        - sites, heads and tokens that are not there, whether or not their swap acts
        - a window
        """
        place = {row.label: b for b, row in enumerate(rows)}

        def donor(i: int, reader: Row) -> int:
            return _donor(place, reader, self.swaps[i].donor)

        tables = self._tables(step, rows, sites, tokens, donor)
        if not tables:
            return None
        return [_entry(tables.get(site)) for site in sites]

    def winners(
        self, step: int, rows: Sequence[Row], sites: Sequence[Site], *, tokens: Tokens
    ) -> dict[Site, dict[str, Tensor]]:
        """Winning swaps of a step, by site and by "k" or "v".

        A table int32 (B, H or 1, T) holds for each cell the index of the last swap that names it,
        -1 if none does.  Sites without a swap are left out.
        Raises PatchError as `slots`, but for donors.
        """
        B = len(rows)

        def donor(i: int, reader: Row) -> int:
            return B + i  # a row beyond the batch stands for swap i

        tables = self._tables(step, rows, sites, tokens, donor)
        length = _per_site(sites, tokens)
        return {
            site: {part: (table // length[site] - B).clamp(min=-1) for part, table in pair.items()}
            for site, pair in tables.items()
        }

    def _tables(
        self,
        step: int,
        rows: Sequence[Row],
        sites: Sequence[Site],
        tokens: Tokens,
        donor: Callable[[int, Row], int],
    ) -> dict[Site, dict[str, Tensor]]:
        """Tables (B, H or 1, T) of keys and values at every site where a swap acts.

        donor  (i, reader) -> place of the row that a reader reads by swap i
        """
        length = _per_site(sites, tokens)
        own = {T: _own(len(rows), T) for T in set(length.values())}
        tables: dict[Site, dict[str, Tensor]] = {}
        for i, swap in enumerate(self.swaps):
            readers = [b for b, row in enumerate(rows) if swap.acts(step, row)]
            donors = [donor(i, rows[b]) for b in readers]
            for site in select_sites(sites, swap.sites):
                if site not in length:
                    continue
                swap.require_cells(site, length[site])
                if not readers:
                    continue
                pair = tables.setdefault(site, dict.fromkeys("kv", own[length[site]]))
                for part in swap.part:
                    pair[part] = _write(pair[part], readers, donors, swap, site.text_heads)
        return tables


def _per_site(sites: Sequence[Site], tokens: Tokens) -> Mapping[Site, int]:
    """Number of text tokens of each site that has one."""
    if isinstance(tokens, Mapping):
        return tokens
    return dict.fromkeys(sites, tokens)


def _own(rows: int, tokens: int) -> Tensor:
    """Table (B, 1, T) by which every row reads itself."""
    return torch.arange(rows * tokens, dtype=torch.int32).reshape(rows, 1, tokens)


def _swap(*, steps: Any = None, **fields: Any) -> Swap:
    """Swap of the fields that JSON holds."""
    if isinstance(steps, dict):
        steps = Window(**steps)
    return Swap(steps=steps, **fields)


def _in_run(swap: Swap, schedule: NoiseSchedule, steps: int) -> Swap:
    """Swap with loop indices in the place of a window."""
    if isinstance(swap.steps, Window):
        return replace(swap, steps=swap.steps.in_run(schedule, steps))
    return swap


def _donor(place: Mapping[tuple[str, str], int], reader: Row, donor: str) -> int:
    """Place of a donor in the reader's branch.  Raises PatchError if the batch has none."""
    if (donor, reader.branch) not in place:
        names = [name for name, branch in place if branch == reader.branch]
        raise PatchError(
            f"row {reader.name!r} reads {donor!r}, which is not in the batch "
            f"in branch {reader.branch!r}{closest(donor, names)}"
        )
    return place[donor, reader.branch]


def _entry(pair: dict[str, Tensor] | None) -> SiteSlots:
    """Slots of one site, a single table where keys and values are read alike."""
    if pair is None:
        return None
    k = pair["k"]
    v = pair["v"]
    if k.shape == v.shape and torch.equal(k, v):
        return k
    return k, v


def _write(table: Tensor, readers: list[int], donors: list[int], swap: Swap, heads: int) -> Tensor:
    """Copy of a table in which readers read their donors at the heads and tokens of a swap.

    table  (B, H or 1, T).  The copy has all heads where the swap names some
    heads  number of heads of the site's K and V
    """
    tokens = table.shape[-1]
    if swap.heads is None:
        table = table.clone()  # (B, H or 1, T)
        h = torch.arange(table.shape[1])
    else:
        table = table.expand(-1, heads, -1).clone()  # (B, H, T)
        h = torch.tensor(swap.heads)
    t = torch.arange(tokens) if swap.tokens is None else torch.tensor(swap.tokens)
    for reader, donor in zip(readers, donors, strict=True):
        table[reader, h[:, None], t] = (donor * tokens + t).int()
    return table
