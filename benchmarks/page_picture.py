"""Take a picture of the page that a run of `localize` leaves, as a browser shows its first screen.

    python benchmarks/page_picture.py runs/localize-tiny-mmdit-1a2b3c4d/report.html

writes benchmarks/results/page.png.  It needs a browser: chromium or chrome, by any of its names.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

RESULTS = Path(__file__).parent / "results"
BROWSERS = "chromium", "chromium-browser", "google-chrome"
WIDTH = 1200
HEIGHT = 900
COLOURS = 128


def browser() -> str:
    """Path of a browser.  Ends the program where there is none."""
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    sys.exit(f"no browser among {', '.join(BROWSERS)}; apt-get install chromium")


def pictured(page: Path, folder: Path) -> Image.Image:
    """First screen of a page."""
    file = folder / "page.png"
    command = [browser(), "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
    command += [f"--user-data-dir={folder}", f"--window-size={WIDTH},{HEIGHT}"]
    command += [f"--screenshot={file}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return Image.open(file).convert("RGB").quantize(COLOURS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html of a run")
    page = parser.parse_args(argv).page
    with tempfile.TemporaryDirectory() as folder:
        pictured(page, Path(folder)).save(RESULTS / "page.png", optimize=True)


if __name__ == "__main__":
    main()
