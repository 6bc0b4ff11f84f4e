"""Laws of the run folder: a kill costs at most the line being written, and nothing is ever silently wrong."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.laws_of_runs import (
    REQUEST,
    law_another_request_is_refused,
    law_damage_is_left_out_and_named,
    law_the_same_request_resumes,
    lines_of,
)
from support.planting import plant
from textpatch import disk
from textpatch.disk import read_json
from textpatch.errors import StoreError
from textpatch.metrics import reader_named
from textpatch.runs import manifests as store
from textpatch.runs import requests
from textpatch.runs.folder import Run
from textpatch.runs.requests import flatten

texts = st.text(st.characters(), max_size=20)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
laws = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

WRITER = """
import sys
from textpatch.runs.folder import Run
run = Run.open(sys.argv[1], {"request": 1})
for n in range(len(run.done()), 10**9):
    run.append({"id": str(n), "noise": "x" * 200_000})
    run.write_text("results.json", "y" * 100_000)
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def run(tmp_path):
    return Run.open(tmp_path / "run", REQUEST)


def leftovers(folder: Path) -> list:
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp")]


def kill_writer(folder, after: float) -> list[str]:
    """Start a writer, SIGKILL it mid-work, and return the ids it said were stored."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first = writer.stdout.readline()
    time.sleep(after)
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0]
    return (first + rest).splitlines()


def test_sigkill_costs_at_most_the_torn_line(tmp_path):
    """What append has returned from survives every SIGKILL, in order, without duplicates or leftovers."""
    dice, folder, said = random.Random(0), tmp_path / "run", []
    for _ in range(8):
        said += kill_writer(folder, dice.uniform(0, 0.03))
        ids = [record["id"] for record in Run.open(folder, {"request": 1}).records()]
        assert ids == [str(n) for n in range(len(ids))]
        assert set(said) <= set(ids) and len(set(said)) == len(said)
        assert set((folder / "results.json").read_text()) <= {"y"}
        assert not leftovers(folder)


def test_a_torn_last_line_is_dropped_then_cut(run):
    """Every prefix of the last line is left out on reading, and is gone after the next append."""
    run.append({"id": "a"})
    run.append({"id": "b", "value": 0.1})
    whole = lines_of(run).read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        lines_of(run).write_bytes(whole[:cut])
        assert run.done() == {"a"}
        run.append({"id": "b", "value": 0.1})
        assert lines_of(run).read_bytes() == whole


def test_planted_an_append_without_repair_is_noticed(run):
    """Fault: writing straight behind a torn line. It must not pass for a good file."""
    run.append({"id": "a"})
    good = lines_of(run).read_bytes()
    lines_of(run).write_bytes(good + good[:9] + good)
    with pytest.warns(
        match=r"0\.jsonl: 1 of 2 lines are damaged and left out, the first is line 2"
    ):
        run.records()


def test_a_corrupt_middle_line_is_left_out_and_named(run):
    """Damage anywhere but in an unfinished last line is counted in a warning; what it held is not
    done, the rest is.
    """
    law_damage_is_left_out_and_named(run)


def test_no_flipped_bit_is_silently_used(run):
    """Any single flipped bit costs its line alone, with a warning, or two at the end of one; never
    another value.
    """
    records = [{"id": "a", "f1": 0.25}, {"id": "b", "f1": 1e-9}]
    for record in records:
        run.append(record)
    whole = lines_of(run).read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        lines_of(run).write_bytes(flipped)
        first, last = whole.index(b"\n"), len(whole) - 1
        left = records[:1] if bit // 8 > first else records[1:] if bit // 8 < first else []
        with (
            contextlib.nullcontext()
            if bit // 8 == last
            else pytest.warns(match="1 of [12] lines are damaged")
        ):
            assert run.records() == left


@laws
@given(st.lists(values, max_size=4))
def test_records_come_back_equal(tmp_path_factory, bodies):
    """records() is what was appended: any JSON value, any text, lone surrogates included."""
    run = Run.open(tmp_path_factory.mktemp("r") / "run", REQUEST)
    written = [{"id": f"{n}", "body": body} for n, body in enumerate(bodies)]
    for record in written:
        run.append(record)
    assert repr(run.records()) == repr(written)  # repr tells 1 from 1.0 and from True
    assert run.done() == {record["id"] for record in written}


@laws
@given(values)
def test_json_files_come_back_equal(run, value):
    """write_json then read_json is the identity."""
    assert repr(read_json(run.write_json("results.json", value))) == repr(value)


@laws
@given(
    st.recursive(
        numbers,
        lambda inner: (
            st.lists(inner, min_size=1) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        ),
        max_leaves=8,
    )
)
def test_flatten_shows_every_leaf(tree):
    """Each number of a nested value has its own dotted name, and shows there unchanged."""

    def leaves(tree):
        inner = (
            tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
        )
        return [tree] if inner is None else [leaf for value in inner for leaf in leaves(value)]

    assert list(flatten(tree).values()) == leaves(tree)
    assert flatten({"a": {"b": [1, {}]}}) == {"a.b.0": 1, "a.b.1": {}}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, b"x", object()])
def test_what_json_cannot_hold_is_refused(run, bad):
    """NaN, Infinity and non-JSON values are refused, and leave nothing behind."""
    with pytest.raises(StoreError, match="cannot be stored as JSON"):
        run.append({"id": "a", "value": bad})
    with pytest.raises(StoreError, match="cannot be stored as JSON"):
        run.write_json("results.json", [bad])
    assert run.records() == [] and not (run.folder / "results.json").exists()


@pytest.mark.parametrize("record", [{}, {"id": 3}, ["id"], None])
def test_a_record_needs_an_id(run, record):
    """Without an id a piece of work could not be skipped when resuming."""
    with pytest.raises(StoreError, match='string "id"'):
        run.append(record)


def test_resuming_finds_the_work_done(run):
    """The same request re-opens the folder; other versions are allowed and listed, in memory and on disk."""
    law_the_same_request_resumes(run)


def test_allowing_what_the_request_has_not_is_an_error(run):
    """A misspelled name in `allow` would do nothing: StoreError with the closest; an entry that is
    there may be named.
    """
    name = next(iter(REQUEST["request"]))
    assert Run.open(run.folder, REQUEST, allow=[name]).resumed
    with pytest.raises(StoreError, match=f"closest: {name}"):
        Run.open(run.folder, REQUEST, allow=[f"{name}x"])


def require_an_older_reader_told(folder):
    """Require that a run whose reader described itself otherwise says so, and goes on where that is allowed.

    Before `agreement` took ink at the border of a found place for no letter, it did not describe that.
    """
    reader = reader_named("agreement", []).describe()
    older = {name: value for name, value in reader.items() if name != "border"}
    Run.open(folder, {"request": {"ocr": older}})
    told = r"another run \(ocr\.border: stored absent, asked \"cleared .*\"\); give another --out, .*--allow"
    with pytest.raises(StoreError, match=told):
        Run.open(folder, {"request": {"ocr": reader}})
    changed = Run.open(folder, {"request": {"ocr": reader}}, allow=["ocr"]).changed
    assert list(changed) == ["request.ocr.border"]


def test_a_run_of_an_older_reader_says_what_differs(tmp_path):
    require_an_older_reader_told(tmp_path / "run")


def test_a_difference_that_one_side_lacks_is_noticed(monkeypatch, tmp_path):
    """Planted fault: only entries that were stored are compared."""
    plant(monkeypatch, requests, "differences", "dict.fromkeys([*old, *new])", "old")
    with pytest.raises(AssertionError):
        require_an_older_reader_told(tmp_path / "run")


def test_another_request_is_refused_with_both_values(run):
    """A folder is never continued with another request; the message names each field with both values."""
    law_another_request_is_refused(run)


@laws
@given(values, values, st.booleans())
def test_requests_differ_exactly_when_their_json_does(tmp_path_factory, one, two, same):
    """Re-opening succeeds if and only if the requests are the same JSON, whatever the order of keys."""
    one, two = {"x": one, "y": 1}, {"y": 1, "x": one if same else two}
    run = Run.open(tmp_path_factory.mktemp("r") / "run", {"request": one})
    if json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True):
        assert Run.open(run.folder, {"request": two}).resumed
    else:
        with pytest.raises(StoreError, match="holds another run"):
            Run.open(run.folder, {"request": two})


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: {**m, "schema_version": 2},
        lambda m: {**m, "key": "0"},
        lambda m: [m],
        lambda m: {**m, "request": {"steps": 1}},
        lambda m: {**m, "request": float("inf")},
        lambda m: "{",
    ],
)
def test_a_damaged_manifest_is_refused(run, damage):
    """A manifest that is newer, edited or broken is an error that names the file."""
    found = damage(read_json(run.folder / "manifest.json"))
    (run.folder / "manifest.json").write_text(found if found == "{" else json.dumps(found))
    for reopen in (lambda: Run.open(run.folder, REQUEST), lambda: Run.load(run.folder)):
        with pytest.raises(StoreError):
            reopen()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    """A folder with files but no manifest is refused and unchanged."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="thesis.tex but no manifest"):
        Run.open(tmp_path, REQUEST)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "where", ["file", "file/run", "file/a/b", "a/" + "n" * 300, "a/\0", "link"]
)
def test_an_uncreatable_folder_is_one_line_and_leaves_nothing(tmp_path, where):
    """If the folder cannot be made, the error is one line and no half of it is left."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(StoreError) as caught:
        Run.open(tmp_path / where, REQUEST)
    assert "\n" not in str(caught.value) and sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_workers_that_resume_at_once_lose_no_entry(tmp_path, monkeypatch):
    """One resumes with a command of its own while another is about to tell the same, or one more:
    each is told once.
    """
    Run.open(tmp_path, REQUEST | {"command": "first"})
    alone, others = disk.alone_in, ["second", "third"]

    def beside(folder):
        if others:
            Run.open(tmp_path, REQUEST | {"command": others.pop()}, worker="1")
        return alone(folder)

    monkeypatch.setattr(store, "alone_in", beside)
    Run.open(tmp_path, REQUEST | {"command": "second"}, worker="2")
    told = [entry["command"]["now"] for entry in Run.load(tmp_path).manifest["resumed"]]
    assert sorted(told) == ["second", "third"]


def test_proc_is_refused():
    """A file system that takes no folders is a StoreError too."""
    with pytest.raises(StoreError, match="cannot open /proc/textpatch"):
        Run.open("/proc/textpatch", REQUEST)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "..",
        ".",
        "",
        "a//b",
        "a\0b",
        "a\nb",
        ".hidden",
        "-rf",
        "a\\b",
        "C:x",
        "naïve",
        "x" * 200,
        "manifest.json",
        "Manifest.JSON",
        "records/0.jsonl",
        "images/x.png",
        "link/x",
        None,
    ],
)
def test_names_never_leave_the_folder(run, tmp_path, name):
    """No name reaches outside the folder, hides, or replaces the manifest, the records or the pictures."""
    (run.folder / "link").symlink_to(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(StoreError):
        run.write_text(name, "x")
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_good_names_are_written(run):
    """Plain names and folders inside work, and the file holds exactly what was given."""
    assert run.write_bytes("lora/site-3.safetensors", b"\0\1").read_bytes() == b"\0\1"
    assert run.write_text("report.html", "ä\ud800").read_bytes() == b"\xc3\xa4\\ud800"


def test_equal_pixels_make_one_file(run):
    """image() names files by size and pixels: equal pictures share one, others never do; they read back."""
    picture = Image.frombytes("RGB", (4, 2), bytes(range(24)))
    turned = Image.frombytes("RGB", (2, 4), bytes(range(24)))
    marked = picture.copy()
    marked.info.update(icc_profile=b"x" * 9, comment="hello")
    names = [
        run.image(p) for p in (picture, marked, turned, picture.convert("L"), picture.convert("P"))
    ]
    assert names[0] == names[1] and len(set(names)) == 4
    assert Image.open(run.folder / names[0]).tobytes() == picture.tobytes()
    assert all(len(Path(name).stem) == 16 and name.startswith("images/") for name in names)


@pytest.mark.parametrize("picture", [b"png", None, Image.new("RGB", (0, 3))])
def test_what_is_no_picture_is_refused(run, picture):
    """image() takes PIL pictures with pixels."""
    with pytest.raises(StoreError, match="PIL picture"):
        run.image(picture)


def test_csv_is_rectangular_and_inert(run):
    """All keys become columns; no text cell starts a formula; numbers stay numbers."""
    rows = [{"site": 0, "f1": -0.5}, {"site": 1, "prompt": "=cmd|'/C calc'!A0", "pair": [1, 2]}]
    text = run.write_csv("results.csv", rows).read_text()
    assert text.splitlines() == [
        "site,f1,prompt,pair",
        "0,-0.5,,",
        "1,,'=cmd|'/C calc'!A0,\"[1, 2]\"",
    ]
    assert run.write_csv("empty.csv", []).read_bytes() == b""


def test_old_or_new_but_never_half(run, monkeypatch):
    """When any system call of a write fails, the old file is intact and no temporary file is left."""
    run.write_text("results.json", "old")
    for name in ("fsync", "replace", "open"):

        def refuse(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(StoreError, match="No space left on device"):
                run.write_text("results.json", "new")
        found = (run.folder / "results.json").read_text()
        assert found == ("new" if name == "open" else "old") and not leftovers(run.folder)


def test_the_order_of_system_calls_is_safe(run, monkeypatch):
    """Power loss: the file is synced before the rename, the folder after it."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1]
        )
    run.write_text("results.json", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_full_disk_keeps_the_records_before(run):
    """A line that does not fit is an error and is taken back whole; the records before it stay."""
    code = (
        "import resource, sys; from textpatch.runs.folder import Run; run = Run.load(sys.argv[1]);"
        "run.append({'id': 'a'}); resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200));"
        "run.append({'id': 'b', 'x': 'y' * 500})"
    )
    died = subprocess.run([sys.executable, "-c", code, run.folder], capture_output=True, text=True)
    assert "DiskError: cannot append to" in died.stderr
    assert run.done() == {"a"} and lines_of(run).read_bytes().endswith(b"\n")


def test_threads_of_one_worker_do_not_mix_lines(run):
    """Writers that share a worker name take turns: nothing is lost and no line is cut."""

    def write(name):
        for n in range(20):
            run.append({"id": f"{name}{n}", "noise": "x" * 5000})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run.records()) == len(run.done()) == 80


def test_workers_share_a_folder(run):
    """Each worker has its own file; an id two of them finished counts once."""
    other = Run.open(run.folder, REQUEST, worker="1")
    run.append({"id": "a", "by": 0})
    other.append({"id": "a", "by": 1})
    other.append({"id": "b", "by": 1})
    assert run.records() == other.records() == [{"id": "a", "by": 0}, {"id": "b", "by": 1}]
    with pytest.raises(StoreError, match="worker name"):
        Run.open(run.folder, REQUEST, worker="../1")


def test_leftovers_of_killed_writers_are_swept(run):
    """Re-opening removes this worker's leftovers and old ones, not a file another worker is writing now."""
    names = [".tmp.0.aa", ".tmp.1.bb", ".tmp.2.cc"]
    for name in names:
        (run.folder / name).write_text("x")
    os.utime(run.folder / names[2], (0, 0))
    Run.open(run.folder, REQUEST)
    assert [path.name for path in leftovers(run.folder)] == [".tmp.1.bb"]


def test_a_kill_before_the_manifest_leaves_a_usable_folder(tmp_path):
    """A folder in which only a temporary file exists is a run that has not begun."""
    (tmp_path / ".tmp.0.aa").write_bytes(io.BytesIO().getvalue())
    assert not Run.open(tmp_path, REQUEST).resumed and not leftovers(tmp_path)


def test_importing_needs_neither_torch_nor_matplotlib():
    """The store and the report answer at once: both import with torch and matplotlib absent."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None;"
        "import textpatch.runs.folder, textpatch.report.page"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
