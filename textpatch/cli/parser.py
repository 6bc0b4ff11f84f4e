"""The parser of the command line, which imports nothing heavy."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
import warnings
from pathlib import Path

from textpatch.cli import (
    audit_command,
    compare_command,
    doctor_command,
    edit_command,
    export_command,
    finetune_command,
    generate_command,
    localize_command,
    models_command,
    report_command,
    rewrite_command,
    runs_command,
    sanitize_command,
    sites_command,
)
from textpatch.cli.actions import Given, GivenFlag
from textpatch.cli.config import use_config
from textpatch.cli.outcome import carried_out
from textpatch.cli.workers import undivided
from textpatch.exits import guarded, warn

# each with its HELP and its `add_options`
VERBS = {
    "models": models_command,
    "sites": sites_command,
    "generate": generate_command,
    "localize": localize_command,
    "edit": edit_command,
    "sanitize": sanitize_command,
    "finetune": finetune_command,
    "rewrite": rewrite_command,
    "export": export_command,
    "runs": runs_command,
    "report": report_command,
    "compare": compare_command,
    "audit": audit_command,
    "doctor": doctor_command,
}
ABOUT = """\
Find and use the attention layers through which a text-to-image model writes words.

Text enters such a model at a number of places, its sites: the attention layers that read
the prompt's keys and values. `localize` swaps them at one site at a time for those of
another prompt and reads the pictures. The site at which the word changes carries the word.
`edit` uses that site to write another word into a picture that otherwise stays as it is.

Everything runs on a CPU with the small models that come along. Larger models want a GPU
(--device cuda). `textpatch VERB --help` explains a verb, and says what it costs.\
"""
EXAMPLES = "\n".join(
    ["examples:"] + [f"  {command}" for verb in VERBS.values() for _, command in verb.HELP.examples]
)
SHELLS = ("bash", "zsh", "tcsh")
EXIT_CODES = """\
exit codes:
  0    done
  1    a fault of textpatch, which --debug shows in full
  2    a request that cannot be carried out; one line says why, and what to do
  74   a disk that is full or fails
  130  Ctrl-C; the same command goes on with what it kept
  141  nobody reads what is printed\
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code, that of `guarded`."""
    if argv is None:
        argv = sys.argv[1:]
    parser = command_parser()
    refused = guarded(use_config, parser.verbs, argv, _parsed)
    if refused:
        return refused
    options = parser.parse_args(argv)
    options.command_line = shlex.join(["textpatch", *undivided(argv)])
    with warnings.catch_warnings():
        warnings.showwarning = _show_in_a_line
        return guarded(carried_out, options, debug=options.debug)


def _parsed(argv: list[str]) -> argparse.Namespace:
    """Options of another command line, which leave those of this one as they are."""
    return command_parser().parse_args(argv)


def _show_in_a_line(message, *where) -> None:
    warn(str(message))


class Version(argparse.Action):
    """An action that prints the version, which takes a while to look up, and ends the program."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib import metadata

        print(f"textpatch {metadata.version('textpatch')}")
        parser.exit()


class Completion(argparse.Action):
    """An action that prints a shell's completion of all commands, and ends the program."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            import shtab
        except ImportError:
            parser.error("completion is made by shtab; pip install 'textpatch[completion]'")
        print(shtab.complete(command_parser(), shell=values))
        parser.exit()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that keeps paragraphs as written, and breaks no model's name at its hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser whose options are `Given`, where argparse would keep the last value alone, silently."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, formatter_class=Formatter, **options)
        self.register("action", None, Given)
        self.register("action", "store", Given)
        self.register("action", "store_true", GivenFlag)
        self._is_inner = False
        self.verbs: dict[str, Parser] = {}

    def parse_known_args(self, args=None, namespace=None):
        """Parse, and let a verb's arguments stand before and behind its options.

        argparse by itself takes none of a list of arguments that may be empty if an option stands before it.
        """
        if self._is_inner or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_inner = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inner = False


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = Parser(
        prog="textpatch",
        usage="textpatch VERB ...",
        description=ABOUT,
        epilog=f"{EXAMPLES}\n\n{EXIT_CODES}",
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version")
    top.add_argument(
        "--completion",
        action=Completion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the completion of a shell ({', '.join(SHELLS)}), which `eval` or a file of its takes",
    )
    added = top.add_subparsers(title="verbs", required=True, metavar="VERB", prog="textpatch")
    for name, verb in VERBS.items():
        command = added.add_parser(
            name,
            usage=verb.HELP.usage,
            help=verb.HELP.summary,
            description=verb.HELP.about,
            epilog=verb.HELP.epilog,
        )
        top.verbs[name] = command
        command.set_defaults(verb=name)
        verb.add_options(command)
        _add_said_options(command.add_argument_group("what is said"))
    return top


def _add_said_options(group) -> None:
    """Add how much is said, and to whom."""
    group.add_argument("-q", "--quiet", action="store_true", help="say what was made, and no more")
    group.add_argument("-v", "--verbose", action="store_true", help="say more of what is done")
    group.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object for a program, and everything else on stderr",
    )
    group.add_argument(
        "--open", action="store_true", help="show what was made: the page, or the sheet of pictures"
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options from a file of TOML, by the names that they have here, or those of a run, by its "
        "folder or manifest.json; what is given here takes their place",
    )
    group.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
