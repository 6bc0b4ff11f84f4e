"""Prompt pairs, the texts that they quote, and the scores of a reading against these texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from textpatch import metrics
from textpatch.errors import PromptError
from textpatch.quotes import quotations, with_texts
from textpatch.stored import ReadScores

SOURCE = "source"
TARGET = "target"


@dataclass(frozen=True)
class Pair:
    """A source prompt and a target prompt, each with a text in quotes of any kind of `textpatch.quotes`.

    Together several texts of a prompt count as one text of several words.  `"ON" "AIR"` is scored as
    `"ON AIR"` is.  `scored_each` scores them one by one.
    """

    source: str
    target: str
    # What the prompts differ in, as reports call it.
    what: ClassVar[str] = "word"

    @property
    def texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Quoted texts of the source and of the target, one by one.  Raises PromptError for none."""
        return tuple(quoted_texts(self.source)), tuple(quoted_texts(self.target))

    @property
    def words(self) -> tuple[str, str]:
        """Quoted text of the source and of the target.  Raises PromptError where there is none."""
        source, target = self.texts
        return " ".join(source), " ".join(target)

    def scored(self, read: str, *, blanks: bool = True) -> ReadScores:
        """Scores of a reading against the texts of both sides, and the reading itself.

        read    text read in a picture
        blanks  False for a reader that drops the blanks of a line, so that all is compared without any
        """
        words = self.words
        letters = read
        if not blanks:
            source, target = words
            words = source.replace(" ", ""), target.replace(" ", "")
            letters = read.replace(" ", "")  # several lines are joined by blanks
        return {"read": read, **word_scores(letters, words)}

    def scored_each(self, read: Sequence[str], *, blanks: bool = True) -> list[ReadScores]:
        """Scores of what was read in the place of each text, against what belongs there on both sides.

        read    text read in each place
        blanks  as in `scored`
        There are none, [], where source and target have other numbers of texts, or more than places.
        """
        source, target = self.texts
        if len(source) != len(target) or len(source) > len(read):
            return []
        each = []
        for one, *words in zip(read, source, target, strict=False):
            if not blanks:
                words = [word.replace(" ", "") for word in words]
            each.append({"read": one, **word_scores(one, (words[0], words[1]))})
        return each


AnyPair: TypeAlias = Pair | tuple[str, str] | list[str]


@dataclass(frozen=True)
class LabelledPair(Pair):
    """Prompts that differ in something that has names, such as two instruments.

    labels  name of the source's and of the target's
    what    what they name
    """

    labels: tuple[str, str]
    named: str = "label"

    @property
    def what(self) -> str:
        return self.named

    @property
    def texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the source's and of the target's, of which there is one each."""
        source, target = self.labels
        return (source,), (target,)

    @property
    def words(self) -> tuple[str, str]:
        """Names of the source's and of the target's."""
        return self.labels

    def scored(self, read: str, *, blanks: bool = True) -> ReadScores:
        """Scores of a reading, which is right or wrong as a whole."""
        return {"read": read, **value_scores(read, self.labels)}


def require_apart(pair: Pair) -> None:
    """Raise PromptError for a prompt without a word, and for a source that equals its target.

    No swap between equal prompts does anything.
    """
    pair.words  # noqa: B018  refuses prompts without a word
    if pair.source == pair.target:
        raise PromptError(
            f"source and target are both {pair.source!r}, so no swap does anything; give prompts that differ"
        )


def require_other_texts(pairs: Iterable[Pair]) -> None:
    """Raise PromptError for a pair whose prompts quote the same text.

    No reading could tell its source's picture from its target's.
    """
    for pair in pairs:
        source, target = pair.words
        if source == target:
            raise PromptError(
                f"source and target both have the {pair.what} {source!r}, so no reading tells which of them "
                "a swap made; give pairs that differ in it"
            )


def quoted_texts(prompt: str) -> list[str]:
    """Texts between the quotes of a prompt, their blanks joined.

    Raises PromptError for no text, and as `quotations` does.
    """
    found = quotations(prompt)
    texts = [" ".join(quotation.text.split()) for quotation in found]
    if not texts:
        raise _no_word(prompt, "")
    for quotation, text in zip(found, texts, strict=True):
        if not text:
            raise _no_word(prompt, f" between {quotation.opening} and {quotation.closing}")
    return texts


def _no_word(prompt: str, where: str) -> PromptError:
    return PromptError(
        f"no quoted word in {prompt!r}{where}; write the word to render in double quotes: "
        'a sign that says "WORD"'
    )


def quoted(prompt: str) -> str:
    """The one quoted text of a prompt.  Raises PromptError for none, and for several."""
    texts = quoted_texts(prompt)
    if len(texts) > 1:
        raise PromptError(
            f"{len(texts)} quoted texts in {prompt!r}, and here there can be one; "
            f'write "{" ".join(texts)}"'
        )
    return texts[0]


def word_scores(read: str, words: tuple[str, str]) -> dict[str, float]:
    """Scores of a reading against the source's and the target's word.

    They are precision, recall, exact match and edit distance, each under its name with _source or _target.
    """
    scores = {}
    for side, word in zip((SOURCE, TARGET), words, strict=True):
        match = metrics.characters(read, word)
        scores |= {
            f"precision_{side}": match.precision,
            f"recall_{side}": match.recall,
            f"exact_{side}": float(metrics.exact(read, word)),
            f"edit_{side}": metrics.edit_distance(read, word),
        }
    return scores


def value_scores(value: str, values: tuple[str, str]) -> dict[str, float]:
    """Scores of a value towards the source's and the target's, all or nothing."""
    scores = {}
    for side, wanted in zip((SOURCE, TARGET), values, strict=True):
        right = float(value == wanted)
        for name in ("precision", "recall", "exact"):
            scores[f"{name}_{side}"] = right
        scores[f"edit_{side}"] = 1 - right
    return scores


def in_its_words(pair: Pair) -> str:
    """The source's prompt with the target's text between its own quotes.

    A target of another scene asks for more than a word, and every site that carries any of that would count
    as carrying the word.
    Where both prompts quote the same text, or other numbers of texts, the target itself is returned.
    Raises PromptError as `with_texts` does.
    """
    own = [quotation.text for quotation in quotations(pair.source)]
    other = [quotation.text for quotation in quotations(pair.target)]
    if len(own) != len(other) or own == other:
        return pair.target
    return with_texts(pair.source, other)


# --- templates, which have nothing between their quotes


def is_template(line: str) -> bool:
    """True for a sentence with one pair of quotes and nothing between them."""
    try:
        found = quotations(line)
    except PromptError:
        return False
    return [quotation.text for quotation in found] == [""]


def bare(prompt: str) -> str:
    """The template of a prompt, which has nothing between its quotes.

    Raises PromptError as `quoted` does.
    """
    quoted(prompt)
    return with_texts(prompt, [""])


def with_words(template: str, *words: str) -> str:
    """A template with some words, joined by blanks, between its empty quotes.

    'a sign "" here' with A and B gives 'a sign "A B" here'.
    Raises PromptError unless the template has one pair of quotes, with nothing between them, and the words
    have no quotes of its kind.
    """
    if not is_template(template):
        raise PromptError(
            f'{template!r} is no template; write "" once, where the text goes, and no other quotes'
        )
    (place,) = quotations(template)
    signs = {place.opening, place.closing}
    if not words or any(not word.strip() or signs & set(word) for word in words):
        raise PromptError(
            f"{words!r} cannot stand between quotes; give words, none empty and none with a quote"
        )
    return with_texts(template, [" ".join(words)])


def mix(pair: Pair) -> dict[tuple[str, str], str]:
    """The four prompts that a pair's templates and texts make, by (whose template, whose text).

    Both are "source" or "target".  ("source", "target") asks for the source's picture with the target's text.
    Raises PromptError as `quoted` does, and for a text that cannot stand between the other side's quotes.
    """
    sides = {SOURCE: pair.source, TARGET: pair.target}
    texts = {side: quoted(prompt) for side, prompt in sides.items()}
    mixed = {}
    for template, text in itertools.product(sides, repeat=2):
        mixed[template, text] = with_texts(sides[template], [texts[text]])
    return mixed


# --- scenes


def differing(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs whose prompts differ in more than the texts between their quotes, and in more than blanks.

    Raises PromptError as `quotations` does.
    """
    return [(source, target) for source, target in pairs if _scene(source) != _scene(target)]


def _scene(prompt: str) -> str:
    """A prompt with nothing between its quotes, its blanks joined."""
    emptied = with_texts(prompt, [""] * len(quotations(prompt)))
    return " ".join(emptied.split())


def require_one_scene(pairs: Sequence[tuple[str, str]]) -> None:
    """Raise PromptError if the prompts of a pair differ in more than the quoted text.

    A swap between them would move more than a word.
    """
    found = differing(pairs)
    if found:
        raise PromptError(
            f"{len(found)} of {len(pairs)} pairs differ in more than the quoted text, first "
            f"{found[0][0]!r} and {found[0][1]!r}: their scores are of word and scene together; "
            "give both prompts one sentence"
        )
