"""A fault planted in the library's source: a function gets the code of its own source with one text changed."""

import __future__

import inspect
import textwrap
from functools import partial

import pytest


def plant(monkeypatch, owner, name: str, old: str, new: str) -> None:
    """Give a function the code of its own source with one text changed, until the test ends."""
    function, made = plain(vars(owner)[name]), {}
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} holds {old!r} {source.count(old)} times; write the fault anew"
    flags = __future__.annotations.compiler_flag
    exec(compile(source.replace(old, new), f"<fault in {name}>", "exec", flags), function.__globals__, made)
    monkeypatch.setattr(function, "__code__", plain(made[name]).__code__)


def plain(member):
    """The function under a property, a static or class method, or a decorator."""
    return inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))


def raw(test, *args, **options):
    """A test with arguments of its own in the place of hypothesis'."""
    return partial(test.hypothesis.inner_test if hasattr(test, "hypothesis") else test, *args, **options)


class Drawn:
    """What a test draws, said beforehand."""

    def __init__(self, *values):
        self.values = list(values)

    def draw(self, _):
        return self.values.pop(0)


def require_noticed(monkeypatch, fault: tuple) -> None:
    """A check fails with the fault (check, owner, function, text, text put in its place)."""
    check, *place = fault
    plant(monkeypatch, *place)
    with pytest.raises((AssertionError, IndexError)):
        check()
