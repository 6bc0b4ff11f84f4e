"""Disguises of words, by which a detector is measured, and innocent texts that filters stumble over."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from string import ascii_lowercase

from textpatch.errors import PatchError
from textpatch.safety.detection import Detector, findings_of

MASKED = "a letter masked"
SWAPPED = "two letters swapped"
REPLACED = "a letter replaced"
INSERTED = "a letter inserted"
LEFT_OUT = "a letter left out"
_LEET = str.maketrans("oieastOIEAST", "013457013457")
_CYRILLIC = str.maketrans("aceopxyiABCEHKMOPTXY", "асеорхуіАВСЕНКМОРТХУ")
_WIDE = {code: code + 0xFEE0 for code in range(33, 127)}

INNOCENT = """
Scunthorpe;therapist;Arsenal;as sad;5.00;$5;100 m;A55;classic;bassist;assassin;cocktail;Essex;Sussex;
Penistone;analysis;title;shiitake;basement;mass;pass;glass;Dickens;button;document;cucumber;Hancock;Saturday;
the pen is red;basic;as I said;class A;Clitheroe;Lightwater;grumble;crumple;rumpled;hello;shell;tithe;parse;
bass;grape
""".replace("\n", "").split(";")


def _inner(word: str, rng: random.Random, fits: Callable[[int], bool]) -> int | None:
    """A place inside a word, drawn from those that fit."""
    places = [place for place in range(1, len(word) - 1) if fits(place)]
    return rng.choice(places) if places else None


def _masked(word: str, rng: random.Random) -> str:
    place = _inner(word, rng, lambda place: word[place].isalpha())
    return word if place is None else f"{word[:place]}*{word[place + 1 :]}"


def _swapped(word: str, rng: random.Random) -> str:
    def fits(place: int) -> bool:
        two = word[place : place + 2]
        return two.isalpha() and len(set(two)) == 2

    place = _inner(word, rng, fits)
    if place is None:
        return word
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _stretched(word: str, rng: random.Random) -> str:
    place = _inner(word, rng, lambda place: word[place].isalpha())
    return word if place is None else word[:place] + 4 * word[place] + word[place + 1 :]


def _another(letter: str, rng: random.Random) -> str:
    """A letter other than this one, as large."""
    drawn = rng.choice([other for other in ascii_lowercase if other != letter.lower()])
    return drawn.upper() if letter.isupper() else drawn


def _replaced(word: str, rng: random.Random) -> str:
    place = _inner(word, rng, lambda place: word[place].isalpha())
    if place is None:
        return word
    return word[:place] + _another(word[place], rng) + word[place + 1 :]


def _inserted(word: str, rng: random.Random) -> str:
    place = _inner(word, rng, lambda place: word[place].isalpha())
    return word if place is None else word[:place] + _another(word[place], rng) + word[place:]


def _left_out(word: str, rng: random.Random) -> str:
    place = _inner(word, rng, lambda place: word[place].isalpha())
    return word if place is None else word[:place] + word[place + 1 :]


# name -> function of a word and a generator
DISGUISES: dict[str, Callable[[str, random.Random], str]] = {
    "none": lambda word, rng: word,
    "capitals": lambda word, rng: word.upper(),
    "digits for letters": lambda word, rng: word.translate(_LEET),
    "dots": lambda word, rng: ".".join(word),
    "blanks": lambda word, rng: " ".join(word),
    "Cyrillic letters": lambda word, rng: word.translate(_CYRILLIC),
    "zero-width": lambda word, rng: "\u200b".join(word),
    "full-width": lambda word, rng: word.translate(_WIDE),
    "stretched": _stretched,
    MASKED: _masked,
    SWAPPED: _swapped,
    REPLACED: _replaced,
    INSERTED: _inserted,
    LEFT_OUT: _left_out,
}


def reach(detector: Detector, words: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """Share of words that a detector finds, under each disguise by its name.

    seed  of the places that a disguise changes
    Raises PatchError without words.
    """
    if not words:
        raise PatchError("asked how many of no words are found; give at least one")
    shares = {}
    for name, disguise in DISGUISES.items():
        rng = random.Random(seed)
        found = [bool(findings_of(detector, disguise(word, rng))) for word in words]
        shares[name] = sum(found) / len(words)
    return shares
