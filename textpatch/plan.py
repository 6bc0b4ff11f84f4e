"""Interventions as data: which rows read whose text keys and values, at which sites and steps.

    read[b, h, t] = (donor, t) where a swap names the row, site, step, head and token; (b, t) elsewhere

Later swaps win where two overlap.  A plan can be printed, compared, hashed, stored and replayed.

B batch rows, H heads of K and V, T text tokens, D head width
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from numbers import Real
from operator import index

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.sites import Site, plain_selectors, select_sites

SCHEMA_VERSION = (
    2  # 2 brought windows; what version 1 can say is written in it, so that no stored hash changes
)
UNCONDITIONAL = "uncond"
CONDITIONAL = "cond"


@dataclass(frozen=True)
class Row:
    """One labelled batch row: a prompt, what it starts from, a guidance branch.

    prompt   None is no prompt at all
    seed     of its starting noise, and of the noise that a stochastic schedule adds
    pooled   the prompt whose pooled vector modulates this row.  Its own when None
    sampled  False for a row that is only read: a donor of which no picture is made, where its prompt alone settles
             its keys and values
    joins    the step at which the row joins the run.  A later one needs `latents` or `copies`
    latents  (C, H, W) entering that step, in place of the seed's noise
    copies   name of the row whose latents entering that step it takes
    """

    name: str
    prompt: str | None
    seed: int = 0
    branch: str = CONDITIONAL
    pooled: str | None = None
    sampled: bool = True
    joins: int = 0
    latents: Tensor | None = field(
        default=None, compare=False, repr=False
    )  # tensors are not equal or unequal
    copies: str | None = None

    @property
    def label(self) -> tuple[str, str]:
        return self.name, self.branch

    @property
    def pooled_prompt(self) -> str | None:
        return self.prompt if self.pooled is None else self.pooled

    @property
    def data(self) -> dict:
        """The row as plain data, its latents as their hash.

        What is left at its default is left out of joins, latents and copies: records of version 0.1 hash the others.
        """
        fields = {
            name: value
            for name, value in vars(self).items()
            if name not in ("joins", "latents", "copies")
        }
        if self.joins:
            fields["joins"] = self.joins
        if self.copies is not None:
            fields["copies"] = self.copies
        if self.latents is not None:
            values = self.latents.detach().double().cpu().contiguous().numpy()
            fields["latents_sha256"] = hashlib.sha256(values.tobytes()).hexdigest()
        return fields


@dataclass(frozen=True)
class Window:
    """The steps whose timestep or sigma lies between low and high, both included; None is an open end.

    unit  "timestep", what the denoiser is told (0..1000), or "sigma", the noise level of what enters the step:
          the two that a run's ledger prints
    Raises PatchError for another unit, and for ends that are no finite numbers, out of order, or both open.
    """

    unit: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        ends = [end for end in (self.low, self.high) if end is not None]
        numbers = all(isinstance(end, Real) and isfinite(end) for end in ends)
        if self.unit not in ("timestep", "sigma") or not ends or not numbers or ends[0] > ends[-1]:
            raise PatchError(
                f"window of {self.unit!r} from {self.low!r} to {self.high!r}; give 'timestep' or 'sigma', the lower "
                "end and the higher, None for one that is open; for all steps leave the window out"
            )
        for name in ("low", "high"):
            end = getattr(self, name)
            object.__setattr__(
                self, name, None if end is None else float(end) + 0.0
            )  # -0.0 is written 0.0

    def among(self, values: Sequence[float]) -> tuple[int, ...]:
        """Indices of the values inside, one value per step of a run.  Raises PatchError if there is none."""
        low, high = -inf if self.low is None else self.low, inf if self.high is None else self.high
        inside = tuple(i for i, value in enumerate(values) if low <= value <= high)
        if not inside:
            shown = ", ".join(f"{value:.6g}" for value in values)
            raise PatchError(
                f"no step of this run lies in {self}: its {len(values)} are at {shown}; widen the window"
            )
        return inside

    def __str__(self) -> str:
        ends = [
            f"{word} {end}"
            for word, end in (("from", self.low), ("to", self.high))
            if end is not None
        ]
        return " ".join([self.unit, *ends])


@dataclass(frozen=True)
class Swap:
    """`readers` read the text keys and values of `donor` at `sites`.   (ICLR 2025, sec. 4.1, Patching)

    sites    what `select_sites` understands: index, range, name, glob, kind, group, or several of these; "all"
    readers  name of a row, or several
    donor    name of the row whose text K and V are read, at the same step and in the same guidance branch
    steps    loop indices, 0 = noisiest, or a Window of timesteps or sigmas; all when None.  `range(s, n)` starts at s
    heads    head indices; all when None
    tokens   text token indices; all when None
    part     "kv", or only "k" or only "v"
    branch   "both" guidance branches, as the official code does, or "cond" alone
    """

    # What may be given; all become tuples.
    sites: int | str | Sequence
    readers: str | Sequence[str]
    donor: str
    steps: Sequence[int] | Window | None = None
    heads: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    part: str = "kv"
    branch: str = "both"

    def __post_init__(self):
        set_ = object.__setattr__
        set_(self, "sites", plain_selectors(self.sites))
        set_(self, "readers", _names(self.readers, self.donor))
        for name in ("steps", "heads", "tokens"):
            value = getattr(self, name)
            if value is not None and not (name == "steps" and isinstance(value, Window)):
                set_(self, name, _counted(name, value))
        if self.part not in ("kv", "k", "v") or self.branch not in ("both", "cond"):
            raise PatchError(
                f"part is {self.part!r} and branch {self.branch!r}; known: kv, k, v and both, cond"
            )
        for name in ("sites", "readers", "steps", "heads", "tokens"):
            if getattr(self, name) == ():
                raise PatchError(
                    f"{name} is empty in {self}; give some.  Steps, heads and tokens left out mean all"
                )

    def acts(self, step: int, row: Row) -> bool:
        in_branch = self.branch == "both" or row.branch == CONDITIONAL
        return in_branch and row.name in self.readers and (self.steps is None or step in self.steps)

    def require_cells(self, site: Site, tokens: int) -> None:
        """Raise PatchError unless a site and a text of so many tokens have the heads and tokens named."""
        require_in_range("head", self.heads, site.text_heads, site)
        require_in_range("token", self.tokens, tokens, site)


class Plan:
    """A sequence of swaps; see the module docstring.   Raises PatchError for what is none."""

    def __init__(self, swaps: Iterable[Swap] = ()):
        self.swaps = tuple(swaps) if isinstance(swaps, Iterable) else (None,)
        if not all(isinstance(swap, Swap) for swap in self.swaps):
            raise PatchError(
                f"a plan is a list of swaps, and was given {swaps!r}; give Plan([Swap(...), ...])"
            )

    def __eq__(self, other) -> bool:
        return isinstance(other, Plan) and self.swaps == other.swaps

    def __hash__(self) -> int:
        return hash(self.swaps)

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.swaps + other.swaps)

    def __repr__(self) -> str:
        return f"Plan({list(self.swaps)})"

    def _repr_html_(self) -> str:
        """For a notebook: the equation and every swap; `explain` says it of a model's sites, tensor by tensor."""
        say = lambda values: (
            ", ".join(map(str, values)) if isinstance(values, tuple) else str(values or "all")
        )  # noqa: E731
        head = "readers read", "of row", "at sites", "steps", "heads", "tokens", "branch"
        rows = [
            (
                f"{say(swap.readers)}: {', '.join(swap.part)}",
                swap.donor,
                *map(say, (swap.sites, swap.steps, swap.heads, swap.tokens, swap.branch)),
            )
            for swap in self.swaps
        ]
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        lines = "".join(
            f"<tr>{line}</tr>" for line in ["".join(f"<th>{name}</th>" for name in head), *cells]
        )
        told = "softmax(q [k_image; k']<sup>T</sup> / &radic;D) [v_image; v'], k' and v' read from another row's text"
        return f"<p>{told if rows else 'no swap: identity'}</p><table>{lines if rows else ''}</table>".encode(
            errors="replace"
        ).decode()

    def to_json(self) -> str:
        """Canonical JSON: the same plan is the same string however its lists were ordered."""
        version = (
            SCHEMA_VERSION if any(isinstance(swap.steps, Window) for swap in self.swaps) else 1
        )
        body = {"schema_version": version, "swaps": [asdict(swap) for swap in self.swaps]}
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | dict) -> Plan:
        """The plan of that text, or of what JSON made of it, such as a run's results.json holds under "plan".

        Raises PatchError for text that is no plan, a newer schema, or an unknown field.
        """
        try:
            body = text if isinstance(text, dict) else json.loads(text)
            if body["schema_version"] not in range(1, SCHEMA_VERSION + 1):
                raise PatchError(
                    f"plan of schema {body['schema_version']!r}; this version reads 1 to {SCHEMA_VERSION}; "
                    "read it with the textpatch that wrote it, or a newer one"
                )
            return cls(_swap(**fields) for fields in body["swaps"])
        except (ValueError, KeyError, TypeError) as error:
            raise PatchError(f"not a plan: {error}; plans are written by Plan.to_json") from None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def at(self, schedule, steps: int) -> Plan:
        """This plan in a run of so many steps: loop indices in the place of every window.

        schedule: timesteps(steps) and sigmas(steps), whose i-th entries are step i's; see `Window.among` for a
        loop with another.  Raises PatchError for a window that holds no step.
        """

        def indices(window: Window) -> tuple[int, ...]:
            values = (
                schedule.timesteps(steps) if window.unit == "timestep" else schedule.sigmas(steps)
            )
            return window.among(values[:steps].tolist())

        return Plan(
            replace(swap, steps=indices(swap.steps)) if isinstance(swap.steps, Window) else swap
            for swap in self.swaps
        )

    def check(self, rows: Sequence[Row], sites: Sequence[Site], steps: int, tokens: int) -> None:
        """Raise PatchError unless every swap names existing rows, sites, steps, heads and tokens, and no window."""
        names = [row.name for row in rows]  # in their order, for the message
        self._require_indices()
        for swap in self.swaps:
            for name in (*swap.readers, swap.donor):
                if name not in names:
                    raise PatchError(f"no row {name!r} in this run{closest(name, names)}")
            for site in select_sites(sites, swap.sites):
                require_in_range("step", swap.steps, steps, site)
                swap.require_cells(site, tokens)

    def acting(self, step: int) -> tuple[bool, ...]:
        """Which swaps act at a step.  Steps with the same answer have the same tables, so these can be kept."""
        return tuple(swap.steps is None or step in swap.steps for swap in self.swaps)

    def slots(
        self, step: int, rows: Sequence[Row], sites: Sequence[Site], *, tokens: int
    ) -> list | None:
        """One entry per site for a denoiser's `slots`: None, int32 (B, H or 1, T), or a pair for K and V.

        rows may be a part of a run's: a swap with no reader among them does nothing, and unknown names are for
        `check` to refuse.  Raises PatchError if a reader's donor is not among `rows` in the reader's branch; for
        sites, heads and tokens there are not, whether or not the swap acts; and for a window.
        """
        place = {row.label: b for b, row in enumerate(rows)}
        tables = self._tables(
            step, rows, sites, tokens, lambda i, row: _donor(place, row, self.swaps[i].donor)
        )
        return (
            [_entry(**tables[site]) if site in tables else None for site in sites]
            if tables
            else None
        )

    def winners(
        self, step: int, rows: Sequence[Row], sites: Sequence[Site], *, tokens: int
    ) -> dict:
        """Site -> "k" or "v" -> which swap, by its place in the plan, is the last to name a cell; -1 where none is.

        int (B, H or 1, T), as `slots`; sites without a swap are left out.  Raises as `slots`, donors apart.
        """
        B = len(rows)  # swap i stands for its donor as row B + i
        tables = self._tables(step, rows, sites, tokens, lambda i, row: B + i)
        return {
            site: {part: (table // tokens - B).clamp(min=-1) for part, table in pair.items()}
            for site, pair in tables.items()
        }

    def _require_indices(self) -> None:
        for swap in self.swaps:
            if isinstance(swap.steps, Window):
                raise PatchError(
                    f"steps are those of {swap.steps}, known in a run alone; take plan.at(schedule, steps)"
                )

    def _tables(self, step, rows, sites, tokens: int, donor: Callable[[int, Row], int]) -> dict:
        """Site -> part -> (B, H or 1, T), for sites with a swap; donor(i, row): whom a row reads by swap i."""
        self._require_indices()
        own, tables = (
            torch.arange(len(rows) * tokens, dtype=torch.int32).reshape(len(rows), 1, tokens),
            {},
        )
        for i, swap in enumerate(self.swaps):
            readers = [b for b, row in enumerate(rows) if swap.acts(step, row)]
            donors = [donor(i, rows[b]) for b in readers]
            for site in select_sites(sites, swap.sites):
                swap.require_cells(site, tokens)
                for part in swap.part if readers else "":
                    pair = tables.setdefault(site, {"k": own, "v": own})
                    pair[part] = _write(pair[part], readers, donors, swap, site.text_heads)
        return tables

    def explain(
        self,
        sites: Sequence[Site] | None = None,
        *,
        schedule=None,
        steps: int | None = None,
        tokens: int | str = "T",
    ) -> str:
        """The equation of every swap, its sites, and every tensor it touches: module, text tokens, channels, shape.

        sites: the model's; without them a plan knows of no tensors, and says its sites as they were asked for.
        schedule and steps: the run, as for `at`, whose loop indices stand beside every window; tokens: how many.
        Raises PatchError for one of schedule and steps alone, and for a site there is not.
        """
        if (schedule is None) != (steps is None):
            said = None if schedule is None else type(schedule).__name__
            raise PatchError(
                f"{steps=} and schedule {said}; give both, so that windows are told in steps, or neither"
            )
        run = self if schedule is None else self.at(schedule, steps)
        found = lambda swap: None if sites is None else select_sites(sites, swap.sites)  # noqa: E731
        said = (
            _explain(swap, acting, found(swap), tokens)
            for swap, acting in zip(self.swaps, run.swaps)
        )
        return "\n".join(said) or "no swap: identity"


def _swap(*, steps=None, **fields) -> Swap:
    """A swap as JSON holds it."""
    return Swap(steps=Window(**steps) if isinstance(steps, dict) else steps, **fields)


def _names(readers, donor) -> tuple[str, ...]:
    """The readers, sorted and each once.  Raises PatchError unless they and the donor are names."""
    names = (
        [readers]
        if isinstance(readers, str) or not isinstance(readers, Iterable)
        else list(readers)
    )
    if not all(isinstance(name, str) for name in [*names, donor]):
        raise PatchError(
            f"readers are {readers!r} and the donor {donor!r}; give names: one or several to read, and one to be read"
        )
    return tuple(sorted(set(names)))


def _counted(name: str, values: Iterable) -> tuple[int, ...]:
    """As `integers`; refuses negative ones, too, which would be read from the end, and as slots hide a token."""
    numbers = integers(name, values)
    if numbers and numbers[0] < 0:
        raise PatchError(
            f"{name} hold {numbers[0]}; they are counted from 0: give 0 or more, or None for all"
        )
    return numbers


def integers(name: str, values: Iterable) -> tuple[int, ...]:
    """Sorted and each once, of any integer type.  Raises PatchError for anything else."""
    try:
        return tuple(sorted({int(index(value)) for value in values}))
    except TypeError:
        raise PatchError(
            f"{name} is {values!r}; give a sequence of integers, or None for all"
        ) from None


def require_in_range(what: str, asked: Sequence[int] | None, size: int, site: Site) -> None:
    """Raise PatchError unless all of the sorted numbers asked for, steps, tokens or heads, are 0..size - 1."""
    if asked and not 0 <= asked[0] <= asked[-1] < size:
        bad = asked[0] if asked[0] < 0 else asked[-1]
        raise PatchError(
            f"no {what} {bad} at site {site.name!r}; there are {size}: give {what}s of 0..{size - 1}, or None for all"
        )


def _donor(place: dict, reader: Row, donor: str) -> int:
    if (donor, reader.branch) not in place:
        raise PatchError(
            f"row {reader.name!r} reads {donor!r}, which is not in the batch in branch {reader.branch!r}"
            f"{closest(donor, [name for name, branch in place if branch == reader.branch])}"
        )
    return place[donor, reader.branch]


def _entry(k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """One table where keys and values are read alike."""
    return k if k.shape == v.shape and torch.equal(k, v) else (k, v)


def _write(table: Tensor, readers: list[int], donors: list[int], swap: Swap, heads: int) -> Tensor:
    table = (
        table.clone() if swap.heads is None else table.expand(-1, heads, -1).clone()
    )  # (B, H or 1, T)
    tokens = table.shape[-1]
    h = torch.arange(table.shape[1]) if swap.heads is None else torch.tensor(swap.heads)
    t = torch.arange(tokens) if swap.tokens is None else torch.tensor(swap.tokens)
    for reader, donor in zip(readers, donors):
        table[reader, h[:, None], t] = (donor * tokens + t).int()
    return table


def _explain(swap: Swap, run: Swap, sites: tuple[Site, ...] | None, tokens: int | str) -> str:
    """A swap; `run` is the same with the loop indices of a run.   sites: None where no model's are known"""
    say = lambda values: "all" if values is None else ", ".join(map(str, values))  # noqa: E731
    k, v = (part + "'" if part in swap.part else part for part in "kv")
    alone, beside = (
        f"softmax(q {k}^T / sqrt(D)) {v}",
        f"softmax(q [k_image; {k}]^T / sqrt(D)) [v_image; {v}]",
    )
    equations = (
        [f"{alone} or {beside}"]
        if sites is None
        else sorted({alone if site.kind == "cross" else beside for site in sites})
    )
    asked = swap.sites if isinstance(swap.sites, (str, int)) else say(swap.sites)
    shape = "; readers x heads x tokens x head_dim:"
    where = (
        [f", at sites {asked}"]
        if sites is None
        else [shape, *(line for site in sites for line in _tensors(swap, site, tokens))]
    )
    steps = "" if isinstance(run.steps, Window) else say(run.steps)
    window = [f"of {swap.steps}"] if isinstance(swap.steps, Window) else []
    return "\n".join(
        [
            f"{', '.join(swap.readers)} <- {swap.donor}:  {', '.join(equations)}",
            f"  steps {' = '.join([*window, steps] if steps else window)}; heads {say(swap.heads)}; "
            f"tokens {say(swap.tokens)}; branch {swap.branch}",
            f"  {', '.join(x for x in (k, v) if len(x) > 1)} of row {swap.donor}, same step and branch{where[0]}",
            *where[1:],
        ]
    )


def _tensors(swap: Swap, site: Site, tokens: int | str) -> Iterator[str]:
    """A site, and each tensor made there of which a swap replaces entries, and how many in each guidance branch."""
    heads = site.text_heads if swap.heads is None else len(swap.heads)
    read = tokens if swap.tokens is None else len(swap.tokens)
    yield f"  {site.index:4d}  {site.name}  ({site.kind})"
    for part, tap in zip("kv", site.taps):
        if part in swap.part:
            place = tap.module + site.span.cut(tokens, tap.channels)
            yield f"          {part}' {place}  {len(swap.readers)} x {heads} x {read} x {site.head_dim}"
