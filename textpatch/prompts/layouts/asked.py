"""A prompt of a benchmark with the texts that its picture must show, and parts that its readers share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textpatch.errors import PromptError

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")  # written as a picture's name would be


@dataclass(frozen=True)
class Asked:
    """A prompt of a benchmark.

    texts  what the picture must show, as the benchmark's scorer takes it from the entry
    place  the entry's number, behind the folders in which its scorer looks for the picture
    entry  the entry as it was read
    """

    prompt: str
    texts: tuple[str, ...]
    place: str
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def text_of(path: Path, expected: str) -> str:
    """Text of a file in UTF-8.  Raises PromptError, which says what was expected, where there is none."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise PromptError(
            f"cannot read prompts from {path}: {error}; expected {expected}"
        ) from None


def parsed(text: str, where: str, expected: str) -> Any:
    """Value of a JSON text.  Raises PromptError for text that is no JSON, or is nested beyond all reason."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: no JSON, {error}; expected {expected}") from None


def prompt_of(entry: Any, number: str, where: str) -> tuple[str, int]:
    """Prompt and number of an entry.

    number  the key of the entry's number, a whole one from 0
    Raises PromptError for an entry without either.
    """
    if not isinstance(entry, dict):
        entry = {}
    prompt = entry.get("prompt")
    place = entry.get(number)
    if isinstance(place, str) and _NUMBER.fullmatch(place):
        place = int(place)
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(
            f'{where}: "prompt" is {prompt!r}; expected the prompt, a text that is not empty'
        )
    if type(place) is not int or place < 0:
        raise PromptError(f'{where}: "{number}" is {place!r}; expected a whole number from 0')
    return prompt, place


def require_apart(asked: list[Asked], where: str) -> None:
    """Raise PromptError for no entries, and for two whose pictures would have one name."""
    if not asked:
        raise PromptError(f"{where} holds no prompt; expected at least one")
    places = set()
    for one in asked:
        if one.place in places:
            raise PromptError(
                f"{where} has two entries for {one.place}, whose pictures would have one name; "
                "give each a number of its own"
            )
        places.add(one.place)


def require_first(repeat: int, benchmark: str) -> None:
    """Raise PromptError for a second picture of a prompt, where the scorer takes one."""
    if repeat != 0:
        raise PromptError(
            f"picture {repeat + 1} of a prompt asked for; the scorer of {benchmark} takes one a prompt, "
            "so give one seed"
        )
