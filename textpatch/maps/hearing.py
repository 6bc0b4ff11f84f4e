"""Hearing of a word's tokens in anybody's own calls of a foreign model.

The place is where the attention of its sites gets queries, keys and masks, see `attending`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from textpatch.attending import Attended, Text, at_attention
from textpatch.branches import layout_of
from textpatch.calls import Call
from textpatch.errors import PatchError
from textpatch.maps.heard import HeardWeights
from textpatch.plan import CONDITIONAL, integers
from textpatch.sites import Selectors, Site
from textpatch.taps import chosen_sites

PLAIN = (("cond",),)


@contextmanager
def hearing_words(
    model: nn.Module,
    tokens: Iterable[int],
    *,
    sites: Selectors = "all",
    steps: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    row: int = 0,
    calls: Sequence[Sequence[str]] = PLAIN,
) -> Iterator[HeardWeights]:
    """Hear what some text tokens receive and give in the model's own calls inside the block.

    tokens  places of the word's tokens among the text, as it lies in the model
    sites   anything `select_sites` understands, or Sites
    steps   loop indices, all when None
    heads   heads of queries, all when None
    row     number of the row among those of the conditional branch
    calls   calls of the model that make a step, with the branches of each one's rows, as in `branches`

    Raises PatchError for tokens, heads and rows that are not there, and as `at_attention`.
    """
    chosen = chosen_sites(model, sites)
    wanted = None if steps is None else integers("steps", steps)
    layout = layout_of(calls)
    heard = HeardWeights(
        integers("tokens", tokens), None if heads is None else integers("heads", heads)
    )

    def looks(call: int) -> bool:
        step, branches = layout.at(call)
        return CONDITIONAL in branches and (wanted is None or step in wanted)

    def required(call: int) -> Collection[str]:
        return [site.name for site in chosen] if looks(call) else ()

    def see(site: Site, call: Call, own: Attended, text: Text) -> None:
        if own.alone or not looks(call.step):
            return
        step, branches = layout.at(call.step)
        group = len(own.keys) // len(branches)
        if not 0 <= row < group:
            raise PatchError(
                f"row {row} of {group} was asked for; the call holds {len(own.keys)} rows of "
                f"{', '.join(branches)}, so give another row, or the `calls` of a step"
            )
        place = group * branches.index(CONDITIONAL) + row
        mask = _of_row(own.mask, place)
        keys = text(slice(place, place + 1))
        if site.kind == "single" and keys == slice(0, own.keys.shape[2]):
            return  # text that attends to itself, before the picture does
        heard.add(site, step, own.queries[place], own.keys[place], keys, mask, own.scale)

    with at_attention(model, chosen, see, required):
        yield heard


def _of_row(mask: Tensor | None, row: int) -> Tensor | None:
    """Mask (H or 1, queries or 1, N) of a row."""
    if mask is None:
        return None
    whole = mask[(None,) * (4 - mask.dim())]  # (B or 1, H or 1, queries or 1, N)
    return whole[row if len(whole) > 1 else 0]
