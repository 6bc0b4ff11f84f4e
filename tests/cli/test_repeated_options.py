"""An option given twice: a list grows, another value is refused.  Never is one of them dropped in silence."""

import argparse
from functools import cache
from pathlib import Path

import pytest
import torch

from textpatch import cli
from textpatch.cli import actions, parser
from textpatch.cli.actions import GivenSeeds
from textpatch.cli.config import use_config
from textpatch.devices import first_device

REQUIRED = {
    "models": [],
    "sites": [],
    "generate": ["MODEL", "PROMPT"],
    "localize": ["MODEL"],
    "edit": ["MODEL"],
    "sanitize": ["MODEL"],
    "finetune": ["MODEL", "--data", "FOLDER"],
    "rewrite": ["MODEL"],
    "export": ["RUN", "--for", "peft"],
    "runs": [],
    "report": ["RUN"],
    "compare": ["RUN", "RUN"],
    "audit": ["RUN"],
    "doctor": [],
}


# made once, because to make it takes longer than a test
command_parser = cache(cli.command_parser)


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command of the command line and its parser."""
    (added,) = [
        action
        for action in command_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(added.choices)


@cache
def valued() -> dict[str, argparse.Action]:
    """Every option of every command that takes a value, by `command --option`."""
    return {
        f"{name} {action.option_strings[-1]}": action
        for name, command in commands().items()
        for action in command._actions
        if action.option_strings and action.nargs != 0
    }


def two_values(action: argparse.Action) -> list[str]:
    """Two different values that an option takes."""
    if "--reader" in action.option_strings:
        return ["tesseract", "ppocr"]
    return list(action.choices)[:2] if action.choices else ["3", "7"]


def parsed(named: str, *repeated: str):
    """What the command line makes of a command and an option with each value in its turn."""
    command, option = named.split()
    required = REQUIRED[command]
    if option in required:
        place = required.index(option)
        required = required[:place] + required[place + 2 :]
    return command_parser().parse_args(
        [command, *required, *(word for value in repeated for word in (option, value))]
    )


def read_as(action: argparse.Action, value: str):
    """One value as the option's type makes it."""
    return value if action.type is None else action.type(value)


def test_all_commands_are_walked():
    """No command without its required arguments here, and options of both kinds."""
    assert REQUIRED.keys() == commands().keys()
    lists = {named for named, action in valued().items() if action.nargs == "+"}
    assert (
        {
            "generate --seed",
            "localize --seed",
            "localize --sites",
            "localize --set",
            "edit --sites",
        }
        <= lists
        < valued().keys()
    )


@pytest.mark.parametrize("named", valued())
def test_given_twice(named, capsys):
    """A list holds both values in their order; of one value another is refused with code 2, both named."""
    action = valued()[named]
    first, second = two_values(action)
    if action.nargs == "+":
        both = [read_as(action, first), read_as(action, second)]
        expected = both
        if isinstance(action, GivenSeeds):  # each a list of seeds
            expected = both[0] + both[1]
        if isinstance(action, argparse._AppendAction):
            expected = [[value] for value in both]
        assert getattr(parsed(named, first, second), action.dest) == expected
        return
    with pytest.raises(SystemExit) as ended:
        parsed(named, first, second)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        named.split()[1] in said
        and f"{read_as(action, first)} and {read_as(action, second)} were given" in said
    )


@pytest.mark.parametrize(
    "named", [named for named, action in valued().items() if action.nargs != "+"]
)
def test_the_same_value_twice(named):
    """It says nothing new and is taken."""
    action = valued()[named]
    first, _ = two_values(action)
    assert getattr(parsed(named, first, first), action.dest) == read_as(action, first)


def test_a_default_is_not_given():
    """What is given takes the place of the default, equal to it or not, and a second command starts anew."""
    commands = cli.command_parser()
    for seeds in (["0"], ["5", "6"]):
        options = commands.parse_args(["generate", "MODEL", "PROMPT", "--seed", *seeds])
        assert options.seeds == list(map(int, seeds))
    assert commands.parse_args(["generate", "MODEL", "PROMPT"]).seeds == [0]


@pytest.mark.parametrize("verb", ["generate", "localize", "edit", "sanitize"])
@pytest.mark.parametrize(
    "words, seeds",
    [(["0-3", "7"], [0, 1, 2, 3, 7]), (["5"], [5]), (["4-4", "0"], [4, 0])],
)
def test_seeds_are_numbers_and_ranges(verb, words, seeds):
    """The same in every verb, by --seeds and by --seed."""
    for option in ("--seeds", "--seed"):
        assert cli.command_parser().parse_args([verb, "MODEL", option, *words]).seeds == seeds


@pytest.mark.parametrize("word", ["3-1", "a", "1.5", "0-", "0-999999", "a red sign"])
def test_no_seeds(word, capsys):
    """What is neither a number nor a range is refused with how to write one."""
    with pytest.raises(SystemExit) as ended:
        cli.command_parser().parse_args(["localize", "MODEL", "--seeds", word])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and repr(word) in said and ("0-3 7" in said or "at most" in said)


def test_prompts_may_stand_behind_options():
    """A list that may be empty is not taken as empty where an option stands before it."""
    options = cli.command_parser().parse_args(["generate", "MODEL", "--steps", "1", "a", "b"])
    assert (options.model, options.prompt, options.steps) == ("MODEL", ["a", "b"], 1)


@pytest.fixture
def _made_anew():
    """The parser is made within the test, and no other test sees it."""
    for made in (command_parser, commands, valued):
        made.cache_clear()
    yield
    for made in (command_parser, commands, valued):
        made.cache_clear()


@pytest.mark.usefixtures("_made_anew")
def test_planted_last_one_wins(monkeypatch, capsys):
    """Fault: argparse's own actions, which keep the last value alone."""
    monkeypatch.setattr(parser, "Given", argparse._StoreAction)
    monkeypatch.setattr(actions.Given, "_given", lambda action, namespace: None)
    for named in ("localize --seed", "localize --sites", "localize --keep"):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test_given_twice(named, capsys)


def with_config(text: str, *more: str):
    """Options of `localize M` with a file of these options."""
    Path("mine.toml").write_text(text, "utf-8")
    words = ["localize", "M", "--config", "mine.toml", *more]
    parser = cli.command_parser()
    use_config(parser.verbs, words, lambda argv: cli.command_parser().parse_args(argv))
    return parser.parse_args(words)


def test_a_file_gives_options_and_the_line_takes_their_place(tmp_path, monkeypatch):
    """By the names that they have on the line."""
    monkeypatch.chdir(tmp_path)
    options = with_config('seeds = [3, 4]\nsteps = 2\nmode = "staged"\n')
    assert (options.seeds, options.steps, options.mode) == ([3, 4], 2, "staged")
    options = with_config("seeds = [3, 4]\nsteps = 2\n", "--steps", "5", "--seeds", "0-1")
    assert (options.seeds, options.steps) == ([0, 1], 5)


@pytest.mark.parametrize("there, taken", [("cuda", "cuda"), ("mps", "mps"), ("", "cpu")])
def test_the_device_is_the_best_that_is_there(there, taken, monkeypatch):
    """A GPU before Apple's, and that before the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there in ("cuda", "mps"))
    assert first_device() == taken
    assert cli.command_parser().parse_args(["localize", "M"]).device == "auto"
