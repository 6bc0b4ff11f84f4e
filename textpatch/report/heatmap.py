"""A drawing of the scores over all sites, as bars with intervals and as strips of colour."""

from __future__ import annotations

import io
from collections.abc import Sequence

from textpatch.errors import PatchError
from textpatch.report.result import (
    credited,
    ranked_sites,
    score_of,
    size_of,
    tried,
    value_of,
    what_of,
)
from textpatch.text import plain

# Okabe and Ito's colours, which stay apart for colour-blind readers
BLUE = "#0072B2"
ORANGE = "#D55E00"
INK = "#1c2430"
GREY = "#66707d"
PALE = "#a9bfd3"
_METRICS = (
    ("f1_target", "F1\ntowards target"),
    ("f1_source", "F1\ntowards source"),
    ("exact_target", "exact match\nto target"),
    ("ssim", "background\nSSIM"),
)
# Sites up to which every score is written on its strip, and up to which every index is written under it.
_MOST_NUMBERS = 32
_MOST_LABELS = 36
_ABOVE = 1.24  # inches of title, size and legend
_OF_A_SITE = 0.22  # inches of a line of dots
_LINES = {
    "source": dict(color=GREY, linestyle=(0, (1, 1.5)), linewidth=1.6),
    "target": dict(color=BLUE, linestyle=(0, (5, 2)), linewidth=1.6),
}


def heatmap_png(result: dict) -> bytes:
    """Draw four scores over the sites as a PNG.

    Each score has bars with 95 % intervals, and a strip of colour.  Lines mark the source run without a swap
    and the whole target run.  Orange marks the sites that the headline names.
    Raises PatchError without matplotlib, or if `result` is no result.
    """
    ranked_sites(result)  # refuses a dict that is no result
    sites, metrics = _drawn(result)
    named = credited(result)
    members = _members(result)
    figure, grid = _figure(len(sites), len(metrics), len(members))
    for row, (metric, label) in enumerate(metrics):
        bars = figure.add_subplot(grid[2 * row])
        strip = figure.add_subplot(grid[2 * row + 1])
        _draw_bars(bars, sites, metric, named, result["baselines"])
        bars.set_ylabel(
            label, rotation=0, ha="right", va="center", color=INK, fontsize=10, labelpad=12
        )
        _draw_strip(strip, sites, metric)
    if members:
        dots = figure.add_subplot(grid[2 * len(metrics)])
        _draw_sets(dots, sites, members, named)
        strip = dots
    else:
        _label_sites(strip, [site["site"] for site in sites], named)
    label = tried(result)
    if label == "site":
        label = "site, in execution order"
    strip.set_xlabel(label, color=GREY, fontsize=9)
    _draw_head(figure, bars.get_position().x0, result)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=144, facecolor="white")
    return data.getvalue()


def _drawn(result: dict) -> tuple[list[dict], tuple]:
    """Sites with all scores that are drawn, and name and label of these.

    The share by which a screening ranked every site is the last.
    """
    by = result.get("mode")
    shares = {site["site"]: site[by]["share"] for site in result["sites"] if site.get(by)}
    if not shares:
        return result["sites"], _METRICS
    sites = [site | {"share": shares.get(site["site"])} for site in result["sites"]]
    return sites, (*_METRICS, ("share", f"share by\n{by}"))


def _members(result: dict) -> list[int]:
    """Sites of the sets that were tried, [] where each was tried alone or the sites are too many to draw."""
    if tried(result) == "site":
        return []
    members = sorted({member for site in result["sites"] for member in site["group"]})
    return members if len(members) <= _MOST_LABELS else []


def _draw_sets(axes, sites: Sequence[dict], members: list[int], named: list) -> None:
    """Draw the sets, each a column of dots at its sites that a line holds together."""
    for place, site in enumerate(sites):
        heights = [members.index(member) for member in site["group"]]
        colour = ORANGE if site["site"] in named else INK
        axes.plot([place] * len(members), range(len(members)), "o", color="#e6e9ed", markersize=5)
        axes.plot([place] * len(heights), heights, "o-", color=colour, markersize=6, linewidth=2)
    _quiet(axes, len(sites), ticks=())
    axes.set_yticks(range(len(members)), [f"site {member}" for member in members])
    axes.set_ylim(len(members) - 0.5, -0.5)


def _figure(sites: int, scores: int, members: int):
    """An empty figure for so many sites, and its grid with two rows for each score and one for sets."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except Exception as error:  # a broken install raises more than ImportError
        raise PatchError(
            f"the heat map needs matplotlib ({error}): pip install matplotlib"
        ) from error
    width = min(max(3.2 + 0.42 * sites, 8.0), 24.0)
    height = 1.84 * (1 + scores) + _OF_A_SITE * members
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    margins = dict(left=1.5 / width, right=1 - 0.3 / width, hspace=0.12)
    margins |= dict(top=1 - _ABOVE / height, bottom=0.6 / height)
    ratios = [6, 1.5] * scores
    if members:
        ratios.append(7.5 * _OF_A_SITE / 1.84 * members)
    return figure, figure.add_gridspec(len(ratios), 1, height_ratios=ratios, **margins)


def _draw_bars(axes, sites: Sequence[dict], metric: str, named: list, baselines: dict) -> None:
    """Draw the bars of one score, and the lines of the two runs."""
    values = [_or_nan(value_of(site, metric)) for site in sites]
    bars = axes.bar(range(len(sites)), values, width=0.72, color=PALE, zorder=2)
    for bar, site in zip(bars, sites, strict=True):
        if site["site"] in named:
            bar.set_facecolor(ORANGE)
    axes.errorbar(
        range(len(sites)),
        values,
        yerr=[_distances(sites, metric, end) for end in ("low", "high")],
        fmt="none",
        ecolor=INK,
        elinewidth=1,
        capsize=2,
        zorder=4,
    )
    for run, style in _LINES.items():
        value = value_of(baselines[run], metric)
        if value is not None:
            axes.axhline(value, zorder=3, **style)
    axes.set_ylim(min([0, *(value for value in values if value < 0)]), 1.06)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    _quiet(axes, len(sites), ticks=(0, 0.5, 1))


def _distances(sites: Sequence[dict], metric: str, end: str) -> list[float]:
    """Distance of one end of the interval from the mean, for each site."""
    scores = [score_of(site, metric) for site in sites]
    return [abs(_or_nan(score.get(end)) - _or_nan(score.get("value"))) for score in scores]


def _draw_strip(axes, sites: Sequence[dict], metric: str) -> None:
    """Draw the strip of colour of one score, with numbers where there is room for them."""
    values = [value_of(site, metric) for site in sites]
    # cividis reads the same with and without colour vision
    axes.imshow(
        [[_or_nan(value) for value in values]], aspect="auto", cmap="cividis", vmin=0, vmax=1
    )
    if len(sites) <= _MOST_NUMBERS:
        for place, value in enumerate(values):
            _draw_number(axes, place, value)
    _quiet(axes, len(sites), ticks=())


def _draw_number(axes, place: int, value: float | None) -> None:
    """Write a score on its cell of the strip, in white where the cell is dark."""
    if value is None:
        return
    text = f"{value:.2f}".replace("0.", ".", 1)
    if value > 0.995:
        text = "1"
    colour = INK
    if value < 0.55:
        colour = "white"
    axes.text(place, 0.03, text, ha="center", va="center", fontsize=8, color=colour)


def _or_nan(value: float | None) -> float:
    if value is None:
        return float("nan")
    return value


def _quiet(axes, sites: int, ticks: Sequence[float]) -> None:
    """Leave out frame and ticks, but for numbers along the scale."""
    axes.set_facecolor("white")
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.set(xlim=(-0.6, sites - 0.4), xticks=(), yticks=ticks)
    axes.tick_params(length=0, colors=GREY, labelsize=8)


def _label_sites(axes, index: list, named: list) -> None:
    """Write site indices under the last strip, those named and as many others as there is room for."""
    step = -(-len(index) // _MOST_LABELS)
    marked = [index.index(site) for site in named]
    places = [
        place
        for place in range(0, len(index), step)
        if all(abs(place - other) >= step for other in marked)
    ]
    places = sorted({*places, *marked})
    axes.set_xticks(places, [str(index[place]) for place in places])
    axes.tick_params(axis="x", labelsize=9, labelcolor=INK, pad=4)
    for place in marked:
        axes.get_xticklabels()[places.index(place)].set(color=ORANGE, weight="bold")


def _draw_head(figure, left: float, result: dict) -> None:
    """Write title, size and legend above the scores."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    height = figure.get_figheight()
    size = f"{size_of(result, 'pair')}, {result['steps']} steps"
    # a model's name may hold a $, which matplotlib would read as mathematics
    figure.text(
        left,
        1 - 0.32 / height,
        f"{plain(result['model'])}: which {tried(result)} carries the {what_of(result)}?",
        color=INK,
        fontsize=14,
        weight="bold",
        va="center",
        parse_math=False,
    )
    figure.text(
        left,
        1 - 0.58 / height,
        f"{size}; text keys and values of one {tried(result)} at a time come from the target",
        color=GREY,
        fontsize=9.5,
        va="center",
        parse_math=False,
    )
    named = credited(result)
    credit = "responsible set"
    if named == result["ranked"][:1]:
        credit = f"best {tried(result)} ({named[0]})"
    marks = [
        Patch(color=ORANGE, label=credit),
        Line2D([], [], label="whole target run", **_LINES["target"]),
        Line2D([], [], label="source run, no swap", **_LINES["source"]),
        Line2D(
            [], [], color=INK, marker="|", linestyle="none", markersize=10, label="95 % interval"
        ),
    ]
    figure.legend(
        handles=marks,
        loc="center left",
        bbox_to_anchor=(left, 1 - 0.89 / height),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.8,
        borderpad=0,
        borderaxespad=0,
    )
