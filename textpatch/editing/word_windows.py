"""Steps of a run in which maps are edited, for all words or word by word.

Bounds are fractions of the run.  As published those of words are taken of N + 1 and those of self-attention
of N, so that .8 of 28 steps are 23 and 22.

N steps, T text tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.prompts.tokens import PromptTokens

DEFAULT = "default_"  # key of the words that have no window of their own, as published
Window = float | Sequence[float]


def bounds(what: str, window: object) -> tuple[float, float]:
    """First and last fraction of a window, where one number is the last.

    what  the window, as the message names it
    Raises PatchError for whole numbers, which could be steps, and for what is no fraction.
    """
    pair = window if isinstance(window, (tuple, list)) else (0.0, window)
    numbers = all(isinstance(x, float) and math.isfinite(x) for x in pair)
    if not numbers or len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
        raise PatchError(
            f"the window of {what} is {window!r}; give a fraction of the run from 0.0 to 1.0, such as 0.8 or "
            "1.0 (no number of steps), or a pair of them, the lower first"
        )
    return pair[0], pair[1]


def self_steps(window: Window, steps: int) -> range:
    """Steps int(f N) to int(g N) (exclusive) of a window (f, g)."""
    first, last = bounds("self-attention", window)
    return range(int(first * steps), int(last * steps))


def word_steps(what: str, window: Window, steps: int) -> range:
    """Steps int(f (N + 1)) to int(g (N + 1)) (exclusive) of a window (f, g), of which the last is none."""
    first, last = bounds(what, window)
    return range(int(first * (steps + 1)), int(last * (steps + 1)))


def token_windows(cross: Window | Mapping[str, Window], target: PromptTokens, steps: int) -> Tensor:
    """Windows w (N, T) of the tokens of a target prompt, 1 in the steps in which a token is edited.

    cross  a window for all, or one for each word or phrase, and one for the others by the key "default_",
           the whole run where there is none
    Raises PatchError as `bounds`, PromptError for a word that is not in the prompt.
    """
    by_word = dict(cross) if isinstance(cross, Mapping) else {DEFAULT: cross}
    windows = torch.zeros(steps + 1, target.total)
    others = word_steps(DEFAULT, by_word.pop(DEFAULT, 1.0), steps)
    windows[others.start : others.stop] = 1
    for word, window in by_word.items():
        places = list(target.places(word))
        own = word_steps(repr(word), window, steps)
        windows[:, places] = 0
        windows[own.start : own.stop, places] = 1
    return windows[:steps]
