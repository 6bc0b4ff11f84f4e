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
from textpatch.reads import Found, Key, Measured, Reads
from textpatch.sites import Site, select_sites
from textpatch.slots import Rows, evenly
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


class Whole(NamedTuple):
    """Rows of which each reads every token of another in its place."""

    readers: Rows
    donors: Rows


class Looked(NamedTuple):
    """What a table of keys or values lets rows read.

    slots    (B, H or 1, T), None where every row reads itself
    winners  swap of each slot
    cells    those in which a row reads another
    heads    number of heads that are apart there
    whole    rows of the cells in their order, where each cell is `whole`.  None otherwise
    """

    slots: Tensor | None
    winners: Tensor
    cells: list[Cells]
    heads: int
    whole: Whole | None


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
        watch = Watch(self.sites, batch, {row.name for row in readers}, self.reads)
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
    reads  what is found, to be filled
    """

    def __init__(
        self,
        sites: Sequence[Site],
        batch: Sequence[Row],
        names: set[str],
        reads: Reads,
    ) -> None:
        self.sites = sites
        self.batch = batch
        self.names = names
        self.reads = reads
        self.step = BEFORE_THE_FIRST
        # what was looked up last, and what was found in the present step, in the order of its cells
        self.looked: dict[SitePart, Looked] = {}
        self.entries: dict[SitePart, list[Found]] = {}
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
        before = self.looked.get(key)
        if before is not None and before.slots is table and before.winners is winners:
            return
        keys = self.looked.get((key[0], "k"))
        if (
            key[1] == "v"
            and keys is not None
            and keys.slots is table
            and torch.equal(keys.winners, winners)
        ):
            # values are mostly read as the keys are
            self.looked[key] = keys._replace(winners=winners)
            return
        if table is None:
            self.looked[key] = Looked(None, winners, [], 1, None)
            return
        slots, swaps = torch.broadcast_tensors(table, winners)
        cells = cells_read(slots, swaps, self.batch, self.names)
        self.looked[key] = Looked(table, winners, cells, slots.shape[1], _whole(cells))

    def _count(self, site: Site, part: str) -> None:
        """Count the hits of a site's keys or values, every head of a table that all heads share."""
        looked = self.looked[site, part]
        entries = [self._entry(site, cells) for cells in looked.cells]
        for cells, found in zip(looked.cells, entries, strict=True):
            found.branches.add(self.batch[cells.reader].branch)
            found.hits[part] += len(cells.heads) * site.text_heads // looked.heads
        self.entries[site, part] = entries

    def _measure(self, site: Site, part: str, kv: Tensor) -> None:
        """Measure how much the keys or values that are read differ from the reader's own."""
        _, _, cells, heads, whole = self.looked[site, part]
        kv = kv.detach()
        if whole is not None:
            changes = _largest_changes(kv[whole.donors], kv[whole.readers])
        elif cells:
            changes = torch.stack([_change(kv, one, heads) for one in cells])
        else:
            return
        self.reads.measured.append(Measured(self.entries[site, part], part, changes))

    def _entry(self, site: Site, cells: Cells) -> Found:
        reader = self.batch[cells.reader].name
        donor = self.batch[cells.donor].name
        key = Key(self.step, site.index, reader, donor, cells.swap)
        found = self.reads.found.get(key)
        if found is None:
            found = Found()
            self.reads.found[key] = found
        return found


def _whole(cells: Sequence[Cells]) -> Whole | None:
    """Rows of the cells, in their order.  None unless these are all of each reader's."""
    if not cells or not all(one.whole for one in cells):
        return None
    readers = torch.tensor([one.reader for one in cells])
    donors = torch.tensor([one.donor for one in cells])
    return Whole(evenly(readers), evenly(donors))


def _change(kv: Tensor, cells: Cells, heads: int) -> Tensor:
    """Largest change of keys or values (B, T, W), or (B, T, H, D), in some cells.

    heads  number of heads that are apart
    """
    apart = heads, -1
    read = kv[cells.donor].flatten(1).unflatten(1, apart)  # (T, heads, W / heads)
    own = kv[cells.reader].flatten(1).unflatten(1, apart)
    read = read[cells.donor_tokens, cells.heads]
    own = own[cells.tokens, cells.heads]
    return _largest_changes(read[None], own[None])[0]


def _largest_changes(read: Tensor, own: Tensor) -> Tensor:
    """max |read - own| of each row, in float32 where these are narrower.

    vector_norm takes three times as long.
    """
    if own.element_size() < torch.float32.itemsize:
        read = read.float()
        own = own.float()
    return (read - own).abs().amax(tuple(range(1, own.dim())))


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
