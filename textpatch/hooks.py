"""Observe or replace the outputs of named modules of any `nn.Module`, and leave no trace.

Knows nothing of attention.  A hook lives exactly as long as its `with` block, acts only in the thread or
task that opened it, and a module that was asked for and never ran is an error, not silence.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable, Iterable, Iterator

from torch import nn

from textpatch.errors import PatchError, closest

# The blocks open in this thread or task.  A model shared between threads carries everybody's hooks;
# each acts only where its block is in here.
_open_blocks: ContextVar[frozenset[object]] = ContextVar("textpatch_open_blocks", default=frozenset())


class HookRegistry:
    """Named modules of one model whose outputs can be watched or replaced.

    `calls` counts how often each module fired inside blocks of this registry.
    Raises PatchError if a name is not a module of the model, naming the closest ones.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.names = tuple(dict.fromkeys(names))
        modules = dict(model.named_modules())
        for name in self.names:
            if name not in modules:
                raise PatchError(f"no module {name!r} in {type(model).__name__}{closest(name, modules)}")
        if not self.names:
            raise PatchError("no modules named; a registry of nothing would have no effect")
        self._modules = {name: modules[name] for name in self.names}
        self.calls: Counter[str] = Counter()

    @contextmanager
    def observe(self, fn: Callable[[str, object], object]) -> Iterator[HookRegistry]:
        """Call fn(name, output) after each named module; what it returns is ignored.  Raises as `replace`."""

        def watch(name: str, output: object) -> None:
            fn(name, output)

        with self.replace(watch):
            yield self

    @contextmanager
    def replace(self, fn: Callable[[str, object], object]) -> Iterator[HookRegistry]:
        """Make fn(name, output) the output of each named module; None leaves it as it is, as in torch.

        Raises PatchError on leaving if a named module never ran: the model was not called, was called
        through `.forward`, or was compiled before the block was entered.
        """
        block, fired = object(), Counter()
        handles = []
        try:
            for name, module in self._modules.items():
                handles.append(module.register_forward_hook(self._hook(name, fn, block, fired)))
            _open_blocks.set(_open_blocks.get() | {block})
            try:
                yield self
            finally:
                _open_blocks.set(_open_blocks.get() - {block})  # blocks may close in any order
        finally:
            for handle in handles:
                handle.remove()
            self.calls.update(fired)
        self._require_all_fired(fired)

    @staticmethod
    def _hook(name: str, fn, block: object, fired: Counter):
        def hook(module, args, output):
            if block not in _open_blocks.get():
                return None
            fired[name] += 1
            return fn(name, output)

        return hook

    def _require_all_fired(self, fired: Counter) -> None:
        silent = [name for name in self.names if not fired[name]]
        if silent:
            shown = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
            raise PatchError(
                f"{len(silent)} of {len(self.names)} modules never ran inside the block ({shown}); call the model "
                "itself, not `.forward`, inside the block, and compile it only after entering"
            )
