"""A fault planted in the library's source: a function gets the code of its own source with one text
changed.
"""

import __future__

import ast
import inspect
import io
import itertools
import textwrap
import tokenize
from functools import partial

import pytest

PASSED = {
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def plant(monkeypatch, owner, name: str, old: str, new: str) -> None:
    """Give a function the code of its own source with one text changed, until the test ends.

    The text is found token by token, so that line breaks and quotes may be the formatter's.
    """
    function = plain(vars(owner)[name])
    source = textwrap.dedent(inspect.getsource(function))
    places = occurrences(source, old)
    assert len(places) == 1, f"{name} holds {old!r} {len(places)} times; write the fault anew"
    start, end = places[0]
    made = {}
    flags = __future__.annotations.compiler_flag
    code = compile(source[:start] + new + source[end:], f"<fault in {name}>", "exec", flags)
    exec(code, function.__globals__, made)
    monkeypatch.setattr(function, "__code__", plain(made[name]).__code__)


def occurrences(source: str, text: str) -> list[tuple[int, int]]:
    """Start and end of every place where a source holds the tokens of a text."""
    if source.count(text) == 1:
        start = source.index(text)
        return [(start, start + len(text))]
    wanted = [token for token, _, _ in tokens(text)]
    held = tokens(source)
    return [
        (held[i][1], held[i + len(wanted) - 1][2])
        for i in range(len(held) - len(wanted) + 1)
        if [token for token, _, _ in held[i : i + len(wanted)]] == wanted
    ]


def tokens(text: str) -> list[tuple[str, int, int]]:
    """(token, start, end) of a text: line breaks, comments and commas before a bracket left out, quotes
    alike.
    """
    starts = list(
        itertools.accumulate((len(line) for line in text.splitlines(keepends=True)), initial=0)
    )
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
            if token.type not in PASSED and token.string:
                found.append((alike(token), start, end))
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass  # a text cut out of a function may leave a bracket open
    kept = zip(found, [*found[1:], ("", 0, 0)], strict=True)
    return [one for one, after in kept if one[0] != "," or after[0] not in list(")]}")]


def alike(token: tokenize.TokenInfo) -> str:
    """A token; of a string what it means, so that quotes of both kinds are one."""
    if token.type != tokenize.STRING:
        return token.string
    letters = token.string.partition(token.string[-1])[0]
    return token.string if "f" in letters.lower() else repr(ast.literal_eval(token.string))


def plain(member):
    """The function under a property, a static or class method, or a decorator."""
    return inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))


def raw(test, *args, **options):
    """A test with arguments of its own in the place of hypothesis'."""
    return partial(
        test.hypothesis.inner_test if hasattr(test, "hypothesis") else test, *args, **options
    )


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
