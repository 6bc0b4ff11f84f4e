"""The calls of a model inside a block, counted as steps.

T text tokens

One call of the model itself is one step, whichever of its modules run in it.  A call is seen at the model's
own forward, before it runs and after.  Its arguments, by name, tell how many text tokens it holds and what
masks hide of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import BoundArguments

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.masks import (
    argument,
    hidden_tokens,
    joined,
    of_row,
    require_masks_are_arguments,
    require_masks_are_said,
)
from textpatch.sites import Site, Span


@dataclass
class Call:
    """One call of a model.

    step     its number among the finished calls of the block, 0 = first
    lengths  T of each span that is a part of a tap's tokens
    found    the text's place in the sequence, for each span whose place is "where"
    hidden   what `masks.hidden_tokens` gives for the mask of each span that names one
    ran      the watched modules that have run in it
    """

    step: int
    lengths: dict[Span, int]
    found: dict[Span, slice]
    hidden: dict[Span, list[Tensor | None]]
    ran: set[str] = field(default_factory=set)

    def mask(self, site: Site, row: int) -> Tensor | None:
        """Tokens hidden of a row's text at a site.  None if there are none."""
        return of_row(self.hidden.get(site.span, [None]), row)


class Calls:
    """The calls of one model inside a block, some of which must run all of the named modules.

    taps   the modules, by name
    steps  the calls that must run them, all when None
    count  the number of finished calls
    """

    def __init__(
        self,
        model: nn.Module,
        sites: tuple[Site, ...],
        taps: Iterable[str],
        steps: Collection[int] | None,
    ) -> None:
        self.model = model
        self.taps = tuple(taps)
        self.steps = steps
        self.spans = list(dict.fromkeys(site.span for site in sites))
        self.count = 0
        self._call = Call(0, {}, {}, {})
        self._under_way = False
        self._image_tokens: dict[str, int] = {}

    @contextmanager
    def counted(self) -> Iterator[Calls]:
        """See the model's calls inside a block.  Raises PatchError on leaving if it was never called."""
        model = HookRegistry(self.model, [""])
        with (
            model.observe_inputs(self._begin),
            model.observe(self._end),
            model.observe_leaving(self._left),
        ):
            yield self

    def at(self, module: str) -> Call:
        """The call in which a watched module has just run.

        Raises PatchError outside a call of the model, for a second run in one call, and in a backward pass
        that may repeat one of several calls.
        """
        if _in_backward_pass():
            self._require_one_call(module)
        elif not self._under_way:
            raise PatchError(
                f"module {module!r} ran outside a call of the {type(self.model).__name__}, and belongs to "
                "no step; call the model itself inside the block, not `.forward` or one of its blocks"
            )
        elif module in self._call.ran:
            raise PatchError(
                f"module {module!r} ran twice in call {self.count} of the {type(self.model).__name__}, and "
                "a step holds one K and V of a site; leave out sites of modules that a call runs twice"
            )
        self._call.ran.add(module)
        return self._call

    def text(self, site: Site, module: str, total: int) -> slice:
        """The text among the `total` tokens that a tap puts out.

        Raises PatchError where which tokens are text is not known.
        """
        if site.span in self._call.found:
            return self._call.found[site.span]
        length = self._call.lengths.get(site.span)
        text = site.span.tokens(total, length)
        if length is not None:
            self._require_as_many_image_tokens(module, total, length)
        return text

    def _begin(self, name: str, inputs: BoundArguments) -> None:
        if _in_backward_pass():
            return  # checkpointing repeats the call that is known; `at` asks each of its modules
        require_masks_are_said(inputs, self.spans)
        require_masks_are_arguments(inputs, self.spans)
        masks = {
            span: joined([argument(inputs, name) for name in span.masks])
            for span in self.spans
            if span.masks
        }
        lengths = {
            span: span.joined_length(
                [argument(inputs, name) for name in span.texts], masks.get(span)
            )
            for span in self.spans
            if span.place in ("first", "last")
        }
        found = {
            span: span.found(argument(inputs, span.where[0])) for span in self.spans if span.where
        }
        hidden = {span: hidden_tokens(mask) for span, mask in masks.items()}
        self._call = Call(self.count, lengths, found, hidden)
        self._under_way = True

    def _end(self, name: str, output: object) -> None:
        if _in_backward_pass():
            return
        self._require_all_ran()
        self.count += 1

    def _left(self, name: str) -> None:
        """End the call, which may have failed, so that what runs after it belongs to no step."""
        if not _in_backward_pass():
            self._under_way = False

    def _require_all_ran(self) -> None:
        silent = [tap for tap in self.taps if tap not in self._call.ran]
        if silent and (self.steps is None or self.count in self.steps):
            shown = ", ".join(silent[:3]) + ", ..." * (len(silent) > 3)
            raise PatchError(
                f"{len(silent)} of {len(self.taps)} modules never ran in call {self.count} of the "
                f"{type(self.model).__name__} ({shown}), so this step is neither captured nor patched there; "
                "switch off what skips or replaces blocks of the model, or patch other sites or `steps`"
            )

    def _require_as_many_image_tokens(self, module: str, total: int, length: int) -> None:
        first = self._image_tokens.setdefault(module, total - length)
        if total - length != first:
            raise PatchError(
                f"module {module!r} puts out {total} tokens in call {self.count}; with {length} of text that "
                f"leaves {total - length} of the picture, and in the first call it left {first}, so which "
                "are text is not known; switch off a key and value cache that leaves the text out of later "
                "calls, or open one block for each size of picture"
            )

    def _require_one_call(self, module: str) -> None:
        if self.count != 1:
            raise PatchError(
                f"module {module!r} runs again in a backward pass, as checkpointing does, after "
                f"{self.count} calls, and which of these it repeats is not known; open a block for each "
                "call, with its backward pass inside"
            )


def _in_backward_pass() -> bool:
    return torch._C._current_graph_task_id() >= 0  # torch's checkpointing asks the same
