"""Scores of pictures beside their source, and their means and intervals over prompt pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from textpatch import metrics
from textpatch.metrics.intervals import interval, tells_spread
from textpatch.prompts.pairs import SOURCE, TARGET


def picture_scores(image, source, box) -> dict[str, float]:
    """Distance from the source's picture: outside the lettering, and the official wrap-around of the whole.

    ssim  the mean over the windows of which no pixel lies in the box
    mse   the mean over the pixels that do not, so that it sees strips too narrow for a window of 11 pixels
    box   left, top, right, bottom of the lettering in pixels; None scores the whole picture
    Raises PatchError where the box leaves no window.
    """
    size = (image.height, image.width)
    return {
        "ssim": metrics.ssim(image, source, metrics.windows_outside(box, *size)),
        "mse": metrics.mse(image, source, metrics.pixels_outside(box, *size)),
        "mse_uint8_wrapped": metrics.mse_uint8_wrapped(image, source),
        "psnr_uint8_wrapped": metrics.psnr_uint8_wrapped(image, source),
    }


EXACT = ("exact_target", "exact_source")
EDITS = ("edit_target", "edit_source")
BACKGROUND = ("ssim", "mse", "mse_uint8_wrapped", "psnr_uint8_wrapped")


def column(records: Sequence[dict], name: str, key: str) -> np.ndarray:
    """One score of one row name, (pairs,): the mean over each pair's seeds."""
    table: dict[int, list[float]] = {}
    for record in records:
        table.setdefault(record["pair"], []).append(record["pictures"][name][key])
    return np.array([np.mean(cells) for cells in table.values()])


def values(records: Sequence[dict], name: str) -> np.ndarray:
    """Precision and recall of the target's characters, (pairs, 2): what a search decides by."""
    columns = [column(records, name, key) for key in ("precision_target", "recall_target")]
    return np.stack(columns, axis=1)


def all_scores(records: Sequence[dict], name: str) -> dict:
    """Every score of one row name over the n records that have it, with its 95 % interval over prompt pairs, if several.

    Of the background, over those n_background of them that have the source's own picture.
    Shares of exact matches have `wilson`'s interval, F1s that of `search.interval`, distances a bootstrapped one,
    or none where it would have no width.
    """
    records = [record for record in records if name in record["pictures"]]
    if not records:
        return {}
    out = {key: _share(column(records, name, key)) for key in EXACT}
    out |= {key: _distance(column(records, name, key)) for key in EDITS}
    for side in (SOURCE, TARGET):
        columns = [column(records, name, f"{part}_{side}") for part in ("precision", "recall")]
        out[f"f1_{side}"] = _f1(np.stack(columns, axis=1))
    beside = [record for record in records if BACKGROUND[0] in record["pictures"][name]]
    if beside:
        out |= {key: _distance(column(beside, name, key)) for key in BACKGROUND}
        out["psnr"] = _decibels(out["mse"])
    return out | {"n": len(records), "n_background": len(beside)}


def _share(values: np.ndarray) -> dict:
    """The mean of exact matches and its interval over prompt pairs, of which one has none."""
    share = float(values.mean())
    return _ends(share, metrics.wilson(share, len(values)) if len(values) > 1 else None)


def _f1(values: np.ndarray) -> dict:
    """F1 of precisions and recalls, (pairs, 2), and its interval over prompt pairs, of which one has none."""
    found = interval(values, metrics.f1_of_means)
    return found if len(values) > 1 else _ends(found["value"], None)


def _distance(values: np.ndarray) -> dict:
    """The mean of a score that is no share, and its interval where the prompt pairs tell of one."""
    return _ends(float(values.mean()), metrics.bootstrap(values) if tells_spread(values) else None)


def _ends(value: float, ends: metrics.Interval | None) -> dict:
    low, high = ends or (None, None)
    return {"value": value, "low": low, "high": high}


def _decibels(mse: dict) -> dict:
    """PSNR of the mean squared error and of its interval; None where it is infinite or not known."""
    turn = lambda x: None if not x else float(10 * np.log10(255**2 / x))  # noqa: E731
    return {"value": turn(mse["value"]), "low": turn(mse["high"]), "high": turn(mse["low"])}
