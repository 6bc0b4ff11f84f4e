"""Observe or replace the outputs of named modules of any `nn.Module`, and leave no trace.

Knows nothing of attention.  A hook lives exactly as long as its `with` block, acts only in the thread or
task that opened it, and a module that was asked for and never ran is an error, not silence.

What else may happen to a model while a block is open (tests/test_hooks_stress.py holds each line but the last):

    torch.compile   inside the block: hooks act and the graph breaks at each, or torch refuses (fullgraph=True).
                    Before the block: an error on leaving
    deepcopy        and pickle are refused: nobody would ever remove the copy's hooks.  state_dict and .to are as ever
    threads, tasks  one sees the blocks it opened; a task also those open where it was made; a new thread none
    DataParallel    replicas run in threads of their own, with no block open: plain outputs, an error on leaving
    checkpointing   the forward is run again under the patch if .backward() is called in the block, by its thread: for
                    `capture` and `patch` as the same step, which must be the block's only one.
                    After the block it is not patched, and the gradients are wrong without a word
    offloading      and FSDP keep the modules and call them: hooks act
    CUDA autograd   runs backward in threads of its own: with checkpointing, swap by slots, not by hooks
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial

from torch import Tensor, nn

from textpatch.errors import PatchError, closest

# The blocks open in this thread or task.  A model shared between threads carries everybody's hooks;
# each acts only where its block is in here.
_open_blocks: ContextVar[frozenset[object]] = ContextVar(
    "textpatch_open_blocks", default=frozenset()
)


class HookRegistry:
    """Named modules of one model whose outputs can be watched or replaced.

    `calls` counts how often each module fired inside blocks of this registry.
    names  those of modules, or one name
    Raises PatchError if a name is not a module of the model, naming the closest ones.
    """

    def __init__(self, model: nn.Module, names: str | Iterable[str]):
        self.names = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
        modules = dict(model.named_modules())
        for name in self.names:
            if name not in modules:
                raise PatchError(
                    f"no module {name!r} in {type(model).__name__}{closest(name, filter(None, modules))}"
                )
        if not self.names:
            raise PatchError("no modules named; a registry of nothing would have no effect")
        self._modules = {name: modules[name] for name in self.names}
        self.calls: Counter[str] = Counter()

    def observe(self, fn: Callable[[str, object], object]) -> AbstractContextManager[HookRegistry]:
        """Call fn(name, output) after each named module; what it returns is ignored.  Raises as `replace`.

        It sees the calls there are and makes none: `sample` projects static text once per run, so on a text projection
        it sees one call, a row per distinct prompt, not one per step with the rows of the batch.  `capture` sees every
        step, and so does `replace` with an fn that gives None.
        """

        def watch(name: str, module: nn.Module, args, output: object) -> None:
            fn(name, output)

        return self._block(nn.Module.register_forward_hook, watch, looks_only=True)

    def replace(self, fn: Callable[[str, object], object]) -> AbstractContextManager[HookRegistry]:
        """Make fn(name, output) the output of each named module; None leaves it as it is, as in torch.

        Raises PatchError if what fn gives differs from the output in kind, shape, dtype or device (its values
        are not looked at: that would wait for the device).  On leaving, if a named module never ran: the model
        was not called, was called through `.forward`, or was compiled before the block was entered.
        """

        def after(name: str, module: nn.Module, args, output: object) -> object:
            new = fn(name, output)
            if new is not None and _form(new) != _form(output):
                raise PatchError(
                    f"the hook of module {name!r} gave {_form(new)} for {_form(output)}; give the like, or None to "
                    "leave the output as it is"
                )
            return new

        return self._block(nn.Module.register_forward_hook, after)

    def observe_inputs(
        self, fn: Callable[[str, inspect.BoundArguments], object]
    ) -> AbstractContextManager:
        """Call fn(name, inputs) before each named module, with what its forward gets, by name.  Else as `observe`."""

        def before(name: str, module: nn.Module, args, kwargs) -> None:
            fn(name, inspect.signature(module.forward).bind(*args, **kwargs))

        return self._block(
            partial(nn.Module.register_forward_pre_hook, with_kwargs=True), before, looks_only=True
        )

    @contextmanager
    def _block(self, register, act, looks_only: bool = False) -> Iterator[HookRegistry]:
        block, fired = object(), Counter()
        hooks = [
            (module, Hook(name, act, block, fired, looks_only))
            for name, module in self._modules.items()
        ]
        try:
            for module, hook in hooks:
                register(module, hook)
            _open_blocks.set(_open_blocks.get() | {block})
            yield self
        finally:
            try:
                _close(block, hooks)
            finally:
                _close(block, hooks)  # once more: an interrupt may have cut the first short
            self.calls.update(fired)
        self._require_all_fired(fired)

    def _require_all_fired(self, fired: Counter) -> None:
        silent = [name for name in self.names if not fired[name]]
        if silent:
            shown = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
            raise PatchError(
                f"{len(silent)} of {len(self.names)} modules never ran inside the block ({shown}); call the model "
                "itself, not `.forward`, inside the block, and compile it only after entering"
            )


class Hook:
    """One module's hook of one open block; calls from threads and tasks that did not open it pass by."""

    def __init__(self, name: str, act: Callable, block: object, fired: Counter, looks_only: bool):
        self.name, self.act, self.block, self.fired, self.looks_only = (
            name,
            act,
            block,
            fired,
            looks_only,
        )

    def __call__(self, module: nn.Module, args: tuple, rest: object) -> object:
        """rest: the output, or before it is there, the named arguments."""
        if self.block not in _open_blocks.get():
            return None
        self.fired[self.name] += 1
        return self.act(self.name, module, args, rest)

    def __reduce_ex__(self, protocol):
        """torch copies and pickles a module's hooks with it, and nobody would ever remove the copy's."""
        raise PatchError(
            f"the model is copied or pickled while module {self.name!r} is watched or patched; "
            "do it before the block or after"
        )


def _form(value: object) -> str:
    """What an output and its replacement must have in common."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}, {value.dtype} on {value.device}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(map(_form, value)) or 'nothing'}"
    return f"a {type(value).__name__}"


def _close(block: object, hooks: list[tuple[nn.Module, Hook]]) -> None:
    """Shut the block and remove its hooks, whether or not they were put on; blocks may close in any order.

    Hooks are found by what they are, not by the handles torch returns: an interrupt can come in between.
    """
    _open_blocks.set(_open_blocks.get() - {block})
    for module, hook in hooks:
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, other in table.items() if other is hook]:
                table.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
