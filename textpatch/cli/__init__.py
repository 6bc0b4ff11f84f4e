"""The command line: `parser` says what can be asked, and one file per verb what it does."""

from textpatch.cli.parser import EXAMPLES, command_parser, main

__all__ = ["EXAMPLES", "command_parser", "main"]
