"""Laws of requests and records as plain functions, which tests call and planted faults must break."""

from pathlib import Path

import pytest

from textpatch.disk import read_json
from textpatch.errors import StoreError
from textpatch.prompts.pairs import differing
from textpatch.runs.folder import Run

REQUEST = {
    "request": {"model": "tiny-mmdit", "steps": 20, "pairs": [{"source": "a", "target": "b"}]}
}
ALIKE = [
    ('a sign "A" here', 'a sign "B C" here'),
    ('"A"', '"B"'),
    ('a  sign "A"', 'a sign "B"'),
    ('"A" on "B"', '"C" on "D"'),
]
OTHER = [
    ('a sign "A"', 'a map "B"'),
    ('a sign "A"', 'a sign "B".'),
    ('A sign "A"', 'a sign "B"'),
    ('"A" "B"', '"A B"'),
    ('a "A" sign', 'a sign "A"'),
]


def lines_of(run) -> Path:
    return run.folder / "records" / "0.jsonl"


def law_damage_is_left_out_and_named(run: Run) -> None:
    """Damage is counted in a warning, unless it is an unfinished last line.

    What it held is not done, the rest is.
    """
    for name in "abcd":
        run.append({"id": name})
    lines = lines_of(run).read_bytes().splitlines(keepends=True)
    lines_of(run).write_bytes(lines[0] + lines[1].replace(b'"b"', b'"x"') + lines[2] + lines[3][1:])
    with pytest.warns(
        match=r"0\.jsonl: 2 of 4 lines are damaged and left out, the first is line 2; resuming makes again"
    ):
        assert run.done() == {"a", "c"}
    run.append({"id": "b"})
    with pytest.warns(match="2 of 5 lines"):
        assert [record["id"] for record in run.records()] == ["a", "c", "b"]


def law_the_same_request_resumes(run: Run) -> None:
    """A request that is the same re-opens the folder.

    Other versions are allowed and listed, in memory and on disk.
    """
    run.append({"id": "a"})
    again = Run.open(run.folder, {**REQUEST, "versions": {"torch": "2.13"}})
    assert again.resumed and not run.resumed and again.done() == {"a"}
    assert again.changed == {"versions.torch": ("absent", "2.13")}
    Run.open(run.folder, {**REQUEST, "versions": {"torch": "2.13"}})
    stored = read_json(run.folder / "manifest.json")
    assert stored["resumed"] == [{"versions.torch": {"stored": "absent", "now": "2.13"}}]
    assert Run.load(run.folder).manifest == stored and stored["schema_version"] == 1


def law_another_request_is_refused(run: Run) -> None:
    """A folder is never continued with another request.

    The message names each field with both values.
    """
    before = (run.folder / "manifest.json").read_bytes()
    other = {
        "request": {"model": "tiny-mmdit", "steps": 28, "pairs": [{"source": "a", "target": "c"}]}
    }
    with pytest.raises(StoreError) as caught:
        Run.open(run.folder, other)
    for part in ("steps: stored 20, asked 28", 'pairs.0.target: stored "b", asked "c"', "--out"):
        assert part in str(caught.value)
    assert "model" not in str(caught.value).replace("tiny-mmdit", "")
    assert (run.folder / "manifest.json").read_bytes() == before


def law_scenes_differ_outside_the_quotes() -> None:
    """Pairs that differ outside the quotes are found, in their order.

    They differ in a word, mark, letter case, order or number of texts.
    """
    assert differing([*ALIKE, *OTHER]) == OTHER and differing([]) == []
    for _, target in ALIKE:
        assert differing([(target.replace('"', '"X', 1), target)]) == []
