"""Every public function says what it takes and gives, exactly: neither Any nor a container of anything."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import textpatch

# what scripts import, or are given by what they import
PUBLIC = {f"textpatch.{home}": names for home, names in textpatch._HOMES.items()} | {
    "textpatch.auditing.replay": "AuditReport Check audit",
    "textpatch.editing.comparing": "Comparison compare",
    "textpatch.foreign.drawn": "Draw Wrapped",
    "textpatch.guidance": (
        "ClassifierFree Embedded Guidance Moment SafeLatentDiffusion as_guidance with_guidance"
    ),
    "textpatch.ledger": "Entry Ledger",
    "textpatch.metrics": (
        "Agreement CLIP Called Line Nearest Normaliser PPOCR Reader Reading Tesseract background_scores "
        "best_line bootstrap cer chance_f1 chance_level characters compared edit_distance exact f1 "
        "f1_of_means mse neighbours_of psnr "
        "reader_named sample_f1 scores_of_readings ssim wilson word_accuracy"
    ),
    "textpatch.reference_models.layers": "Denoiser TextCondition",
    "textpatch.reference_models.pipeline": "Pipeline",
    "textpatch.safety.detection": "AnyOf Detector Finding",
    "textpatch.safety.word_lists": "WordList",
    "textpatch.sites": "Site Sites Span Tap select_sites",
    "textpatch.stored": "ComparisonResult EachWord LocalizationResult ReadingScores Record SiteScores",
    "textpatch.testing.port": "Heard Port",
}
SOURCES: dict[str, str] = {}  # of modules that are not there, for a fault
BARE = set("Callable Iterable Iterator Mapping Sequence dict frozenset list set tuple type".split())


@cache
def source_of(module: str) -> ast.Module:
    """Source of a module as a tree."""
    if module in SOURCES:
        return ast.parse(SOURCES[module])
    return ast.parse(Path(importlib.util.find_spec(module).origin).read_text("utf-8"))


def definitions(module: str, name: str) -> list[tuple[str, ast.AST]]:
    """Modules and nodes where a name is defined, found along imports.  A function of forms has several."""
    tree = source_of(module)
    kinds = ast.FunctionDef, ast.ClassDef
    found = [node for node in tree.body if isinstance(node, kinds) and node.name == name]
    if found:
        return [(module, node) for node in found]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return definitions(node.module, name)
    raise AssertionError(f"{module} has no {name}")


def functions(body: list[ast.AST], name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions of a body, by name.  Of one of several forms, these forms."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{name}.{node.name}")
        elif isinstance(node, ast.FunctionDef) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            forms = [one for one in body if getattr(one, "name", "") == node.name]
            if node is not forms[-1] or len(forms) == 1 or _is_property(node):
                yield f"{name}.{node.name}", node


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(one, ast.Attribute) for one in node.decorator_list)


def is_vague(annotation: ast.AST, module: str = "", seen: tuple[str, ...] = ()) -> bool:
    """True for Any, for a container that does not say of what, and for an alias of such a type.

    module  where the names of the annotation are known
    seen    aliases that were looked at, as one may name itself
    """
    quoted = [node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant)]
    if any(is_vague(ast.parse(text), module, seen) for text in quoted if isinstance(text, str)):
        return True
    told = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
    names = [node for node in ast.walk(annotation) if isinstance(node, ast.Name)]
    if any(name.id == "Any" or (name.id in BARE and id(name) not in told) for name in names):
        return True
    for name in {name.id for name in names} - {*seen}:
        home, meant = alias(module, name)
        if meant is not None and is_vague(meant, home, (*seen, name)):
            return True
    return False


@cache
def alias(module: str, name: str) -> tuple[str, ast.AST | None]:
    """Where an alias of a type is made, found along imports, and of what, None for any other name."""
    if not module.startswith("textpatch"):
        return module, None
    for node in ast.walk(source_of(module)):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            if ast.unparse(node.annotation).endswith("TypeAlias"):
                return module, node.value
            return module, None
        if isinstance(node, ast.ImportFrom) and name in [one.name for one in node.names]:
            return alias(node.module, name)
    return module, None


def gaps(body: list[ast.AST], module: str) -> list[str]:
    """Arguments, results and fields that have no type, or a vague one."""
    found = []
    for name, node in functions(body, module):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [one for one in (node.args.vararg, node.args.kwarg) if one]
        types = {one.arg: one.annotation for one in arguments if one.arg not in ("self", "cls")}
        types["what it gives"] = node.returns
        found += [
            f"{name}: {what}"
            for what, type_ in types.items()
            if not type_ or is_vague(type_, module)
        ]
    fields = [one for node in body if isinstance(node, ast.ClassDef) for one in node.body]
    found += [
        f"{module}: {ast.unparse(one)}"
        for one in fields
        if isinstance(one, ast.AnnAssign) and is_vague(one.annotation, module)
    ]
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_typed(module):
    """Functions, and the methods and fields of classes."""
    found = [place for name in PUBLIC[module].split() for place in definitions(module, name)]
    assert [gap for home, node in found for gap in gaps([node], home)] == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(x) -> int: ...",
        "def f(x: int): ...",
        "def f(x: Any) -> int: ...",
        "def f(*x: list[Any]) -> int: ...",
        "def f(*, x: dict) -> int: ...",
        "def f() -> Callable: ...",
        "class A:\n    x: list",
        "class A:\n    def f(self, x: int | dict) -> int: ...",
    ],
)
def test_a_gap_is_noticed(source):
    """Faults: no type, Any, and containers of anything."""
    assert len(gaps(ast.parse(source).body, "m")) == 1


def test_an_alias_of_anything_is_noticed(monkeypatch):
    """Fault: a name for a dict of anything.  An alias that names itself ends."""
    told = {"textpatch.x": "from textpatch.y import A", "textpatch.y": "A: TypeAlias = list[B]"}
    told["textpatch.y"] += "\nB: TypeAlias = 'dict[str, A | B | Any]'"
    for name, source in told.items():
        monkeypatch.setitem(SOURCES, name, source)
    asked = ast.parse("def f(x: A) -> int: ...").body
    assert gaps(asked, "textpatch.x") == ["textpatch.x.f: x"]
    alias.cache_clear()
    source_of.cache_clear()
    monkeypatch.setitem(SOURCES, "textpatch.y", told["textpatch.y"].replace("Any", "int"))
    assert gaps(asked, "textpatch.x") == []


def test_exact_types_have_no_gap():
    """Containers that say of what are no gap."""
    source = "class A:\n    x: list[int]\n    def f(self, x: type[int]) -> dict[str, tuple[int, ...]]: ..."
    assert gaps(ast.parse(source).body, "m") == []
