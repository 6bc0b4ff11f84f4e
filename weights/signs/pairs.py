"""Prompt pairs of source and target signs for the shipped models, with words kept for validation or test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from textpatch.errors import PatchError, closest
from textpatch.prompts.pairs import Pair, value_scores, word_scores
from textpatch.weights.signs.drawing import (
    COLOURS,
    PATTERNS,
    SHAPES,
    SHORTEST,
    Sign,
    SignFormat,
    random_sign,
)
from textpatch.weights.signs.two_lines import MOST_IN_ALL, MOST_ON_A_LINE, TWO_LINES
from textpatch.weights.signs.words import MANY_TEST, MANY_VALIDATION, TEST, VALIDATION

SPLITS = {"validation": VALIDATION, "test": TEST}
SPLITS_OF_LINES = {"validation": MANY_VALIDATION, "test": MANY_TEST}
WORDS_OF_LINES = {1: (1,), 2: (1, 1), 3: (2, 1), 4: (2, 2)}  # of each line, by the words of a sign
ATTRIBUTES = tuple(field.name for field in fields(Sign))


def sign_pairs(
    n: int, *, split: str = "validation", seed: int = 0, same_scene: bool = False
) -> list[tuple[str, str]]:
    """Make n (source, target) prompts, the same ones for the same arguments.

    split       "validation" or "test"
    same_scene  True lets only the word differ, as in the paper's main experiment; False lets the sign's
                colour and shape and the wall's colour and pattern differ, too, and draws the lettering anew,
                so that one sees what else a site carries

    The words of a pair differ, and no word is used twice.
    Raises PatchError for an unknown split, and for more pairs than it has words for.
    """
    words, rng = _words(n, split, seed)
    return _pairs(rng, words, SignFormat(), same_scene)


def line_pairs(
    n: int, *, split: str = "validation", seed: int = 0, same_scene: bool = False, words: int = 2
) -> list[tuple[str, str]]:
    """Make n (source, target) prompts with words on two lines, as `sign_pairs` makes its.

    words  of a sign: one, two on a line each, three with two on the first line, or four

    The words of a pair differ.
    Raises PatchError for an unknown split and for another number of words.
    """
    held_out, rng = _shuffled(SPLITS_OF_LINES, split, seed)
    texts = [text for _ in range(n) for text in texts_of(rng, held_out, words, 2)]
    return _pairs(rng, texts, TWO_LINES, same_scene)


def texts_of(rng: random.Random, words: Sequence[str], number: int, n: int = 1) -> list[str]:
    """Draw n texts with so many words each, their lines separated by newlines.   No word stands there twice.

    Raises PatchError for a number of words that signs do not hold.
    """
    if number not in WORDS_OF_LINES:
        raise PatchError(
            f"signs hold 1 to {len(WORDS_OF_LINES)} words, not {number!r}; ask for these"
        )
    left = rng.sample(words, len(words))
    return ["\n".join(_lines(left, WORDS_OF_LINES[number])) for _ in range(n)]


def _lines(left: list[str], words: Sequence[int]) -> list[str]:
    """Take the words of each line, as many as tiny-words draws there and in all."""
    lines: list[str] = []
    for many in words:
        behind = sum(_least(later) for later in words[len(lines) + 1 :])
        room = MOST_IN_ALL - sum(map(len, lines)) - behind
        lines.append(_line(left, many, min(room, MOST_ON_A_LINE)))
    return lines


def _line(left: list[str], many: int, room: int) -> str:
    """Take the first words that fit together into so many places."""
    taken: list[str] = []
    for behind in reversed(range(many)):
        free = room - sum(len(word) + 1 for word in taken) - behind * (SHORTEST + 1)
        taken.append(next(word for word in left if len(word) <= free))
        left.remove(taken[-1])
    return " ".join(taken)


def _least(many: int) -> int:
    """Places that a line of so many words takes at least."""
    return many * (SHORTEST + 1) - 1


def _words(n: int, split: str, seed: int) -> tuple[list[str], random.Random]:
    """Words of n pairs, two for a pair, in the seed's order, and the generator to go on with."""
    words, rng = _shuffled(SPLITS, split, seed)
    if not 2 <= 2 * n <= len(words):
        raise PatchError(f"asked for {n} pairs; the {split} words make 1 to {len(words) // 2}")
    return words[: 2 * n], rng


def _shuffled(
    splits: dict[str, list[str]], split: str, seed: int
) -> tuple[list[str], random.Random]:
    """Words of a split in the seed's order, and the generator to go on with."""
    if split not in splits:
        raise PatchError(f"no split {split!r}{closest(split, splits)}")
    rng = random.Random(f"{split}/{seed}")
    words = list(splits[split])
    rng.shuffle(words)
    return words, rng


def _pairs(
    rng: random.Random, texts: list[str], fmt: SignFormat, same_scene: bool
) -> list[tuple[str, str]]:
    return [
        _pair(rng, text, other, fmt, same_scene)
        for text, other in zip(texts[::2], texts[1::2], strict=True)
    ]


def _pair(
    rng: random.Random, text: str, other: str, fmt: SignFormat, same_scene: bool
) -> tuple[str, str]:
    source = random_sign(rng, fmt, text)
    target = replace(source, word=other)
    if not same_scene:
        target = _another_scene(rng, source, other, fmt)
    return source.prompt(), target.prompt()


def _another_scene(rng: random.Random, source: Sign, text: str, fmt: SignFormat) -> Sign:
    """Sign with another colour, shape, wall and pattern than the source's, its lettering drawn anew."""
    factors = ("colour", "shape", "wall", "pattern")
    while True:
        target = random_sign(rng, fmt, text)
        if all(getattr(target, factor) != getattr(source, factor) for factor in factors):
            return target


# --- pairs that differ in one attribute


@dataclass(frozen=True)
class SignPair(Pair):
    """Prompts of two signs that differ in one attribute, for `reader.SignReader`."""

    attribute: str
    signs: tuple[Sign, Sign]

    @property
    def what(self) -> str:
        return self.attribute

    @property
    def words(self) -> tuple[str, str]:
        """Values of the attribute in source and target, which tell them apart."""
        return tuple(getattr(sign, self.attribute) for sign in self.signs)

    def scored(self, read: dict[str, str], *, blanks: bool = True) -> dict:
        """Scores of the attribute, and `others`, the share of the other attributes that are the source's.

        A word is scored by its letters.  Of any other attribute one value is as wrong as the next.
        """
        value = read[self.attribute]
        if self.attribute == "word":
            scores = word_scores(value, self.words)
        else:
            scores = value_scores(value, self.words)
        names = [name for name in ATTRIBUTES if name != self.attribute]
        kept = sum(read[name] == getattr(self.signs[0], name) for name in names)
        return {"read": value, **scores, "others": kept / len(names), "seen": read}


def attribute_pairs(
    attribute: str, n: int, *, split: str = "validation", seed: int = 0
) -> list[SignPair]:
    """Make n pairs of signs that differ in one of ATTRIBUTES alone, the same ones for the same arguments.

    The sources are the same for every attribute.
    Raises PatchError for an unknown attribute or split, and for more pairs than the split has words for.
    """
    if attribute not in ATTRIBUTES:
        raise PatchError(f"signs have no {attribute!r}{closest(attribute, ATTRIBUTES)}")
    words, rng = _words(n, split, seed)
    sources = [random_sign(rng, SignFormat(), word) for word in words[:n]]
    pairs = []
    for i, source in enumerate(sources):
        target = _but_for(attribute, rng, source, words[n + i])
        pairs.append(SignPair(source.prompt(), target.prompt(), attribute, (source, target)))
    return pairs


def _but_for(attribute: str, rng: random.Random, sign: Sign, word: str) -> Sign:
    """Sign with another value of one attribute.   Sign and wall never share a colour."""
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
