"""The parser of the command line, which imports nothing heavy."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
import warnings

from textpatch.cli import (
    audit_command,
    doctor_command,
    edit_command,
    export_command,
    finetune_command,
    generate_command,
    localize_command,
    rewrite_command,
    sanitize_command,
    sites_command,
)
from textpatch.exits import guarded, warn

# each with its HELP and its `add_options`
VERBS = {
    "sites": sites_command,
    "generate": generate_command,
    "localize": localize_command,
    "edit": edit_command,
    "sanitize": sanitize_command,
    "finetune": finetune_command,
    "rewrite": rewrite_command,
    "export": export_command,
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
    options = command_parser().parse_args(argv)
    options.command_line = shlex.join(["textpatch", *argv])
    with warnings.catch_warnings():
        warnings.showwarning = _show_in_a_line
        return guarded(options.run, options, debug=options.debug)


def _show_in_a_line(message, *where) -> None:
    warn(str(message))


class Given(argparse.Action):
    """An action that stores an option's value and loses none.

    A list grows with every repetition.  Another single value is an error.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        before = self._given(namespace)
        if before is None:
            setattr(namespace, self.dest, values)
        elif isinstance(values, list):
            setattr(namespace, self.dest, before + values)
        elif values != before:
            raise argparse.ArgumentError(
                self, f"{before} and {values} were given, and it takes one; leave one out"
            )

    def _given(self, namespace):
        """Return what the command line gave so far, None if nothing.

        A default is not given.
        """
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            return getattr(namespace, self.dest)
        given.add(self.dest)
        return None


class Version(argparse.Action):
    """An action that prints the version, which takes a while to look up, and ends the program."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib import metadata

        print(f"textpatch {metadata.version('textpatch')}")
        parser.exit()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that keeps paragraphs as written, and breaks no model's name at its hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser whose options are `Given`, where argparse would keep the last value alone, silently."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, formatter_class=Formatter, **options)
        self.register("action", None, Given)
        self.register("action", "store", Given)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = Parser(
        prog="textpatch",
        usage="textpatch VERB ...",
        description=ABOUT,
        epilog=f"{EXAMPLES}\n\n{EXIT_CODES}",
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version")
    added = top.add_subparsers(title="verbs", required=True, metavar="VERB", prog="textpatch")
    for name, verb in VERBS.items():
        command = added.add_parser(
            name,
            usage=verb.HELP.usage,
            help=verb.HELP.summary,
            description=verb.HELP.about,
            epilog=verb.HELP.epilog,
        )
        command.add_argument(
            "--debug", action="store_true", help="show the whole traceback of an error"
        )
        verb.add_options(command)
    return top
