"""The house of the design, held by parsing the sources: who imports whom, names, sizes."""

import ast
import functools
import importlib
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

import textpatch
from textpatch.weights.loading import SHIPPED

ROOT = Path(textpatch.__file__).parent
OUTER = {
    "textpatch.reference_models": SHIPPED.parent / "reference_models",
    "textpatch.weights": SHIPPED,
}
# The house from top to bottom: a room imports from its own layer and from those below it.
LAYERS = [
    ["__main__"],
    ["cli", "examples"],
    ["weights"],
    ["maps", "safety"],
    ["editing"],
    ["localization"],
    ["tuning", "auditing", "testing"],
    ["report"],
    ["groups"],
    ["prompts", "runs"],
    ["metrics"],
    ["foreign", "sampling"],
    ["lockstep", "packing"],
    ["checks", "swapping"],
    ["reading"],
    ["bookkeeping", "ledger", "patching", "reads", "recording"],
    ["attending", "branches", "taps"],
    ["cache", "calls", "reference_models"],
    ["bank"],
    ["masks"],
    ["pipelines"],
    ["guidance"],
    ["safe_guidance"],
    ["classifier_free"],
    ["plan"],
    ["explaining"],
    ["rows", "swaps", "windows"],
    ["ports"],
    ["sites"],
    ["anatomy", "attention", "changes", "hooks"],
    ["kernels", "shapes", "slots", "softmax"],
    ["devices", "disk", "equality", "exits", "html", "memory", "pictures", "progress", "sounds"],
    ["finite", "quotes", "seeds", "stored", "text"],
    ["errors"],
]
CORE = (
    "anatomy attending attention bank bookkeeping branches cache calls changes checks classifier_free "
    "equality explaining finite guidance hooks ledger masks packing patching plan reads recording rows "
    "reading safe_guidance seeds shapes sites slots softmax swapping swaps taps windows"
).split()
NEVER = {"diffusers", "torchvision", "pickle", "dill", "joblib"}
TALKERS = {"cli", "examples"}
# beside the command line
SPEAKS = {"textpatch.weights.training.loop", "textpatch.weights.signs.evaluation"}


def modules(package: str, folder: Path) -> dict[str, Path]:
    """Full name -> file of all modules below a package."""
    paths = {path.relative_to(folder).with_suffix("").parts: path for path in folder.rglob("*.py")}
    return {
        ".".join([package, *parts]).removesuffix(".__init__"): path for parts, path in paths.items()
    }


LIBRARY = modules("textpatch", ROOT)
SOURCES = LIBRARY | {
    name: path for outer in OUTER.items() for name, path in modules(*outer).items()
}


def parsed(name: str) -> ast.Module:
    """Source of a module as a tree.   It is parsed anew each time, as trees are large."""
    return ast.parse(SOURCES[name].read_text("utf-8"))


@functools.cache
def imports(name: str) -> set[str]:
    """Full names of all modules a source file imports, inside functions too."""
    found = set()
    package = name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            module = ".".join([*above, *([node.module] if node.module else [])])
            full = {f"{module}.{alias.name}": module for alias in node.names}
            found |= {deep if deep in SOURCES else shallow for deep, shallow in full.items()}
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Full name of each module -> the library's modules that it imports."""
    return {name: (imports(name) & SOURCES.keys()) - {name} for name in SOURCES}


def room(module: str) -> str:
    """The room of a module: `plan` of textpatch.plan, `cli` of textpatch.cli.parser."""
    return [*module.split("."), ""][1]


def layer(module: str) -> int:
    """How deep a module lies, 0 at the top."""
    (found,) = [depth for depth, rooms in enumerate(LAYERS) if room(module) in rooms]
    return found


def circle(start: str) -> list[str]:
    """A way along imports from a module back to it; [] if there is none."""
    ways = [[start, other] for other in graph()[start]]
    seen = set()
    while ways:
        way = ways.pop()
        if way[-1] == start:
            return way
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [[*way, other] for other in graph()[way[-1]]]
    return []


def above(imported: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(module, what it imports from a layer above its own)."""
    inner = [name for name in imported if name != "textpatch"]
    return [
        (name, other)
        for name in inner
        for other in imported[name]
        if other != "textpatch" and layer(other) < layer(name)
    ]


def test_all_sources_are_looked_at():
    """The laws below are about files that exist, and every room has its place in the house."""
    rooms = {room(name) for name in SOURCES if name != "textpatch"}
    placed = [name for layer in LAYERS for name in layer]
    assert len(SOURCES) > 100 and rooms <= {*placed} and len(placed) == len({*placed})


def test_imports_form_no_circle():
    """No module is reached from itself along imports, those inside functions included."""
    assert [way for way in map(circle, SOURCES) if way] == []


def test_imports_point_down():
    """A module imports from its own layer or from those below it."""
    assert above(graph()) == []


@pytest.mark.parametrize(
    "module, other",
    [("textpatch.sites", "textpatch.plan"), ("textpatch.weights.fill", "textpatch.cli")],
)
def test_an_import_upwards_is_seen(module, other):
    """One import more, from above, is found."""
    assert above(graph() | {module: graph()[module] | {other}}) == [(module, other)]


def test_the_core_needs_torch_alone():
    """Core modules and the audit's replay import torch, the standard library, errors, text and each other."""
    allowed = {*CORE, "errors", "html", "kernels", "pipelines", "ports", "text"}
    core = [name for name in SOURCES if room(name) in (*CORE, "ports")]
    for module in [*core, "textpatch.auditing.replay"]:
        for name in imports(module):
            ours = name.startswith("textpatch.") and room(name) in allowed
            assert ours or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, (
                f"{module} imports {name}"
            )


def also_loaded(*groups: list[str]) -> list[str]:
    """What a fresh interpreter loads for each group of modules, one after the other.

    Left out are torch, what comes with torch, and textpatch.
    """
    code = """if True:
        import importlib, sys, torch
        before = {name.split(".")[0] for name in sys.modules}
        for group in sys.argv[1:]:
            for name in group.split():
                importlib.import_module(name)
            after = {name.split(".")[0] for name in sys.modules}
            print(*sorted(after - before - {"textpatch", *sys.stdlib_module_names}))
            before |= after
    """
    words = [" ".join(group) for group in groups]
    return subprocess.check_output([sys.executable, "-c", code, *words], text=True).splitlines()


def test_the_core_loads_torch_alone():
    """Importing all of the core, the tables of ports and the sampler loads torch and the standard library.

    `pictures`, which is no part of it, loads PIL, and that is noticed.
    """
    rooms = (*CORE, "lockstep", "pipelines", "ports", "sampling")
    core = [name for name in LIBRARY if room(name) in rooms]
    assert also_loaded(core, ["textpatch.pictures"]) == ["", "PIL"]


def untyped(files: str) -> set[str]:
    """Flat modules of the library, the core among them, that a list of mypy's files leaves out."""
    named = {name.strip() for name in files.split(",")}
    return {path.name for path in ROOT.glob("*.py") if f"textpatch/{path.name}" not in named}


def test_mypy_checks_the_core():
    """Every flat module stands in setup.cfg's list of files, and the modules of the core are of these."""
    settings = ConfigParser()
    settings.read(SHIPPED.parent / "setup.cfg")
    files = settings["mypy"]["files"]
    assert untyped(files) == set()
    assert {f"{name}.py" for name in (*CORE, "lockstep", "pipelines", "sampling")} <= untyped("")
    assert untyped(files.replace("textpatch/swaps.py,", "")) == {"swaps.py"}


def test_applications_take_any_pipeline():
    """Only the command line knows the models and the weights; the rest of the library is given a pipeline."""
    for module in LIBRARY:
        if room(module) != "cli":
            assert not [name for name in imports(module) if name.startswith(tuple(OUTER))], module


def test_models_are_read_alone():
    """A model imports the ground floor, attention, sites, guidance, what is asked of it, its neighbours."""
    allowed = {
        "attention",
        "devices",
        "errors",
        "finite",
        "guidance",
        "html",
        "memory",
        "pictures",
        "pipelines",
        "plan",
        "quotes",
        "reference_models",
        "seeds",
        "sites",
        "text",
    }
    for module in SOURCES:
        if room(module) == "reference_models":
            assert {room(name) for name in graph()[module]} <= allowed, module


def test_no_module_bears_a_public_name():
    """`import textpatch.X` never puts a module in the place of a function, public or the module's own."""
    for module in SOURCES:
        base = module.rpartition(".")[2]
        assert base not in textpatch.__all__, module
        own = {
            node.name
            for node in parsed(module).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        # a kernel's file and the function in it are asked for by one name
        assert base not in own or room(module) == "kernels", module


@pytest.mark.parametrize("name", textpatch.__all__)
def test_a_public_name_is_what_it_is_after_any_import(name):
    """With every module of its wing imported, a public name is still the object that its home defines."""
    found = getattr(textpatch, name)
    importlib.import_module(found.__module__)
    assert (
        getattr(textpatch, name) is found and getattr(sys.modules[found.__module__], name) is found
    )


def test_tools_see_the_public_names():
    """The stub lists each public name with the home that the package gives it."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text("utf-8"))
    listed = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert listed == {name: f"textpatch.{home}" for name, home in textpatch._HOME_OF.items()}
    assert (ROOT / "py.typed").exists()


def test_the_package_shows_its_names_and_version():
    """A fresh interpreter lists every public name and the version, and has imported no torch."""
    code = "import sys, textpatch as t; print(*dir(t)); print(t.__version__); print('torch' in sys.modules)"
    listed, told, torch = subprocess.check_output(
        [sys.executable, "-c", code], text=True
    ).splitlines()
    assert {*textpatch.__all__, "__version__", "__all__"} <= {*listed.split()}
    assert told == version("textpatch") and torch == "False"
    assert all(hasattr(textpatch, name) for name in listed.split())


def test_nobody_imports_what_we_do_without():
    """No diffusers, no torchvision, nothing that unpickles."""
    for module in SOURCES:
        assert not {name.split(".")[0] for name in imports(module)} & NEVER, module


def test_the_library_is_quiet_and_says_why():
    """No print outside commands and examples, no assert, no bare except, no except that only passes."""
    for module in SOURCES:
        tree = parsed(module)
        for node in ast.walk(tree):
            where = f"{module}:{getattr(node, 'lineno', '')}"
            assert not isinstance(node, ast.Assert), where
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None and not all(
                    isinstance(line, ast.Pass) for line in node.body
                ), where
            called = (
                node.func.id
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                else ""
            )
            assert called != "print" or module in SPEAKS or room(module) in TALKERS, where


def most_lines(module: str) -> int:
    """How long a file may be: of the core 400 lines, of a model 500, any other 450."""
    limits = {name: 400 for name in CORE} | {"reference_models": 500}
    return limits.get(room(module), 450)


def test_nothing_grows_too_large():
    """Functions of at most 60 lines, files as `most_lines` says, a docstring at the top of every file."""
    for module in SOURCES:
        tree = parsed(module)
        assert len(SOURCES[module].read_text("utf-8").splitlines()) <= most_lines(module), module
        assert ast.get_docstring(tree), module
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"
