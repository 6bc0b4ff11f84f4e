"""Methods of editing are told apart by tests over the same pairs, beside the chance level of F1."""

import pytest

from support.planting import plant
from textpatch import metrics
from textpatch.editing import comparing

RIGHT = [1.0, 1.0, 0.75, 1.0, 0.5, 1.0]
LEFT = [0.5, 0.25, 0.75, 0.5, 0.25, 0.5]


def entry(share: float) -> dict:
    """Scores of one picture, of which some letters are the target's."""
    return {"precision_target": share, "recall_target": share, "ssim": 1 - share / 10}


RECORDS = [
    {"pair": i, "pictures": {"one": entry(one), "other": entry(other)}}
    for i, (one, other) in enumerate(zip(LEFT, RIGHT, strict=True))
]
TIMED = [
    {
        **record,
        "pictures": {name: {**one, "seconds": 2.0} for name, one in record["pictures"].items()},
    }
    for record in RECORDS
]


def require_tested_differences():
    """F1 rises in five of six pairs, which 2 in 32 exchanges do, and SSIM falls as often."""
    told = comparing._differences(TIMED, "other", "one")
    rise = metrics.f1_of_means(RIGHT, RIGHT) - metrics.f1_of_means(LEFT, LEFT)
    assert told["f1_target"]["value"] == pytest.approx(rise)
    assert told["f1_target"]["p"] == told["ssim"]["p"] == 2 / 32
    assert (told["f1_target"]["n"], told["f1_target"]["differ"]) == (6, 5)
    assert told["ssim"]["high"] < 0 < told["f1_target"]["low"]


def test_differences_are_tested_pair_by_pair():
    """Each with an interval and a p."""
    require_tested_differences()


def test_a_difference_of_one_method_is_noticed(monkeypatch):
    """Fault: the first method is compared with itself."""
    plant(monkeypatch, comparing, "_differences", "values(records, one)", "values(records, first)")
    with pytest.raises(AssertionError):
        require_tested_differences()


def test_the_table_ends_with_the_chance_level():
    """Where there is one."""
    scores = {
        "f1_target": {"value": 0.5, "low": None, "high": None},
        "seconds": 1.0,
        "generations": 2.0,
    }
    levels = {"f1_source": 0.27, "f1_target": 0.31}
    result = {"source": scores, "methods": {"localized": scores}, "chance": levels}
    *_, method, last, reader = repr(comparing.Comparison(result, [])).splitlines()
    assert method.split()[0] == "localized"
    assert last.split() == ["chance", "level", "-", "0.31", "0.27", "-", "-", "-", "-"]
    alone = repr(comparing.Comparison(result | {"chance": dict.fromkeys(levels)}, []))
    assert [line.split() for line in alone.splitlines()[-2:]] == [method.split(), reader.split()]
