"""A user's script is typed: mypy finds no error in it, and every result has a type of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import textpatch
from support import documents

ROOT = documents.ROOT
SCRIPT = """
from textpatch import Pair, Plan, Row, Swap, capture, edit, load, localize, patch, sample

pipeline = load("tiny-mmdit")
pictures = pipeline.generate("a prompt", seeds=0)
found = localize(pipeline, [("a source", "a target")], seeds=[0, 1])
ranked = found.ranked
edited = edit(pipeline, "a source", "a target", sites=ranked[0], start=2)
rows = [Row("source", "one"), Row("target", "two"), Row("edited", "one")]
plan = Plan([Swap(sites=1, readers="edited", donor="target", steps=range(1, 8), heads=[0])])
made = sample(pipeline, rows, plan, steps=8)
with capture(pipeline.denoiser, "all", rows=["source", "target"]) as cache:
    pass
with patch(pipeline.denoiser, cache, [0, 1], rows=["target", None]):
    pass
"""
REVEALED = {
    "pipeline": "textpatch.reference_models.pipeline.Pipeline",
    "pictures": "list[PIL.Image.Image]",
    "found": "textpatch.localization.layers.Localization",
    "ranked": "list[tuple[int, ...]]",
    "edited": "textpatch.editing.result.Edit",
    "edited.image": "PIL.Image.Image",
    "edited.ledger": "textpatch.ledger.Ledger",
    "plan": "textpatch.plan.Plan",
    "plan.to_json()": "str",
    "made": "textpatch.sampling.Samples",
    "made.images": "dict[str, PIL.Image.Image]",
    "cache": "textpatch.cache.KVCache",
}
# At a prompt a name is used again for something else, and an empty dict has no annotation.
# No public name of ours has a type of the packages left out, and mypy would take a minute to read them, 7 of
# 17 seconds for torch's.
CONFIGURATION = """
[mypy]
allow_redefinition = True
allow_untyped_globals = True
follow_imports = silent
[mypy-diffusers.*,transformers.*,scipy.*,sympy.*,matplotlib.*,tqdm.*]
follow_imports = skip
[mypy-torch._dynamo.*,torch._inductor.*,torch._functorch.*,torch._subclasses.*,torch.ao.*,torch.distributed.*]
follow_imports = skip
[mypy-torch.export.*,torch._export.*,torch.fx.*,torch.jit.*,torch.onnx.*,torch.profiler.*,torch.testing.*]
follow_imports = skip
"""
WRONG = """
found.rank
edit(pipeline, "a source", target=1)
localize("tiny-mmdit", [])
pictures.save("a.png")
"""


def blocks(page: str) -> str:
    """All Python blocks of a page, as one reader would paste them into one session."""
    return "\n".join(body for language, body in documents.blocks(page) if language == "python")


def script_name(page: str) -> str:
    """The script that holds the blocks of a page, README or textpatch_ports_README."""
    return page.removesuffix(".md").replace("/", "_")


def installed(folder: Path) -> Path:
    """The package as an installation lays it out, with the two outer folders inside it."""
    package = folder / "textpatch"
    package.mkdir()
    for child in Path(textpatch.__file__).parent.iterdir():
        (package / child.name).symlink_to(child)
    for outer in ("reference_models", "weights"):
        (package / outer).symlink_to(ROOT / outer)
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list[str]]:
    """What mypy says of the scripts below, by file name: all in one run, since it reads torch each time."""
    scripts = tmp_path_factory.mktemp("scripts")
    reveals = "\n".join(f"reveal_type({name})" for name in REVEALED)
    written = {"script": SCRIPT, "reveals": SCRIPT + reveals, "wrong": SCRIPT + WRONG}
    written |= {script_name(page): blocks(page) for page in documents.PAGES}
    for name, source in written.items():
        (scripts / f"{name}.py").write_text(source, "utf-8")
    library = installed(tmp_path_factory.mktemp("library"))
    (library / "support").symlink_to(ROOT / "tests" / "support")  # which tests/README.md imports
    (scripts / "mypy.ini").write_text(CONFIGURATION, "utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *(f"{name}.py" for name in written)]
    done = subprocess.run(
        command, cwd=scripts, env={"MYPYPATH": str(library)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and not done.stderr, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return {name: [line for line in lines if line.startswith(f"{name}.py:")] for name in written}


def test_a_users_script_has_no_type_errors(said):
    """Loading, localising, editing, sampling and patching are called as their types say."""
    assert said["script"] == []


@pytest.mark.parametrize("name, type_", REVEALED.items())
def test_a_result_has_a_type(said, name, type_):
    """An editor knows what each call returns."""
    first = SCRIPT.count("\n") + 1
    line = first + list(REVEALED).index(name)
    assert said["reveals"][line - first] == (f'reveals.py:{line}: note: Revealed type is "{type_}"')


def test_wrong_use_is_noticed(said):
    """Errors are a misspelt attribute, a number for a prompt, a name for a pipeline, a list for a picture."""
    lines = {int(line.split(":")[1]) for line in said["wrong"] if ": error: " in line}
    first = SCRIPT.count("\n") + 2
    assert lines == set(range(first, first + WRONG.count("\n") - 1))


def test_the_pages_have_no_type_errors(said):
    """Neither have the Python blocks of any page."""
    assert "plant(" in blocks("tests/README.md")
    assert [line for page in documents.PAGES for line in said[script_name(page)]] == []
