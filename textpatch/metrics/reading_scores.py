"""All scores of words over the readings of many pictures, each with its interval and its chance level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from textpatch.errors import PatchError
from textpatch.metrics.chance import chance_f1, chance_level
from textpatch.metrics.intervals import interval, share_interval
from textpatch.metrics.normalised import (
    FOLDED,
    Normaliser,
    best_line,
    cer,
    one_minus_ned,
    sample_f1,
    word_accuracy,
)
from textpatch.metrics.readers.reading import Reading
from textpatch.metrics.text import characters, f1_of_means
from textpatch.stored import ReadingScores


def scores_of_readings(
    readings: Sequence[Reading | str], words: Sequence[str], normaliser: Normaliser = FOLDED
) -> ReadingScores:
    """Scores of what was read in some pictures against the words wanted there.

    readings    one for each picture, as a reader gives them, or texts of a single line
    words       the text wanted in each picture
    normaliser  of all scores but f1, whose official code has its own

    Returns "n", "normaliser" in words, and as {"value", "low", "high", "chance"} these

    - "empty", the share of pictures in which nothing was read.  They count as wrong in all other scores
    - "word_accuracy", "one_minus_ned", "sample_f1" and "cer" of all lines joined, in the mean
    - "f1", the official F1 of mean precision and mean recall
    - "best_line_accuracy" and "best_line_one_minus_ned" of the line that is closest to the wanted text

    The intervals are those of `intervals`, and the ends of an interval None where there is none.  A chance
    level is that of `chance_level`, in which other pictures' words are single lines.  It is None for one
    picture, and for "empty".  That of f1 is linear in n.  The others compare every two different
    words, as an edit distance is no sum over letters: four of them take 1.2 s for 283 words.
    Raises PatchError for other numbers of readings and words, for none, and for words that a score refuses.
    """
    if len(readings) != len(words) or not len(words):
        raise PatchError(
            f"{len(readings)} readings and {len(words)} words were given; give one of each for every picture"
        )
    lines = [_lines(reading) for reading in readings]
    texts = [" ".join(some) for some in lines]
    closest = [best_line(some, word, normaliser) for some, word in zip(lines, words, strict=True)]
    empty = np.array([float(not text) for text in texts])
    accuracy, likeness, overlap, rate = (
        partial(score, normaliser=normaliser)
        for score in (word_accuracy, one_minus_ned, sample_f1, cer)
    )
    scores: ReadingScores = {
        "n": len(words),
        "normaliser": normaliser.describe(),
        "empty": {**share_interval(empty), "chance": None},
        "word_accuracy": _of(accuracy, texts, words),
        "one_minus_ned": _of(likeness, texts, words),
        "sample_f1": _of(overlap, texts, words),
        "cer": _of(rate, texts, words, interval),
        "f1": _official(texts, words),
    }
    # readings of a single line are their own best line, so that the chance levels are the same
    for score, name, whole in (
        (accuracy, "best_line_accuracy", "word_accuracy"),
        (likeness, "best_line_one_minus_ned", "one_minus_ned"),
    ):
        best = _values(score, closest, words)
        scores[name] = {**share_interval(best), "chance": scores[whole]["chance"]}
    return scores


def _lines(reading: Reading | str) -> list[str]:
    """Texts of the lines in which anything was read."""
    texts = [reading]
    if isinstance(reading, Reading):
        texts = [line.text for line in reading.lines]
    return [text for text in texts if text.strip()]


def _of(
    score: Callable[[str, str], float],
    texts: Sequence[str],
    words: Sequence[str],
    ends: Callable[[np.ndarray], dict] = share_interval,
) -> dict:
    """Mean of a score, its interval and its chance level."""
    chance = None
    if len(words) > 1:
        chance = chance_level(words, score)
    return {**ends(_values(score, texts, words)), "chance": chance}


def _values(
    score: Callable[[str, str], float], texts: Sequence[str], words: Sequence[str]
) -> np.ndarray:
    return np.array([score(text, word) for text, word in zip(texts, words, strict=True)])


def _official(texts: Sequence[str], words: Sequence[str]) -> dict:
    """Official F1, its interval and its chance level."""
    matches = [characters(text, word)[:2] for text, word in zip(texts, words, strict=True)]
    chance = None
    if len(words) > 1:
        chance = chance_f1(words)
    return {**share_interval(np.array(matches), f1_of_means), "chance": chance}
