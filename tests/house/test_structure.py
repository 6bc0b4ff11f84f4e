"""The house of the design, held by parsing the sources: who imports whom, and how large things may grow."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import textpatch
from textpatch.weights.loading import SHIPPED

ROOT = Path(textpatch.__file__).parent
OUTER = {"textpatch.reference_models": SHIPPED.parent / "reference_models", "textpatch.weights": SHIPPED}
CORE = ["attention", "hooks", "sites", "plan", "calls", "guidance", "patch"]
NEVER = {"diffusers", "torchvision", "pickle", "dill", "joblib"}


def modules(package: str, folder: Path) -> dict[str, Path]:
    """Full name -> file of all modules below a package."""
    paths = {path.relative_to(folder).with_suffix("").parts: path for path in folder.rglob("*.py")}
    return {".".join([package, *parts]).removesuffix(".__init__"): path for parts, path in paths.items()}


LIBRARY = modules("textpatch", ROOT)
SOURCES = LIBRARY | {name: path for outer in OUTER.items() for name, path in modules(*outer).items()}


def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text())


def imports(name: str) -> set[str]:
    """Full names of all modules a source file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            found |= {
                module,
                *(f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in SOURCES),
            }
    return found


def test_all_sources_are_looked_at():
    """The laws below are about files that exist."""
    assert (
        len(SOURCES) > 25
        and {f"textpatch.{name}" for name in [*CORE, "localize", "edit", "cli", "commands"]} <= SOURCES.keys()
    )


def test_the_core_needs_torch_alone():
    """Core modules import torch, the standard library, errors and each other."""
    allowed = {f"textpatch.{name}" for name in [*CORE, "audit", "errors", "kernels", "pipelines"]}
    for module in [name for name in CORE + ["audit"] if f"textpatch.{name}" in SOURCES]:
        for name in imports(f"textpatch.{module}"):
            assert name in allowed or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, (module, name)


def test_applications_take_any_pipeline():
    """Only the command line knows the models and the weights; the rest of the library is given a pipeline."""
    for module in [name for name in LIBRARY if name != "textpatch.cli.opening"]:
        assert not [name for name in imports(module) if name.startswith(tuple(OUTER))], module


def test_models_import_down_only():
    """Models import the core and themselves; nobody imports the CLI but the weights' own commands, nor its commands but the CLI."""
    allowed = {f"textpatch.{name}" for name in ["attention", "sites", "errors", "guidance", "plan"]}
    for module in SOURCES:
        ours = {name for name in imports(module) if name.startswith("textpatch.")}
        if module.startswith("textpatch.reference_models"):
            assert all(name in allowed or name.startswith("textpatch.reference_models") for name in ours), (
                module
            )
        if not module.startswith("textpatch.weights"):
            assert "textpatch.cli" not in ours, module
        assert "textpatch.cli.opening" not in ours or module == "textpatch.cli", module


def test_the_package_shows_its_names_and_version():
    """A fresh interpreter lists every public name and the version before any is used, and has imported no torch."""
    code = "import sys, textpatch as t; print(*dir(t)); print(t.__version__); print('torch' in sys.modules)"
    listed, told, torch = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert {*textpatch.__all__, "__version__", "__all__"} <= {*listed.split()}
    assert told == version("textpatch") and torch == "False"
    assert all(hasattr(textpatch, name) for name in listed.split())


APPLICATIONS = "trials localize edit heads starts contribution attribution report store disk commands cli".split()


def test_weights_need_no_application():
    """Weights, recipes and the shipped models' prompts stand below what is done with a pipeline."""
    applications = {f"textpatch.{name}" for name in APPLICATIONS}
    for module in SOURCES:
        if module.startswith("textpatch.weights"):
            assert not imports(module) & applications, module


def test_nobody_imports_what_we_do_without():
    """No diffusers, no torchvision, nothing that unpickles."""
    for module in SOURCES:
        assert not {name.split(".")[0] for name in imports(module)} & NEVER, module


SPEAKS = {
    "textpatch.cli.opening",
    "textpatch.weights.training.loop",
    "textpatch.weights.signs.evaluation",
}  # commands, and the training log


def test_the_library_is_quiet_and_says_why():
    """No print outside the commands, no assert, no bare except, no except that only passes."""
    for module, node in [(module, node) for module in SOURCES for node in ast.walk(tree(module))]:
        where = f"{module}:{getattr(node, 'lineno', '')}"
        assert not isinstance(node, ast.Assert), where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and not all(isinstance(line, ast.Pass) for line in node.body), where
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called != "print" or module in SPEAKS, where


def test_nothing_grows_too_large():
    """Functions of at most 60 lines, files of at most 450, a docstring at the top of every file."""
    for module, path in SOURCES.items():
        assert len(path.read_text().splitlines()) <= 450, module
        assert ast.get_docstring(tree(module)), module
        for node in ast.walk(tree(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"
