"""Prompt pairs for the shipped models: source and target signs, from words kept for validation or for test."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace

from textpatch.errors import PatchError, closest
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, word_scores
from textpatch.weights.signs.drawing import COLOURS, PATTERNS, SHAPES, Sign, SignFormat, random_sign
from textpatch.weights.signs.words import TEST, VALIDATION

SPLITS = {"validation": VALIDATION, "test": TEST}
ATTRIBUTES = tuple(field.name for field in fields(Sign))


def sign_pairs(
    n: int, *, split: str = "validation", seed: int = 0, same_scene: bool = False
) -> list[tuple[str, str]]:
    """n (source, target) prompts, the same ones for the same arguments.

    Words of a pair differ and no word is used twice.  With `same_scene` only the word differs, as in the
    paper's main experiment; without, the sign's colour and shape and the wall's colour and pattern differ too, and
    the lettering is drawn anew, so that one sees what else a site carries.  Raises PatchError for an unknown split
    or more pairs than it has words for.
    """
    words, rng = _words(2 * n, split, seed)
    return [_pair(rng, words[2 * i], words[2 * i + 1], same_scene) for i in range(n)]


def _words(n: int, split: str, seed: int) -> tuple[list[str], random.Random]:
    """The split's words in an order that the seed decides, at least n of them, and the generator to go on with."""
    if split not in SPLITS:
        raise PatchError(f"no split {split!r}{closest(split, SPLITS)}")
    words = list(SPLITS[split])
    if not 2 <= n <= len(words):
        raise PatchError(f"asked for {n // 2} pairs; the {split} words make 1 to {len(words) // 2}")
    rng = random.Random(f"{split}/{seed}")
    rng.shuffle(words)
    return words, rng


def _pair(rng: random.Random, word: str, other: str, same_scene: bool) -> tuple[str, str]:
    source = random_sign(rng, SignFormat(), word)
    target = replace(source, word=other) if same_scene else _another_scene(rng, source, other)
    return source.prompt(), target.prompt()


def _another_scene(rng: random.Random, source: Sign, word: str) -> Sign:
    """A sign with another colour, shape, wall and pattern than the source's; its lettering is drawn anew."""
    while True:
        target = random_sign(rng, SignFormat(), word)
        if all(
            getattr(target, f) != getattr(source, f) for f in ("colour", "shape", "wall", "pattern")
        ):
            return target


# --- pairs that differ in one attribute


@dataclass(frozen=True)
class SignPair(Pair):
    """Prompts of two signs that differ in one attribute, for a reader of signs: `reader.SignReader`."""

    attribute: str
    signs: tuple[Sign, Sign]

    @property
    def what(self) -> str:
        return self.attribute

    @property
    def words(self) -> tuple[str, str]:
        """What source and target are told apart by: the values of the attribute."""
        return tuple(getattr(sign, self.attribute) for sign in self.signs)

    def scored(self, read: dict[str, str], *, blanks: bool = True) -> dict:
        """The attribute's scores, and `others`, the share of the others that are the source's.

        A word is scored by its letters; of any other attribute one value is as wrong as the next.
        """
        value = read[self.attribute]
        scores = (
            word_scores(value, self.words)
            if self.attribute == "word"
            else _value_scores(value, self.words)
        )
        others = [
            read[name] == getattr(self.signs[0], name)
            for name in ATTRIBUTES
            if name != self.attribute
        ]
        return {"read": value, **scores, "others": sum(others) / len(others), "seen": read}


def _value_scores(value: str, values: tuple[str, str]) -> dict[str, float]:
    scores = {}
    for side, wanted in zip((SOURCE, TARGET), values):
        right = float(value == wanted)
        scores |= {f"{name}_{side}": right for name in ("precision", "recall", "exact")} | {
            f"edit_{side}": 1 - right
        }
    return scores


def attribute_pairs(
    attribute: str, n: int, *, split: str = "validation", seed: int = 0
) -> list[SignPair]:
    """n pairs of signs that differ in one of ATTRIBUTES alone, the same ones for the same arguments.

    The sources are the same for every attribute.  Raises PatchError for an unknown attribute or split, or more
    pairs than the split has words for.
    """
    if attribute not in ATTRIBUTES:
        raise PatchError(f"signs have no {attribute!r}{closest(attribute, ATTRIBUTES)}")
    words, rng = _words(2 * n, split, seed)
    sources = [random_sign(rng, SignFormat(), word) for word in words[:n]]
    targets = [_but_for(attribute, rng, source, word) for source, word in zip(sources, words[n:])]
    return [SignPair(a.prompt(), b.prompt(), attribute, (a, b)) for a, b in zip(sources, targets)]


def _but_for(attribute: str, rng: random.Random, sign: Sign, word: str) -> Sign:
    """The sign with another value of one attribute; sign and wall never share a colour."""
    values = {
        "word": [word],
        "style": SignFormat().styles,
        "colour": COLOURS,
        "shape": SHAPES,
        "wall": COLOURS,
        "pattern": PATTERNS,
    }
    taken = {"colour": sign.wall, "wall": sign.colour}.get(attribute)
    others = [
        value for value in values[attribute] if value not in (getattr(sign, attribute), taken)
    ]
    return replace(sign, **{attribute: rng.choice(others)})
