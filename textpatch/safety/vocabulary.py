"""Index of harmful words, which says by what rule some letters are one of them.

    plain       the word itself
    plural      with s, or es after a hissing sound, for words of four letters and more
    stretched   a letter written three times or more
    swapped     two neighbouring letters swapped, for words of five letters, and behind the first of four
    dropped     a vowel inside left out, for words of six letters and more
    leet        signs in place of letters
    masked      signs that hide letters, of which at least two and at least half are seen
    misspelled  one letter wrong, as `misspelling` has it, where that is asked for

Every rule is a look-up, so that its time hardly grows with the number of words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from textpatch.safety.lookalikes import LEET, MASKS
from textpatch.safety.misspelling import Misspelled

PLURAL_FROM = 4
SWAPPED_FROM = 5
SWAPPED_BEHIND = 4  # letters of a word whose first must stay
DROPPED_FROM = 6
LEET_FROM = 4  # letters of a word of which most may be digits
STRETCHED_FROM = 3  # times that a letter is written
VOWELS = "aeiou"
HISSING = ("s", "x", "z", "ch", "sh")


def _classes() -> dict[int, str]:
    """Table by which letters that one sign may stand for become one letter, and signs become it, too."""
    classes = {letter: letter for letters in LEET.values() for letter in letters}
    for letters in LEET.values():
        merged = {classes[letter] for letter in letters}
        for letter, chosen in classes.items():
            if chosen in merged:
                classes[letter] = min(merged)
    signs = {sign: classes[letters[0]] for sign, letters in LEET.items()}
    return str.maketrans(classes | signs)


_CLASSES = _classes()


def folded(letters: str) -> str:
    """Letters and signs by their classes, equal for a word and for every way to write it with signs."""
    return letters.translate(_CLASSES)


def squeezed(letters: str) -> list[tuple[str, int]]:
    """Runs of equal letters, (letter, length) each."""
    return [(letter, len(list(run))) for letter, run in itertools.groupby(letters)]


def spells(letters: str, word: str) -> bool:
    """True where each letter or sign may stand for the word's letter at its place."""
    return len(letters) == len(word) and all(map(_may_be, letters, word))


def _may_be(written: str, letter: str) -> bool:
    return written == letter or letter in LEET.get(written, "") or written in MASKS


class Vocabulary:
    """Index of some words in letters as people see them, which are not empty.

    words       words without blanks, and texts of several words with one blank between them
    longest     letters of the longest
    misspelled  whether a word with one letter wrong is that word, too
    """

    def __init__(self, words: Iterable[str], *, misspelled: bool = False) -> None:
        self.words = frozenset(words)
        self.longest = max(map(len, self.words))
        self.parts = max(word.count(" ") for word in self.words) + 1
        self._by_class = _grouped((folded(word), word) for word in self.words)
        self._stretchable = _grouped((_outline(word), word) for word in self.words)
        self._dropped = frozenset(short for word in self.words for short in _without_a_vowel(word))
        self._misspelled = Misspelled(self.words if misspelled else ())
        self._at = _grouped(
            ((len(word), place, letter), word)
            for word in self.words
            for place, letter in enumerate(word)
        )
        self._beginnings = frozenset(
            key[:stop] for key in self._by_class for stop in range(1, len(key) + 1)
        )

    def rule(self, letters: str) -> str | None:
        """Rule by which letters without signs are a word.  None where they are none."""
        if letters in self.words:
            return "plain"
        if self._is_plural(letters):
            return "plural"
        if self._is_stretched(letters):
            return "stretched"
        if self._is_swapped(letters):
            return "swapped"
        if letters in self._dropped:
            return "dropped"
        if letters in self._misspelled:
            return "misspelled"
        return None

    def rule_of_signs(self, letters: str) -> str | None:
        """Rule by which letters with signs among them are a word.  None where they are none."""
        if letters.isalpha() or len(letters) > self.longest:
            return None
        if any(sign in MASKS for sign in letters):
            return "masked" if self._is_masked(letters) else None
        return "leet" if self.is_leet(letters) else None

    def is_leet(self, letters: str) -> bool:
        """True for a word in letters and signs, unless they are rather a number."""
        words = self._by_class.get(folded(letters), ())
        return any(spells(letters, word) for word in words) and not is_number(letters)

    def begins(self, letters: str) -> bool:
        """True if a word begins with letters and signs that may stand for these."""
        return folded(letters) in self._beginnings

    def _is_plural(self, letters: str) -> bool:
        if not letters.endswith("s"):
            return False
        stem = letters.removesuffix("s")
        hissing = stem.removesuffix("e")
        if hissing != stem and hissing.endswith(HISSING) and len(hissing) >= PLURAL_FROM:
            return hissing in self.words
        return len(stem) >= PLURAL_FROM and stem in self.words

    def _is_stretched(self, letters: str) -> bool:
        written = squeezed(letters)
        if max(length for _, length in written) < STRETCHED_FROM:
            return False
        outline = "".join(letter for letter, _ in written)
        return any(
            all(
                length == own or length >= max(own, STRETCHED_FROM)
                for (_, length), (_, own) in zip(written, squeezed(word), strict=True)
            )
            for word in self._stretchable.get(outline, ())
        )

    def _is_swapped(self, letters: str) -> bool:
        if len(letters) > self.longest:
            return False
        places = range(len(letters) - 1)
        if len(letters) < SWAPPED_FROM:
            places = places[1:] if len(letters) == SWAPPED_BEHIND else range(0)
        return any(
            letters[:i] + letters[i + 1] + letters[i] + letters[i + 2 :] in self.words
            for i in places
        )

    def _is_masked(self, letters: str) -> bool:
        seen = [(place, letter) for place, letter in enumerate(letters) if letter not in MASKS]
        if len(seen) < max(2, len(letters) / 2):
            return False
        buckets = [
            self._at.get((len(letters), place, letter), ())
            for place, letter in seen
            if letter.isalpha()
        ]
        if not buckets:
            return False
        return any(spells(letters, word) for word in min(buckets, key=len))


def is_number(letters: str) -> bool:
    """True for letters and signs without a letter, and for a few of which most are digits, such as A55."""
    digits = sum(letter.isdigit() for letter in letters)
    plain = sum(letter.isalpha() for letter in letters)
    return plain == 0 or (len(letters) < LEET_FROM and digits > plain)


def _grouped(pairs: Iterable[tuple]) -> dict:
    """Lists of words by key."""
    groups: dict = {}
    for key, word in pairs:
        groups.setdefault(key, []).append(word)
    return groups


def _outline(word: str) -> str:
    return "".join(letter for letter, _ in squeezed(word))


def _without_a_vowel(word: str) -> list[str]:
    """A long word with one vowel inside left out, in every way."""
    if len(word) < DROPPED_FROM or " " in word:
        return []
    return [word[:i] + word[i + 1 :] for i in range(1, len(word) - 1) if word[i] in VOWELS]
