"""Scores of words as other benchmarks of drawn text give them, after a normaliser that is stated.

Each is a function of what was read, what was wanted, and a normaliser.  Strings go in and plain numbers come
out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from textpatch.errors import PatchError
from textpatch.metrics.text import edits

_LETTERING = "LMN"  # Unicode's letters, the marks that are part of letters, and numbers


@dataclass(frozen=True)
class Normaliser:
    """What may differ between two texts that count as the same.

    fold   True if capitals and small letters are the same
    signs  False if letters, digits and blanks alone count, and punctuation and all other signs do not

    Accents are composed with their letters (Unicode's NFC), and blanks in a row are one.
    """

    fold: bool = True
    signs: bool = True

    def __call__(self, text: str) -> str:
        """Text as it is compared."""
        if self.fold:
            text = text.casefold()
        text = unicodedata.normalize("NFC", text)
        if not self.signs:
            text = "".join(letter for letter in text if _counts(letter))
        return " ".join(text.split())

    def describe(self) -> str:
        """Words for what is compared, which stand beside every score."""
        case = "case as it stands"
        if self.fold:
            case = "case folded"
        signs = "letters and digits alone"
        if self.signs:
            signs = "signs kept"
        return f"{case}, {signs}"


FOLDED = Normaliser()
STRICT = Normaliser(fold=False)
BARE = Normaliser(signs=False)


def word_accuracy(read: str, wanted: str, normaliser: Normaliser = FOLDED) -> float:
    """1.0 where the reading is the wanted text, and 0.0 elsewhere.

    Raises PatchError for a wanted text of which the normaliser leaves nothing.
    """
    read, wanted = _compared(read, wanted, normaliser)
    return float(read == wanted)


def cer(read: str, wanted: str, normaliser: Normaliser = FOLDED) -> float:
    """Character error rate, the edits from the reading to the wanted text for each of its characters.

        d(read, wanted) / |wanted|

    d  Levenshtein's distance.  The rate exceeds 1 where more is read than was wanted
    Raises PatchError as `word_accuracy` does, and for an empty wanted text, of which there is no rate.
    """
    read, wanted = _compared(read, wanted, normaliser)
    if not wanted:
        raise PatchError(
            "asked for the character error rate of an empty text; leave pictures without words out"
        )
    return edits(read, wanted) / len(wanted)


def one_minus_ned(read: str, wanted: str, normaliser: Normaliser = FOLDED) -> float:
    """1 less the normalised edit distance, 0 to 1.   (ICDAR's 1-NED)

        1 - d(read, wanted) / max(|read|, |wanted|),   1 for two empty texts

    Raises PatchError as `word_accuracy` does.
    """
    read, wanted = _compared(read, wanted, normaliser)
    longer = max(len(read), len(wanted), 1)
    return 1 - edits(read, wanted) / longer


def sample_f1(read: str, wanted: str, normaliser: Normaliser = FOLDED) -> float:
    """F1 of the characters of one reading, as multisets and without their order.

        2 |R n W| / (|R| + |W|),   1 for two empty texts

    The mean of it over readings differs from `f1`, the official F1 of mean precision and mean recall.
    Raises PatchError as `word_accuracy` does.
    """
    read, wanted = _compared(read, wanted, normaliser)
    if not read and not wanted:
        return 1.0
    common = (Counter(read) & Counter(wanted)).total()
    return 2 * common / (len(read) + len(wanted))


def best_line(lines: Iterable[str], wanted: str, normaliser: Normaliser = FOLDED) -> str:
    """The line closest to the wanted text, "" where nothing was read.

    lines  text of every line, or box, that was read in one picture
    Closest is the line of highest `one_minus_ned`, the first of these.  Joined lines are scored for every
    line beside the wanted one.  The best of them is not, and so it says nothing of what else was drawn.
    Raises PatchError as `word_accuracy` does, and for one text in place of a list.
    """
    if isinstance(lines, str):
        raise PatchError(f"lines is the one text {lines!r}; give a list with the text of each line")
    return max(lines, key=lambda line: one_minus_ned(line, wanted, normaliser), default="")


def _counts(letter: str) -> bool:
    return unicodedata.category(letter)[0] in _LETTERING or letter.isspace()


def _compared(read: str, wanted: str, normaliser: Normaliser) -> tuple[str, str]:
    """Both texts as they are compared."""
    kept = normaliser(wanted)
    if wanted and not kept:
        raise PatchError(
            f"of the wanted text {wanted!r} nothing is left to compare ({normaliser.describe()}); "
            "take a normaliser that keeps signs, or leave the text out"
        )
    return normaliser(read), kept
