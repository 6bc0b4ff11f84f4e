"""The command line: what can be asked, and how.  `--help` imports nothing heavy."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from importlib import metadata

from textpatch.cli.audit_command import add_audit_options
from textpatch.cli.doctor_command import add_doctor_options
from textpatch.cli.edit_command import add_edit_options
from textpatch.cli.generate_command import add_generate_options
from textpatch.cli.localize_command import add_localize_options
from textpatch.cli.options import SENTENCE, add_command
from textpatch.cli.sites_command import add_sites_options
from textpatch.exits import guarded, warn

EXAMPLES = f"""examples:
  textpatch sites tiny-mmdit
  textpatch sites --model /models/stable-diffusion-xl-base-1.0
  textpatch generate tiny-mmdit '{SENTENCE}' --seed 0 1 2
  textpatch localize planted-mmdit --pairs 8 --seeds 0 1
  textpatch localize tiny-mmdit --what style --pairs 2
  textpatch edit planted-mmdit --source '{SENTENCE}' --target 'a red sign that says "WORLD" on a blue wall'
  textpatch audit runs/edit-planted-mmdit-1a2b3c4d
  textpatch doctor
  textpatch doctor /models/sd_xl_base_1.0.safetensors
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `guarded`."""
    options = command_parser().parse_args(argv)
    options.command_line = shlex.join(["textpatch", *(sys.argv[1:] if argv is None else argv)])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: warn(str(message))
        return guarded(options.run, options, debug=options.debug)


class Given(argparse.Action):
    """Store an option's value.  A list grows with every repetition; another single value is an error."""

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
        """What the command line gave so far, None if nothing: a default is not given."""
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            return getattr(namespace, self.dest)
        given.add(self.dest)
        return None


class Parser(argparse.ArgumentParser):
    """A parser whose options are `Given`, where argparse would keep the last value alone, silently."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register("action", None, Given)
        self.register("action", "store", Given)


def command_parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="textpatch",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find and use the attention layers through which a text-to-image model writes words.",
    )
    top.add_argument(
        "--version", action="version", version=f"textpatch {metadata.version('textpatch')}"
    )
    added = top.add_subparsers(required=True, metavar="COMMAND")
    add_sites_options(
        add_command(
            added, "sites", "list where text enters a model: index, name, kind, heads, parameters"
        )
    )
    add_generate_options(add_command(added, "generate", "make pictures of prompts"))
    add_localize_options(
        add_command(
            added,
            "localize",
            "swap text K/V one site at a time and show which site carries the word",
        )
    )
    add_edit_options(
        add_command(added, "edit", "keep the picture of one prompt, write the word of another")
    )
    add_audit_options(
        add_command(
            added, "audit", "carry a finished run's swaps out again and hold each against float64"
        )
    )
    add_doctor_options(
        add_command(
            added, "doctor", "check the installation, the OCR engine, and what is in weight files"
        )
    )
    return top
