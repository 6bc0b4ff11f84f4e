"""The ledger of a run: who read whose text keys and values, at which site and step, and how much that changed.

B batch rows, H heads of a slots table (1: all alike), T text tokens, W = heads x D

Hits are counted in the slots the denoiser was given.  Changes are measured on what the text projections put
out, before any norm of the keys: the largest |K read - K own| and |V read - V own| over the hits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from textpatch.attention import choose_backend
from textpatch.bank import Texts
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Row, Swap
from textpatch.ports.shipped import find_sites
from textpatch.sites import Site, select_sites
from textpatch.text import aligned

SCHEMA_VERSION = 1
LINES = 30
ITSELF = "its readers are its donor"
OVERRIDDEN = "later swaps take all it names"
SAME_TEXT = "readers and donor have the same text"
NO_EFFECT = "the texts differ, yet everything read equals the reader's own"
NOBODY = dict.fromkeys(
    "kv", torch.full((1, 1, 1), -1)
)  # the winners at a site that no swap of the plan names


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
    """A swap of the plan, by its place, that changed no bit of any key or value it is the last to name; and why."""

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
            entries = [
                Entry(**{**entry, "branches": tuple(entry["branches"])})
                for entry in body["entries"]
            ]
            return cls(tuple(entries), tuple(Silence(**silence) for silence in body["silent"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PatchError(
                f"not a ledger: {error}; ledgers are written by Ledger.to_json"
            ) from None

    def __str__(self) -> str:
        """A table of at most LINES entries, then how many more there are; and every silent swap."""
        titles = (
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
        shown = [
            (
                str(e.step),
                str(e.site),
                f"{e.timestep:.1f}",
                f"{e.sigma:.4f}",
                f"{e.reader} <- {e.donor}",
                str(e.hits_k),
                str(e.hits_v),
                _number(e.change_k),
                _number(e.change_v),
            )
            for e in self.entries[:LINES]
        ]
        more = len(self.entries) - len(shown)
        silent = [f"silent: swap {s.swap} ({s.what}): {s.why}" for s in self.silent]
        return "\n".join(
            aligned([titles, *shown]) + ([f"... and {more} more"] if more else []) + silent
        )


def _number(value: float | None) -> str:
    return "unwatched" if value is None else f"{value:.3g}"


@dataclass
class _Found:
    """What one swap does to an entry in the making."""

    branches: set[str] = field(default_factory=set)
    hits: dict[str, int] = field(default_factory=lambda: {"k": 0, "v": 0})
    changes: dict[str, list[Tensor]] = field(default_factory=lambda: {"k": [], "v": []})

    def change(self, part: str, watched: bool) -> float | None:
        changes = self.changes[part]
        return (float(torch.stack(changes).max()) if changes else 0.0) if watched else None

    def __add__(self, other: _Found) -> _Found:
        """What two swaps do to one entry."""
        return _Found(
            self.branches | other.branches,
            {part: self.hits[part] + other.hits[part] for part in "kv"},
            {part: self.changes[part] + other.changes[part] for part in "kv"},
        )


class Recorder:
    """Makes the ledger of one sampler's run, from `watching` each of its batches."""

    def __init__(self, pipeline, rows: Sequence[Row], plan: Plan, steps: int, texts: Texts):
        self.pipeline, self.plan, self.steps, self.texts = pipeline, plan, steps, texts
        self.prompts = {row.name: row.prompt for row in rows}
        sites = find_sites(pipeline.denoiser) if plan.swaps else ()
        self.sites = (
            select_sites(sites, [x for swap in plan.swaps for x in swap.sites]) if sites else ()
        )
        self.watched = texts.bank is not None or not compiled(pipeline.denoiser)
        self.found: dict[
            tuple, _Found
        ] = {}  # (step, site, reader, donor, swap) -> the swap's part in an entry

    @contextmanager
    def watching(
        self, batch: Sequence[Row], readers: Sequence[Row]
    ) -> Iterator[Callable[[int, list | None], None]]:
        """Watch a run of some batch rows; those named like one of `readers` are entered.

        Gives enter(step, slots), to be called before each step with the slots it gets, one entry per site.
        Raises PatchError on leaving if the text projections of a swapped site never ran.
        """
        watch = Watch(
            self.sites, batch, {row.name for row in readers}, self.found, self._winners(batch)
        )
        if self.texts.bank is not None:
            for site, part, kv in self._made_once(batch):
                watch.made(site, part, kv)
            yield watch.enter
            return
        taps = {
            tap.module: (site, part) for site in self.sites for part, tap in zip("kv", site.taps)
        }
        if not taps or not self.watched:
            yield watch.enter
            return
        with HookRegistry(self.pipeline.denoiser, taps).observe(
            lambda name, kv: watch.made(*taps[name], kv)
        ):
            yield watch.enter

    def _winners(self, batch: Sequence[Row]) -> Callable[[int], dict]:
        """The plan's `winners` of a batch at a step, made once for all steps with the same swaps."""
        made = {}

        def winners(step: int) -> dict:
            acting = self.plan.acting(step)
            if acting not in made:
                made[acting] = self.plan.winners(step, batch, self.sites, tokens=self.texts.tokens)
            return made[acting]

        return winners

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
        times, sigmas = (
            schedule.timesteps(self.steps).tolist(),
            schedule.sigmas(self.steps).tolist(),
        )
        dtype = str(self.pipeline.dtype).removeprefix("torch.")
        backends = {site.index: self._backend(site) for site in self.sites}
        merged: dict[tuple, _Found] = {}
        for (*place, _), found in self.found.items():
            merged[tuple(place)] = merged.get(tuple(place), _Found()) + found
        entries = tuple(
            Entry(
                site,
                names[site],
                step,
                times[step],
                sigmas[step],
                reader,
                donor,
                tuple(sorted(found.branches)),
                found.hits["k"],
                found.hits["v"],
                found.change("k", self.watched),
                found.change("v", self.watched),
                dtype,
                backends[site],
            )
            for (step, site, reader, donor), found in sorted(merged.items())
        )
        return Ledger(entries, tuple(self._silent()))

    def _backend(self, site: Site) -> str:
        """What carries out the swaps of a site; a step without one may run on another."""
        queries = torch.empty(
            0, 1, 0, site.head_dim, device=self.pipeline.device, dtype=self.pipeline.dtype
        )
        return choose_backend(queries, table=True)

    def _silent(self) -> Iterator[Silence]:
        for i, swap in enumerate(self.plan.swaps):
            why = self._why_silent(i, swap)
            if why:
                sites = ", ".join(str(site.index) for site in select_sites(self.sites, swap.sites))
                yield Silence(i, f"{', '.join(swap.readers)} <- {swap.donor} at site {sites}", why)

    def _why_silent(self, i: int, swap: Swap) -> str | None:
        """Why the i-th swap changed nothing; None if it did, or if nobody could watch."""
        if swap.readers == (swap.donor,):
            return ITSELF
        own = [
            (self.prompts[a] != self.prompts[b], found)
            for (*_, a, b, j), found in self.found.items()
            if j == i
        ]
        if not own:
            return OVERRIDDEN
        apart = any(differ for differ, _ in own)
        told = [found for differ, found in own if differ == apart]
        if any(found.change(part, self.watched) != 0 for found in told for part in swap.part):
            return None
        return NO_EFFECT if apart else SAME_TEXT


class Watch:
    """One batch of a run: what its slots read, and how that differs from what its rows would have read."""

    def __init__(
        self,
        sites: Sequence[Site],
        batch: Sequence[Row],
        names: set[str],
        found: dict,
        winners: Callable,
    ):
        self.sites, self.batch, self.names, self.found, self.winners = (
            sites,
            batch,
            names,
            found,
            winners,
        )
        self.step: int | None = None
        self.tables: dict[
            tuple[Site, str], tuple | None
        ] = {}  # slots of a site's keys or values, and their winners
        self.cells: dict[tuple[Site, str], list] = {}  # those of them that read another row
        self.bank: dict[tuple[Site, str], Tensor] = {}  # keys and values made once for all steps

    def enter(self, step: int, slots: list | None) -> None:
        self.step, winners = step, self.winners(step)
        for site in self.sites:
            entry = None if slots is None else slots[site.index]
            for part, table in zip("kv", entry if isinstance(entry, tuple) else (entry, entry)):
                self._look_up((site, part), table, winners.get(site, NOBODY)[part])
                for *who, heads, _, _ in self.cells[site, part]:
                    found = self._entry(site, *who)
                    found.branches.add(self.batch[who[0]].branch)
                    found.hits[part] += len(heads) * site.text_heads // self._heads(site, part)
        for (site, part), kv in self.bank.items():
            self._measure(site, part, kv)

    def made(self, site: Site, part: str, kv: Tensor) -> None:
        """Keys or values (B, T, W) that a projection put out: in a step, or once before the first."""
        if self.step is None:
            self.bank[site, part] = kv
        else:
            self._measure(site, part, kv)

    def _look_up(self, key: tuple[Site, str], table: Tensor | None, winners: Tensor) -> None:
        """Find the cells of a table; most steps bring the table of the step before, by the same swaps."""
        now, before = (
            None if table is None else torch.broadcast_tensors(table, winners),
            self.tables.get(key),
        )
        if now is None or before is None or not all(map(torch.equal, now, before)):
            self.tables[key] = now
            self.cells[key] = [] if now is None else cells_read(*now, self.batch, self.names)

    def _heads(self, site: Site, part: str) -> int:
        return self.tables[site, part][0].shape[1]

    def _measure(self, site: Site, part: str, kv: Tensor) -> None:
        for reader, donor, swap, heads, tokens, read in self.cells[site, part]:
            split = kv.detach().unflatten(-1, (self._heads(site, part), -1))  # (B, T, H, W / H)
            wide = torch.promote_types(kv.dtype, torch.float32)
            change = split[donor, read, heads].to(wide) - split[reader, tokens, heads].to(wide)
            self._entry(site, reader, donor, swap).changes[part].append(change.abs().max())

    def _entry(self, site: Site, reader: int, donor: int, swap: int) -> _Found:
        key = self.step, site.index, self.batch[reader].name, self.batch[donor].name, swap
        return self.found.setdefault(key, _Found())


def cells_read(
    table: Tensor, winners: Tensor, batch: Sequence[Row], names: set[str]
) -> list[tuple]:
    """(reader, donor, swap, heads, tokens, donor's tokens): who reads whom by which swap, and where.

    table: slots (B, H, T); winners (B, H, T): the swap each is of; the last three are index tensors of one length,
    one element per entry of the table.
    """
    tokens = table.shape[2]
    moved = table != torch.arange(table.shape[0] * tokens, device=table.device).view(-1, 1, tokens)
    found = []
    for reader in moved.any(-1).any(-1).nonzero().flatten().tolist():
        who = torch.stack(
            [table[reader] // tokens, winners[reader]], dim=-1
        )  # (H, T, donor and swap)
        for pair in who[moved[reader]].unique(dim=0) if batch[reader].name in names else []:
            at = (moved[reader] & (who == pair).all(-1)).nonzero(as_tuple=True)
            found.append((reader, *pair.tolist(), *at, table[reader][at].long() % tokens))
    return found


def compiled(model: nn.Module) -> bool:
    """Whether a model runs compiled code, which no hook put on later can see into."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)
        for module in model.modules()
    )
