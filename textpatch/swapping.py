"""A plan carried out in lock-step by a model's own calls, whoever makes them, with nothing cached.

All rows of a plan are in the batch, so that a reader finds its donor's text beside its own at every step.
Keys, values and masks are taken where attention gets them, see `attending`.

B batch rows, R rows of one guidance branch, H heads of keys and values, N keys, T text tokens, D head width
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from inspect import BoundArguments
from typing import NamedTuple

import torch
from torch import Tensor, nn

from textpatch.attending import Attended, Text, at_attention
from textpatch.bookkeeping import Watch, Winners
from textpatch.branches import Layout, layout_of, require_texts, text_rows, time_of, work_out
from textpatch.calls import Call, Calls
from textpatch.errors import PatchError
from textpatch.ledger import Ledger
from textpatch.masks import MIXED, require_known_layout, rows_of_mask
from textpatch.plan import CONDITIONAL, Plan, Row, SiteSlots, require_in_range
from textpatch.ports.shipped import find_sites
from textpatch.reads import Reads
from textpatch.sites import Site, Span, select_sites
from textpatch.slots import gather_text

BACKEND = "sdpa"  # of the ledger: the model's own attention


@contextmanager
def swap(
    model: nn.Module,
    plan: Plan,
    rows: Sequence[Row],
    *,
    calls: Sequence[Sequence[str]] | None = None,
    sites: Sequence[Site] | None = None,
    steps: int | None = None,
) -> Iterator[Ledger]:
    """Carry out a plan in the model's own calls inside the block, whose value is the ledger.

        A = softmax(q [k'; k_image]^T / sqrt(D) + [m'; m_image]) [v'; v_image],   k', v', m' of the donor

    The ledger is filled when the block is left.  A mask m goes with the keys that it hides.

    plan   with steps as loop indices.  Those of a Window are plan.at(schedule, steps)
    rows   Rows of the conditional branch, in the order of the batch.  Every branch has them in that order
    calls  calls of the model that make a step, with the branches of each one's rows, as in `branches`.
           When None they are worked out from the first call, where the number of its texts tells them
    sites  those of the model, `find_sites` when None
    steps  number of steps that the block must see.  None for any that hold those of the plan

    Raises PatchError

    - for rows of another branch than "cond", rows with starts of their own, and names that are repeated
    - for a plan of windows, and for rows, sites, heads, tokens and steps that are not there
    - for a batch of other rows or texts than `rows` and `calls` say, and for a run that ends within a step
    - as `at_attention`, and for masks and texts that cannot be read from another row
    """
    known = tuple(find_sites(model) if sites is None else sites)
    _require_fit(plan, rows, known)
    ledger = Ledger()
    if not plan.swaps:
        yield ledger
        return
    run = _Run(model, plan, rows, known, None if calls is None else layout_of(calls))
    try:
        with run.carrying() as seen:
            yield ledger
        run.require_whole(seen.count, steps)
    finally:
        ledger.fill(run.ledger())


def _require_fit(plan: object, rows: object, sites: Sequence[Site]) -> None:
    """Raise PatchError unless plan and rows can be carried out in somebody else's calls."""
    if not isinstance(plan, Plan):
        raise PatchError(f"the plan is {plan!r}; give Plan([Swap(...), ...])")
    if not isinstance(rows, Sequence) or not all(isinstance(row, Row) for row in rows):
        raise PatchError(f"rows are {rows!r}; give a list of Rows, in the order of the batch")
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise PatchError(f"row names are {names}; give each row a name of its own")
    for row in rows:
        plain = Row(row.name, row.prompt, row.seed)
        if vars(row) != vars(plain):
            raise PatchError(
                f"row {row.name!r} asks for more than its prompt and its noise; the calls are the caller's, "
                "so leave out branch, pooled, sampled, joins, latents, copies and path"
            )
    plan.check_rows(rows)
    for one in plan.swaps:
        _ = one.loop_indices  # a window is refused
        for site in select_sites(sites, one.sites):
            require_in_range("head", one.heads, site.text_heads, site)


class _Run:
    """Carrying out of a plan in the calls of one block.

    layout  calls of a step.  None until the first call has shown them
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        rows: Sequence[Row],
        sites: tuple[Site, ...],
        layout: Layout | None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.rows = tuple(rows)
        self.swapped = select_sites(sites, plan.selectors)
        self.layout = layout
        self.declared = layout is not None
        self.reads = Reads(plan, rows, self.swapped)
        self.branches: dict[str, _Branch] = {}
        self.times: list[list[float] | None] = []
        self.dtype = next(model.parameters()).dtype

    def carrying(self) -> AbstractContextManager[Calls]:
        """Block in which the model's calls carry out the plan."""
        return at_attention(self.model, self.swapped, self._read, self._required, self._begun)

    def ledger(self) -> Ledger:
        """Ledger of what was read so far."""

        def noise(step: int) -> tuple[None, None]:
            return None, None

        def backend(site: Site) -> str:
            return BACKEND

        return self.reads.ledger(noise, self.dtype, backend)

    def require_whole(self, calls: int, steps: int | None) -> None:
        """Raise PatchError unless so many calls are whole steps, and those that were asked for."""
        seen, rest = divmod(calls, len(self._layout.calls))
        if rest or steps not in (None, seen):
            asked = "whole steps" if steps is None else f"{steps} steps"
            raise PatchError(
                f"the block saw {calls} calls of the {type(self.model).__name__}, with {self._layout} a "
                f"step, and {asked} were asked for; give the `calls` of the pipeline as it runs, and a "
                "schedule that calls the model as often in every step"
            )
        self.plan.check_steps(self.swapped, seen)

    @property
    def _layout(self) -> Layout:
        """Layout of the run, which its first call has shown."""
        if self.layout is None:
            raise PatchError("no call has shown which rows are which; call the model in the block")
        return self.layout

    def _begun(self, number: int, inputs: BoundArguments) -> None:
        """Look at the arguments of a call.  Raises PatchError unless its rows are those of the layout."""
        require_known_layout(inputs, [site.span for site in self.swapped])
        texts = text_rows(inputs, self.swapped[0])
        if self.layout is None:
            self.layout = work_out(self.rows, texts)
        self._require_times(number, inputs)
        step, branches = self.layout.at(number)
        n = len(self.rows)
        if len(texts) != n * len(branches):
            raise PatchError(
                f"call {number} of the {type(self.model).__name__} holds {len(texts)} rows, and step {step} "
                f"of {self.layout} asks for {n} of each of {', '.join(branches)} there; give the Row of "
                "every row, and `calls` as the pipeline makes them"
            )
        if CONDITIONAL in branches and step == 0:
            first = n * branches.index(CONDITIONAL)
            require_texts(self.rows, texts[first : first + n])

    def _require_times(self, number: int, inputs: BoundArguments) -> None:
        """Raise PatchError if the calls of the first step have several times, or a second call its time."""
        size = len(self._layout.calls)
        if number >= max(size, 2):
            return
        self.times.append(time_of(inputs))
        same = self.times[number] == self.times[0]
        if number < size and not same:
            raise PatchError(
                f"calls 0 and {number} of the {type(self.model).__name__} are at times {self.times[0]} and "
                f"{self.times[number]}, and {self._layout} makes one step of them; give the `calls` of the "
                "pipeline as it runs"
            )
        if number >= size and same and not self.declared:
            raise PatchError(
                f"the {type(self.model).__name__} was called twice at one time, {self.times[0]}, so one call "
                'is not a step; give calls=[["cond"], ["uncond"]], in the order of the pipeline, or '
                '[["cond"]] if each call is a step'
            )

    def _required(self, number: int) -> Collection[str]:
        """Names of the sites at which a swap acts in a call."""
        step, branches = self._layout.at(number)
        acting: dict[str, None] = {}
        for branch in branches:
            acting |= dict.fromkeys(self._branch(branch).names(step))
        return acting

    def _branch(self, name: str) -> _Branch:
        if name not in self.branches:
            self.branches[name] = _Branch(self.plan, self.rows, name, self.swapped, self.reads)
        return self.branches[name]

    def _read(self, site: Site, call: Call, own: Attended, text: Text) -> Attended | None:
        """What attention gets where rows read others, branch by branch.  None where none does."""
        step, branches = self._layout.at(call.step)
        n = len(self.rows)
        if len(own.keys) != n * len(branches):
            raise PatchError(
                f"attention at site {site.name!r} gets a batch of {len(own.keys)} rows, and call {call.step} "
                f"holds {n * len(branches)}; a site that attends row by row, or repeats rows, cannot be "
                "swapped: leave it out"
            )
        acting = [name for name in branches if site.name in self._branch(name).names(step)]
        if not acting:
            return None
        reads = _Reading(site, own)
        for i, name in enumerate(branches):
            if name in acting:
                group = slice(i * n, (i + 1) * n)
                reads.read(group, text(group), self._branch(name), call.step, step)
        return reads.attended


class _Branch:
    """Rows of one guidance branch, and whom a plan lets them read.

    names  step -> names of the sites at which a swap acts
    """

    def __init__(
        self, plan: Plan, rows: Sequence[Row], name: str, sites: tuple[Site, ...], reads: Reads
    ) -> None:
        self.plan = plan
        self.rows = [replace(row, branch=name) for row in rows]
        self.sites = sites
        self.watch = Watch(sites, self.rows, {row.name for row in rows}, reads.found)
        self.names = plan.kept(self._names)
        self._tables: dict[
            tuple[Span, int, torch.device], Callable[[int], dict[Site, _Tables]]
        ] = {}
        self._entered: dict[Site, int] = {}

    def tables(self, site: Site, step: int, tokens: int, device: torch.device) -> _Tables:
        """Tables of a site in a step, for so many text tokens.

        They are made at once for all sites that read the same text.
        """
        key = site.span, tokens, device
        if key not in self._tables:
            self._tables[key] = self.plan.kept(partial(self._made, *key))
        return self._tables[key](step)[site]

    def enter(
        self, call: int, step: int, site: Site, tables: _Tables, kv: dict[str, Tensor]
    ) -> None:
        """Enter the reads of a site in the ledger, once a call.

        kv  the rows' own keys "k" and values "v", (R, H, T, D)
        """
        if self._entered.get(site) == call:
            return
        self._entered[site] = call
        self.watch.step = step
        self.watch.enter_site(site, tables.entry, tables.winners)
        for part, x in kv.items():
            self.watch.made(site, part, x.transpose(1, 2).flatten(2))

    def _names(self, step: int) -> frozenset[str]:
        return frozenset(
            site.name
            for swap in self.plan.swaps
            if any(swap.acts(step, row) for row in self.rows)
            for site in select_sites(self.sites, swap.sites)
        )

    def _made(
        self, span: Span, tokens: int, device: torch.device, step: int
    ) -> dict[Site, _Tables]:
        length = {site: tokens for site in self.sites if site.span == span}
        slots = self.plan.slots(step, self.rows, self.sites, tokens=length)
        winners = self.plan.winners(step, self.rows, self.sites, tokens=length)
        made = {}
        for site, entry in zip(self.sites, slots or [None] * len(self.sites), strict=True):
            pair = entry if isinstance(entry, tuple) else (entry, entry)
            k, v = (None if table is None else table.to(device) for table in pair)
            made[site] = _Tables(entry, winners, k, v)
        return made


class _Tables(NamedTuple):
    """Slots of one site in one step, as the plan gives them and on the device, with their swaps.

    k, v  (R, H or 1, T)
    """

    entry: SiteSlots
    winners: Winners
    k: Tensor | None
    v: Tensor | None


class _Reading:
    """Keys, values and mask of one attention, into which the reads of some rows are written.

    own   what attention would get
    mask  (B, heads of queries or 1, queries, N), None where all rows have one
    """

    def __init__(self, site: Site, own: Attended) -> None:
        self.site = site
        self.own = own
        self.keys = own.keys.clone()
        self.values = own.values.clone()
        rows = rows_of_mask(site, own.mask, len(own.keys), own.keys.shape[2])
        shared = own.mask is None or own.mask.dim() < 4 or len(own.mask) == 1
        self.mask = None if rows is None or shared else rows.clone()

    @property
    def attended(self) -> Attended:
        """What attention gets."""
        mask = self.own.mask if self.mask is None else self.mask
        return replace(self.own, keys=self.keys, values=self.values, mask=mask)

    def read(self, rows: slice, text: slice, branch: _Branch, call: int, step: int) -> None:
        """Write the reads of one branch's rows, and enter them in the ledger."""
        place = rows, slice(None), text
        own = {"k": self.own.keys[place], "v": self.own.values[place]}  # (R, H, T, D)
        tokens = text.stop - text.start
        tables = branch.tables(self.site, step, tokens, self.own.keys.device)
        self.keys[place] = gather_text(own["k"], _for_heads(tables.k, own["k"].shape[1]))
        self.values[place] = gather_text(own["v"], _for_heads(tables.v, own["v"].shape[1]))
        self._read_mask(rows, text, tables)
        branch.enter(call, step, self.site, tables, own)

    def _read_mask(self, rows: slice, text: slice, tables: _Tables) -> None:
        """Let the mask of a row's text go with its keys.

        Raises PatchError where a row reads keys of one row and values of another whose masks differ.
        """
        if self.mask is None:
            return
        if _several_heads(tables) and self.mask.shape[1] == 1:
            self.mask = self.mask.expand(-1, self.site.heads, -1, -1).clone()
        place = rows, slice(None), slice(None), text
        own = self.mask[place].mT  # (R, H or 1, T, queries)
        by_keys = gather_text(own, _for_heads(tables.k, own.shape[1]))
        if isinstance(tables.entry, tuple):
            by_values = gather_text(own, _for_heads(tables.v, own.shape[1]))
            if not torch.equal(by_keys, by_values):
                raise PatchError(MIXED.format(site=self.site.name))
        self.mask[place] = by_keys.mT


def _several_heads(tables: _Tables) -> bool:
    """True if heads read apart."""
    return any(table is not None and table.shape[1] > 1 for table in (tables.k, tables.v))


def _for_heads(table: Tensor | None, heads: int) -> Tensor | None:
    """Table for so many heads, of which several share one of the table's."""
    if table is None or table.shape[1] in (1, heads):
        return table
    return table.repeat_interleave(heads // table.shape[1], dim=1)
