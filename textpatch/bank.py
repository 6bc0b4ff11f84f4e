"""Texts of a run, every distinct prompt encoded once, and the bank of their keys and values.

On SDXL and DeepFloyd IF the text's keys and values depend on the prompt alone.  They are projected once
per run and distinct prompt, which makes the bank.  Every row at every step reads the bank through
slots, where p(b) is the bank row of the prompt of row b:

    slots[b, h, t] = p(donor) T + donor token      for the plan's   donor T + donor token

So a donor need not be in the batch.  A row that is not sampled has its prompt in the bank, and nothing
else.

B batch rows, R bank rows, H heads, T text tokens, D head width, L sites
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from textpatch.attention import row_slots
from textpatch.changes import changes_of, require_same_changes
from textpatch.errors import PatchError
from textpatch.hooks import Hook
from textpatch.pipelines import SupportsSampling, TextCondition
from textpatch.plan import Row, SiteSlots
from textpatch.sites import Site

Bank = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each site, (R, H, T, D) each


@dataclass(frozen=True)
class Texts:
    """Distinct prompts of a run.

    condition  text condition of all of them
    place      row of each prompt in the condition.  Prompts that are read as tokens come first, in
               the order of the run's rows.  Others are only pooled
    bank       keys and values of each site, R the number of prompts read.  None where the text
               evolves with the picture
    adapters   what the model was under when the bank was made
    """

    condition: TextCondition
    place: dict[str | None, int]
    bank: Bank | None
    adapters: tuple[str, ...] = ()

    def require_current(self, model: nn.Module) -> None:
        """Raise PatchError if there is a bank, and the model is under other adapters than made it."""
        if self.bank is not None:
            require_same_changes("the bank was made", self.adapters, changes_of(model))

    @property
    def tokens(self) -> int:
        """Number T of text tokens."""
        return self.condition.tokens.shape[1]

    def rows(self, batch: Sequence[Row]) -> list[int]:
        """Places p(b) of the prompts of a batch."""
        return [self.place[row.prompt] for row in batch]

    def of(self, batch: Sequence[Row]) -> TextCondition:
        """Text condition of the sampled rows of a batch.

        Its tokens are those of the rows, or the bank if there is one.  Its pooled vectors are those
        of each row's `pooled_prompt`.
        """
        drawn = [row for row in batch if row.sampled]
        own = self.condition[self.rows(drawn)]
        if self.condition.pooled is not None:
            pooled = self.condition.pooled[[self.place[row.pooled_prompt] for row in drawn]]
            own = replace(own, pooled=pooled)
        if self.bank is None:
            return own
        return replace(own, tokens=self.bank)

    def slots(
        self, tables: Sequence[SiteSlots] | None, batch: Sequence[Row], sites: int
    ) -> Sequence[SiteSlots] | None:
        """Slots of one step as the denoiser takes them, of the sampled rows alone.

        They lead through the bank, if there is one.

        tables  the plan's slots of all rows of the batch
        sites   number of sites
        """
        if self.bank is None:
            return tables
        places = torch.tensor(self.rows(batch))
        drawn = torch.tensor([row.sampled for row in batch])
        bank_rows = len(self.bank[0][0])
        if tables is None and torch.equal(places[drawn], torch.arange(bank_rows)):
            return None  # every row reads the bank row of its own number
        own = row_slots(places, self.tokens)
        return [_through(entry, places, own, drawn) for entry in tables or [None] * sites]


@torch.no_grad()
def encode(pipeline: SupportsSampling, rows: Sequence[Row]) -> Texts:
    """Encode the texts of all rows of a run, unconditional rows first as in a batch."""
    read = list(dict.fromkeys(row.prompt for row in rows))
    prompts = list(dict.fromkeys([*read, *(row.pooled_prompt for row in rows)]))
    condition = pipeline.encode(prompts)
    if condition.pooled is None:
        _require_none_pooled(rows)
    model = pipeline.denoiser
    bank = None
    if prompt_settles_text(model):
        text_kv = cast("Callable[[TextCondition], Bank]", model.text_kv)
        bank = text_kv(condition[list(range(len(read)))])
    places = {prompt: i for i, prompt in enumerate(prompts)}
    return Texts(condition, places, bank, changes_of(model))


def _require_none_pooled(rows: Sequence[Row]) -> None:
    """Raise PatchError for a row with a pooled prompt of its own, where the model reads no pooled vector."""
    for row in rows:
        if row.pooled is not None:
            raise PatchError(
                f"row {row.name!r} has the pooled prompt {row.pooled!r}, and this model reads no pooled "
                "vector, so that it would have no effect; leave out pooled"
            )


def prompt_settles_text(model: nn.Module) -> bool:
    """True if a prompt alone settles the keys and values of its text.

    That is so where the text is static and nobody hooks its projections.
    """
    return getattr(model, "text_is_static", False) and not _intervened(model)


def _intervened(model: nn.Module) -> bool:
    """True if anybody hooks the text's projections to do more than look.

    `capture`, `patch` and hooks of one's own count the steps by the calls, so that every step must
    call them.
    """
    return not all(isinstance(hook, Hook) and hook.looks_only for hook in _text_hooks(model))


def _text_hooks(model: nn.Module) -> Iterator[object]:
    """Hooks on the modules that make the text's keys and values, and on all parts of these."""
    for name in cast("Sequence[str]", model.text_modules):
        for part in model.get_submodule(name).modules():
            yield from part._forward_pre_hooks.values()
            yield from part._forward_hooks.values()


def _through(entry: SiteSlots, places: Tensor, own: Tensor, drawn: Tensor) -> SiteSlots:
    """Slots of one site that lead through the bank.

    entry   slots that name rows of the batch
    places  (B,) place of each row's prompt in the bank
    own     (B, 1, T) slots by which each row reads its own prompt
    drawn   (B,) True for sampled rows, which alone are kept
    """
    if isinstance(entry, tuple):
        k, v = entry
        return _of_table(k, places, drawn), _of_table(v, places, drawn)
    if entry is None:
        return own[drawn]
    return _of_table(entry, places, drawn)


def _of_table(table: Tensor, places: Tensor, drawn: Tensor) -> Tensor:
    """Table through the bank, of the sampled rows."""
    tokens = table.shape[-1]
    through = (places[table // tokens] * tokens + table % tokens).int()
    return through[drawn]


def spelled_out(
    tables: Sequence[SiteSlots] | None, rows: int, tokens: int, sites: Sequence[Site]
) -> list[SiteSlots]:
    """Slots with a pair of tables (B, H, T) at every site.

    All plans have slots of one shape then, so that one graph of a compiled model serves them.
    """
    own = row_slots(torch.arange(rows), tokens)
    spelled: list[SiteSlots] = []
    for site, entry in zip(sites, tables or [None] * len(sites), strict=True):
        k, v = entry if isinstance(entry, tuple) else (entry, entry)
        spelled.append((_for_heads(k, own, site), _for_heads(v, own, site)))
    return spelled


def _for_heads(table: Tensor | None, own: Tensor, site: Site) -> Tensor:
    """Table with an entry for each head, own slots where there is none."""
    if table is None:
        table = own
    return table.expand(-1, site.text_heads, -1).contiguous()
