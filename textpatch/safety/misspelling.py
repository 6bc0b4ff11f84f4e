"""Index of words that also knows each of them with one letter wrong.

    left out   without one letter
    inserted   with one letter more
    replaced   with another letter in the place of one

These are the edits of Levenshtein's distance 1.  Each is a look-up, so that time does not grow with the
number of words.
"""

from __future__ import annotations

from collections.abc import Iterable

MISSPELLED_FROM = 5  # letters of a word
ANY = "?"  # in the place of a letter


class Misspelled:
    """Index of the single words of five letters and more, in letters as people see them.

    `letters in index` is true for letters that are not a word, and become one by one edit.
    """

    def __init__(self, words: Iterable[str]) -> None:
        long = [word for word in words if len(word) >= MISSPELLED_FROM and word.isalpha()]
        self._words = frozenset(long)
        self._longest = max(map(len, long), default=0)
        self._shorter = frozenset(short for word in long for short in _one_left_out(word))
        self._hidden = frozenset(hidden for word in long for hidden in _one_hidden(word))

    def __contains__(self, letters: str) -> bool:
        if len(letters) > self._longest + 1 or letters in self._words:
            return False
        if letters in self._shorter or not self._hidden.isdisjoint(_one_hidden(letters)):
            return True
        return not self._words.isdisjoint(_one_left_out(letters))


def _one_left_out(letters: str) -> list[str]:
    return [letters[:i] + letters[i + 1 :] for i in range(len(letters))]


def _one_hidden(letters: str) -> list[str]:
    return [letters[:i] + ANY + letters[i + 1 :] for i in range(len(letters))]
