"""What the tokens of a word receive and give at the sites of a run, kept as it is heard.

H heads, M tokens of the picture, N keys, T text tokens, D head width
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from textpatch.auditing.replay import Definition
from textpatch.errors import PatchError
from textpatch.maps.weights import weights_of, weights_on
from textpatch.plan import require_in_range
from textpatch.recording import Record
from textpatch.sites import Site

Kept = dict[tuple[Site, int], Tensor]


@dataclass
class HeardWeights:
    """Weights of a word's tokens at sites and steps, means over heads and over rows heard there.

    tokens    places of the word's tokens among the text
    heads     the heads that count, all when None
    received  (site, step) -> (M,) weight that each token of the picture gives to the word's together
    given     (site, step) -> (M,) mean weight that the word's tokens give to each of the picture's.  It is
              there where the text asks as well, in joint and single streams
    """

    tokens: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    received: Kept = field(default_factory=dict)
    given: Kept = field(default_factory=dict)

    def add(
        self,
        site: Site,
        step: int,
        q: Tensor,
        k: Tensor,
        text: slice,
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        """Enter what one row attends to at a site in a step.

        q     (H, M or N, D).  Where there are as many as keys, they are of the same tokens
        k     (H or fewer, N, D)
        text  keys that are text, the picture's being those after or before it
        mask, scale  as `attention_rows` takes them
        Raises PatchError for a head and for tokens that are not there.
        """
        length = text.stop - text.start
        require_in_range("token", self.tokens, length, site)
        require_in_range("head", self.heads, len(q), site)
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        if self.heads is not None:
            chosen = list(self.heads)
            q, k = q[chosen], k[chosen]
            mask = mask[chosen] if mask is not None and len(mask) > 1 else mask
        word = [text.start + token for token in self.tokens]
        picture = slice(text.stop, len(k[0])) if text.stop < len(k[0]) else slice(0, text.start)
        asked_by_text = length < len(k[0]) == len(q[0])
        asking = q[:, picture] if asked_by_text else q
        own = _of_queries(mask, picture) if asked_by_text else mask
        self.received[site, step] = weights_on(asking, k, word, own, scale).mean(0).cpu()
        if asked_by_text:
            own = _of_queries(mask, word)
            self.given[site, step] = weights_of(q[:, word], k, picture, own, scale).mean(0).cpu()

    def add_record(self, record: Record, batch: Definition, row: int) -> None:
        """Enter one row of a record of our own models.

        batch  labels of the rows, which tell whose text a bank holds
        """
        *image, text = (x[row] for x in batch.own(record.k))
        k = torch.cat([*image, text], dim=1)
        first = k.shape[1] - text.shape[1]
        q = torch.cat([x[row] for x in record.q], dim=1)
        self.add(record.site, record.step, q, k, slice(first, k.shape[1]))


def _of_queries(mask: Tensor | None, queries: slice | list[int]) -> Tensor | None:
    """Mask (H or 1, M or 1, N) of some queries."""
    if mask is None or mask.shape[1] == 1:
        return mask
    return mask[:, queries]


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns in which the tokens of a picture of a height and a width lie.

    Raises PatchError for a number of tokens that makes no grid of that shape.
    """
    rows = round((tokens * height / width) ** 0.5)
    columns = tokens // rows if rows else 0
    if rows * columns != tokens or rows * width != columns * height:
        raise PatchError(
            f"{tokens} tokens of the picture make no grid of the shape of {height} x {width} pixels; give "
            "`grid`, the rows and columns in which they lie"
        )
    return rows, columns
