"""Prompt pairs that `textpatch edit` is asked for, and the options that name them."""

from __future__ import annotations

import argparse

from textpatch.cli.options import add_prompts_options
from textpatch.cli.prompt_pairs import drawn_pairs
from textpatch.errors import PatchError, PromptError


def add_pair_options(command: argparse.ArgumentParser) -> None:
    """Add the ways to name one pair of prompts, or several."""
    group = command.add_argument_group("which prompts")
    group.add_argument("--source", metavar="PROMPT", help="prompt whose picture is kept")
    group.add_argument("--target", metavar="PROMPT", help="prompt whose word is wanted")
    group.add_argument(
        "--word",
        metavar="WORD",
        help="instead of --target, the word that is wanted: the source prompt with another word; of several "
        "words 2=TIGER changes the second alone, '1=RED 2=TIGER' two of them",
    )
    add_prompts_options(
        group, "lines `source<TAB>target`, every pair of which is edited and scored"
    )
    group.add_argument(
        "--pairs",
        type=_number_of_pairs,
        metavar="N",
        help="instead, so many prompt pairs of the shipped word lists, which differ in the word alone",
    )


def _number_of_pairs(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of pairs of the shipped lists; a file of pairs is named by --prompts"
        )
    return int(text)


def asked_pairs(options) -> list[tuple[str, str]]:
    """Return the pairs that are asked for.

    Raises PatchError for none, for two ways to name them, and for --limit without a file.
    """
    ways = {
        "--source": options.source,
        "--prompts": options.prompts,
        "--pairs": options.pairs,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise PatchError(f"{' and '.join(given)} name the pairs in two ways; leave one of them out")
    if options.limit is not None and options.prompts is None:
        raise PatchError(
            f"--limit {options.limit} takes the first pairs of --prompts FILE, which was not given; "
            "leave it out"
        )
    if options.prompts is not None:
        _require_no_target(options, "--prompts names a file of pairs")
        from textpatch.prompts.files import read_pairs

        return read_pairs(options.prompts)[: options.limit]
    if options.pairs is not None:
        _require_no_target(options, "--pairs takes pairs of the shipped lists")
        return drawn_pairs(options.model, options.pairs, same_scene=True)
    return [_one_pair(options)]


def _require_no_target(options, said: str) -> None:
    for name in ("target", "word"):
        if getattr(options, name) is not None:
            raise PatchError(f"{said}, and --{name} one; leave one of them out")


def _one_pair(options) -> tuple[str, str]:
    """Return the pair of --source and --target, or of --source and --word."""
    if options.source is None:
        missing = "--source PROMPT beside the other prompt"
    elif options.target is None and options.word is None:
        missing = "--target PROMPT or --word WORD beside the source"
    elif options.target is not None and options.word is not None:
        raise PatchError(
            f"--target and --word {options.word} both say what is wanted; leave one of them out"
        )
    elif options.word is None:
        return options.source, options.target
    else:
        return options.source, with_word(options.source, options.word)
    raise PatchError(f"edit needs {missing}, or --prompts FILE with pairs")


def with_word(prompt: str, word: str) -> str:
    """The prompt with another text in its quotes, or with other words in the places of those numbered.

    Raises PromptError for a prompt that does not quote one text, and as `with_other_words` does.
    """
    from textpatch.quotes import quotations, with_other_words, with_texts

    numbered = _numbered(word)
    if numbered:
        return with_other_words(prompt, numbered)
    found = quotations(prompt)
    if len(found) > 1:
        raise PromptError(
            f"--word {word} is one text, and {prompt!r} quotes {len(found)}; say which word it replaces, "
            f"such as --word 2={word}"
        )
    return with_texts(prompt, [word])


def _numbered(text: str) -> dict[int, str]:
    """Words by number of a text like `2=TIGER` or `1=RED 2=TIGER`, {} of any other.

    Raises PromptError for a number that is there twice.
    """
    parts = [part.partition("=") for part in text.split()]
    if not all(number.isdecimal() and equals for number, equals, _ in parts):
        return {}
    numbers = [int(number) for number, _, _ in parts]
    if len(set(numbers)) != len(numbers):
        raise PromptError(f"--word {text} names a word twice; give each number once")
    return dict(zip(numbers, (word for _, _, word in parts), strict=True))
