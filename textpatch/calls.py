"""The calls of a model inside a block: one call of the model itself is one step, whichever of its modules run in it.

B rows, T text tokens

A call is seen at the model's own forward, before it runs and after.  Its arguments, by name, tell how many text
tokens it holds and what masks hide of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import BoundArguments

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError, closest
from textpatch.hooks import HookRegistry
from textpatch.sites import Site, Span


@dataclass
class Call:
    """One call of a model.

    step     its number among the finished calls of the block, 0 = first
    lengths  T of each span that is a part of a tap's tokens
    hidden   what `hidden_tokens` makes of the mask of each span that names one
    ran      the watched modules that have run in it
    """

    step: int
    lengths: dict[Span, int]
    hidden: dict[Span, list[Tensor | None]]
    ran: set[str] = field(default_factory=set)

    def mask(self, site: Site, row: int) -> Tensor | None:
        """What is hidden of a row's text at a site; None if nothing is."""
        return of_row(self.hidden.get(site.span, [None]), row)


class Calls:
    """The calls of one model inside a block, of which some must run all of the named modules.

    steps: the calls that must, all when None.  `count` is the number of finished calls.
    """

    def __init__(
        self, model: nn.Module, sites: tuple[Site, ...], taps: Iterable[str], steps: tuple | None
    ):
        self.model, self.taps, self.steps = model, tuple(taps), steps
        self.spans = list(dict.fromkeys(site.span for site in sites))
        self.count = 0
        self._call: Call | None = None
        self._under_way = False
        self._image_tokens: dict[str, int] = {}

    @contextmanager
    def counted(self) -> Iterator[Calls]:
        """A block in which the model's calls are seen.  Raises PatchError on leaving if it was never called."""
        model = HookRegistry(self.model, [""])
        with model.observe_inputs(self._begin), model.observe(self._end):
            yield self

    def at(self, module: str) -> Call:
        """The call in which a watched module has just run.

        Raises PatchError outside a call of the model, for a second time in one, and in a backward pass that may repeat
        one of several.
        """
        if _in_backward_pass():
            self._require_one_call(module)
        elif not self._under_way:
            raise PatchError(
                f"module {module!r} ran outside a call of the {type(self.model).__name__}, and belongs to no step; "
                "call the model itself inside the block, not `.forward` or one of its blocks"
            )
        elif module in self._call.ran:
            raise PatchError(
                f"module {module!r} ran twice in call {self.count} of the {type(self.model).__name__}, and a step holds one "
                "K and V of a site; leave out sites of modules that a call runs more than once"
            )
        self._call.ran.add(module)
        return self._call

    def text(self, site: Site, module: str, total: int) -> slice:
        """Which of the `total` tokens that a tap puts out are text.  Raises PatchError where that is not known."""
        length = self._call.lengths.get(site.span)
        text = site.span.tokens(total, length)
        if length is not None:
            self._require_as_many_image_tokens(module, total, length)
        return text

    def _begin(self, name: str, inputs: BoundArguments) -> None:
        if _in_backward_pass():
            return  # checkpointing repeats the call that is known; its modules are asked for at each
        require_masks_are_said(inputs, self.spans)
        require_masks_are_arguments(inputs, self.spans)
        masks = {span: argument(inputs, span.mask) for span in self.spans if span.mask}
        parts = [span for span in self.spans if span.place != "all"]
        lengths = {
            span: span.length(argument(inputs, span.text), masks.get(span)) for span in parts
        }
        self._call = Call(
            self.count, lengths, {span: hidden_tokens(mask) for span, mask in masks.items()}
        )
        self._under_way = True

    def _end(self, name: str, output: object) -> None:
        if _in_backward_pass():
            return
        self._require_all_ran()
        self.count += 1
        self._under_way = False

    def _require_all_ran(self) -> None:
        silent = [tap for tap in self.taps if tap not in self._call.ran]
        if silent and (self.steps is None or self.count in self.steps):
            shown = ", ".join(silent[:3]) + ", ..." * (len(silent) > 3)
            raise PatchError(
                f"{len(silent)} of {len(self.taps)} modules never ran in call {self.count} of the "
                f"{type(self.model).__name__} ({shown}), so this step is neither captured nor patched there; switch "
                "off what skips or replaces blocks of the model, or patch other sites or `steps`"
            )

    def _require_as_many_image_tokens(self, module: str, total: int, length: int) -> None:
        first = self._image_tokens.setdefault(module, total - length)
        if total - length != first:
            raise PatchError(
                f"module {module!r} puts out {total} tokens in call {self.count}; with {length} of text that leaves "
                f"{total - length} of the picture, and in the first call it left {first}, so which are text is not "
                "known; switch off a key and value cache that leaves the text out of later calls, or open one block "
                "for each size of picture"
            )

    def _require_one_call(self, module: str) -> None:
        if self.count != 1:
            raise PatchError(
                f"module {module!r} runs again in a backward pass, as checkpointing does, after {self.count} calls, and "
                "which of these it repeats is not known; open a block for each call, with its backward pass inside"
            )


def _in_backward_pass() -> bool:
    return torch._C._current_graph_task_id() >= 0  # torch's checkpointing asks the same


def argument(inputs: BoundArguments, name: str) -> object:
    """What a forward was called with under a name; None where it was left out."""
    return named_arguments(inputs).get(name)


def named_arguments(inputs: BoundArguments) -> dict[str, object]:
    """All arguments by name, those inside dictionaries too, such as `**kwargs`."""
    inside = {}
    for value in inputs.arguments.values():
        if isinstance(value, dict):
            inside |= value
    return inside | inputs.arguments


def hidden_tokens(mask) -> list[Tensor | None]:
    """What a mask hides of each row's text: numbers that are 0 for a token in full sight; None if all are.

    mask (B, T), nonzero for a token that is seen; or, with more dimensions and of floating point, what is added to
    the attention scores, 0 for a token that is seen.  None hides nothing.  Raises PatchError for a mask without rows.
    """
    if mask is None:
        return [None]
    rows = [torch.as_tensor(row) for row in mask]
    if any(row.dim() == 0 for row in rows):
        raise PatchError(f"a mask of {len(rows)} numbers is one of no rows; give (rows, tokens)")
    return [_hidden(row) for row in rows]


def of_row(hidden: list[Tensor | None], row: int) -> Tensor | None:
    """What is hidden of one row; a mask of one row is that of all."""
    return hidden[row if len(hidden) > 1 else 0]


def _hidden(row: Tensor) -> Tensor | None:
    is_added_to_scores = row.dim() > 1 and row.is_floating_point()
    hidden = row.float() if is_added_to_scores else 1 - row.float()
    return hidden if hidden.any() else None


def same_mask(one: Tensor | None, other: Tensor | None, tokens: tuple | None = None) -> bool:
    """Whether two rows hide the same of their text, or of some of its tokens."""
    masks = [mask for mask in (one, other) if mask is not None]
    if tokens is not None:
        masks = [mask[..., list(tokens)] for mask in masks]
    if len(masks) == 1:  # the other row hides nothing
        masks.append(torch.zeros_like(masks[0]))
    return not masks or torch.equal(masks[0].to(masks[1]), masks[1])


def told(hidden: Tensor | None) -> str:
    """A row's mask in words, for errors."""
    return (
        "hides nothing"
        if hidden is None
        else f"hides {int((hidden != 0).sum())} of {hidden.numel()} tokens"
    )


def require_masks_are_said(inputs: BoundArguments, spans: list[Span]) -> None:
    """Raise PatchError for what looks like a mask of text and is named by no span.

    That is an argument with `mask` in its name, of as many rows as the text or of one for all, that ends in one number
    per text token and hides some.
    """
    said = {span.mask for span in spans}
    named = named_arguments(inputs)
    shapes = [_rows_and_tokens(named.get(span.text)) for span in spans]
    for name, value in named.items():
        looks_like_one = "mask" in name and any(_fits(value, shape) for shape in shapes)
        if not looks_like_one or name in said:
            continue
        if any(hidden is not None for hidden in hidden_tokens(value)):
            raise PatchError(
                f"{name!r} of shape {tuple(value.shape)} looks like a mask that hides text tokens, and the table says "
                f"nothing of it, so a row that reads another's text would read it through its own mask; say "
                f"Span(mask={name!r}) in the table if it is one, or call the model without it"
            )


def _rows_and_tokens(text) -> tuple[int, int] | None:
    """(B, T) of a text, a tensor or a list of rows; None if it is neither."""
    if isinstance(text, Tensor) and text.dim() > 1:
        return len(text), text.shape[1]
    if isinstance(text, list) and text:
        return len(text), max(map(len, text))
    return None


def _fits(value, shape: tuple[int, int] | None) -> bool:
    """Whether an argument has one number for each of T tokens, of each of B rows or of all."""
    if shape is None or not isinstance(value, Tensor) or value.dim() < 2:
        return False
    return len(value) in (1, shape[0]) and value.shape[-1] == shape[1]


def require_masks_are_arguments(inputs: BoundArguments, spans: list[Span]) -> None:
    """Raise PatchError for a mask that a span names and the forward cannot be given."""
    parameters = inputs.signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for span in spans:
        if span.mask and not takes_any and span.mask not in parameters:
            raise PatchError(
                f"the table names the mask {span.mask!r}, and the model's forward takes no such argument"
                f"{closest(span.mask, parameters)}; leave it out, or name the one that hides text tokens"
            )
