"""The tests' own house: no test file imports another, and README.md has a line for every file.

    python tests/house/test_suite.py

writes the lines of tests/README.md anew, from the first sentence of every file's docstring.
"""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

TESTS = Path(__file__).parents[1]
README = TESTS / "README.md"
BEGIN = "<!-- the files: python tests/house/test_suite.py -->\n"


def sources() -> dict[str, ast.Module]:
    """Path below tests/ -> parsed source, of every Python file but the makers of golden files."""
    found = sorted(path.relative_to(TESTS) for path in TESTS.rglob("*.py"))
    return {
        path.as_posix(): ast.parse((TESTS / path).read_text("utf-8"))
        for path in found
        if path.parts[0] != "golden"
    }


def imported(tree: ast.Module) -> set[str]:
    """Names of all modules that a source imports, wherever in the file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ".", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def listing(trees: dict[str, ast.Module]) -> str:
    """A heading for each folder, and a line for each file with its docstring's first sentence."""
    lines, folder = [], None
    for path, tree in trees.items():
        here, _, name = path.rpartition("/")
        if name == "__init__.py":
            continue
        if here != folder:
            lines += ["", f"### {here or 'tests'}", ""]
            folder = here
        lines.append(f"* `{name}`  {summary(tree)}")
    return "\n".join(lines) + "\n"


def summary(tree: ast.Module) -> str:
    """The first sentence of a source's docstring, in one line; empty where there is none."""
    paragraph = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


@pytest.fixture(scope="module")
def trees():
    """Parsed sources, which are large and go with the module."""
    return sources()


def test_no_test_file_imports_another(trees):
    """Test files import tests/support and the library; what two of them need is in tests/support."""
    tests = {Path(path).stem for path in trees if Path(path).name.startswith("test_")}
    wings = {Path(path).parts[0] for path in trees} - {"support"}
    assert len(tests) > 70
    for path, tree in trees.items():
        names = imported(tree)
        parts = {
            part for name in names if not name.startswith("textpatch") for part in name.split(".")
        }
        assert not parts & tests, path
        assert not {name.split(".")[0] for name in names} & {"tests", "conftest"}, path
        assert not {name for name in names if name.split(".")[0] in wings and "." in name}, path


def test_every_file_says_what_it_is_about(trees):
    """A docstring begins every file, and it begins with a sentence."""
    for path, tree in trees.items():
        assert summary(tree).endswith((".", ":")), path


def test_the_readme_lists_every_file(trees):
    """The lines under the mark in tests/README.md are those of the files.  Run this file to write them."""
    _, listed = README.read_text("utf-8").split(BEGIN)
    assert listed == listing(trees)


def test_the_readmes_fault_is_noticed(monkeypatch):
    """The example of a planted fault runs as it stands there."""
    (example,) = re.findall(
        r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    session = {}
    exec(compile(example, "the example of tests/README.md", "exec"), session)
    session["test_heads_kept_as_spelled_are_noticed"](monkeypatch)


def test_the_files_that_begin_first_are_there(request):
    """Each stands once in conftest.py, and is a file of tests."""
    (conftest,) = [
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", None) == str(TESTS / "conftest.py")
    ]
    first = conftest.LONGEST
    assert len(set(first)) == len(first) and all((TESTS / file).is_file() for file in first)
    asked = [first[-1], "core/test_plan.py", first[0]]
    places = [conftest.place(SimpleNamespace(path=TESTS / file)) for file in asked]
    assert places == [len(first) - 1, len(first), 0]


if __name__ == "__main__":
    told, _ = README.read_text("utf-8").split(BEGIN)
    README.write_text(told + BEGIN + listing(sources()), "utf-8")
