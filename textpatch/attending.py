"""Keys, values and masks read and replaced where the attention of sites gets them, while a model is called.

    A = softmax(q k^T / sqrt(D) + m) v

The place is a site's call of torch's scaled_dot_product_attention.  Norms and rotations of the keys, and
parts of fused projections, lie before it.  The mask m stands beside the keys that it hides, so that both can
be read from another row together.

B batch rows, H heads of keys and values, N keys, T text tokens, D head width
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import BoundArguments
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from textpatch.calls import Call, Calls
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry, compiled
from textpatch.masks import require_known_layout, rows_of_mask
from textpatch.sites import Site, Span
from textpatch.slots import Rows

ARGUMENTS = "query", "key", "value", "attn_mask", "dropout_p", "is_causal"  # those given by place
ATTENTION = F.scaled_dot_product_attention
MULTI_HEAD = F.multi_head_attention_forward  # which calls it


@dataclass(frozen=True)
class Attended:
    """What a site's attention gets.

    keys, values  (B, H, N, D)
    mask          boolean, True for a key in sight, or what is added to the scores.  It is broadcast to
                  (B, heads of queries, queries, N).  None if there is none
    queries       (B, heads, queries, D), which are never replaced
    scale         of the scores, D ** -0.5 when None
    alone         True where a text attends to itself, in a call beside that of the image
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    queries: Tensor
    scale: float | None = None
    alone: bool = False


# rows and text among the keys or values (B, H, N, D), and what is written there
Write: TypeAlias = tuple[Rows, slice, Tensor]


@dataclass
class Written:
    """What a site's attention gets in the place of its own.

    mask          all of it, as in `Attended`
    keys, values  parts of them
    """

    mask: Tensor | None
    keys: list[Write] = field(default_factory=list)
    values: list[Write] = field(default_factory=list)


# what takes the place of what attention gets, None to leave it.  `text` are the text tokens of some rows
Text = Callable[[slice], slice]
Read = Callable[[Site, Call, Attended, Text], Written | None]


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

    - for a model that runs compiled code, and for sites of textpatch's own models, whose `keys` are None
    - in a call that must run a site whose module does not run, or attends in another way
    - where which keys are text is not known, and as `Calls.within`
    """
    if compiled(model):
        raise PatchError(
            f"the {type(model).__name__} runs compiled code, into which nothing can be put; load it anew and "
            "go without torch.compile and compile_repeated_blocks"
        )
    spans = {site.name: _keys(site) for site in sites}
    calls = Calls(model, spans.values(), required, begun)
    modes = {
        site.name: _Attention(partial(_attend, calls, site, spans[site.name], read))
        for site in sites
    }

    def around(name: str, forward: Callable[[], Any]) -> Any:
        with modes[name]:
            output = forward()
        if name not in calls.within(name).ran and name in required(calls.count):
            raise PatchError(
                f"site {name!r} ran in call {calls.count} and called no scaled_dot_product_attention, so its "
                "attention is no softmax of torch's, or is hidden in a kernel of its own; choose torch's, in "
                'diffusers by model.set_attention_backend("native") or its default processors'
            )
        return output

    with calls.counted(), HookRegistry(model, list(spans)).around(around):
        yield calls


def text_at_attention(
    model: nn.Module,
    sites: tuple[Site, ...],
    fn: Callable[[Site, str, Call, Tensor], Tensor | None],
    at_mask: Callable[[Site, Call, Tensor | None], Tensor | None],
    parts: str = "kv",
    steps: Collection[int] | None = None,
) -> AbstractContextManager[Calls]:
    """Call fn(site, part, call, own) with the text K or V (B, T, W) of `sites` as their attention gets them.

    A tensor that fn returns takes their place; None leaves them.  So does at_mask(site, call, own), with the
    mask (B, heads of queries or 1, queries, T) of the text.
    Gives the calls of the model, of which those in `steps` must run every site.
    """
    names = [site.name for site in sites]
    spans = [_keys(site) for site in sites]

    def required(call: int) -> Collection[str]:
        return names if steps is None or call in steps else ()

    def begun(call: int, inputs: BoundArguments) -> None:
        require_known_layout(inputs, spans)

    def read(site: Site, call: Call, own: Attended, text: Text) -> Written:
        if site.name in call.ran:
            raise PatchError(
                f"site {site.name!r} attends twice in call {call.step}, and a step holds one K and V of a "
                "site; leave it out, or use `swap`"
            )
        place = text(slice(None))
        kv = {"k": own.keys, "v": own.values}
        written = Written(own.mask)
        for part in parts:
            new = fn(site, part, call, _in_rows(kv[part][:, :, place], site))
            if new is not None:
                writes = written.keys if part == "k" else written.values
                writes.append(_write(kv[part].shape[1], place, site, new))
        if not own.alone:  # what hides a text from itself hides nothing of it from the image
            written.mask = _read_mask(site, call, own, place, at_mask)
        return written

    return at_attention(model, sites, read, required, begun)


def _in_rows(x: Tensor, site: Site) -> Tensor:
    """Text K or V (B, T, W) of (B, heads, T, D), where each of W's heads may stand several times."""
    group = x.shape[1] // site.text_heads
    return x[:, ::group].transpose(1, 2).flatten(2)


def _write(heads: int, place: slice, site: Site, text: Tensor) -> Write:
    """The text (B, T, W) in its place among K or V (B, heads, N, D)."""
    apart = text.unflatten(-1, (site.text_heads, -1)).transpose(1, 2)
    return slice(None), place, apart.repeat_interleave(heads // site.text_heads, dim=1)


def _read_mask(
    site: Site,
    call: Call,
    own: Attended,
    place: slice,
    at_mask: Callable[[Site, Call, Tensor | None], Tensor | None],
) -> Tensor | None:
    """Mask of an attention, with what at_mask gives in the place of the text."""
    rows = rows_of_mask(site, own.mask, len(own.keys), own.keys.shape[2])
    new = at_mask(site, call, None if rows is None else rows[..., place])
    if rows is None or new is None:
        return own.mask
    rows = rows.expand(-1, new.shape[1], -1, -1).clone()
    rows[..., place] = new
    return rows


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
    keys = given["key"]
    if keys.dim() != 4:
        raise PatchError(
            f"attention at site {site.name!r} gets keys of shape {tuple(keys.shape)}, and sites need "
            "those of (rows, heads, tokens, width); leave the site out"
        )
    total = keys.shape[2]
    alone = calls.is_text_alone(span, total)
    own = Attended(
        keys,
        given["value"],
        given.get("attn_mask"),
        given["query"],
        given.get("scale"),
        alone,
    )
    text = partial(calls.text, span, site.name, total, alone=alone)
    new = read(site, call, own, text)
    if not alone:
        call.ran.add(site.name)
    if new is None:
        return attention(**given)
    with _with_written(given, new) as changed:
        return attention(**changed)


@contextmanager
def _with_written(given: dict[str, Any], new: Written) -> Iterator[dict[str, Any]]:
    """Arguments of an attention with what is written into them, as long as the block lasts.

    Most of the keys and values are the image's.  They are copied only where the tensors that the module made
    cannot be written into and restored.
    """
    changed = given | {"attn_mask": new.mask}
    lent = _can_be_restored(given["query"], given["key"], given["value"])
    held: list[tuple[Tensor, tuple[Rows, slice, slice], Tensor]] = []
    try:
        for name, writes in (("key", new.keys), ("value", new.values)):
            if writes and not lent:
                changed[name] = given[name].clone()
            into = changed[name]
            for rows, text, x in writes:
                place = rows, slice(None), text
                if lent:
                    held.append((into, place, into[place].clone()))
                into[place] = x
        yield changed
    finally:
        for into, place, own in reversed(held):
            into[place] = own


def _can_be_restored(*tensors: Tensor) -> bool:
    """True if each of some tensors can be written into for a while and nobody notices.

    A graph of gradients would notice, and so would a tensor that shares memory.
    """
    if torch.is_grad_enabled() or len({x.data_ptr() for x in tensors}) < len(tensors):
        return False
    frozen = any(x.is_inference() for x in tensors) and not torch.is_inference_mode_enabled()
    plain = all(type(x) is Tensor for x in tensors)
    return plain and not frozen and not any(map(_repeats, tensors))


def _repeats(x: Tensor) -> bool:
    """True if some elements of a tensor may be one in memory."""
    if x.is_contiguous():
        return False
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach += stride * (size - 1)
    return False


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
        if func is ATTENTION:
            named = dict(zip(ARGUMENTS, args, strict=False))
            return self.act(func, named | (kwargs or {}))
        if func is MULTI_HEAD:
            with self:
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
