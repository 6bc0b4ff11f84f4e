"""Examples that run, each read from top to bottom in a few minutes.

    python -m textpatch.examples

lists them.
"""

import ast
from importlib.resources import files


def summaries() -> dict[str, str]:
    """Name of each example -> the first line of its docstring.  No example is imported for it."""
    found = {}
    for file in files(__name__).iterdir():
        name, dot, ending = file.name.partition(".")
        if (dot, ending) == (".", "py") and not name.startswith("_"):
            described = ast.get_docstring(ast.parse(file.read_text("utf-8")))
            found[name] = (described or "").partition("\n")[0]
    return dict(sorted(found.items()))
