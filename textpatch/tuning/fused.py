"""One change for q, k and v together, and back.

SD3's original files have one matrix of 3 d rows for q, k and v.  Changes of some of the three are one change
of it, whose A has the rows of all and whose B is block-diagonal.  alpha grows with r, as s = alpha / r:

    A = [A_k; A_v] (2r, d),   B = [0 0; B_k 0; 0 B_v] (3d, 2r),   alpha = 2 alpha_k
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from textpatch.changes import LowRank
from textpatch.errors import PatchError

PARTS = 3


def joined(changes: Mapping[int, LowRank]) -> LowRank:
    """Change of the whole matrix, from those of q, k and v by their places 0, 1 and 2.

    Parts of one scale keep their factors.  Of others the scale is multiplied into B.
    """
    parts = [changes[place] for place in sorted(changes)]
    rank = sum(part.rank for part in parts)
    width = len(parts[0].up)
    one_scale = len({part.scale for part in parts}) == 1
    up = torch.zeros(PARTS * width, rank, dtype=parts[0].up.dtype)
    at = 0
    for place in sorted(changes):
        part = changes[place]
        own = part.up if one_scale else part.scale * part.up
        up[place * width : (place + 1) * width, at : at + part.rank] = own.detach()
        at += part.rank
    down = torch.cat([part.down.detach() for part in parts])
    scale = parts[0].scale if one_scale else 1.0
    return LowRank(down, up, scale * rank)


def parted(name: str, whole: LowRank) -> dict[int, LowRank]:
    """Changes of q, k and v by their places, without those that change nothing.

    Ranks that a part does not use are left out of it.
    Raises PatchError for a matrix whose rows are no three parts.
    """
    if len(whole.up) % PARTS:
        raise PatchError(f"{name!r} has {len(whole.up)} rows, which are no q, k and v of one width")
    found = {}
    for place, up in enumerate(whole.up.chunk(PARTS)):
        used = up.ne(0).any(dim=0)
        if used.any():
            rank = int(used.sum())
            down = whole.down[used].contiguous()
            found[place] = LowRank(down, up[:, used].contiguous(), whole.scale * rank)
    if not found:
        raise PatchError(f"{name!r} is zero in q, k and v, so that it would have no effect")
    return found


def is_block_diagonal(whole: LowRank) -> bool:
    """True if every rank belongs to one of q, k and v, as if three changes had been joined."""
    used = torch.stack([up.ne(0).any(dim=0) for up in whole.up.chunk(PARTS)])
    return bool((used.sum(dim=0) <= 1).all()) and bool((used.sum(dim=1) > 0).sum() > 1)
