"""Bookkeeping of a run, which makes its ledger from slots and from the text projections' outputs.

B batch rows, H heads of a slots table (1 where all are alike), T text tokens, W = heads x D
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from textpatch.attention import choose_backend
from textpatch.bank import Bank, Texts
from textpatch.calls import Call
from textpatch.hooks import compiled
from textpatch.ledger import Ledger
from textpatch.pipelines import SupportsSampling
from textpatch.plan import Plan, Row, SiteSlots
from textpatch.ports.shipped import pipeline_sites
from textpatch.reads import Found, Key, Reads
from textpatch.sites import Site, select_sites
from textpatch.taps import at_text

Winners = Mapping[Site, Mapping[str, Tensor]]
SitePart = tuple[Site, str]  # keys "k" or values "v" of a site
BEFORE_THE_FIRST = -1  # step of a watch whose run has not begun
# winners at a site that no swap of the plan names
NOBODY = dict.fromkeys("kv", torch.full((1, 1, 1), -1))


class Cells(NamedTuple):
    """Cells in which one row reads another by one swap.

    reader, donor                rows of the batch, by their places
    swap                         index of the swap in the plan
    heads, tokens, donor_tokens  index tensors of one length, with an element for each cell
    whole                        True where the reader reads every token of the donor in its place
    """

    reader: int
    donor: int
    swap: int
    heads: Tensor
    tokens: Tensor
    donor_tokens: Tensor
    whole: bool


class Recorder:
    """Maker of the ledger of one run, from all batches that it was `watching`."""

    def __init__(
        self,
        pipeline: SupportsSampling,
        rows: Sequence[Row],
        plan: Plan,
        steps: int,
        texts: Texts,
    ) -> None:
        self.pipeline = pipeline
        self.plan = plan
        self.steps = steps
        self.texts = texts
        self.sites: tuple[Site, ...] = ()
        if plan.swaps:
            self.sites = select_sites(pipeline_sites(pipeline), plan.selectors)
        self.reads = Reads(plan, rows, self.sites)
        self.reads.watched = texts.bank is not None or not compiled(pipeline.denoiser)

    @contextmanager
    def watching(
        self, batch: Sequence[Row], readers: Sequence[Row]
    ) -> Iterator[Callable[[int, Sequence[SiteSlots] | None], None]]:
        """Watch a run of some batch rows.

        Gives enter(step, slots), to be called before each step with the slots it gets, one entry
        per site.

        readers  rows of the batch whose reads are entered
        Raises PatchError as `at_text`, and on leaving if the text projections of a swapped site never
        ran.
        """
        watch = Watch(self.sites, batch, {row.name for row in readers}, self.reads.found)
        winners = self.plan.kept(lambda step: self._winners(step, batch))

        def enter(step: int, slots: Sequence[SiteSlots] | None) -> None:
            watch.enter(step, slots, winners(step))

        if self.texts.bank is not None:
            self._enter_bank(watch, batch, self.texts.bank)
            yield enter
        elif self.sites and self.reads.watched:
            with self._observing(watch):
                yield enter
        else:
            yield enter

    def _winners(self, step: int, batch: Sequence[Row]) -> Winners:
        return self.plan.winners(step, batch, self.sites, tokens=self.texts.tokens)

    def _enter_bank(self, watch: Watch, batch: Sequence[Row], bank: Bank) -> None:
        """Enter the bank's keys and values as the rows of a batch would read them without a plan."""
        rows = self.texts.rows(batch)
        for site in self.sites:
            for part, kv in zip("kv", bank[site.index], strict=True):
                watch.made(site, part, kv.transpose(1, 2).flatten(2)[rows])  # (B, T, W)

    @contextmanager
    def _observing(self, watch: Watch) -> Iterator[None]:
        """Enter the text keys and values that are made as long as the block lasts."""

        def made(site: Site, part: str, call: Call, own: Tensor) -> None:
            watch.made(site, part, own)

        # no call must run every site, as long as every site runs in one
        with at_text(self.pipeline.denoiser, self.sites, made, steps=()):
            yield

    def ledger(self) -> Ledger:
        """Ledger of all that was watched, in the order of steps and sites."""
        times = self.pipeline.schedule.timesteps(self.steps).tolist()
        sigmas = self.pipeline.schedule.sigmas(self.steps).tolist()

        def noise(step: int) -> tuple[float, float]:
            return times[step], sigmas[step]

        return self.reads.ledger(noise, self.pipeline.dtype, self._backend)

    def _backend(self, site: Site) -> str:
        """Backend that carries out the swaps of a site.

        A step without a swap may run on another.
        """
        queries = torch.empty(
            0, 1, 0, site.head_dim, device=self.pipeline.device, dtype=self.pipeline.dtype
        )
        return choose_backend(queries, table=True)


class Watch:
    """Watch over one batch of a run.

    It counts the cells in which slots let a row read another, and measures how the keys and values
    there differ from the reader's own.

    names  names of the rows whose reads are entered
    found  what is found, to be filled
    """

    def __init__(
        self,
        sites: Sequence[Site],
        batch: Sequence[Row],
        names: set[str],
        found: dict[Key, Found],
    ) -> None:
        self.sites = sites
        self.batch = batch
        self.names = names
        self.found = found
        self.step = BEFORE_THE_FIRST
        # slots of a site's keys or values (B, H or 1, T), and their winners
        self.given: dict[SitePart, tuple[Tensor | None, Tensor]] = {}
        # cells of these that read another row, and how many heads are apart there
        self.cells: dict[SitePart, list[Cells]] = {}
        self.heads: dict[SitePart, int] = {}
        # keys and values that were made once for all steps, (B, T, W)
        self.bank: dict[SitePart, Tensor] = {}

    def enter(self, step: int, slots: Sequence[SiteSlots] | None, winners: Winners) -> None:
        """Enter the hits of a step, and the changes of what was made before the first step."""
        self.step = step
        for site in self.sites:
            self.enter_site(site, None if slots is None else slots[site.index], winners)
        for (site, part), kv in self.bank.items():
            self._measure(site, part, kv)

    def enter_site(self, site: Site, entry: SiteSlots, winners: Winners) -> None:
        """Enter the hits at one site in the present step."""
        pair = entry if isinstance(entry, tuple) else (entry, entry)
        for part, table in zip("kv", pair, strict=True):
            self._look_up((site, part), table, winners.get(site, NOBODY)[part])
            self._count(site, part)

    def made(self, site: Site, part: str, kv: Tensor) -> None:
        """Take in keys or values (B, T, W), or (B, T, H, D), in a step or once before the first."""
        if self.step == BEFORE_THE_FIRST:
            self.bank[site, part] = kv
        else:
            self._measure(site, part, kv)

    def _look_up(self, key: SitePart, table: Tensor | None, winners: Tensor) -> None:
        """Find the cells of a table.

        Most steps have the table and the swaps of the step before, so that the cells are kept.
        """
        before = self.given.get(key)
        if before is not None and before[0] is table and before[1] is winners:
            return
        self.given[key] = table, winners
        keys = key[0], "k"
        if (
            key != keys
            and self.given[keys][0] is table
            and torch.equal(self.given[keys][1], winners)
        ):
            self.cells[key] = self.cells[keys]  # values are mostly read as the keys are
            self.heads[key] = self.heads[keys]
            return
        self.cells[key] = []
        self.heads[key] = 1
        if table is not None:
            slots, swaps = torch.broadcast_tensors(table, winners)
            self.heads[key] = slots.shape[1]
            self.cells[key] = cells_read(slots, swaps, self.batch, self.names)

    def _count(self, site: Site, part: str) -> None:
        """Count the hits of a site's keys or values, every head of a table that all heads share."""
        for cells in self.cells[site, part]:
            found = self._entry(site, cells)
            found.branches.add(self.batch[cells.reader].branch)
            found.hits[part] += len(cells.heads) * site.text_heads // self.heads[site, part]

    def _measure(self, site: Site, part: str, kv: Tensor) -> None:
        """Measure how much the keys or values that are read differ from the reader's own."""
        kv = kv.detach()
        for cells in self.cells[site, part]:
            read = kv[cells.donor]
            own = kv[cells.reader]
            if not cells.whole:  # (T, W) or (T, H, D) -> (cells, W / H)
                apart = self.heads[site, part], -1
                read = read.flatten(1).unflatten(1, apart)[cells.donor_tokens, cells.heads]
                own = own.flatten(1).unflatten(1, apart)[cells.tokens, cells.heads]
            self._entry(site, cells).changes[part].append(_largest_change(read, own))

    def _entry(self, site: Site, cells: Cells) -> Found:
        reader = self.batch[cells.reader].name
        donor = self.batch[cells.donor].name
        key = Key(self.step, site.index, reader, donor, cells.swap)
        found = self.found.get(key)
        if found is None:
            found = Found()
            self.found[key] = found
        return found


def _largest_change(read: Tensor, own: Tensor) -> Tensor:
    """max |read - own|, in float32 where these are narrower.   vector_norm takes three times as long."""
    if own.element_size() < torch.float32.itemsize:
        read = read.float()
        own = own.float()
    return (read - own).abs().max()


def cells_read(
    table: Tensor, winners: Tensor, batch: Sequence[Row], names: set[str]
) -> list[Cells]:
    """Cells in which a row reads another, together for each reader, donor and swap.

    table    slots (B, H, T)
    winners  (B, H, T) index of the swap that each slot is of
    names    names of the readers that are looked at
    """
    rows, _, tokens = table.shape
    own = torch.arange(rows * tokens, device=table.device).view(-1, 1, tokens)
    moved = table != own
    swaps = int(winners.max()) + 1
    # donor and swap of each cell as one number, (B, H, T)
    who = (table // tokens).long() * swaps + winners
    found = []
    for reader in moved.any(-1).any(-1).nonzero().flatten().tolist():
        if batch[reader].name not in names:
            continue
        for pair in who[reader][moved[reader]].unique().tolist():
            heads, at = (moved[reader] & (who[reader] == pair)).nonzero(as_tuple=True)
            donor, swap = divmod(pair, swaps)
            read = table[reader, heads, at].long() % tokens
            whole = len(at) == moved[reader].numel() and torch.equal(read, at)
            found.append(Cells(reader, donor, swap, heads, at, read, whole))
    return found
