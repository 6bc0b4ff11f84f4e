"""Runs are held to their word: a fault planted where requests are compared, records are looked up
or pictures are read.

A fault is (check, owner, function, text, text put in its place); see support/faults.py.
"""

import shutil

import pytest

from support import laws_of_runs
from support.by_default import taking
from support.localizing import PAIRS, REQUEST, PixelReader, localized
from support.planting import plant
from support.small_models import small_pipeline
from textpatch.errors import OCRError, StoreError
from textpatch.localization import trials
from textpatch.localization.start_step import start_curve
from textpatch.metrics import Tesseract
from textpatch.metrics.readers import passed
from textpatch.metrics.readers.known_words import draw
from textpatch.plan import Plan
from textpatch.prompts import pairs as pairs_
from textpatch.runs import folder, records, requests, work
from textpatch.runs.folder import Run

MODEL = small_pipeline()


# --- which requests are one


def the_same(tmp_path):
    laws_of_runs.law_the_same_request_resumes(Run.open(tmp_path / "run", laws_of_runs.REQUEST))


def another(tmp_path):
    laws_of_runs.law_another_request_is_refused(Run.open(tmp_path / "run", laws_of_runs.REQUEST))


def equal_in_python(tmp_path):
    """1, 1.0 and true are three requests, and the message names the one entry with both values."""
    Run.open(tmp_path / "run", {"request": {"steps": 1, "start": 0}})
    for other, shown in ((1.0, "1.0"), (True, "true")):
        with pytest.raises(
            StoreError, match=rf"another run \(steps: stored 1, asked {shown}\); give"
        ):
            Run.open(tmp_path / "run", {"request": {"steps": other, "start": 0}})


def allowed(tmp_path):
    """What is allowed is that entry and all below it, and no other."""

    def request(version: int, pad: int, ocr2: int) -> dict:
        return {"request": {"ocr": {"version": version, "pad": pad}, "ocr2": ocr2}}

    Run.open(tmp_path / "run", request(1, 1, 1))
    for entry, may, may_not in (
        ("ocr.version", (2, 1, 1), (2, 2, 1)),
        ("ocr", (2, 2, 1), (2, 2, 2)),
    ):
        assert Run.open(tmp_path / "run", request(*may), allow=[entry]).changed
        with pytest.raises(StoreError, match="holds another run"):
            Run.open(tmp_path / "run", request(*may_not), allow=[entry])


def scenes(tmp_path):
    laws_of_runs.law_scenes_differ_outside_the_quotes()


# --- who made a record


def made_by_its_request(tmp_path):
    """A record of other prompts, of another seed's noise or of another swap is none of this request's."""
    localized(MODEL, tmp_path / "run", PAIRS[:1], seeds=(0,))
    for pairs, options, maker in (
        (PAIRS[1:2], {}, "rows"),
        (PAIRS[:1], {"start": 1}, "plan"),
        (PAIRS[:1], {"sites": [0]}, "plan"),
    ):
        with pytest.raises(StoreError, match=f"was made by {maker} "):
            localized(MODEL, tmp_path / "run", pairs, seeds=(0,), **options)
    start_curve(trials_in(tmp_path / "run"), [0], [0, 1])
    for sites, starts in (([1], [0, 1]), ([0], [0])):
        with pytest.raises(StoreError, match="record starts-0-0 of .* was made by plan"):
            start_curve(trials_in(tmp_path / "run"), sites, starts)


def scored_by_one_definition(tmp_path):
    """A record that does not say what its background scores go over, as those of 0.1.0 do not, is refused."""
    localized(MODEL, tmp_path / "run", PAIRS[:1], seeds=(0,), sites=[0])
    (record,) = Run.load(tmp_path / "run").records()
    assert record.get("background") == "windows free of lettering"
    del record["background"]
    Run.open(tmp_path / "old", REQUEST).append(record)
    shutil.copytree(tmp_path / "run" / "images", tmp_path / "old" / "images")
    says = "made by background .not told., .* to 'windows free of lettering'; .* another --out"
    with pytest.raises(StoreError, match=says):
        localized(MODEL, tmp_path / "old", PAIRS[:1], seeds=(0,), sites=[0])


def trials_in(folder):
    return trials.Trials(MODEL, PAIRS[:1], ocr=PixelReader(), run=Run.load(folder))


def left_out(tmp_path):
    laws_of_runs.law_damage_is_left_out_and_named(Run.open(tmp_path / "run", laws_of_runs.REQUEST))


# the others are tests of test_folder.py and test_glyphcontrol.py
CHECKS = [
    equal_in_python,
    allowed,
    made_by_its_request,
    scored_by_one_definition,
]
FAULTS = {
    "damage is not counted": (left_out, records, "read_records", "damaged.append(number)", "pass"),
    "damage ends a file": (
        left_out,
        records,
        "read_records",
        "damaged.append(number)",
        "damaged.append(number); break",
    ),
    "a checksum is not looked at": (
        left_out,
        records,
        "_unsealed",
        "if line[-_SEAL_LENGTH:]",
        "if False and line[-_SEAL_LENGTH:]",
    ),
    "every request is the stored one": (
        another,
        requests,
        "asked_otherwise",
        'stored["key"] == new["key"]',
        "True",
    ),
    "no request is the stored one": (
        the_same,
        folder.Run,
        "_resume",
        "not all(covered",
        "not any(covered",
    ),
    "values compared as Python does": (
        equal_in_python,
        requests,
        "differences",
        "_canonical(pair[0]) != _canonical(pair[1])",
        "pair[0] != pair[1]",
    ),
    "the keys alone are hashed": (
        another,
        requests,
        "request_key",
        "_canonical(request)",
        "_canonical(sorted(request))",
    ),
    "entries that are gone are equal": (
        another,
        requests,
        "differences",
        "dict.fromkeys([*old, *new])",
        "old.keys() - new.keys()",
    ),
    "one that is allowed allows all": (
        allowed,
        folder.Run,
        "_resume",
        "not all(covered",
        "not any(covered",
    ),
    "a name allows what begins like it": (
        allowed,
        requests,
        "covered",
        'f"request.{entry}."',
        'f"request.{entry}"',
    ),
    "scenes with their words": (
        scenes,
        pairs_,
        "_scene",
        'with_texts(prompt, [""] * len(quotations(prompt)))',
        "prompt",
    ),
    "the first pair alone": (scenes, pairs_, "differing", "in pairs if", "in pairs[:1] if"),
    "whose record it is is not asked": (
        made_by_its_request,
        work,
        "_require_made_by",
        "record.get(name) != asked",
        "False",
    ),
    "a plan is enough": (made_by_its_request, work, "made_by", "row.data for row in rows", ""),
    "rows are enough": (made_by_its_request, Plan, "sha256", "self.to_json()", '""'),
    "what scores go over is not asked": (
        scored_by_one_definition,
        trials.Trials,
        "once",
        "made_under | maker | self._scored_over()",
        "made_under | maker",
    ),
    "of rows their names": (made_by_its_request, work, "made_by", "[row.data", "[row.name"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds(check, tmp_path):
    """Without a fault."""
    check(tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, tmp_path, monkeypatch):
    """With the fault in place it does not: another outcome, or no error where there must be one."""
    check, *change = FAULTS[fault]
    plant(monkeypatch, *change)
    with pytest.raises((AssertionError, StoreError, pytest.fail.Exception)):
        check(tmp_path)


# --- pictures on their way to tesseract's standard input

GIVEN = "data.getvalue()"
ALTERED = {
    "none arrives": (GIVEN, "b''"),
    "half of them": (GIVEN, "data.getvalue()[: len(data.getvalue()) // 2]"),
    "the last rows are lost": (GIVEN, "data.getvalue()[:-2000]"),
    "zeros for the pixels": (GIVEN, "data.getvalue()[:200] + bytes(len(data.getvalue()) - 200)"),
    "line ends of Windows": (GIVEN, 'data.getvalue().replace(b"\\xff", b"\\r\\n")'),
    "as text": (GIVEN, 'data.getvalue().decode("ascii", "replace").encode()'),
    "another order": (
        'pictures[0].save(data, "TIFF", save_all=True, append_images=pictures[1:])',
        'pictures[-1].save(data, "TIFF", save_all=True, append_images=pictures[-2::-1])',
    ),
    "one is left out": ("append_images=pictures[1:]", "append_images=pictures[2:]"),
    "one is there twice": ("append_images=pictures[1:]", "append_images=pictures"),
    "the first for all": (
        "append_images=pictures[1:]",
        "append_images=[pictures[0]] * (len(pictures) - 1)",
    ),
    "mirrored": (
        "data = io.BytesIO()",
        "data, pictures = io.BytesIO(), [picture.transpose(0) for picture in pictures]",
    ),
}


@pytest.mark.parametrize(
    "fault", taking(("the last rows are lost", "one is left out", "one is there twice"), ALTERED)
)
def test_pictures_altered_on_the_way_are_noticed(fault, monkeypatch):
    """Fault: what tesseract is given is not what was asked about. An OCRError before any reading is
    used, not a low score.

    By default what is lost of a picture, a picture less, and a picture more.
    """
    monkeypatch.setattr(passed, "RESULTS", {})  # or an earlier test's self-test would stand
    plant(monkeypatch, Tesseract, "_ask", *ALTERED[fault])
    with pytest.raises(OCRError) as caught:
        Tesseract().read([draw(word, 24) for word in ("COFFEE", "HOTEL")])
    assert "\n" not in str(caught.value)
