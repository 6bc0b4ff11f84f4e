"""Tables of slots, by which rows read text keys and values from a bank.

B rows, R bank rows, H heads, T text tokens read, S bank tokens, D head width

A table is int (B, H or 1, T) and holds `donor_row * S + donor_token`; -1 hides a token.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from textpatch.errors import PatchError

# rows of a batch as a slice, which is read without a copy, or as an index
Rows: TypeAlias = slice | Tensor


class Hidden(NamedTuple):
    """The tokens hidden from rows and heads.

    mask   bool (B, H or 1, T), True = hidden; None if none is, which keeps torch's fast attention
    blind  whether a row may see no text at all
    """

    mask: Tensor | None
    blind: bool


class Answers(NamedTuple):
    """The answers of one look into a table.

    hides  whether it hides a token
    blind  whether it hides all tokens of some row and head
    """

    hides: bool
    blind: bool


# table -> ((its version, entries of the bank), Answers)
_answers = WeakTensorKeyDictionary()


def evenly(index: Tensor) -> Rows:
    """Rows of an index, as a slice where they stand in order at one distance."""
    rows = index.tolist()
    if not rows:
        return index
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step < 1 or rows != list(range(rows[0], rows[-1] + 1, step)):
        return index
    return slice(rows[0], rows[-1] + 1, step)


def gather_text(bank: Tensor, slots: Tensor | None) -> Tensor:
    """Text keys or values as each row reads them, (B, H, T, D).

    bank (R, H, S, D), slots (B, H or 1, T) or None, by which row b reads row b.  A hidden token reads slot 0.
    """
    if slots is None:
        return bank
    _, H, _, D = bank.shape
    B, apart, T = slots.shape
    rows = bank.transpose(1, 2).reshape(-1, H // apart, D)  # (R S apart, H / apart, D)
    read = slots.clamp(min=0)
    if apart > 1:
        heads = torch.arange(apart, device=bank.device)[:, None]
        read = (read.long() * apart + heads).mT  # (B, T, apart)
    return rows.index_select(0, read.flatten()).view(B, T, H, D).transpose(1, 2)


def hidden_by_tables(slots_k: Tensor | None, slots_v: Tensor | None, bank: Tensor) -> Hidden:
    """Tokens that either table hides.

    Raises PatchError for slots outside the bank.
    Whether a row is blind is looked up in a table of the keys alone, and assumed where values have their own.
    A CUDA graph that is being captured cannot wait for an answer, so both are assumed.
    """
    tables = [slots for slots in (slots_k, slots_v) if slots is not None]
    if tables and bank.is_cuda and torch.cuda.is_current_stream_capturing():
        return Hidden(below_zero(tables), blind=True)
    entries = bank.shape[0] * bank.shape[2]
    # a list, for each of the tables is to be checked
    found = [look(slots, entries) for slots in tables]
    if not any(one.hides for one in found):
        return Hidden(None, blind=False)
    return Hidden(below_zero(tables), blind=slots_v is not None or found[0].blind)


def below_zero(tables: list[Tensor]) -> Tensor:
    """Bool in the shape of the tables, of which there is at least one, True where any hides a token."""
    hidden = tables[0] < 0
    for table in tables[1:]:
        hidden = hidden | (table < 0)
    return hidden


def look(slots: Tensor, entries: int) -> Answers:
    """Answers of a table, from memory for a table on a GPU that nobody has written to since.

    To ask a GPU is to wait until it has done all its work.
    """
    if slots.is_cuda:
        return _look_once(slots, entries)
    return _look(slots, entries)


def _look_once(slots: Tensor, entries: int) -> Answers:
    """Answers of a table, looked up again only when the table was written to."""
    if slots.is_inference():  # torch counts no versions of it
        return _look(slots, entries)
    asked = slots._version, entries
    known, found = _answers.get(slots, (None, None))
    if asked != known:
        found = _look(slots, entries)
        _answers[slots] = asked, found
    return found


def _look(slots: Tensor, entries: int) -> Answers:
    """Answers of a table.  Raises PatchError for slots outside a bank of so many entries."""
    if not slots.numel():
        return Answers(hides=False, blind=False)
    low, high = (int(x) for x in slots.aminmax())
    for slot in (low, high):
        if not -1 <= slot < entries:
            raise PatchError(
                f"slot {slot} is outside the bank, whose slots are 0..{entries - 1}, or -1 to hide"
            )
    return Answers(hides=low < 0, blind=low < 0 and bool((slots.amax(-1) < 0).any()))
