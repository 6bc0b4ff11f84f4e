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

import torch
from torch import Tensor, nn

from textpatch.attending import Attended, Text, Written, at_attention
from textpatch.bookkeeping import Watch
from textpatch.branches import Layout, layout_of, require_texts, text_rows, time_of, work_out
from textpatch.calls import Call, Calls
from textpatch.errors import PatchError
from textpatch.ledger import Ledger
from textpatch.masks import require_known_layout
from textpatch.plan import CONDITIONAL, Plan, Row, require_in_range
from textpatch.ports.shipped import find_sites
from textpatch.reading import Reading, Tables, table_of
from textpatch.reads import Reads
from textpatch.sites import Site, Span, select_sites

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
        self.acting = plan.kept(self._acting)
        self.parts: dict[tuple[str, ...], _Part] = {}
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
        by_branch = self.acting(step)
        return {site for name in branches for site in by_branch[name]}

    def _acting(self, step: int) -> dict[str, set[str]]:
        """Names of the sites at which a swap acts in a step, by branch."""
        return {
            name: self._named(step, _in_branch(self.rows, name))
            for call in self._layout.calls
            for name in call
        }

    def _named(self, step: int, rows: Sequence[Row]) -> set[str]:
        """Names of the sites at which a swap acts on some rows in a step."""
        return {
            site.name
            for swap in self.plan.swaps
            if any(swap.acts(step, row) for row in rows)
            for site in select_sites(self.swapped, swap.sites)
        }

    def _read(self, site: Site, call: Call, own: Attended, text: Text) -> Written | None:
        """What attention gets where rows read others.  None where none does."""
        step, branches = self._layout.at(call.step)
        n = len(self.rows)
        if len(own.keys) != n * len(branches):
            raise PatchError(
                f"attention at site {site.name!r} gets a batch of {len(own.keys)} rows, and call {call.step} "
                f"holds {n * len(branches)}; a site that attends row by row, or repeats rows, cannot be "
                "swapped: leave it out"
            )
        acting = [i for i, name in enumerate(branches) if site.name in self.acting(step)[name]]
        if not acting:
            return None
        reads = Reading(site, own)
        for first, stop, place in _side_by_side(acting, lambda i: text(slice(i * n, (i + 1) * n))):
            part = self._part(branches[first:stop])
            tables = part.tables(site, step, place.stop - place.start, own.keys.device)
            kv = reads.read(slice(first * n, stop * n), place, tables)
            part.enter(call.step, step, site, tables, kv)
        return reads.written

    def _part(self, branches: tuple[str, ...]) -> _Part:
        if branches not in self.parts:
            self.parts[branches] = _Part(self.plan, self.rows, branches, self.swapped, self.reads)
        return self.parts[branches]


def _in_branch(rows: Sequence[Row], name: str) -> list[Row]:
    return [replace(row, branch=name) for row in rows]


def _side_by_side(
    branches: Sequence[int], text: Callable[[int], slice]
) -> list[tuple[int, int, slice]]:
    """First branch, end and text of branches that stand side by side, whose texts have one place.

    branches  places of those that are looked at
    text      branch -> place of its rows' texts
    """
    found: list[tuple[int, int, slice]] = []
    for i in branches:
        first, place = i, text(i)
        if found and found[-1][1:] == (i, place):
            first = found.pop()[0]
        found.append((first, i + 1, place))
    return found


class _Part:
    """Rows of some guidance branches that stand side by side in a call, and whom a plan lets them read."""

    def __init__(
        self,
        plan: Plan,
        rows: Sequence[Row],
        branches: Sequence[str],
        sites: tuple[Site, ...],
        reads: Reads,
    ) -> None:
        self.plan = plan
        self.rows = [row for name in branches for row in _in_branch(rows, name)]
        self.sites = sites
        self.watch = Watch(sites, self.rows, {row.name for row in rows}, reads)
        self._tables: dict[tuple[Span, int, torch.device], Callable[[int], dict[Site, Tables]]] = {}
        self._entered: dict[Site, int] = {}

    def tables(self, site: Site, step: int, tokens: int, device: torch.device) -> Tables:
        """Tables of a site in a step, for so many text tokens.

        They are made at once for all sites that read the same text.
        """
        key = site.span, tokens, device
        if key not in self._tables:
            self._tables[key] = self.plan.kept(partial(self._made, *key))
        return self._tables[key](step)[site]

    def enter(
        self, call: int, step: int, site: Site, tables: Tables, kv: dict[str, Tensor]
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
            self.watch.made(site, part, x.transpose(1, 2))

    def _made(self, span: Span, tokens: int, device: torch.device, step: int) -> dict[Site, Tables]:
        length = {site: tokens for site in self.sites if site.span == span}
        slots = self.plan.slots(step, self.rows, self.sites, tokens=length)
        winners = self.plan.winners(step, self.rows, self.sites, tokens=length)
        made = {}
        for site, entry in zip(self.sites, slots or [None] * len(self.sites), strict=True):
            pair = entry if isinstance(entry, tuple) else (entry, entry)
            k, v = (None if table is None else table_of(table.to(device)) for table in pair)
            made[site] = Tables(entry, winners, k, v)
        return made
