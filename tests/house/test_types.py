"""A user's script is typed: mypy finds its mistakes and nothing else, and every result has a type.

`make lint` runs this file, so that the tests do without: mypy takes ten seconds to read torch.
"""

import subprocess
import sys

import pytest

from support import documents, user_scripts

pytestmark = pytest.mark.long
ROOT = documents.ROOT
SCRIPTS = user_scripts.SCRIPTS
SCRIPT = """
from textpatch import Plan, Row, capture, edit, load, localize, sample

pipeline = load("tiny-mmdit")
pictures = pipeline.generate("a prompt", seeds=0)
found = localize(pipeline, [("a source", "a target")])
ranked = found.ranked
edited = edit(pipeline, "a source", "a target")
plan = Plan()
made = sample(pipeline, [Row("source", "one")], plan)
with capture(pipeline.denoiser, "all", rows=["source"]) as cache:
    pass
"""
MARK = "# type: ignore"
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
# Scripts are held to `mypy --strict`, the blocks of pages are not: at a prompt a name is used again for
# something else, and functions are not annotated.
# No public name of ours has a type of the packages left out, and mypy would take a minute to read them, 7 of
# 17 seconds for torch's.
CONFIGURATION = """
[mypy]
strict = True
follow_imports = silent
[mypy-diffusers.*,transformers.*,scipy.*,sympy.*,matplotlib.*,tqdm.*]
follow_imports = skip
[mypy-torch._dynamo.*,torch._inductor.*,torch._functorch.*,torch._subclasses.*,torch.ao.*,torch.distributed.*]
follow_imports = skip
[mypy-torch.export.*,torch._export.*,torch.fx.*,torch.jit.*,torch.onnx.*,torch.profiler.*,torch.testing.*]
follow_imports = skip
[mypy-%s]
allow_redefinition = True
allow_untyped_globals = True
disallow_any_generics = False
disallow_untyped_calls = False
disallow_untyped_defs = False
disallow_incomplete_defs = False
"""


def blocks(page: str) -> str:
    """All Python blocks of a page, as one reader would paste them into one session."""
    return "\n".join(body for language, body in documents.blocks(page) if language == "python")


def script_name(page: str) -> str:
    """The script that holds the blocks of a page, README or textpatch_ports_README."""
    return page.removesuffix(".md").replace("/", "_")


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list[str]]:
    """What mypy says of the scripts below, by file name: all in one run, since it reads torch each time."""
    scripts = tmp_path_factory.mktemp("scripts")
    pages = {script_name(page): blocks(page) for page in documents.PAGES}
    written = {path.stem: path.read_text("utf-8") for path in SCRIPTS.glob("*.py")} | pages
    written["reveals"] = SCRIPT + "\n".join(f"reveal_type({name})" for name in REVEALED)
    written["unneeded"] = f"{SCRIPT}plan.to_json()  {MARK}[attr-defined]\n"
    for name, source in written.items():
        (scripts / f"{name}.py").write_text(source, "utf-8")
    library = user_scripts.installed(tmp_path_factory.mktemp("library"))
    (library / "support").symlink_to(ROOT / "tests" / "support")  # which tests/README.md imports
    (scripts / "mypy.ini").write_text(CONFIGURATION % ",".join(pages), "utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *(f"{name}.py" for name in written)]
    done = subprocess.run(
        command, cwd=scripts, env={"MYPYPATH": str(library)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and not done.stderr, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return {name: [line for line in lines if line.startswith(f"{name}.py:")] for name in written}


def test_a_users_script_has_no_type_errors(said):
    """Each kind of use is called as its types say."""
    assert said["right"] == []


def test_mistakes_are_found(said):
    """Each of more than twenty is an error, so that each mark on them is needed."""
    assert (SCRIPTS / "wrong.py").read_text("utf-8").count(MARK) > 20
    assert said["wrong"] == []


def test_an_unneeded_mark_is_noticed(said):
    """Fault: a mark on a line without a mistake."""
    (line,) = said["unneeded"]
    assert "[unused-ignore]" in line


@pytest.mark.parametrize("name, type_", REVEALED.items())
def test_a_result_has_a_type(said, name, type_):
    """An editor knows what each call returns."""
    first = SCRIPT.count("\n") + 1
    line = first + list(REVEALED).index(name)
    assert said["reveals"][line - first] == (f'reveals.py:{line}: note: Revealed type is "{type_}"')


def test_the_pages_have_no_type_errors(said):
    """Neither have the Python blocks of any page."""
    assert "plant(" in blocks("tests/README.md")
    assert [line for page in documents.PAGES for line in said[script_name(page)]] == []
