"""Texts of strangers in a run name no file, and stay text wherever they are shown."""

import csv
import inspect
import io
import os
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.pages import POLICY, Page, parsed, plainly
from support.planting import plant
from support.results import a_result, html_of, quiet, records_of, tags_of
from textpatch import cli, disk, html
from textpatch import text as text_
from textpatch.cli import opening
from textpatch.disk import read_json
from textpatch.errors import PatchError, StoreError
from textpatch.exits import guarded
from textpatch.report.headline import answer
from textpatch.report.terminal import table
from textpatch.runs import tables
from textpatch.runs.folder import Run
from textpatch.runs.requests import flatten

# --- names

NAMES = [
    "",
    ".",
    "..",
    "../x",
    "../" * 99 + "etc/passwd",
    "/etc/passwd",
    "~/x",
    "~root",
    "a/b",
    "a\\b",
    "C:\\x",
    "C:x",
    "\\\\host\\share",
    "a\0b",
    "\0",
    "a\nb",
    "\r\n",
    "\t",
    " ",
    "a ",
    "a.",
    ".hidden",
    "-rf",
    "--out",
    "*",
    "?",
    "$HOME",
    "$(touch x)",
    "`touch x`",
    "a;b",
    "a|b",
    "CON",
    "con",
    "NUL.txt",
    "COM1",
    "LPT9.png",
    "aux",
    "x" * 255,
    "x" * 256,
    "x" * 10_000,
    "\u202etxt.exe",
    "\u2066a\u2069",
    "e\u0301",
    "é",
    "a" + "\u0301" * 300,
    "Straße",
    "STRASSE",
    "straße",
    "ﬁ",
    "fi",
    "FI",
    "İ",
    "i̇",
    "ı",
    "K",
    "K",
    "k",
    "\ud800",
    "\U0010ffff",
    "\ufeffa",
    "a\u200bb",
    "a\u2028b",
    "😀",
    "%2e%2e%2f",
    "..%c0%af",
    "manifest.json",
    "records",
    "images",
    "results.json",
    "0.jsonl",
    "\x1b[2J",
]
ALLOWED = re.compile(
    r"generate-small-[0-9a-f]{8}"
    r"(/(manifest\.json|results\.json|records|records/0\.jsonl|images|images/[0-9a-f]{16}\.png))?"
)
PIPELINE = SimpleNamespace(name="small")
# only the digest of the model's file is asked for
OPTIONS = cli.command_parser().parse_args(["generate", __file__, "a prompt"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder in which a command was given, beside one that must stay empty."""
    return tmp_path_factory.mktemp("names") / "here"


def kept(root: Path, text: str) -> Path:
    """The run folder of a prompt as the command line chooses it, with all files that come from the prompt."""
    with pytest.MonkeyPatch.context() as patch:
        root.mkdir(exist_ok=True)
        patch.chdir(root)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(opening, "versions", dict)
        OPTIONS.command_line = f"textpatch generate small {text}"
        run = opening.open_run(OPTIONS, PIPELINE, {"command": "generate", "prompts": [text]})
        picture = Image.frombytes(
            "RGB", (4, 4), text.encode("utf-8", "surrogatepass").ljust(48)[:48]
        )
        run.append({"id": text, "picture": run.image(picture)})
        run.write_json("results.json", {"prompt": text})
        return root / run.folder


def every(examples):
    """Each text an example, before hypothesis looks for others."""

    def decorate(test):
        for text in examples:
            test = example(text)(test)
        return test

    return decorate


SEEN: dict[str, str] = {}


@every(NAMES)
@settings(max_examples=60)
@given(st.text(st.characters()))
def test_no_name_is_made_of_a_prompt(root, text):
    """Texts as prompts leave no trace in any name.

    Each has a folder of its own, also where a disk does not tell capitals from small letters.  All names
    below are hashes or our own.  The text itself is in the files, unchanged.
    """
    folder = kept(root, text)
    assert SEEN.setdefault(folder.name.casefold(), text) == text
    assert folder.parent == root / "runs"
    found = [path.relative_to(root / "runs").as_posix() for path in [folder, *folder.rglob("*")]]
    assert len(found) == 7
    assert [name for name in found if not ALLOWED.fullmatch(name)] == []
    assert [path.name for path in root.parent.iterdir()] == ["here"]
    assert [path.name for path in root.iterdir()] == ["runs"]
    assert Run.load(folder).manifest["request"]["prompts"] == [text]
    assert read_json(folder / "results.json")["prompt"] == text


@every(NAMES)
@settings(max_examples=40)
@given(st.text(st.characters()) | st.text(st.sampled_from("./\\-_aA:~\0\n ")))
def test_a_text_for_a_name_is_refused_or_inside(tmp_path_factory, text):
    """A file or a worker named by a text is a StoreError, or has a plain name inside the folder.

    It takes no name that means something in a run folder.
    """
    folder = tmp_path_factory.mktemp("n") / "run"
    run = Run.open(folder, {"request": 1})
    before = sorted(folder.parent.rglob("*"))
    try:
        path = run.write_bytes(text, b"x")
    except StoreError as error:
        assert sorted(folder.parent.rglob("*")) == before
        assert "\n" not in str(error)
        assert len(str(error)) < 4 * len(text) + 300
    else:
        assert re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", text, re.ASCII)
        assert path.resolve() == (folder / text).resolve()
        assert path.read_bytes() == b"x"
        assert text.split("/")[0].lower() not in ("manifest.json", "records", "images")
    try:
        Run(folder, {}, worker=text)
    except StoreError:
        return
    assert re.fullmatch(r"[\w-]{1,64}", text, re.ASCII)


def test_planted_a_folder_named_by_its_prompt_is_noticed(root, monkeypatch):
    """Fault: the folder's name holds the prompt, or no more than its letters without their case."""
    without_case = "hashlib.sha256(request['prompts'][0].casefold().encode()).hexdigest()[:8]"
    for name in ("{request['prompts'][0]}", f"{{{without_case}}}"):
        with monkeypatch.context() as faulty:
            plant(faulty, opening, "folder_of", "{digest}", name)
            with pytest.raises((AssertionError, StoreError)):
                for text in ("K", "k", "a b"):
                    test_no_name_is_made_of_a_prompt.hypothesis.inner_test(root, text)


# --- payloads

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<ScRiPt src=//evil.invalid/x.js>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</td></tr></table><h1>x</h1>",
    "</code></pre></details>",
    "<img src=x onerror=alert(1)>",
    "<img src=http://evil.invalid/x.png>",
    "<svg onload=alert(1)>",
    "<svg><use href=//evil.invalid/x#a></svg>",
    "<iframe src=//evil.invalid>",
    "<object data=//evil.invalid>",
    "<embed src=//evil.invalid>",
    "<base href=//evil.invalid>",
    "<link rel=stylesheet href=//evil.invalid>",
    "<meta http-equiv=refresh content=0;url=//evil.invalid>",
    "<form action=//evil.invalid><input name=x>",
    "<style>*{display:none}</style>",
    "<!-- ",
    "--><script>alert(1)</script>",
    "<![CDATA[",
    "<?xml?>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '"><b>x</b>',
    "'><b>x</b>",
    "` onerror=alert(1) `",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "&#60;script&#62;",
    "&amp;amp;",
    "{title}{body}{0}",
    "%s%n%(x)s",
    "${x}{{x}}",
    "=cmd|'/C calc'!A0",
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    '=HYPERLINK("http://evil.invalid")',
    '"=1+1',
    ",=1+1",
    'x",=1+1,"',
    "x\n=1+1",
    ";=1+1",
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.invalid\x1b\\x",
    "\x9b31m",
    "a\rb",
    "a\nb",
    "a\u2028b\u2029c",
    "a\x85b",
    "a\0b",
    "\x08\x7f",
    "\u202eevil\u202c",
    "\u2066a\u2069",
    "\ufeffa\u200bb",
    "\ud800",
    "\N{COMBINING LONG STROKE OVERLAY}" * 99,
    "$\\frac{$\\input{/etc/passwd}",
]
HARMLESS = "a sign"


def test_there_are_enough_payloads():
    """60 at least, all different."""
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 60


def page_of(text: str) -> str:
    """The report of a run in which every text that can be somebody else's is this one."""
    asked = a_result(text=text)
    manifest = {
        "command": f"x{text}",
        "request": {"prompts": [text], text: text},
        "versions": {text: text},
    }
    return html_of(asked, manifest, sheet=records_of(asked, text))


@cache
def harmless_tags() -> tuple:
    """Tags and attributes of the page about a harmless text."""
    page = page_of(HARMLESS)
    return tags_of(page), attributes_of(page)


@pytest.mark.parametrize("text", PAYLOADS)
def test_a_payload_stays_text_in_the_report(text):
    """The page has the tags, attributes and policy of a harmless one, and the text is there to be read."""
    page = page_of(text)
    assert (tags_of(page), attributes_of(page)) == harmless_tags()
    assert quiet(page)
    assert page.count(POLICY) == 1
    assert page.index(POLICY) < page.index("<title>")
    assert parsed(page, None)["outside"] == []
    assert plainly(text) in Page(page).root.text
    assert page.encode()  # half a character would not go into a file


def attributes_of(page: str) -> list[list[str]]:
    """Names of the attributes of every element."""
    return [sorted(node.attributes) for node in Page(page).root.all()]


@pytest.mark.parametrize("text", PAYLOADS)
def test_a_payload_stays_text_in_files(text, tmp_path):
    """JSON comes back equal from plain ASCII: results, manifest and records."""
    run = Run.open(tmp_path / "run", {"request": {"prompts": [text]}, "command": text})
    run.append({"id": text, "read": text})
    path = run.write_json("results.json", {text: [text]})
    assert read_json(path) == {text: [text]} and run.records() == [{"id": text, "read": text}]
    for written in (path, run.folder / "manifest.json", run.folder / "records/0.jsonl"):
        assert re.fullmatch(rb"[\n -~]*", written.read_bytes())


def inert(text: str) -> str:
    """The cell of a text, behind an apostrophe if it would be run.

    Half characters are escapes, and there is one kind of line end.
    """
    text = text.encode("utf-8", "backslashreplace").decode().replace("\r", "\n")
    if text[0] in "=+-@\t\n":
        return "'" + text
    return text


def cells_of(run: Run, rows: list[dict]) -> list[list[str]]:
    """The lines of a CSV as a spreadsheet reads them, to which a bare carriage return ends a line, too."""
    data = run.write_csv("results.csv", rows).read_bytes().decode()
    zero = "\N{SYMBOL FOR NULL}"  # Python 3.10's reader takes no zeros
    return [
        [cell.replace(zero, "\0") for cell in line]
        for line in csv.reader(io.StringIO(data.replace("\0", zero), newline=""))
    ]


@pytest.mark.parametrize("text", PAYLOADS)
def test_a_payload_stays_text_in_a_table(text, tmp_path):
    """Cells and titles of a CSV come back, those that a spreadsheet would run behind an apostrophe."""
    run = Run.open(tmp_path / "run", {"request": 1})
    row = {"site": text, text: f"{text} end", "f1": -0.5, **flatten({"at": {text: text}})}
    title = f"at.{text}"
    wanted = [
        ["site", inert(text), "f1", inert(title)],
        [inert(text), inert(f"{text} end"), "-0.5", inert(text)],
    ]
    assert cells_of(run, [row, row]) == [*wanted, wanted[1]]


@pytest.mark.parametrize("text", PAYLOADS)
def test_a_payload_stays_text_in_the_terminal(text, capfd):
    """Table and answer have as many lines as for a harmless text, all printable.  An error is one line."""
    asked = a_result(text=text)
    harmless = a_result(text=HARMLESS)
    for made in (table, answer):
        lines = made(asked).split("\n")
        assert len(lines) == made(harmless).count("\n") + 1
        assert all(line.isprintable() for line in lines)
    assert max(map(len, table(asked, 80).split("\n"))) <= 80

    def work():
        raise PatchError(f"no model {text}; closest: {text}")

    assert guarded(work) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("textpatch: no model ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()


FAULTS = {
    "HTML is not escaped": (
        html,
        "safe",
        "html.escape(plain(text))",
        "plain(text)",
        test_a_payload_stays_text_in_the_report,
        "<!-- ",
    ),
    "quotes are not escaped": (
        html,
        "safe",
        "html.escape(plain(text))",
        "html.escape(plain(text), quote=False)",
        test_a_payload_stays_text_in_the_report,
        '"><b>x</b>',
    ),
    "a policy that allows pictures": (
        html,
        "page",
        "style=STYLE, body=body)",
        'style=STYLE, body=body).replace("img-src data:", "img-src *")',
        test_a_payload_stays_text_in_the_report,
        "%s%n%(x)s",
    ),
    "letters beyond ASCII": (
        disk,
        "as_json",
        'indent=indent).encode("ascii")',
        'indent=indent, ensure_ascii=False).encode("utf-8", "replace")',
        test_a_payload_stays_text_in_files,
        "a\u2028b\u2029c",
    ),
    "formulas": (
        tables,
        "_cell",
        '"\'" + text',
        "text",
        test_a_payload_stays_text_in_a_table,
        "=1+1",
    ),
    "carriage returns": (
        tables,
        "_cell",
        '.replace("\\r", "\\n")',
        "",
        test_a_payload_stays_text_in_a_table,
        "a\rb",
    ),
    "a formula of a function": (
        tables,
        "_cell",
        "=+-@",
        "=+-",
        test_a_payload_stays_text_in_a_table,
        "@SUM(A1)",
    ),
    "escapes in a table": (
        text_,
        "plain",
        "if c.isprintable()",
        "if True",
        test_a_payload_stays_text_in_the_terminal,
        "\x1b[2J\x1b[H",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, tmp_path, capfd, monkeypatch):
    """What is tested above does not hold with the fault in place."""
    owner, name, old, new, check, text = FAULTS[fault]
    plant(monkeypatch, owner, name, old, new)
    fixtures = {"tmp_path": tmp_path, "capfd": capfd}
    asked = inspect.signature(check).parameters
    given = {name: value for name, value in fixtures.items() if name in asked}
    with pytest.raises(AssertionError):
        check(text, **given)
