"""One lock-step run for several methods of editing, in which a row that several need is generated once.

Each method says what it asks of such a run: rows, swaps among them, and maps of one row that are edited from
another's.  The rows of the plain source and target are everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

from textpatch.bank import encode
from textpatch.editing.carrying import Carrier, places_in
from textpatch.editing.pair_edit import PairEdit
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.pipelines import SupportsSampling
from textpatch.plan import Plan, Row, Swap
from textpatch.prompts.pairs import SOURCE, TARGET
from textpatch.sampling import decoded, sample_latents

PLAIN = SOURCE, TARGET


class TooManyRows(PatchError):
    """Rows that are edited from each other do not fit into the memory together."""


@dataclass(frozen=True)
class Share:
    """What a method asks of a run that it shares with others.

    rows   those called "source" and "target" are of everybody, the others of this method alone
    shown  name of the row whose picture the method makes
    swaps  among these rows
    edit   of the maps of `shown` from those of "source", None for a method that edits none
    alone  number of rows that the method generates in a run of its own
    """

    rows: tuple[Row, ...]
    shown: str
    swaps: tuple[Swap, ...] = ()
    edit: PairEdit | None = None
    alone: int = 1

    def of(self, method: str) -> Share:
        """The same with the method's name before those of its own rows."""

        def named(row: str | None) -> str | None:
            return row if row is None or row in PLAIN else f"{method}: {row}"

        rows = [replace(row, name=named(row.name), copies=named(row.copies)) for row in self.rows]
        swaps = [
            replace(swap, readers=tuple(map(named, swap.readers)), donor=named(swap.donor))
            for swap in self.swaps
        ]
        return replace(self, rows=tuple(rows), shown=named(self.shown), swaps=tuple(swaps))


@dataclass(frozen=True)
class Shared:
    """What one run made for several methods.

    images       pictures by method
    generations  rows of the run that nobody before a method had asked for, by method
    """

    images: dict[str, Image.Image]
    generations: dict[str, int]


def shared_run(
    pipeline: SupportsSampling,
    shares: Mapping[str, Share],
    *,
    steps: int,
    guidance: float | Guidance,
) -> Shared:
    """Make the pictures of several methods in one run.

    shares  by the name of the method
    Raises PatchError for a swap that changed nothing, and for maps that were edited nowhere, and TooManyRows
    where the memory does not hold all rows at once.
    """
    named = {name: share.of(name) for name, share in shares.items()}
    rows = _joined(named.values())
    plan = Plan([swap for share in named.values() for swap in share.swaps])
    guiding = as_guidance(guidance)
    edits = [(share.shown, share.edit) for share in named.values() if share.edit is not None]
    editing = Editing(pipeline, rows, guiding)
    with editing.on(edits):
        made = sample_latents(
            editing,
            rows,
            plan,
            steps=steps,
            guidance=guiding,
            micro_batch=len(rows) * len(guiding.branches),
        )
    made.ledger.require()
    images = {}
    for name, share in named.items():
        images[name] = decoded(pipeline, {share.shown: made.latents[share.shown]})[share.shown]
    return Shared(images, _generations(named))


def _joined(shares: Sequence[Share] | Any) -> list[Row]:
    """Rows of all methods, each once, in the order in which they join.

    A plain row is sampled if anybody samples it.
    """
    rows: dict[str, Row] = {}
    for share in shares:
        for row in share.rows:
            before = rows.get(row.name, row)
            rows[row.name] = replace(row, sampled=row.sampled or before.sampled)
    return sorted(rows.values(), key=lambda row: row.joins)


def _generations(shares: Mapping[str, Share]) -> dict[str, int]:
    """Rows that each method is the first to sample."""
    seen: set[str] = set()
    counted = {}
    for name, share in shares.items():
        own = {row.name for row in share.rows if row.sampled} - seen
        counted[name] = len(own)
        seen |= own
    return counted


@dataclass
class Editing:
    """A pipeline whose runs edit the maps of some rows from those of the source.

    rows  of its runs, in the order in which they join
    """

    pipeline: Any
    rows: Sequence[Row]
    guidance: Guidance
    carriers: dict[str, Carrier] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    @contextmanager
    def on(self, edits: Sequence[tuple[str, PairEdit]]) -> Iterator[None]:
        """A block in which the maps of rows are edited, each by its name.

        Raises PatchError for maps that were edited nowhere, and for sites that have none to edit.
        """
        model = self.pipeline.denoiser
        batch = branch_rows(self.rows, self.guidance)
        texts = encode(self.pipeline, batch)
        for target, edit in edits:
            self.carriers[target] = Carrier.of(model, edit, texts, batch, SOURCE, target)
        with ExitStack() as stack:
            for carrier in self.carriers.values():
                stack.enter_context(carrier.on(model))
            yield
        for carrier in self.carriers.values():
            carrier.require_edited()

    def denoise(self, x: Tensor, *run: Any, slots: Any, **how: Any) -> Any:
        """Latents of a whole run, as the pipeline's own."""
        return self.pipeline.denoise(x, *run, slots=self._entering(len(x), slots), **how)

    def advance(self, x: Tensor, *run: Any, slots: Any, **how: Any) -> Any:
        """Latents after some steps, as the pipeline's own."""
        return self.pipeline.advance(x, *run, slots=self._entering(len(x), slots), **how)

    def _entering(self, count: int, slots: Any) -> Any:
        """Function slots(step) that tells the carriers the step and where their rows are then.

        count  sampled rows of the batch
        """

        def entered(step: int) -> Any:
            active = [row for row in self.rows if row.sampled and row.joins <= step]
            if len(active) != count:
                raise TooManyRows(
                    f"{len(active)} rows are edited from each other and {count} fit into the memory; "
                    "let each method have a run of its own"
                )
            batch = branch_rows(active, self.guidance)
            for target, carrier in self.carriers.items():
                carrier.step = step
                carrier.rows = places_in(batch, SOURCE, target)
            return slots(step)

        return entered
