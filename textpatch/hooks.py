"""Observe or replace the outputs of named modules of any `nn.Module`, and leave no trace.

A hook lives exactly as long as its `with` block, and acts only in the thread or task that opened the block.
A module that was asked for and never ran is an error, not silence.  Nothing here knows of attention.

Other tools meet an open block as follows.  tests/core/test_hooks_stress.py and test_devices.py hold each line
but the last.

    torch.compile    Inside the block hooks act: the graph breaks at each, or torch refuses (fullgraph=True).
                     Compiled before the block, the model ignores them, which is an error on leaving.
    copy, pickle     Refused, because nobody would ever remove the copy's hooks.
    state_dict, .to  Unchanged.
    threads          A new thread has no block open and runs the plain model.
    asyncio tasks    A task has the blocks open that were open where it was made, and those it opens itself.
    DataParallel     Its replicas run in threads of their own: plain outputs, and an error on leaving.
    offloading       Hooks act, and so they do under FSDP: both keep the modules and call them.
    checkpointing    A backward pass inside the block, in its thread, repeats the forward under the hooks.
                     `capture` and `patch` count it as the same step, which must be the block's only one.
                     A backward pass after the block repeats the plain forward: gradients are silently wrong.
    CUDA autograd    It runs backward in threads of its own: with checkpointing, swap by slots, not by hooks.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, SupportsIndex, TypeAlias, TypeVar, overload

from torch import Tensor, nn

from textpatch.errors import PatchError, closest

# The blocks open in this thread or task.  A model shared between threads carries the hooks of all of them,
# and each hook acts only where its block is in here.
_open_blocks: ContextVar[frozenset[object]] = ContextVar(
    "textpatch_open_blocks", default=frozenset()
)

# what a module gives or is given, most often a Tensor
Output = TypeVar("Output")
Block: TypeAlias = "AbstractContextManager[HookRegistry]"


class HookRegistry:
    """Named modules of one model whose outputs can be watched or replaced.

        projections = HookRegistry(model, ["blocks.0.attn.to_k", "blocks.0.attn.to_v"])
        with projections.replace(lambda name, output: 2 * output):
            model(x)

    model  any nn.Module
    names  names of its modules, or one name; "" is the model itself
    calls  how often each module ran inside blocks of this registry

    Raises PatchError for a model that is no nn.Module, for names that are none, and if a name is not a module
    of the model, naming the closest ones.
    """

    def __init__(self, model: nn.Module, names: str | Iterable[str]) -> None:
        if not isinstance(model, nn.Module) or not isinstance(names, Iterable):
            raise PatchError(
                f"hooks on {names!r} of a {type(model).__name__} were asked for; give a torch.nn.Module and "
                "names of its modules"
            )
        self.names = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
        if not self.names:
            raise PatchError("no modules named; a registry of nothing would have no effect")
        self._modules = {name: _module(model, name) for name in self.names}
        self.calls: Counter[str] = Counter()

    # The first form is that of a lambda, whose arguments have no types.
    @overload
    def observe(self, fn: Callable[[str, Tensor], object]) -> Block: ...
    @overload
    def observe(self, fn: Callable[[str, Output], object]) -> Block: ...
    def observe(self, fn: Callable[[str, Any], object]) -> Block:
        """Call fn(name, output) after each named module, and ignore what it returns.

        It sees the calls there are and makes none.  `sample` projects static text once per run, so on a text
        projection fn sees one call with a row per distinct prompt, not one per step with the batch's rows.
        `capture` sees every step, and so does `replace` with an fn that gives None.
        Raises PatchError on leaving, as `replace`.
        """

        def watch(name: str, module: nn.Module, args: tuple[object, ...], output: object) -> None:
            fn(name, output)

        return self._block(nn.Module.register_forward_hook, watch, looks_only=True)

    @overload
    def replace(self, fn: Callable[[str, Tensor], Tensor | None]) -> Block: ...
    @overload
    def replace(self, fn: Callable[[str, Output], Output | None]) -> Block: ...
    def replace(self, fn: Callable[[str, Any], Any]) -> Block:
        """Make fn(name, output) the output of each named module.

        None leaves it as it is, as in torch.
        Raises PatchError

        - if what fn gives differs from the output in kind, shape, dtype or device; values are not compared,
          because that would wait for the device
        - on leaving, if a named module never ran: the model was not called, was called through `.forward`, or
          was compiled before the block was entered
        """

        def after(name: str, module: nn.Module, args: tuple[object, ...], output: object) -> object:
            new = fn(name, output)
            _require_alike(name, new, output)
            return new

        return self._block(nn.Module.register_forward_hook, after)

    @overload
    def replace_input(self, fn: Callable[[str, Tensor], Tensor | None]) -> Block: ...
    @overload
    def replace_input(self, fn: Callable[[str, Output], Output | None]) -> Block: ...
    def replace_input(self, fn: Callable[[str, Any], Any]) -> Block:
        """Make fn(name, x) the first argument of each named module, where x is what it was given.

        None leaves it as it is.  Raises PatchError as `replace`, and for a module that is given no argument
        by its place.
        """

        def before(
            name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if not args:
                raise PatchError(
                    f"module {name!r} is called with {', '.join(kwargs) or 'nothing'} by keyword and has no "
                    "first argument to replace; replace the output of a module before it"
                )
            new = fn(name, args[0])
            if new is None:
                return None
            _require_alike(name, new, args[0])
            return (new, *args[1:]), kwargs

        register = partial(nn.Module.register_forward_pre_hook, with_kwargs=True)
        return self._block(register, before)

    def observe_inputs(self, fn: Callable[[str, inspect.BoundArguments], object]) -> Block:
        """Call fn(name, inputs) before each named module, with the arguments of its forward by name.

        Otherwise as `observe`.
        """

        def before(
            name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            fn(name, _signature(module).bind(*args, **kwargs))

        register = partial(nn.Module.register_forward_pre_hook, with_kwargs=True)
        return self._block(register, before, looks_only=True)

    def observe_leaving(self, fn: Callable[[str], object]) -> Block:
        """Call fn(name) after each call of a named module, whether it gave an output or raised an Exception.

        Otherwise as `observe`.
        """

        def leave(name: str, module: nn.Module, args: tuple[object, ...], output: object) -> None:
            fn(name)

        register = partial(nn.Module.register_forward_hook, always_call=True)
        return self._block(register, leave, looks_only=True)

    def around(self, fn: Callable[[str, Callable[[], Output]], Output]) -> Block:
        """Make fn(name, forward) the output of each named module, where forward() runs the module's own.

        It stands in the place of the module's `forward`, so that hooks of the module see what fn gives, and
        what fn enters it also leaves, whatever ends the call.
        Raises PatchError on leaving, as `replace`.
        """

        def register(module: nn.Module, hook: Hook) -> None:
            _forward_of(module).hooks.append(hook)

        return self._block(register, fn)

    @contextmanager
    def _block(
        self, register: Callable[..., Any], act: Callable[..., Any], looks_only: bool = False
    ) -> Iterator[HookRegistry]:
        block = object()
        fired: Counter[str] = Counter()
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

    def _require_all_fired(self, fired: Counter[str]) -> None:
        silent = [name for name in self.names if not fired[name]]
        if silent:
            shown = ", ".join(silent[:3]) + ", ..." * (len(silent) > 3)
            raise PatchError(
                f"{len(silent)} of {len(self.names)} modules never ran inside the block ({shown}); call the "
                "model itself, not `.forward`, inside the block, and compile it only after entering"
            )


class Hook:
    """Hook of one module in one open block.

    Calls from threads and tasks that did not open the block pass by.

    name        the module's
    act         act(name, module, args, rest), whose answer torch gets
    block       the open block, by identity
    fired       counts the module's calls
    looks_only  whether the answer of `act` is always None
    """

    def __init__(
        self,
        name: str,
        act: Callable[..., Any],
        block: object,
        fired: Counter[str],
        looks_only: bool,
    ) -> None:
        self.name = name
        self.act = act
        self.block = block
        self.fired = fired
        self.looks_only = looks_only

    def __call__(self, module: nn.Module, args: tuple[Any, ...], rest: Any) -> Any:
        """Act on the output, or, before there is one, on the named arguments."""
        if self.block not in _open_blocks.get():
            return None
        self.fired[self.name] += 1
        return self.act(self.name, module, args, rest)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies, because torch copies a module's hooks and nobody would remove the copy's."""
        raise PatchError(
            f"the model is copied or pickled while module {self.name!r} is watched or patched; "
            "do it before the block or after"
        )


class _Forward:
    """Forward of a module, with hooks of open blocks around it, of which later ones stand outside."""

    def __init__(self, module: nn.Module) -> None:
        self.replaced = module.__dict__.get("forward")
        self.plain = module.forward
        # whoever asks for a module's arguments by name finds the names of its own forward
        self.__signature__ = _signature(module)
        self.hooks: list[Hook] = []

    def __call__(self, *args: Any, **named: Any) -> Any:
        forward: Callable[[], Any] = partial(self.plain, *args, **named)
        for hook in self.hooks:
            if hook.block in _open_blocks.get():
                hook.fired[hook.name] += 1
                forward = partial(hook.act, hook.name, forward)
        return forward()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies, from which nobody would take it away."""
        raise PatchError(
            "the model is copied or pickled while it is watched or patched; do it before the block or after"
        )


def _signature(module: nn.Module) -> inspect.Signature:
    """Arguments of a module's forward by name.

    What another tool puts in its place, such as nnsight, may show the class's, with the module as the first.
    """
    signature = inspect.signature(module.forward)
    if getattr(module.forward, "__wrapped__", None) is type(module).forward:
        return signature.replace(parameters=list(signature.parameters.values())[1:])
    return signature


def _forward_of(module: nn.Module) -> _Forward:
    """Forward with hooks around it of a module, put in place by the first of them."""
    now = module.__dict__.get("forward")
    if isinstance(now, _Forward):
        return now
    made = _Forward(module)
    module.forward = made
    return made


def _stand_aside(module: nn.Module, hook: Hook) -> None:
    """Take a hook from around a module's forward, and with the last one what held it."""
    forward = module.__dict__.get("forward")
    if not isinstance(forward, _Forward):
        return
    forward.hooks = [other for other in forward.hooks if other is not hook]
    if forward.hooks:
        return
    if forward.replaced is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward.replaced


def _require_alike(name: str, new: Any, old: Any) -> None:
    """Raise PatchError unless what a hook gave, if anything, has the form of what it replaces."""
    if new is not None and _form(new) != _form(old):
        raise PatchError(
            f"the hook of module {name!r} gave {_form(new)} for {_form(old)}; give the like, or "
            "None to leave it as it is"
        )


def _form(value: Any) -> str:
    """The kind, shape, dtype and device that an output and its replacement must have in common."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}, {value.dtype} on {value.device}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(map(_form, value)) or 'nothing'}"
    return f"a {type(value).__name__}"


def _close(block: object, hooks: list[tuple[nn.Module, Hook]]) -> None:
    """Shut the block and remove its hooks, whether or not they were put on.

    Blocks may close in any order.  Hooks are found by what they are, not by the handles that torch returns,
    because an interrupt can come in between.
    """
    _open_blocks.set(_open_blocks.get() - {block})
    for module, hook in hooks:
        _stand_aside(module, hook)
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, other in table.items() if other is hook]:
                table.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def _module(model: nn.Module, name: str) -> nn.Module:
    """The module of that name; PatchError names the closest ones where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        near = closest(name, [other for other, _ in model.named_modules() if other])
        raise PatchError(f"no module {name!r} in {type(model).__name__}{near}") from None


@contextmanager
def outside_blocks() -> Iterator[None]:
    """Close the open blocks to the calls made inside this one, because these are nobody's step."""
    token = _open_blocks.set(frozenset())
    try:
        yield
    finally:
        _open_blocks.reset(token)


def compiled(model: nn.Module) -> bool:
    """True if a model runs compiled code, which no hook put on later can see into.

    torch.compile holds the module it was given as its child `_orig_mod`.
    """
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl for module in model.modules()
    )
