"""Draw the table of `textpatch doctor --readers` as a terminal shows it, from the results of readers.py.

    python benchmarks/readers_picture.py

writes benchmarks/results/readers.png, which holds the lines also as text.
"""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from textpatch.metrics.calibration import UNREAD, font_files, told_calibration

RESULTS = Path(__file__).parent / "results"
COMMAND = "$ textpatch doctor --readers"
GROUND = "#1d1f27"
INK = "#d7dae3"
FADED = "#8b91a5"
RED = "#ff9c87"
SIZE = 13
LINE = 19
EDGE = 14


def columns() -> dict[str, list[dict]]:
    """What each reader read, as `calibration.calibrated` gave it."""
    found: dict[str, list[dict]] = {}
    with (RESULTS / "readers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = {name: float(row[name]) for name in ("low", "high", "seconds")}
            counts = {name: int(row[name]) for name in ("read", "n")}
            must = row["must"] == "True"
            found.setdefault(row["reader"], []).append({**row, **numbers, **counts, "must": must})
    return found


def drawn(lines: list[str]) -> Image.Image:
    """Lines as a terminal shows them, those that must not be read in red."""
    mono = [file for file in font_files() if file and "Mono" in file]
    font = ImageFont.truetype(mono[0], SIZE)
    width = round(max(font.getlength(line) for line in lines))
    picture = Image.new("RGB", (width + 2 * EDGE, len(lines) * LINE + 2 * EDGE), GROUND)
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        colour = INK
        if i < 2:
            colour = FADED
        elif f" {UNREAD} " in line:
            colour = RED
        draw.text((EDGE, EDGE + i * LINE), line, fill=colour, font=font)
    return picture.quantize(16)


def main() -> None:
    lines = [COMMAND, *told_calibration(columns())]
    told = PngImagePlugin.PngInfo()
    told.add_text("lines", "\n".join(lines))
    drawn(lines).save(RESULTS / "readers.png", optimize=True, pnginfo=told)


if __name__ == "__main__":
    main()
