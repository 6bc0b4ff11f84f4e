"""What pairs leave open is found pair by pair, with the number of pairs that would settle it."""

import numpy as np
import pytest

from support.planting import plant
from support.reports import set_of
from support.results import a_result
from textpatch.localization import unsettled
from textpatch.localization.unsettled import open_comparisons
from textpatch.metrics.power import pairs_to_settle
from textpatch.report.headline import answer

PAIRS = 8


def case(**exact: list[float]) -> tuple[dict, list[dict]]:
    """A result, and its records with these exact matches pair by pair, by row name."""
    result = a_result((0.0, 0.0, 0.8))
    for site in result["sites"]:
        site["group"] = [site["site"]]
    whole = {"source": [0.0] * PAIRS, "target": [1.0] * PAIRS, "site-0": [0.0] * PAIRS}
    rows = {**whole, "site-1": [0.0] * PAIRS, **exact}
    scores = ("exact_target", "precision_target", "recall_target")
    records = [
        {"pair": n, "pictures": {name: dict.fromkeys(scores, row[n]) for name, row in rows.items()}}
        for n in range(PAIRS)
    ]
    return result | {"pairs": PAIRS, "ranked": [2, 1, 0]}, records


CLEAR = {"site-2": [1, 1, 1, 1, 1, 1, 1, 0]}
HALF_OF_THEM = {"site-2": [1, 1, 1, 1, 0, 0, 0, 1]}
NEAR = {"site-1": [1, 1, 1, 1, 0, 0, 1, 0]}


def test_a_clear_site_leaves_nothing_open():
    """It beats every other, and its way is more than half."""
    result, records = case(**CLEAR)
    assert open_comparisons(result, records) == []


def require_rival():
    """A rival is one by the paired difference, with the pairs that would tell it from the best site."""
    result, records = case(**CLEAR, **NEAR)
    (told,) = open_comparisons(result, records)
    needed = pairs_to_settle(np.array(CLEAR["site-2"]), np.array(NEAR["site-1"]))
    assert (told["question"], told["site"], told["against"]) == ("rival", 2, 1)
    assert (told["pairs"], told["more"]) == (PAIRS, needed - PAIRS)
    assert told["difference"]["value"] == 0.25
    more = needed - PAIRS
    said = (
        f"Exact matches do not tell site 2 from site 1 yet. About {more} more pairs would settle it"
    )
    assert said in answer(result | {"unsettled": [told]})


def test_a_rival_is_told_with_the_pairs_that_would_settle_it():
    """By differences pair by pair, and in the answer."""
    require_rival()


def test_planted_rivals_by_other_pairs_are_noticed(monkeypatch):
    """Fault: the scores of the two sites no longer stand pair by pair."""
    plant(monkeypatch, unsettled, "_open", "(more, less)", "(more, np.sort(less))")
    with pytest.raises(AssertionError):
        require_rival()


def test_half_of_the_way_may_be_open():
    """A site that comes about half of the way says that this is not clear, and how many pairs it takes."""
    result, records = case(**HALF_OF_THEM)
    found = {told["question"]: told for told in open_comparisons(result, records)}
    assert found.keys() == {"half"}
    assert found["half"]["difference"]["value"] == 0.125
    said = answer(result | {"unsettled": list(found.values())})
    assert "half of the way to the whole target run is not clear yet. About" in said


def test_an_empty_set_says_how_many_pairs_would_settle_it():
    """The gain over no swap by F1, and where there is none that no number is known."""
    result, records = case(**{"site-2": [1, 1, 0, 0, 0, 0, 0, 0]})
    result |= {"set": set_of([2], kept=False)}
    (told,) = open_comparisons(result, records)
    assert (told["question"], told["site"]) == ("gain", 2)
    assert (
        f"About {told['more']} more pairs would settle it, if they differ as these 8 do."
        in answer(result | {"unsettled": [told]})
    )
    result, records = case(**{"site-2": [0.0] * PAIRS})
    (told,) = open_comparisons(result | {"set": set_of([2], kept=False)}, records)
    assert told["more"] is None
    found = answer(result | {"set": set_of([2], kept=False), "unsettled": [told]})
    assert "These pairs show no difference, so they tell no number of pairs" in found


def test_few_pairs_and_sets_of_sites_open_no_question():
    """Two pairs tell nothing of a spread, and of a set every step was judged."""
    result, records = case(**CLEAR, **NEAR)
    assert open_comparisons(result | {"pairs": 2}, records[:2]) == []
    assert open_comparisons(result | {"set": set_of([1, 2])}, records) == []
