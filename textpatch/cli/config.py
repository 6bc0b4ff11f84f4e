"""Options of a command from a file: TOML with the options' names, or a run that was asked for so before."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from textpatch.cli.actions import GivenSeeds
from textpatch.disk import read_json
from textpatch.errors import PatchError, closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTION = "--config"
MANIFEST = "manifest.json"
# what a run was told beside its request, and what another run is not told after it
NOT_TAKEN = ("out", "json", "quiet", "verbose", "open", "debug", "config", "plan")


def use_config(verbs: dict[str, argparse.ArgumentParser], argv: list[str], parse: Callable) -> None:
    """Take what --config names as the defaults of the verb that is asked for.

    verbs  parser of each verb
    parse  reads a command line, and gives its options
    What the command line gives itself takes its place.
    Raises PatchError for a file that cannot be read, or holds an option that the verb does not have.
    """
    path = _named(argv)
    if path is None or not argv or argv[0] not in verbs:
        return
    command = verbs[argv[0]]
    if path.is_dir():
        path = path / MANIFEST
    if path.suffix.lower() == ".json":
        defaults = _of_manifest(path, argv[0], parse)
    else:
        defaults = dict(_of_toml(path, command))
    for action in command._actions:
        if action.dest in defaults:
            action.default = defaults[action.dest]
            action.required = False
            if not action.option_strings:
                action.nargs = "*" if isinstance(action.default, list) else "?"


def _named(argv: list[str]) -> Path | None:
    """The file behind --config, None without it."""
    for place, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == OPTION and equals:
            return Path(value)
        if word == OPTION and place + 1 < len(argv):
            return Path(argv[place + 1])
    return None


def _of_manifest(path: Path, verb: str, parse: Callable) -> dict:
    """Options of the command that a manifest tells."""
    told = read_json(path)
    words = []
    if isinstance(told, dict):
        words = shlex.split(str(told.get("command", "")))[1:]
    if not words or words[0] != verb:
        raise PatchError(
            f"{path} is of the command {' '.join(words[:1]) or '(none)'}, and {verb} was asked for; give the "
            f"manifest of a run of {verb}"
        )
    options = parse(words)
    return {
        name: getattr(options, name)
        for name in options.given
        if name not in NOT_TAKEN and getattr(options, name) is not None
    }


def _of_toml(path: Path, command: argparse.ArgumentParser) -> Iterator[tuple[str, object]]:
    """Options by their names in a file of TOML, as the command's parser reads them."""
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PatchError(
            f"cannot read options from {path}: {error}; expected TOML such as seeds = [0, 1]"
        ) from None
    known = {action.dest: action for action in command._actions}
    for action in command._actions:
        known |= {option.lstrip("-").replace("-", "_"): action for option in action.option_strings}
    for name, value in told.items():
        action = known.get(name.replace("-", "_"))
        if action is None or action.dest in ("help", "config"):
            raise PatchError(f"{path}: {command.prog} has no option {name!r}{closest(name, known)}")
        yield action.dest, _read(path, command, action, name, value)


def _read(path: Path, command, action: argparse.Action, name: str, value: object) -> object:
    """Value of an option, of the kind that the command line would give it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise PatchError(f"{path}: {name} is {value!r}; give true or false")
        return value
    values = value if isinstance(value, list) else [value]
    try:
        read = command._get_values(action, [str(one) for one in values])
    except argparse.ArgumentError as error:
        raise PatchError(f"{path}: {error}") from None
    if isinstance(action, GivenSeeds):
        return [seed for some in read for seed in some]
    if isinstance(action, argparse._AppendAction):
        return [read]
    return read
