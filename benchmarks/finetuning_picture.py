"""Draw how many words each arm of finetuning.py has learned, against what it has changed beside them.

    python benchmarks/finetuning_picture.py

writes benchmarks/results/finetuning.png from finetuning_curves.csv.  The file holds its points also as text.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

RESULTS = Path(__file__).parent / "results"
READER = "agreement"
# colours that differ without colour vision, too (Okabe and Ito)
COLOURS = {
    "found": "#d55e00",
    "all": "#0072b2",
    "all but found": "#56b4e9",
    "by lot": "#999999",
    "all attention": "#009e73",
    "full": "#cc79a7",
}
COLUMNS = 3
LEAST = 1.0  # mean squared error below which the scale is linear
Curve = list[tuple[float, float, float]]  # part of the steps, background, words: means over seeds
# READER reads none of these words in the pictures of any base (finetuning.csv, arm "none")
BASE = (0.0, 0.0, 0.0)


def rows() -> list[dict]:
    """Rows of the table of curves by READER."""
    with (RESULTS / "finetuning_curves.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["reader"] == READER]


def curves() -> dict[tuple[str, str], Curve]:
    """Curve of each model and arm, from the base, at the rate at which most seeds were trained."""
    runs: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows():
        runs[row["model"], row["arm"]][row["rate"]].append(row)
    found = {}
    for key, rates in runs.items():
        taken = max(rates.values(), key=len)
        points = [BASE]
        for part in sorted({float(row["part"]) for row in taken}):
            at = [row for row in taken if float(row["part"]) == part]
            shares = (mean(float(row[name]) for row in at) for name in ("background", "word"))
            points.append((part, *shares))
        found[key] = points
    return found


def told(found: dict[tuple[str, str], Curve]) -> str:
    """The points as text, a line for each curve."""
    return "\n".join(
        " ".join([*key, *(f"{part:g}:{x:.0f}:{y:.3f}" for part, x, y in points)])
        for key, points in found.items()
    )


def drawn(found: dict[tuple[str, str], Curve]) -> Figure:
    """A panel for each model, with a curve for each arm."""
    models = list(dict.fromkeys(model for model, _ in found))
    lines = -(-len(models) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.9 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False).flat
    for model, axes in zip(models, panels, strict=False):
        draw_panel(axes, {arm: found[name, arm] for name, arm in found if name == model})
        axes.set_title(model, fontsize=10)
    figure.supxlabel("mean squared error of the background", fontsize=9)
    figure.supylabel("words read by two readers", fontsize=9)
    drawn_arms = {arm for _, arm in found}
    marks = [Line2D([], [], color=COLOURS[arm], label=arm) for arm in COLOURS if arm in drawn_arms]
    figure.legend(handles=marks, loc="outside upper center", ncols=6, fontsize=9, frameon=False)
    return figure


def draw_panel(axes, arms: dict[str, Curve]) -> None:
    """Draw the curves of a model's arms, with a dot at the end of each."""
    for arm, points in arms.items():
        _, x, y = zip(*points, strict=True)
        axes.plot(x, y, "-", color=COLOURS[arm], linewidth=1.6)
        axes.plot(x[1:-1], y[1:-1], ".", color=COLOURS[arm], markersize=4)
        axes.plot(x[-1], y[-1], "o", color=COLOURS[arm], markersize=6)
    axes.set_xscale("symlog", linthresh=LEAST)
    axes.set_ylim(-0.03, 1.0)
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)


def main() -> None:
    found = curves()
    drawn(found).savefig(RESULTS / "finetuning.png", dpi=110, metadata={"points": told(found)})


if __name__ == "__main__":
    main()
