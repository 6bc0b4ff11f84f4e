"""The ledger of a run: who read whose text keys and values, at which site and step, and how much that changed.

B batch rows, H heads of a slots table (1: all alike), T text tokens, W = heads x D

Hits are counted in the slots the denoiser was given.  Changes are measured on what the text projections put
out, before any norm of the keys: the largest |K read - K own| and |V read - V own| over the hits.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from textpatch.attention import choose_backend
from textpatch.bank import Texts
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Row, Swap
from textpatch.sites import Site, find_sites, select_sites

SCHEMA_VERSION = 1
LINES = 30
ITSELF = "its readers are its donor"
OVERRIDDEN = "later swaps take all it names"
SAME_TEXT = "readers and donor have the same text"
NO_EFFECT = "the texts differ, yet everything read equals the reader's own"


@dataclass(frozen=True)
class Entry:
    """What one row read from another at one site and step, in all its guidance branches together.

    timestep and sigma are the schedule's; hits_k and hits_v count (row, head, token) entries; change_k and
    change_v are in the units of K and V, and None where a compiled model could not be watched.
    """

    site: int
    name: str
    step: int
    timestep: float
    sigma: float
    reader: str
    donor: str
    branches: tuple[str, ...]
    hits_k: int
    hits_v: int
    change_k: float | None
    change_v: float | None
    dtype: str
    backend: str


@dataclass(frozen=True)
class Silence:
    """A swap of the plan, by its place there, that changed no bit of any key or value; and why."""

    swap: int
    what: str
    why: str


@dataclass(frozen=True)
class Ledger:
    """All entries of a run, and the swaps that had no effect; empty for a run without a plan."""

    entries: tuple[Entry, ...] = ()
    silent: tuple[Silence, ...] = ()

    def require(self) -> None:
        """Raise PatchError if a swap between different texts changed nothing; other silence has a good reason."""
        dead = [silence for silence in self.silent if silence.why == NO_EFFECT]
        if dead:
            raise PatchError(
                f"{len(dead)} of the plan's swaps had no effect, first swap {dead[0].swap} ({dead[0].what}): "
                f"{dead[0].why}; name other sites, heads or tokens, or leave the swap out"
            )

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """The inverse of `to_json`.  Raises PatchError for text that is no ledger, or of another schema."""
        try:
            body = json.loads(text)
            if body["schema_version"] != SCHEMA_VERSION:
                raise PatchError(
                    f"ledger of schema {body['schema_version']!r}; this version reads {SCHEMA_VERSION}"
                )
            entries = [Entry(**{**entry, "branches": tuple(entry["branches"])}) for entry in body["entries"]]
            return cls(tuple(entries), tuple(Silence(**silence) for silence in body["silent"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PatchError(f"not a ledger: {error}; ledgers are written by Ledger.to_json") from None

    def __str__(self) -> str:
        """A table of at most LINES entries, then how many more there are; and every silent swap."""
        titles = "step", "site", "timestep", "sigma", "reader <- donor", "K hits", "V hits", "K change", "V change"
        shown = [
            (str(e.step), str(e.site), f"{e.timestep:.1f}", f"{e.sigma:.4f}", f"{e.reader} <- {e.donor}",
             str(e.hits_k), str(e.hits_v), _number(e.change_k), _number(e.change_v))
            for e in self.entries[:LINES]
        ]  # fmt: skip
        more = len(self.entries) - len(shown)
        silent = [f"silent: swap {s.swap} ({s.what}): {s.why}" for s in self.silent]
        return "\n".join(_aligned([titles, *shown]) + ([f"... and {more} more"] if more else []) + silent)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its columns flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def _number(value: float | None) -> str:
    return "unwatched" if value is None else f"{value:.3g}"


@dataclass
class _Found:
    """An entry in the making."""

    branches: set[str] = field(default_factory=set)
    hits: dict[str, int] = field(default_factory=lambda: {"k": 0, "v": 0})
    changes: dict[str, list[Tensor]] = field(default_factory=lambda: {"k": [], "v": []})

    def change(self, part: str, watched: bool) -> float | None:
        changes = self.changes[part]
        return (float(torch.stack(changes).max()) if changes else 0.0) if watched else None


class Recorder:
    """Makes the ledger of one sampler's run, from `watching` each of its batches."""

    def __init__(self, pipeline, rows: Sequence[Row], plan: Plan, steps: int, texts: Texts):
        self.pipeline, self.plan, self.steps, self.texts = pipeline, plan, steps, texts
        self.prompts = {row.name: row.prompt for row in rows}
        sites = find_sites(pipeline.denoiser) if plan.swaps else ()
        self.sites = select_sites(sites, [x for swap in plan.swaps for x in swap.sites]) if sites else ()
        self.watched = texts.bank is not None or not compiled(pipeline.denoiser)
        self.found: dict[tuple, _Found] = {}  # (step, site, reader, donor) -> entry

    @contextmanager
    def watching(self, batch: Sequence[Row], readers: Sequence[Row]) -> Iterator[Callable[[int, list | None], None]]:
        """Watch a run of some batch rows; those named like one of `readers` are entered.

        Gives enter(step, slots), to be called before each step with the slots it gets, one entry per site.
        Raises PatchError on leaving if the text projections of a swapped site never ran.
        """
        watch = Watch(self.sites, batch, {row.name for row in readers}, self.found)
        if self.texts.bank is not None:
            for site, part, kv in self._made_once(batch):
                watch.made(site, part, kv)
            yield watch.enter
            return
        taps = {tap.module: (site, part) for site in self.sites for part, tap in zip("kv", site.taps)}
        if not taps or not self.watched:
            yield watch.enter
            return
        with HookRegistry(self.pipeline.denoiser, taps).observe(lambda name, kv: watch.made(*taps[name], kv)):
            yield watch.enter

    def _made_once(self, batch: Sequence[Row]) -> Iterator[tuple[Site, str, Tensor]]:
        """(site, part, (B, T, W)): the bank as the rows of a batch would read it without a plan."""
        rows = self.texts.rows(batch)
        for site in self.sites:
            for part, kv in zip("kv", self.texts.bank[site.index]):
                yield site, part, kv.transpose(1, 2).flatten(2)[rows]

    def ledger(self) -> Ledger:
        """All that was seen, in the order of steps and sites."""
        if not self.sites:
            return Ledger()
        schedule, names = self.pipeline.schedule, {site.index: site.name for site in self.sites}
        times, sigmas = schedule.timesteps(self.steps).tolist(), schedule.sigmas(self.steps).tolist()
        dtype = str(self.pipeline.dtype).removeprefix("torch.")
        backends = {site.index: self._backend(site) for site in self.sites}
        entries = tuple(
            Entry(site, names[site], step, times[step], sigmas[step], reader, donor, tuple(sorted(found.branches)),
                  found.hits["k"], found.hits["v"], found.change("k", self.watched),
                  found.change("v", self.watched), dtype, backends[site])
            for (step, site, reader, donor), found in sorted(self.found.items())
        )  # fmt: skip
        return Ledger(entries, tuple(self._silent(entries)))

    def _backend(self, site: Site) -> str:
        """What carries out the swaps of a site; a step without one may run on another."""
        queries = torch.empty(0, 1, 0, site.head_dim, device=self.pipeline.device, dtype=self.pipeline.dtype)
        return choose_backend(queries, table=True)

    def _silent(self, entries: Sequence[Entry]) -> Iterator[Silence]:
        for i, swap in enumerate(self.plan.swaps):
            chosen = {site.index for site in select_sites(self.sites, swap.sites)}
            why = _why_silent(swap, [entry for entry in entries if entry.site in chosen], self.prompts)
            if why:
                sites = ", ".join(map(str, sorted(chosen)))
                yield Silence(i, f"{', '.join(swap.readers)} <- {swap.donor} at site {sites}", why)


def _why_silent(swap: Swap, entries: list[Entry], texts: dict[str, str | None]) -> str | None:
    """Why a swap changed nothing at its sites; None if it did, or if nobody could watch."""
    if swap.readers == (swap.donor,):
        return ITSELF
    named = [
        entry for entry in entries
        if entry.reader in swap.readers and entry.donor == swap.donor
        and (swap.steps is None or entry.step in swap.steps)
        and any(getattr(entry, f"hits_{part}") for part in swap.part)
    ]  # fmt: skip
    if not named:
        return OVERRIDDEN
    apart = [entry for entry in named if texts[entry.reader] != texts[entry.donor]]
    if any(getattr(entry, f"change_{part}") != 0 for entry in apart or named for part in swap.part):
        return None
    return NO_EFFECT if apart else SAME_TEXT


class Watch:
    """One batch of a run: what its slots read, and how that differs from what its rows would have read."""

    def __init__(self, sites: Sequence[Site], batch: Sequence[Row], names: set[str], found: dict[tuple, _Found]):
        self.sites, self.batch, self.names, self.found = sites, batch, names, found
        self.step: int | None = None
        self.tables: dict[tuple[Site, str], Tensor | None] = {}  # the slots of a site's keys and of its values
        self.cells: dict[tuple[Site, str], list] = {}  # those of them that read another row
        self.bank: dict[tuple[Site, str], Tensor] = {}  # keys and values made once for all steps

    def enter(self, step: int, slots: list | None) -> None:
        self.step = step
        for site in self.sites:
            entry = None if slots is None else slots[site.index]
            for part, table in zip("kv", entry if isinstance(entry, tuple) else (entry, entry)):
                self._look_up((site, part), table)
                for reader, donor, heads, *_ in self.cells[site, part]:
                    found = self._entry(site, reader, donor)
                    found.branches.add(self.batch[reader].branch)
                    found.hits[part] += len(heads) * site.text_heads // table.shape[1]
        for (site, part), kv in self.bank.items():
            self._measure(site, part, kv)

    def made(self, site: Site, part: str, kv: Tensor) -> None:
        """Keys or values (B, T, W) that a projection put out: in a step, or once before the first."""
        if self.step is None:
            self.bank[site, part] = kv
        else:
            self._measure(site, part, kv)

    def _look_up(self, key: tuple[Site, str], table: Tensor | None) -> None:
        """Find the cells of a table; most steps bring the table of the step before."""
        before = self.tables.get(key)
        if table is None or before is None or not torch.equal(table, before):
            self.tables[key] = table
            self.cells[key] = [] if table is None else cells_read(table, self.batch, self.names)

    def _measure(self, site: Site, part: str, kv: Tensor) -> None:
        for reader, donor, heads, tokens, read in self.cells[site, part]:
            split = kv.detach().unflatten(-1, (self.tables[site, part].shape[1], -1))  # (B, T, H, W / H)
            wide = torch.promote_types(kv.dtype, torch.float32)
            change = split[donor, read, heads].to(wide) - split[reader, tokens, heads].to(wide)
            self._entry(site, reader, donor).changes[part].append(change.abs().max())

    def _entry(self, site: Site, reader: int, donor: int) -> _Found:
        key = self.step, site.index, self.batch[reader].name, self.batch[donor].name
        return self.found.setdefault(key, _Found())


def cells_read(table: Tensor, batch: Sequence[Row], names: set[str]) -> list[tuple[int, int, Tensor, Tensor, Tensor]]:
    """(reader, donor, heads, tokens, donor's tokens) for each pair of batch rows of which one reads the other.

    table: slots (B, H, T); the last three are index tensors of one length, one element per entry of the table.
    """
    tokens = table.shape[2]
    moved = table != torch.arange(table.shape[0] * tokens, device=table.device).view(-1, 1, tokens)
    found = []
    for reader in moved.any(-1).any(-1).nonzero().flatten().tolist():
        donors = table[reader] // tokens  # (H, T)
        for donor in donors[moved[reader]].unique().tolist() if batch[reader].name in names else []:
            at = (moved[reader] & (donors == donor)).nonzero(as_tuple=True)
            found.append((reader, donor, *at, table[reader][at].long() % tokens))
    return found


def compiled(model: nn.Module) -> bool:
    """Whether a model runs compiled code, which no hook put on later can see into."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) for module in model.modules()
    )
