"""The command line, where `parser` says what can be asked and one file per verb carries it out."""

from textpatch.cli.parser import EXAMPLES, command_parser, main

__all__ = ["EXAMPLES", "command_parser", "main"]
