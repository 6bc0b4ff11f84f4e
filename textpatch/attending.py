"""Keys, values and masks read and replaced where the attention of sites gets them, while a model is called.

    A = softmax(q k^T / sqrt(D) + m) v

The place is a site's call of torch's scaled_dot_product_attention.  Norms and rotations of the keys, and
parts of fused projections, lie before it.  The mask m stands beside the keys that it hides, so that both can
be read from another row together.

B batch rows, H heads of keys and values, N keys, T text tokens, D head width
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import BoundArguments
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from textpatch.calls import Call, Calls
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.sites import Site, Span

ARGUMENTS = "query", "key", "value", "attn_mask", "dropout_p", "is_causal"  # those given by place


@dataclass(frozen=True)
class Attended:
    """What a site's attention gets.

    keys, values  (B, H, N, D)
    mask          boolean, True for a key in sight, or what is added to the scores.  It is broadcast to
                  (B, heads of queries, queries, N).  None if there is none
    queries       (B, heads, queries, D), which are never replaced
    scale         of the scores, D ** -0.5 when None
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    queries: Tensor
    scale: float | None = None


# what takes the place of what attention gets, None to leave it.  `text` are the text tokens of some rows
Text = Callable[[slice], slice]
Read = Callable[[Site, Call, Attended, Text], Attended | None]


@contextmanager
def at_attention(
    model: nn.Module,
    sites: tuple[Site, ...],
    read: Read,
    required: Callable[[int], Collection[str]],
    begun: Callable[[int, BoundArguments], None] | None = None,
) -> Iterator[Calls]:
    """Call read(site, call, attended, text) at every attention of `sites`, and attend to what it gives.

    text(rows) gives the keys that are text of some rows, a slice of N.
    Yields the calls of the model.

    required, begun  as for `Calls`

    Raises PatchError

    - for sites of textpatch's own models, whose `keys` are None
    - in a call that must run a site whose module does not run, or attends in another way
    - where which keys are text is not known, and as `Calls.within`
    """
    spans = {site.name: _keys(site) for site in sites}
    calls = Calls(model, spans.values(), required, begun)
    modes = {
        site.name: _Attention(partial(_attend, calls, site, spans[site.name], read))
        for site in sites
    }

    def enter(name: str) -> None:
        modes[name].__enter__()

    def leave(name: str) -> None:
        _take_off(modes[name])

    def after(name: str, output: Any) -> None:
        if name not in calls.within(name).ran and name in required(calls.count):
            raise PatchError(
                f"site {name!r} ran in call {calls.count} and called no scaled_dot_product_attention, so its "
                "attention is no softmax of torch's, or is hidden in a kernel of its own; choose torch's, in "
                'diffusers by model.set_attention_backend("native") or its default processors'
            )

    modules = HookRegistry(model, list(spans))
    try:
        with (
            calls.counted(),
            modules.observe_leaving(leave),
            modules.observe(after),
            modules.observe_entering(enter),
        ):
            yield calls
    finally:
        for mode in modes.values():
            _take_off(mode)  # an interrupt in the middle of a module leaves it there


def _keys(site: Site) -> Span:
    """Span of the text among a site's keys.  Raises PatchError for a site that does not know it."""
    if site.keys is None:
        raise PatchError(
            f"site {site.name!r} does not say which keys of its attention are text, as sites of textpatch's "
            "own models: give these a plan by `sample`, or slots; of other models give what find_sites makes"
        )
    return site.keys


def _attend(
    calls: Calls,
    site: Site,
    span: Span,
    read: Read,
    attention: Callable[..., Tensor],
    given: dict[str, Any],
) -> Tensor:
    """Attention of a site to what `read` gives.

    given  arguments of the attention by name
    """
    call = calls.within(site.name)
    own = Attended(
        given["key"],
        given["value"],
        given.get("attn_mask"),
        given["query"],
        given.get("scale"),
    )
    if own.keys.dim() != 4:
        raise PatchError(
            f"attention at site {site.name!r} gets keys of shape {tuple(own.keys.shape)}, and sites need "
            "those of (rows, heads, tokens, width); leave the site out"
        )
    total = own.keys.shape[2]

    def text(rows: slice) -> slice:
        alone = calls.text_alone(span, total, rows)
        return calls.text(span, site.name, total, rows) if alone is None else alone

    new = read(site, call, own, text)
    if calls.text_alone(span, total, slice(None)) is None:  # text that attends to itself is no site
        call.ran.add(site.name)
    if new is not None:
        given = given | {"key": new.keys, "value": new.values, "attn_mask": new.mask}
    return attention(**given)


class _Attention(TorchFunctionMode):
    """Mode in which act(attention, arguments by name) stands for scaled_dot_product_attention."""

    def __init__(self, act: Callable[[Callable[..., Tensor], dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self.act = act

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(ARGUMENTS, args, strict=False))
            return self.act(func, named | (kwargs or {}))
        if func is F.multi_head_attention_forward:  # which calls it
            with self:
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _take_off(mode: TorchFunctionMode) -> None:
    """Take a mode off this thread's stack, wherever it lies there."""
    stack = [
        torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())
    ]
    if mode not in stack:
        return
    for _ in stack[stack.index(mode) :]:
        torch._C._pop_torch_function_stack()
    for other in stack[stack.index(mode) + 1 :]:
        torch._C._push_on_torch_function_stack(other)
