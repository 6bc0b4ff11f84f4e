"""The texts of a run: every distinct prompt encoded once, and where its keys and values are static, these too.

B batch rows, R bank rows, H heads, T text tokens, L sites

On SDXL and DeepFloyd IF the text's keys and values depend on the prompt alone.  They are projected once per run
and distinct prompt, and every row at every step reads them through slots: row b its own prompt's bank row p(b),

    slots[b, h, t] = p(donor) T + donor token,   from the plan's   donor T + donor token

So a donor need not be in the batch: a row that is not sampled has its prompt in the bank, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from textpatch.attention import row_slots
from textpatch.hooks import Hook
from textpatch.plan import Row
from textpatch.sites import Site


@dataclass(frozen=True)
class Texts:
    """The distinct prompts of a run.

    condition  TextCondition of all of them
    place      prompt -> its row there; those read as tokens come first, in the order of the rows
    bank       (keys, values) of each site, (R, H, T, D) each, R the prompts read; None where text evolves
    """

    condition: object
    place: dict[str | None, int]
    bank: tuple[tuple[Tensor, Tensor], ...] | None

    @property
    def tokens(self) -> int:
        return self.condition.tokens.shape[1]

    def rows(self, batch: Sequence[Row]) -> list[int]:
        """p(b): the place of each row's prompt."""
        return [self.place[row.prompt] for row in batch]

    def of(self, batch: Sequence[Row]):
        """The TextCondition of the sampled rows: their own tokens, or the whole bank; pooled of each row's owner."""
        drawn = [row for row in batch if row.sampled]
        pooled = self.condition.pooled[[self.place[row.pooled_prompt] for row in drawn]]
        own = replace(self.condition[self.rows(drawn)], pooled=pooled)
        return own if self.bank is None else replace(own, tokens=self.bank)

    def slots(self, tables: Sequence | None, batch: Sequence[Row], sites: int):
        """A plan's slots of one step as the denoiser takes them: sampled rows alone, and through the bank, if there is one."""
        places, drawn = torch.tensor(self.rows(batch)), torch.tensor([row.sampled for row in batch])
        if self.bank is None or (
            tables is None and torch.equal(places[drawn], torch.arange(len(self.bank[0][0])))
        ):
            return tables
        own = row_slots(places, self.tokens)
        return [_through(entry, places, own, drawn) for entry in tables or [None] * sites]


@torch.no_grad()
def encode(pipeline, rows: Sequence[Row]) -> Texts:
    """The texts of all rows of a run, unconditional rows first as in a batch."""
    read = list(dict.fromkeys(row.prompt for row in rows))
    prompts = list(dict.fromkeys([*read, *(row.pooled_prompt for row in rows)]))
    condition, model = pipeline.encode(prompts), pipeline.denoiser
    bank = model.text_kv(condition[list(range(len(read)))]) if prompt_settles_text(model) else None
    return Texts(condition, {prompt: i for i, prompt in enumerate(prompts)}, bank)


def prompt_settles_text(model: nn.Module) -> bool:
    """Whether the keys and values of a text are known without a run: static, and the model's own."""
    return getattr(model, "text_is_static", False) and not _intervened(model)


def _intervened(model: nn.Module) -> bool:
    """Whether anybody hooks what makes the text's keys and values, or a part of it, to do more than look.

    `capture`, `patch` and hooks of one's own count the steps by the calls, so it must be called.
    """
    modules = [part for name in model.text_modules for part in model.get_submodule(name).modules()]
    hooks = [
        hook
        for x in modules
        for table in (x._forward_pre_hooks, x._forward_hooks)
        for hook in table.values()
    ]
    return not all(isinstance(hook, Hook) and hook.looks_only for hook in hooks)


def _through(entry, places: Tensor, own: Tensor, drawn: Tensor):
    if isinstance(entry, tuple):
        return tuple(_through(table, places, own, drawn) for table in entry)
    tokens = own.shape[-1]
    return (own if entry is None else (places[entry // tokens] * tokens + entry % tokens).int())[
        drawn
    ]


def spelled_out(
    tables: Sequence | None, rows: int, tokens: int, sites: Sequence[Site]
) -> list[tuple[Tensor, Tensor]]:
    """The same slots as a pair of tables (B, H, T) per site: one shape for every plan, so that a graph serves all."""
    own = row_slots(torch.arange(rows), tokens)
    pairs = [
        entry if isinstance(entry, tuple) else (entry, entry)
        for entry in tables or [None] * len(sites)
    ]
    return [
        tuple(
            (own if table is None else table).expand(-1, site.text_heads, -1).contiguous()
            for table in pair
        )
        for site, pair in zip(sites, pairs)
    ]
