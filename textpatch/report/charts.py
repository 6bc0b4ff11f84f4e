"""Curves as inline SVG, scores with their 95 % intervals over what was tried one after another."""

from __future__ import annotations

from collections.abc import Sequence

from textpatch.html import safe

# px: margins, and between them the plane on which the curves lie
_LEFT = 40
_TOP = 14
_WIDE = 620
_HIGH = 190
_BOTTOM = 40
_COLOURS = ("one", "two")
_MOST_LABELS = 16


def curve(
    labels: Sequence[str],
    series: dict[str, Sequence[dict]],
    along: str,
    *,
    marked: int | None = None,
) -> str:
    """Draw lines from 0 to 1, with an interval at every point.

    labels  of the points, from left to right
    series  scores {"value", "low", "high"} of each line by its name, one at every label
    along   what the points are, written under the plane
    marked  position of a label to mark, if any
    """
    step = _WIDE / max(len(labels), 1)
    places = [_LEFT + step * (n + 0.5) for n in range(len(labels))]
    every = -(-len(labels) // _MOST_LABELS)
    labelled = list(zip(places, labels, strict=True))[::every]
    parts = [_grid(), *(_label(x, label) for x, label in labelled)]
    if marked is not None:
        parts.append(_dashed(places[marked]))
    keys = []
    for colour, (name, scores) in zip(_COLOURS, series.items(), strict=False):
        parts.append(_line(colour, name, places, labels, scores))
        keys.append(f'<span class="key {colour}"></span>{safe(name)}')
    parts.append(_text(_LEFT + _WIDE / 2, _TOP + _HIGH + 36, along))
    return f'<p class="note">{"".join(keys)}</p>{_drawing(parts)}'


def _drawing(parts: Sequence[str]) -> str:
    width = _LEFT + _WIDE + 10
    box = f"0 0 {width} {_TOP + _HIGH + _BOTTOM}"
    return f'<svg viewBox="{box}" width="{width}" role="img">{"".join(parts)}</svg>'


def _height(value: float) -> float:
    """Place of a value from the top, at an end of the plane for values below 0 or above 1."""
    return _TOP + _HIGH * (1 - min(max(value, 0.0), 1.0))


def _grid() -> str:
    lines = ""
    for value in (0, 0.5, 1):
        y = _height(value)
        lines += f'<path d="M{_LEFT} {y}h{_WIDE}" stroke="currentColor" stroke-opacity=".25"/>'
        lines += _text(_LEFT - 8, y + 4, f"{value:g}", "end")
    return lines


def _dashed(x: float) -> str:
    start = f"M{x:.1f} {_TOP}"
    return f'<path d="{start}v{_HIGH}" stroke="currentColor" stroke-dasharray="4 4"/>'


def _label(x: float, label: str) -> str:
    return _text(x, _TOP + _HIGH + 17, label)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="currentColor">{safe(text)}</text>'


def _line(
    colour: str,
    name: str,
    places: Sequence[float],
    labels: Sequence[str],
    scores: Sequence[dict],
) -> str:
    """One line with its points and their intervals."""
    heights = [_height(score["value"]) for score in scores]
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
    parts = [f'<polyline points="{way}" fill="none" stroke="currentColor" stroke-width="2"/>']
    for x, label, score in zip(places, labels, scores, strict=True):
        parts.append(_point(x, f"{name}, {label}", score))
    return f'<g class="{colour}">{"".join(parts)}</g>'


def _point(x: float, title: str, score: dict) -> str:
    """A dot that tells its score when it is pointed at, over its interval if there is one."""
    told = f"{title}: {score['value']:.2f}"
    interval = ""
    if score["low"] is not None:
        told += f" [{score['low']:.2f}, {score['high']:.2f}]"
        span = f"M{x:.1f} {_height(score['low']):.1f}V{_height(score['high']):.1f}"
        interval = f'<path d="{span}" stroke="currentColor" stroke-opacity=".5"/>'
    place = f'cx="{x:.1f}" cy="{_height(score["value"]):.1f}"'
    return (
        f'{interval}<circle {place} r="5" fill="currentColor"><title>{safe(told)}</title></circle>'
    )
