"""Curves as inline SVG: scores with their 95 % intervals, over what was tried one after another."""

from __future__ import annotations

from collections.abc import Sequence

from textpatch.html import safe

_LEFT, _TOP, _WIDE, _HIGH, _BOTTOM = 40, 14, 620, 190, 40  # px: margins, and the plane between them
_COLOURS = "one", "two"


def curve(
    labels: Sequence[str],
    series: dict[str, Sequence[dict]],
    along: str,
    *,
    marked: int | None = None,
) -> str:
    """Lines from 0 to 1 with intervals: a name and {"value", "low", "high"} at every label; one place may be marked."""
    step, every = _WIDE / max(len(labels), 1), -(-len(labels) // 16)
    places = [_LEFT + step * (n + 0.5) for n in range(len(labels))]
    parts = [_grid(), *(_label(x, label) for x, label in list(zip(places, labels))[::every])]
    if marked is not None:
        parts.append(
            f'<path d="M{places[marked]:.1f} {_TOP}v{_HIGH}" stroke="currentColor" stroke-dasharray="4 4"/>'
        )
    for colour, (name, scores) in zip(_COLOURS, series.items()):
        parts.append(_line(colour, name, places, labels, scores))
    parts.append(_text(_LEFT + _WIDE / 2, _TOP + _HIGH + 36, along))
    size = f"{_LEFT + _WIDE + 10} {_TOP + _HIGH + _BOTTOM}"
    width = f'width="{_LEFT + _WIDE + 10}"'
    keys = "".join(
        f'<span class="key {colour}"></span>{safe(name)}' for colour, name in zip(_COLOURS, series)
    )
    return f'<p class="note">{keys}</p><svg viewBox="0 0 {size}" {width} role="img">{"".join(parts)}</svg>'


def _height(value: float) -> float:
    return _TOP + _HIGH * (1 - min(max(value, 0.0), 1.0))


def _grid() -> str:
    lines = ""
    for value in (0, 0.5, 1):
        y = _height(value)
        lines += f'<path d="M{_LEFT} {y}h{_WIDE}" stroke="currentColor" stroke-opacity=".25"/>'
        lines += _text(_LEFT - 8, y + 4, f"{value:g}", "end")
    return lines


def _label(x: float, label: str) -> str:
    return _text(x, _TOP + _HIGH + 17, label)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{safe(text)}</text>'


def _line(colour: str, name: str, places, labels, scores) -> str:
    heights = [_height(score["value"]) for score in scores]
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights))
    parts = [f'<polyline points="{way}" fill="none" stroke="currentColor" stroke-width="2"/>']
    for x, y, label, score in zip(places, heights, labels, scores):
        told = f"{name}, {label}: {score['value']:.2f}"
        if score["low"] is not None:
            low, high = _height(score["low"]), _height(score["high"])
            told += f" [{score['low']:.2f}, {score['high']:.2f}]"
            parts.append(
                f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="currentColor" stroke-opacity=".5"/>'
            )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="currentColor"><title>{safe(told)}</title></circle>'
        )
    return f'<g class="{colour}">{"".join(parts)}</g>'
