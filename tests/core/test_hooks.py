"""The registry: firings, nesting, exit stacks, any sequence of blocks and interventions.

Its laws are in test_laws.py.
"""

import contextlib
import functools
import inspect

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from torch import nn

from support import laws
from support.planting import plant
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry, _open_blocks


def test_a_registry_of_nothing_is_refused():
    """names = {} has no effect, so it is an error."""
    with pytest.raises(PatchError, match="no modules named"):
        HookRegistry(nn.Identity(), [])


def test_calls_count_firings():
    """calls[n] = number of times n ran inside blocks, summed over blocks; repeated names count once."""
    model = nn.Sequential(nn.Identity())
    registry = HookRegistry(model, ["0", "0"])
    for times in (1, 2):
        with registry.observe(lambda name, output: None):
            for _ in range(times):
                model(torch.ones(1))
        model(torch.ones(1))
    assert registry.calls == {"0": 3}


def test_nested_replacements_compose():
    """inner(outer(x)): the block entered last acts last."""
    model = nn.Sequential(nn.Identity())
    with HookRegistry(model, ["0"]).replace(lambda name, x: x + 1):
        with HookRegistry(model, ["0"]).replace(lambda name, x: x * 10):
            assert model(torch.ones(1)) == 20
        assert model(torch.ones(1)) == 2


def test_an_input_is_replaced():
    """The first argument becomes what fn gives, None leaves it, and nothing is left behind."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    plain = model(x)
    tripled = model(3 * x)
    with HookRegistry(model, ["1"]).replace_input(lambda name, x: 3 * x):
        assert torch.equal(model(x), tripled)
    with HookRegistry(model, ["1"]).replace_input(lambda name, x: None) as seen:
        assert torch.equal(model(x), plain)
    assert seen.calls == {"1": 1} and not model[1]._forward_pre_hooks


def test_an_input_that_is_not_replaced_is_noticed(monkeypatch):
    """Fault: the module is given what it was given before."""
    plant(monkeypatch, HookRegistry, "replace_input", "(new, *args[1:])", "args")
    with pytest.raises(AssertionError):
        test_an_input_is_replaced()


def test_inputs_of_a_forward_that_another_tool_replaced():
    """Under what nnsight leaves on a model, the module itself is none of the arguments."""
    model = nn.Linear(2, 2)
    plain = model.forward

    @functools.wraps(nn.Linear.forward)
    def stand_in(*args, **kwargs):
        return plain(*args, **kwargs)

    model.forward = stand_in
    seen = []
    with HookRegistry(model, [""]).observe_inputs(lambda name, given: seen.append(given.arguments)):
        model(torch.ones(1, 2))
    with HookRegistry(model, [""]).around(lambda name, forward: forward()):
        assert list(inspect.signature(model.forward).parameters) == ["input"]
        model(torch.ones(1, 2))
    assert [list(given) for given in seen] == [["input"]]


def test_an_input_of_another_form_is_refused():
    """Another shape, and an argument that is given by keyword alone."""
    model = nn.Linear(2, 2)
    with (
        pytest.raises(PatchError, match="gave a tensor .1, 1., .* for a tensor .1, 2."),
        HookRegistry(model, [""]).replace_input(lambda name, x: x[:, :1]),
    ):
        model(torch.ones(1, 2))
    with (
        pytest.raises(PatchError, match="is called with input by keyword"),
        HookRegistry(model, [""]).replace_input(lambda name, x: x),
    ):
        model(input=torch.ones(1, 2))


def test_blocks_of_an_exit_stack():
    """ExitStack.pop_all moves blocks out of their `with`; they act until closed, then leave nothing."""
    model, seen = nn.Sequential(nn.Identity(), nn.Identity()), []
    with contextlib.ExitStack() as stack:
        for name in "01":
            stack.enter_context(
                HookRegistry(model, [name]).observe(lambda name, output: seen.append(name))
            )
        moved = stack.pop_all()
    model(torch.ones(1))
    moved.close()
    model(torch.ones(1))
    assert seen == ["0", "1"] and not _open_blocks.get()


def test_a_failing_hook_leaves_nothing():
    """An error inside fn reaches the caller and removes every hook."""
    model = nn.Sequential(nn.Identity())
    with (
        pytest.raises(ZeroDivisionError),
        HookRegistry(model, ["0"]).observe(lambda name, x: 1 / 0),
    ):
        model(torch.ones(1))
    assert not model[0]._forward_hooks and not _open_blocks.get()


class Blocks(RuleBasedStateMachine):
    """hooks on the model = sum of names over open blocks; each open block sees its modules once a run."""

    blocks = Bundle("blocks")

    @initialize()
    def start(self):
        self.model = nn.Sequential(*(nn.Identity() for _ in range(3)))
        self.open = {}  # block -> [names, runs, firings]

    @rule(
        target=blocks, names=st.lists(st.sampled_from("012"), min_size=1, max_size=3, unique=True)
    )
    def install(self, names):
        block, state = object(), [names, 0, 0]
        manager = HookRegistry(self.model, names).observe(lambda name, output: self.count(state))
        manager.__enter__()
        self.open[block] = (manager, state)
        return block

    @staticmethod
    def count(state):
        state[2] += 1

    @rule()
    def run(self):
        self.model(torch.ones(1))
        for _, state in self.open.values():
            state[1] += 1

    @rule(block=consumes(blocks))
    def remove(self, block):
        manager, (_, runs, _) = self.open.pop(block)
        with contextlib.nullcontext() if runs else laws.refused("never ran"):
            manager.__exit__(None, None, None)

    @rule(block=consumes(blocks), error=st.sampled_from([ValueError, KeyboardInterrupt]))
    def fail(self, block, error):
        manager, _ = self.open.pop(block)
        raised = error()
        assert not manager.__exit__(error, raised, None)

    @rule()
    def misname(self):
        with laws.refused("no module"):
            HookRegistry(self.model, ["0", "7"])

    @invariant()
    def hooks_are_those_of_open_blocks(self):
        names = [name for _, (names, _, _) in self.open.values() for name in names]
        assert [len(m._forward_hooks) for m in self.model] == [names.count(name) for name in "012"]
        assert len(_open_blocks.get()) == len(self.open)
        assert all(fired == runs * len(names) for _, (names, runs, fired) in self.open.values())

    def teardown(self):
        for manager, _ in list(getattr(self, "open", {}).values()):
            with contextlib.suppress(PatchError):
                manager.__exit__(None, None, None)


TestBlocks = Blocks.TestCase
