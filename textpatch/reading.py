"""What rows read of others, written into the keys, values and mask of one attention.

B batch rows, R rows of one guidance branch, H heads of keys and values, N keys, T text tokens, D head width
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from textpatch.attending import Attended, Write, Written
from textpatch.bookkeeping import Winners
from textpatch.errors import PatchError
from textpatch.masks import MIXED, rows_of_mask
from textpatch.plan import SiteSlots
from textpatch.sites import Site
from textpatch.slots import Rows, evenly, gather_text


class Table(NamedTuple):
    """Slots of the keys or values of one site.

    slots    (R, H or 1, T)
    readers  rows that read another
    donors   rows that these read, where each reads all heads and tokens of one.  None otherwise
    """

    slots: Tensor
    readers: Rows
    donors: Rows | None


def table_of(slots: Tensor) -> Table:
    """Table of slots (R, H or 1, T)."""
    rows, _, tokens = slots.shape
    whole = torch.arange(rows * tokens, device=slots.device).view(-1, 1, tokens)
    readers = (slots != whole).any(-1).any(-1).nonzero().flatten()
    read = slots[readers]
    donors = read[:, 0, 0].div(tokens, rounding_mode="floor")
    alike = bool((read == whole[donors]).all())
    if not alike:
        return Table(slots, evenly(readers), None)
    # what a donor has may be written over before it is read, if that row reads another itself
    also = bool(torch.isin(donors, readers).any())
    return Table(slots, evenly(readers), donors if also else evenly(donors))


def _moved(rows: Rows, by: int) -> Rows:
    """Rows that stand so many further on."""
    if isinstance(rows, slice):
        return slice(rows.start + by, rows.stop + by, rows.step)
    return rows + by


class Tables(NamedTuple):
    """Slots of one site in one step, as the plan gives them and on the device, with their swaps."""

    entry: SiteSlots
    winners: Winners
    k: Table | None
    v: Table | None


class Reading:
    """Keys, values and mask of one attention, and what some rows read in their place.

    own      what attention would get
    written  what it gets
    apart    True if rows have masks of their own.  That of `written` is then (B, heads or 1, queries, N)
    """

    def __init__(self, site: Site, own: Attended) -> None:
        self.site = site
        self.own = own
        self.written = Written(own.mask)
        rows = rows_of_mask(site, own.mask, len(own.keys), own.keys.shape[2])
        shared = own.mask is None or own.mask.dim() < 4 or len(own.mask) == 1
        if rows is not None and not shared:
            self.written.mask = rows.clone()
        self.apart = self.written.mask is not own.mask

    def read(self, rows: slice, text: slice, tables: Tables) -> dict[str, Tensor]:
        """Write the reads of some rows.  Gives their own keys "k" and values "v", (R, H, T, D)."""
        place = rows, slice(None), text
        own = {"k": self.own.keys[place], "v": self.own.values[place]}
        if tables.k is not None:
            self.written.keys.append(_write(own["k"], tables.k, rows, text))
        if tables.v is not None:
            self.written.values.append(_write(own["v"], tables.v, rows, text))
        if self.apart and self.written.mask is not None:
            self.written.mask = self._read_mask(self.written.mask, rows, text, tables)
        return own

    def _read_mask(self, mask: Tensor, rows: slice, text: slice, tables: Tables) -> Tensor:
        """Mask in which that of a row's text goes with its keys.

        Raises PatchError where a row reads keys of one row and values of another whose masks differ.
        """
        if _several_heads(tables) and mask.shape[1] == 1:
            mask = mask.expand(-1, self.site.heads, -1, -1).clone()
        place = rows, slice(None), slice(None), text
        own = mask[place].mT  # (R, H or 1, T, queries)
        by_keys = _gathered(own, tables.k)
        if isinstance(tables.entry, tuple) and not torch.equal(by_keys, _gathered(own, tables.v)):
            raise PatchError(MIXED.format(site=self.site.name))
        mask[place] = by_keys.mT
        return mask


def _write(own: Tensor, table: Table, rows: slice, text: slice) -> Write:
    """What the readers among some rows read, of the keys or values (R, H, T, D) of these rows."""
    if table.donors is not None:
        read = own[table.donors]
    else:
        read = gather_text(own, _for_heads(table.slots[table.readers], own.shape[1]))
    return _moved(table.readers, rows.start), text, read


def _several_heads(tables: Tables) -> bool:
    """True if heads read apart."""
    return any(table is not None and table.slots.shape[1] > 1 for table in (tables.k, tables.v))


def _for_heads(slots: Tensor, heads: int) -> Tensor:
    """Slots for so many heads, of which several share one of the table's."""
    apart = slots.shape[1]
    if apart in (1, heads):
        return slots
    return slots.repeat_interleave(heads // apart, dim=1)


def _gathered(own: Tensor, table: Table | None) -> Tensor:
    """Masks (R, H or 1, T, queries) as all rows read them."""
    return gather_text(own, None if table is None else _for_heads(table.slots, own.shape[1]))
