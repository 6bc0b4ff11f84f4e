"""Interventions as data: which rows read whose text keys and values, at which sites and steps.

    read[b, h, t] = (donor, t) where a swap names the row, site, step, head and token; (b, t) elsewhere

Later swaps win where two overlap.  A plan can be printed, compared, hashed, stored and replayed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from operator import index
from typing import Iterable, Sequence

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.sites import Site, select_sites

SCHEMA_VERSION = 1
UNCONDITIONAL = "uncond"
CONDITIONAL = "cond"


@dataclass(frozen=True)
class Row:
    """One labelled batch row: a prompt (None: no prompt at all), a noise seed, a guidance branch.

    pooled is the prompt whose pooled vector modulates this row; its own when None.
    """

    name: str
    prompt: str | None
    seed: int = 0
    branch: str = CONDITIONAL
    pooled: str | None = None

    @property
    def label(self) -> tuple[str, str]:
        return self.name, self.branch

    @property
    def pooled_prompt(self) -> str | None:
        return self.prompt if self.pooled is None else self.pooled


def with_guidance(rows: Sequence[Row], negative: str | None = None) -> list[Row]:
    """Unconditional twins of all rows, reading `negative`, then the rows themselves: diffusers' batch order."""
    return [replace(row, prompt=negative, pooled=None, branch=UNCONDITIONAL) for row in rows] + list(rows)


@dataclass(frozen=True)
class Swap:
    """`readers` read the text keys and values of `donor` at `sites`.   (ICLR 2025, sec. 4.1, Patching)

    sites    index, name, glob, or several of these; "all"
    readers  name of a row, or several
    donor    name of the row whose text K and V are read, at the same step and in the same guidance branch
    steps    loop indices, 0 = noisiest; all when None.  `range(s, n)` starts at s
    heads    head indices; all when None
    tokens   text token indices; all when None
    part     "kv", or only "k" or only "v"
    branch   "both" guidance branches, as the official code does, or "cond" alone
    """

    sites: int | str | tuple
    readers: str | tuple[str, ...]
    donor: str
    steps: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    part: str = "kv"
    branch: str = "both"

    def __post_init__(self):
        set_ = object.__setattr__
        sites = self.sites if isinstance(self.sites, (int, str, Site)) else tuple(self.sites)
        sites = (sites,) if not isinstance(sites, tuple) else sites
        names = [site.name if isinstance(site, Site) else site for site in sites]
        set_(self, "sites", tuple(sorted(set(names), key=lambda s: (isinstance(s, str), s))))
        set_(
            self,
            "readers",
            tuple(sorted({self.readers} if isinstance(self.readers, str) else set(self.readers))),
        )
        for name in ("steps", "heads", "tokens"):
            value = getattr(self, name)
            set_(self, name, None if value is None else _integers(name, value))
        if self.part not in ("kv", "k", "v") or self.branch not in ("both", "cond"):
            raise PatchError(
                f"part is {self.part!r} and branch {self.branch!r}; known: kv, k, v and both, cond"
            )
        if () in (self.sites, self.readers, self.steps, self.heads, self.tokens):
            raise PatchError(f"{self} names nothing in one of its fields; leave the field out to mean all")

    def acts(self, step: int, row: Row) -> bool:
        in_branch = self.branch == "both" or row.branch == CONDITIONAL
        return in_branch and row.name in self.readers and (self.steps is None or step in self.steps)


class Plan:
    """A sequence of swaps; see the module docstring."""

    def __init__(self, swaps: Iterable[Swap] = ()):
        self.swaps = tuple(swaps)

    def __eq__(self, other) -> bool:
        return isinstance(other, Plan) and self.swaps == other.swaps

    def __hash__(self) -> int:
        return hash(self.swaps)

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.swaps + other.swaps)

    def __repr__(self) -> str:
        return f"Plan({list(self.swaps)})"

    def to_json(self) -> str:
        """Canonical JSON: the same plan is the same string however its lists were ordered."""
        body = {"schema_version": SCHEMA_VERSION, "swaps": [asdict(swap) for swap in self.swaps]}
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises PatchError for text that is no plan, a newer schema, or an unknown field."""
        try:
            body = json.loads(text)
            if body["schema_version"] != SCHEMA_VERSION:
                raise PatchError(
                    f"plan of schema {body['schema_version']!r}; this version reads {SCHEMA_VERSION}"
                )
            return cls(Swap(**swap) for swap in body["swaps"])
        except (ValueError, KeyError, TypeError) as error:
            raise PatchError(f"not a plan: {error}; plans are written by Plan.to_json") from None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check(self, rows: Sequence[Row], sites: Sequence[Site], steps: int, tokens: int) -> None:
        """Raise PatchError unless every swap names existing rows, sites, steps, heads and tokens."""
        names = {row.name for row in rows}
        for swap in self.swaps:
            for name in (*swap.readers, swap.donor):
                if name not in names:
                    raise PatchError(f"no row {name!r} in this run{closest(name, names)}")
            chosen = select_sites(sites, swap.sites)
            _in_range("step", swap.steps, steps)
            _in_range("token", swap.tokens, tokens)
            for site in chosen:
                _in_range(f"head of {site.name}", swap.heads, site.text_heads)

    def slots(self, step: int, rows: Sequence[Row], sites: Sequence[Site], *, tokens: int) -> list | None:
        """One entry per site for a denoiser's `slots`: None, int32 (B, H or 1, T), or a pair for K and V.

        Raises PatchError if a reader's donor is not among `rows` in the reader's branch.
        """
        entries = [self._site_slots(step, rows, sites, site, tokens) for site in sites]
        return None if all(entry is None for entry in entries) else entries

    def _site_slots(self, step, rows, sites, site: Site, tokens: int):
        place = {row.label: b for b, row in enumerate(rows)}
        own = torch.arange(len(rows) * tokens, dtype=torch.int32).reshape(len(rows), 1, tokens)
        tables, changed = {"k": own, "v": own}, False
        for swap in self.swaps:
            readers = [row for row in rows if swap.acts(step, row)]
            if not readers or site not in select_sites(sites, swap.sites):
                continue
            changed = True
            donors = [_donor(place, row, swap.donor) for row in readers]
            for part in swap.part:
                tables[part] = _write(
                    tables[part], [place[r.label] for r in readers], donors, swap, site.text_heads
                )
        if not changed:
            return None
        same = tables["k"].shape == tables["v"].shape and torch.equal(tables["k"], tables["v"])
        return tables["k"] if same else (tables["k"], tables["v"])

    def explain(self, sites: Sequence[Site]) -> str:
        """The equation of every swap, its sites by name, and the tensors it touches."""
        return (
            "\n".join(_explain(swap, select_sites(sites, swap.sites)) for swap in self.swaps)
            or "no swap: identity"
        )


def _integers(name: str, values: Iterable) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(index(value)) for value in values}))
    except TypeError:
        raise PatchError(f"{name} is {values!r}; give a sequence of integers, or None for all") from None


def _in_range(what: str, asked: tuple[int, ...] | None, size: int) -> None:
    if asked and not 0 <= asked[0] <= asked[-1] < size:
        bad = asked[0] if asked[0] < 0 else asked[-1]
        raise PatchError(f"no {what} {bad}; there are {size}, numbered 0..{size - 1}")


def _donor(place: dict, reader: Row, donor: str) -> int:
    if (donor, reader.branch) not in place:
        raise PatchError(
            f"row {reader.name!r} reads {donor!r}, which is not in the batch in branch {reader.branch!r}"
        )
    return place[donor, reader.branch]


def _write(table: Tensor, readers: list[int], donors: list[int], swap: Swap, heads: int) -> Tensor:
    table = table.clone() if swap.heads is None else table.expand(-1, heads, -1).clone()  # (B, H or 1, T)
    tokens = table.shape[-1]
    h = torch.arange(table.shape[1]) if swap.heads is None else torch.tensor(swap.heads)
    t = torch.arange(tokens) if swap.tokens is None else torch.tensor(swap.tokens)
    for reader, donor in zip(readers, donors):
        table[reader, h[:, None], t] = (donor * tokens + t).int()
    return table


def _explain(swap: Swap, sites: tuple[Site, ...]) -> str:
    say = lambda values: "all" if values is None else ", ".join(map(str, values))  # noqa: E731
    k = "k'" if "k" in swap.part else "k"
    v = "v'" if "v" in swap.part else "v"
    names = "\n".join(f"    {site.index:3d}  {site.name}" for site in sites)
    return (
        f"{', '.join(swap.readers)} <- {swap.donor}:  softmax(q [k_image; {k}]^T / sqrt(D)) [v_image; {v}]\n"
        f"  {', '.join(x for x in (k, v) if x.endswith(chr(39)))} of row {swap.donor}, same step and branch\n"
        f"  steps {say(swap.steps)}; heads {say(swap.heads)}; tokens {say(swap.tokens)}; branch {swap.branch}\n{names}"
    )
