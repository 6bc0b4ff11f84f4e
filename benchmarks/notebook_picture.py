"""Take a picture of the notebook as it was executed, by a browser: from the sites found to the edited word.

    python benchmarks/notebook_picture.py

writes benchmarks/results/notebook.png.  The cells are laid out here, with the outputs that the notebook has.
It needs a browser, as page_picture.py does.
"""

from __future__ import annotations

import html
import json
import tempfile
from importlib.resources import files
from pathlib import Path

from page_picture import RESULTS, pictured

NOTEBOOK = Path(str(files("textpatch.examples"))) / "first_hour.ipynb"
# beginnings of cells, each with the code below it
SHOWN = (
    "The pictures behind",
    "## Edit",
    "## Explain",
)
STYLE = """
body { margin: 24px 40px; font: 17px sans-serif; color: #222 }
pre { font: 15px/1.4 monospace; margin: 6px 0; padding: 10px 14px; white-space: pre-wrap }
.code { background: #f5f5f5; border: 1px solid #ddd } .number { color: #36c; font: 13px monospace }
h2 { margin: 18px 0 4px } p { margin: 4px 0 8px } img { max-width: 1100px }
"""


def shown(notebook: dict) -> list[dict]:
    """Cells of the parts that are shown, text and code."""
    cells = notebook["cells"]
    begins = [i for i, cell in enumerate(cells) if "".join(cell["source"]).startswith(SHOWN)]
    return [cell for i in begins for cell in cells[i : i + 2]]


def laid_out(cells: list[dict]) -> str:
    """A page of cells with their outputs."""
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>" + "".join(map(_cell, cells))


def _cell(cell: dict) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        head, _, rest = source.rpartition("## ")[2].partition("\n")
        if source.startswith("## "):
            return f"<h2>{html.escape(head)}</h2><p>{html.escape(rest)}</p>"
        return f"<p>{html.escape(source)}</p>"
    number = f"<div class=number>[{cell['execution_count']}]</div>"
    outputs = "".join(map(_output, cell["outputs"]))
    return f"{number}<pre class=code>{html.escape(source)}</pre>{outputs}"


def _output(output: dict) -> str:
    if "image/png" in output.get("data", {}):
        data = "".join(output["data"]["image/png"]).replace("\n", "")
        return f'<img src="data:image/png;base64,{data}">'
    return f"<pre>{html.escape(''.join(output.get('text', [])))}</pre>"


def main() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "notebook.html"
        page.write_text(laid_out(shown(notebook)), "utf-8")
        pictured(page, Path(folder)).save(RESULTS / "notebook.png", optimize=True)


if __name__ == "__main__":
    main()
