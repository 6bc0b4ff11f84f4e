"""Text keys and values read and written at the taps of sites, while a model is called.

B batch rows, T text tokens, W = H heads x D, where H counts the heads of K and V
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from inspect import BoundArguments

from torch import Tensor, nn

from textpatch.calls import Call, Calls
from textpatch.hooks import HookRegistry
from textpatch.masks import require_no_mask
from textpatch.ports.shipped import find_sites
from textpatch.sites import Selectors, Site, select_sites


def chosen_sites(model: nn.Module, sites: Selectors) -> tuple[Site, ...]:
    """Sites as they were given, or those of the model that selectors name.

    Raises PatchError as `select_sites`, which lists the selectors.
    """
    given = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else [sites]
    known = [site for site in given if isinstance(site, Site)]
    if not given or len(known) < len(given):
        known = list(find_sites(model))
    return select_sites(known, given)


@contextmanager
def at_text(
    model: nn.Module,
    sites: tuple[Site, ...],
    fn: Callable[[Site, str, Call, Tensor], Tensor | None],
    parts: str = "kv",
    steps: Collection[int] | None = None,
) -> Iterator[Calls]:
    """Call fn(site, part, call, own) with the text K or V (B, T, W) of `sites` wherever they are made.

    A tensor that fn returns takes their place; None leaves them.
    Yields the calls of the model, of which those in `steps` must run every site.
    """
    taps: dict[str, list[tuple[Site, str, tuple[int, int] | None]]] = defaultdict(list)
    for site in sites:
        for part, tap in zip("kv", site.taps, strict=True):
            if part in parts:
                taps[tap.module] += [(site, part, tap.channels)]
    spans = list(dict.fromkeys(site.span for site in sites))

    def required(call: int) -> Collection[str]:
        return taps if steps is None or call in steps else ()

    def begun(call: int, inputs: BoundArguments) -> None:
        require_no_mask(inputs, spans)

    calls = Calls(model, spans, required, begun)

    def at(name: str, output: Tensor) -> Tensor | None:
        call = calls.at(name)
        new = None
        for site, part, channels in taps[name]:
            text = calls.text(site.span, name, output.shape[1])
            where = slice(None), text, slice(*channels or (None,))
            read = fn(site, part, call, output[where])
            if read is not None:
                if new is None:
                    new = output.clone()
                new[where] = read
        return new

    with calls.counted(), HookRegistry(model, taps).replace(at):
        yield calls
