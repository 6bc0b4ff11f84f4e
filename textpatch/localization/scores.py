"""Scores of pictures beside their source, and their means and intervals over prompt pairs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.finite import is_finite
from textpatch.metrics.background import background_scores
from textpatch.metrics.image import Box, Picture
from textpatch.metrics.intervals import interval, share_interval
from textpatch.prompts.pairs import SOURCE, TARGET, Pair

# a function of what is drawn and of its source's, the name of one, or None
AnyBackground: TypeAlias = (
    Callable[[Image.Image, Image.Image], float]
    | Callable[[np.ndarray, np.ndarray], float]
    | str
    | None
)


def picture_scores(image: Picture, source: Picture, boxes: Sequence[Box]) -> dict[str, float]:
    """Distances of a picture from the source's picture.

    boxes  left, top, right, bottom of the lettering of both in pixels.  None of them scores the whole picture
    Returns

    - "masked", the share of the pixels that lie in a box,
    - "ssim", the mean over the windows of which no pixel lies in a box,
    - "mse", the mean over the pixels outside the boxes, which sees strips too narrow for a window of 11
      pixels,
    - "no_background" in place of these two, which says why the boxes leave too little to score, and
    - "mse_uint8_wrapped" and "psnr_uint8_wrapped" over the whole picture, as the official code computes them.
    """
    found = background_scores(image, source, boxes)
    scored = {"masked": found.masked, "ssim": found.ssim, "mse": found.mse}
    if found.reason:
        scored = {"masked": found.masked, "no_background": found.reason}
    return {
        **scored,
        "mse_uint8_wrapped": metrics.mse_uint8_wrapped(image, source),
        "psnr_uint8_wrapped": metrics.psnr_uint8_wrapped(image, source),
    }


class Background:
    """What compares a picture, or a sound, with its source's.

    score  "lettering" for the scores of pictures beside their lettering, a function (drawn, source's) that
           gives a number, or None for no score
    Raises PatchError for anything else.
    """

    def __init__(self, score: AnyBackground, *, pictures: bool) -> None:
        known = score is None or score == LETTERING or callable(score)
        if not known:
            raise PatchError(
                f"background is {score!r}; give a function of what is drawn and of its source's that gives a "
                f"number, None for no score, or {LETTERING!r} for those of pictures"
            )
        self.score = score
        if score == LETTERING and not pictures:
            self.score = None  # sounds have no lettering

    @property
    def told(self) -> dict[str, str] | None:
        """What a record says of its scores, None for those beside lettering, of which more is to be told."""
        if self.score is None:
            return NONE
        if callable(self.score):
            return {OWN: f"by {getattr(self.score, '__qualname__', type(self.score).__name__)}"}
        return None

    def scores(self, drawn: Picture, source: Picture, boxes: Sequence[Box]) -> dict[str, float]:
        """Scores of what is drawn beside its source's.   Raises PatchError for what is no finite number."""
        if self.score is None:
            return {}
        if not callable(self.score):
            return picture_scores(drawn, source, boxes)
        value = self.score(drawn, source)
        if not is_finite(value):
            raise PatchError(
                f"background gave {value!r}; give a function that gives a finite number"
            )
        return {OWN: float(value)}


LETTERING = "lettering"
# What the background scores of a record go over, which every record says.  Those of 0.1.0 say nothing: there
# the lettering was blackened and counted as equal.
SCORED = {"background": "windows free of lettering"}
FOUND = {"background": "windows free of the lettering that was found in both pictures"}
NONE = {"background": "none"}
OWN = "background"  # score of a background by a function of one's own
EXACT = ("exact_target", "exact_source")
EDITS = ("edit_target", "edit_source")
DISAGREEMENT = "disagreement"  # 1 where one of two readers read what does not count
TEXTS = "texts"  # scores of each quoted text, where the place of each is known
MASKED = "masked"  # which records of older versions lack
BACKGROUND = ("ssim", "mse", "mse_uint8_wrapped", "psnr_uint8_wrapped")


def column(records: Sequence[dict], name: str, key: str) -> np.ndarray:
    """One score of one row name, (pairs,), each the mean over the pair's seeds."""
    table: dict[int, list[float]] = {}
    for record in records:
        table.setdefault(record["pair"], []).append(record["pictures"][name][key])
    return np.array([np.mean(cells) for cells in table.values()])


def values(records: Sequence[dict], name: str) -> np.ndarray:
    """Precision and recall of the target's characters, (pairs, 2), by which a search decides."""
    columns = [column(records, name, key) for key in ("precision_target", "recall_target")]
    return np.stack(columns, axis=1)


def all_scores(records: Sequence[dict], name: str) -> dict:
    """Every score of one row name, with its 95 % interval over prompt pairs where there are several.

    Returns {} if no record has the row, else also

    - "n", the number of records that have the row,
    - "n_background", the number of these that have the source's own picture and a background beside the
      lettering, over which background scores go,
    - "texts", a list with the scores of each quoted text, where the pictures have a place for each,
    - "background", the score of a function of one's own where one was given,
    - "masked", the share of the pixels of these that lettering takes, and
    - "disagreement", the share of pictures in which one of two readers read what the other did not, or was
      not sure, where two read.

    Shares of exact matches have the interval of `metrics.wilson`, and F1s that of
    `metrics.intervals.share_interval`.  Distances have that of `metrics.intervals.interval`.
    """
    records = [record for record in records if name in record["pictures"]]
    if not records:
        return {}
    out = reading_scores(records, name)
    if all(DISAGREEMENT in record["pictures"][name] for record in records):
        out[DISAGREEMENT] = _share(column(records, name, DISAGREEMENT))
    beside = [record for record in records if BACKGROUND[0] in record["pictures"][name]]
    if beside:
        out |= {key: interval(column(beside, name, key)) for key in BACKGROUND}
        out["psnr"] = _in_decibels(out["mse"])
    own = [record for record in records if OWN in record["pictures"][name]]
    if own:
        out[OWN] = interval(column(own, name, OWN))
    if beside and all(MASKED in record["pictures"][name] for record in beside):
        out[MASKED] = interval(column(beside, name, MASKED))
    out |= {"n": len(records), "n_background": len(beside)}
    each = scores_of_texts(records, name)
    return out | ({TEXTS: each} if each else {})


def reading_scores(records: Sequence[dict], name: str) -> dict:
    """Scores of what was read in the pictures of one row name, towards both sides."""
    out = {key: _share(column(records, name, key)) for key in EXACT}
    out |= {key: interval(column(records, name, key)) for key in EDITS}
    for side in (SOURCE, TARGET):
        columns = [column(records, name, f"{part}_{side}") for part in ("precision", "recall")]
        out[f"f1_{side}"] = _f1(np.stack(columns, axis=1))
    return out


def scores_of_texts(records: Sequence[dict], name: str) -> list[dict]:
    """Scores of one row name for the first, the second and every further text of the prompts.

    Each has its own "n", the number of records whose prompts have so many texts.  Prompts of one text have
    none.
    """
    scored = [record for record in records if TEXTS in record["pictures"][name]]
    count = max((len(record["pictures"][name][TEXTS]) for record in scored), default=0)
    if count < 2:
        return []
    each = []
    for place in range(count):
        alone = [
            {"pair": record["pair"], "pictures": {name: record["pictures"][name][TEXTS][place]}}
            for record in scored
            if place < len(record["pictures"][name][TEXTS])
        ]
        each.append({**reading_scores(alone, name), "n": len(alone)})
    return each


def chance_levels(pairs: Sequence[Pair], *, blanks: bool = True) -> dict[str, float | None]:
    """F1 of readings that are each another pair's word, "f1_source" and "f1_target", as `metrics.chance_f1`.

    blanks  as in `Pair.scored`
    What is no word is right or wrong as a whole.  Of a single pair there is no chance level, and it is None.
    """
    if len(pairs) < 2:
        return dict.fromkeys((f"f1_{SOURCE}", f"f1_{TARGET}"))
    levels = {}
    for place, side in enumerate((SOURCE, TARGET)):
        words = [pair.words[place] for pair in pairs]
        if not blanks:
            words = [word.replace(" ", "") for word in words]
        if any(pair.what != Pair.what for pair in pairs):
            levels[f"f1_{side}"] = metrics.chance_level(words, operator.eq)
        else:
            levels[f"f1_{side}"] = metrics.chance_f1(words)
    return levels


def _share(values: np.ndarray) -> dict:
    """Mean of exact matches and its interval over prompt pairs, none for a single pair."""
    share = float(values.mean())
    if len(values) == 1:
        return _without_interval(share)
    return {"value": share, **metrics.wilson(share, len(values))._asdict()}


def _f1(values: np.ndarray) -> dict:
    """F1 of precisions and recalls (pairs, 2) and its interval over prompt pairs, none for a single pair."""
    found = share_interval(values, metrics.f1_of_means)
    if len(values) == 1:
        return _without_interval(found["value"])
    return found


def _without_interval(value: float) -> dict:
    return {"value": value, "low": None, "high": None}


def _in_decibels(mse: dict) -> dict:
    """PSNR of a mean squared error and of its interval, whose ends change places."""
    return {"value": _psnr(mse["value"]), "low": _psnr(mse["high"]), "high": _psnr(mse["low"])}


def _psnr(mse: float | None) -> float | None:
    """PSNR in decibels, None where it is infinite or the error is not known."""
    if not mse:
        return None
    return float(10 * np.log10(255**2 / mse))
