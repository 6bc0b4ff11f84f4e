"""What is said of the words of prompts before a shipped model draws them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from textpatch.cli.prompt_pairs import signs_of
from textpatch.errors import PromptError
from textpatch.exits import warn
from textpatch.quotes import UNQUOTED, quotations


def warn_of_long_texts(options, prompts: Iterable[str]) -> None:
    """Warn of quoted texts that are longer than the model's signs."""
    longest = signs_of(options.model).get("longest")
    if longest is None:  # nothing is known of a model that was trained elsewhere
        return
    quoted = [text for prompt in dict.fromkeys(prompts) for text in _quoted(prompt) or ()]
    long = [text for text in quoted if len(text) > longest]
    if long:
        warn(
            f"{long[0]!r}{_more(long)} has {len(long[0])} letters, and {options.model} draws at most "
            f"{longest}; what does not fit is left out or drawn as other letters"
        )


def warn_of_bare_prompts(options, prompts: Iterable[str]) -> None:
    """Warn of prompts that quote nothing, where the model writes what is quoted."""
    if not signs_of(options.model):
        return
    bare = [prompt for prompt in dict.fromkeys(prompts) if _quoted(prompt) == []]
    if bare:
        warn(
            f"{bare[0]!r}{_more(bare)} quotes nothing, and {options.model} writes quoted texts; {UNQUOTED}"
        )


def _quoted(prompt: str) -> list[str] | None:
    """Quoted texts of a prompt, None where its quotes cannot be told apart."""
    with suppress(PromptError):
        return [quotation.text for quotation in quotations(prompt)]
    return None


def _more(found: list[str]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
