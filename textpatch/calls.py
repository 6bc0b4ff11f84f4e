"""The calls of a model inside a block, counted as steps.

T text tokens

One call of the model itself is one step, whichever of its modules run in it.  A call is seen at the model's
own forward, before it runs and after.  Its arguments, by name, tell how many text tokens it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import BoundArguments

import torch
from torch import nn

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.masks import argument
from textpatch.sites import Span


@dataclass
class Call:
    """One call of a model.

    step     its number among the finished calls of the block, 0 = first
    lengths  T of each row, for every span that is a part of a sequence
    counts   tokens of each row, for every span that names an argument which tells them
    found    the text's place in the sequence, for each span whose place is "where"
    ran      the watched modules that have run in it
    """

    step: int
    lengths: dict[Span, list[int]]
    counts: dict[Span, list[int]]
    found: dict[Span, slice]
    ran: set[str] = field(default_factory=set)


class Calls:
    """The calls of one model inside a block, each of which must run some of its modules.

    spans     where text is among the tokens that the modules put out or get
    required  number of a call -> names of the modules that must run in it
    begun     called at the beginning of each call, with its number and its arguments
    count     the number of finished calls
    """

    def __init__(
        self,
        model: nn.Module,
        spans: Iterable[Span],
        required: Callable[[int], Collection[str]],
        begun: Callable[[int, BoundArguments], None] | None = None,
    ) -> None:
        self.model = model
        self.spans = list(dict.fromkeys(spans))
        self.required = required
        self.begun = begun
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

        Raises PatchError as `within`, and for a second run in one call.
        """
        call = self.within(module)
        if module in call.ran and not _in_backward_pass():
            raise PatchError(
                f"module {module!r} ran twice in call {self.count} of the {type(self.model).__name__}, and "
                "a step holds one K and V of a site; leave out sites of modules that a call runs twice"
            )
        call.ran.add(module)
        return call

    def within(self, module: str) -> Call:
        """The call in which a watched module runs.

        Raises PatchError outside a call of the model, and in a backward pass that may repeat one of several
        calls.
        """
        if _in_backward_pass():
            self._require_one_call(module)
        elif not self._under_way:
            raise PatchError(
                f"module {module!r} ran outside a call of the {type(self.model).__name__}, and belongs to "
                "no step; call the model itself inside the block, not `.forward` or one of its blocks"
            )
        return self._call

    def text(
        self, span: Span, module: str, total: int, rows: slice = slice(None), *, alone: bool = False
    ) -> slice:
        """The text of some rows among the `total` tokens of each row that a module puts out or gets.

        alone  True if these are the text alone
        Raises PatchError where which tokens are text is not known.
        """
        if span in self._call.counts:
            span.one_length(self._call.counts[span][rows])
        if span in self._call.found:
            return self._call.found[span]
        lengths = self._call.lengths.get(span)
        if lengths is None:
            return span.tokens(total, None)
        first = 0
        if not alone:
            longest = max(lengths, default=0)
            first = span.tokens(total, longest).start
            self._require_as_many_image_tokens(module, total, longest)
        # a shorter text begins where the longest does, and what follows it is padding
        return slice(first, first + span.one_length(lengths[rows]))

    def is_text_alone(self, span: Span, total: int) -> bool:
        """True where `total` tokens are as many as the longest text of a span, which is a part of them."""
        return max(self._call.lengths.get(span, []), default=None) == total

    def _begin(self, name: str, inputs: BoundArguments) -> None:
        if _in_backward_pass():
            return  # checkpointing repeats the call that is known; `at` asks each of its modules
        if self.begun is not None:
            self.begun(self.count, inputs)
        masks = {
            span: argument(inputs, name)
            for span in self.spans
            if span.packed
            for name in span.masks
        }
        lengths = {
            span: span.joined_lengths(
                [argument(inputs, name) for name in span.texts], masks.get(span)
            )
            for span in self.spans
            if span.place in ("first", "last")
        }
        told = {span: argument(inputs, span.counts) for span in self.spans if span.counts}
        counts = {span: x.tolist() for span, x in told.items() if x is not None}
        found = {
            span: span.found(argument(inputs, span.where[0])) for span in self.spans if span.where
        }
        self._call = Call(self.count, lengths, counts, found)
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
        required = self.required(self.count)
        silent = [module for module in required if module not in self._call.ran]
        if silent:
            shown = ", ".join(silent[:3]) + ", ..." * (len(silent) > 3)
            raise PatchError(
                f"{len(silent)} of {len(required)} modules never ran in call {self.count} of the "
                f"{type(self.model).__name__} ({shown}), so this step is neither captured nor patched there; "
                "switch off what skips or replaces blocks of the model, or patch other sites or `steps`"
            )

    def _require_as_many_image_tokens(self, module: str, total: int, length: int) -> None:
        first = self._image_tokens.setdefault(module, total - length)
        if total - length != first:
            raise PatchError(
                f"module {module!r} has {total} tokens in call {self.count}; with {length} of text that "
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
