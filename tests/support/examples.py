"""The examples and the notebook: what they print and show, as it is stored and as a run gives it.

    python tests/support/examples.py

runs them all and stores what they print and show, in the docstrings of the examples and in the notebook.
"""

import ast
import base64
import contextlib
import io
import json
import runpy
from importlib.resources import files
from pathlib import Path

from textpatch.examples import summaries

FOLDER = Path(str(files("textpatch.examples")))
NOTEBOOK = FOLDER / "first_hour.ipynb"
PRINTS = "\nprints\n\n"
INDENT = "    "


def run_example(name: str) -> str:
    """Run an example as `python -m` does, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_module(f"textpatch.examples.{name}", run_name="__main__", alter_sys=True)
    return printed.getvalue()


def told(name: str) -> str:
    """What the docstring of an example says that it prints."""
    described = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text("utf-8")))
    return described.partition(PRINTS)[2]


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    """What the stored outputs of a cell hold of printed text."""
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def shown(cell: dict, kind: str) -> list[str]:
    """What the stored outputs of a cell hold of one media type."""
    found = [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]
    return ["".join(data) for data in found]


def run_cell(source: str, session: dict) -> tuple[str, object]:
    """Run a cell in a session, and return what it prints and the value of its last line, if that is one."""
    tree = ast.parse(source)
    last = None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(compile(tree, "a cell of the notebook", "exec"), session)
        if last is not None:
            value = eval(compile(last, "a cell of the notebook", "eval"), session)
    return text.getvalue(), value


def outputs(number: int, text: str, value) -> list[dict]:
    """The outputs of a cell as a notebook stores them."""
    found: list[dict] = []
    if text:
        lines = text.splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        data = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_png_"):
            picture = base64.b64encode(value._repr_png_()).decode()
            data["image/png"] = picture + "\n"
            data["text/plain"] = [
                f"<{type(value).__name__} of {value.width}x{value.height} pixels>"
            ]
        kind = "execute_result"
        found.append({"data": data, "execution_count": number, "metadata": {}, "output_type": kind})
    return found


def store_example(name: str) -> None:
    """Write what an example prints into its docstring."""
    path = FOLDER / f"{name}.py"
    before, rest = path.read_text("utf-8").split(PRINTS, 1)
    code = rest.split('"""', 1)[1]
    lines = [(INDENT + line).rstrip() for line in run_example(name).splitlines()]
    path.write_text(before + PRINTS + "\n".join(lines) + '\n"""' + code, "utf-8")


def store_notebook() -> None:
    """Run the notebook's cells in order, and write what each prints and shows beside it."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    session: dict = {}
    for number, cell in enumerate(code_cells(notebook), 1):
        text, value = run_cell("".join(cell["source"]), session)
        cell["execution_count"] = number
        cell["outputs"] = outputs(number, text, value)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    for example in summaries():
        store_example(example)
    store_notebook()
