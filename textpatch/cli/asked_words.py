"""What is told of prompts before a shipped model draws them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from textpatch.cli.prompt_pairs import drawn_words_of
from textpatch.errors import PromptError
from textpatch.exits import warn
from textpatch.quotes import UNQUOTED, quotations


def warn_of_bare_prompts(options, prompts: Iterable[str]) -> None:
    """Warn of prompts that quote nothing, where the model's card says that it draws quoted words."""
    if not drawn_words_of(options.model):
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
