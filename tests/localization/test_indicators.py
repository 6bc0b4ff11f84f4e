"""Indicators give the scores of a screening, each made once, and their costs are counted."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from support.by_default import taking
from support.localizing import PAIR, Parrot
from support.planting import require_noticed
from support.small_models import small_pipeline
from support.truths import PAIRS, Truth
from textpatch import localize, sample
from textpatch.localization import layers as searching
from textpatch.localization import modes
from textpatch.localization.indicators import INDICATORS, Indications
from textpatch.localization.search import responsible
from textpatch.localization.trials import Trials


@pytest.mark.parametrize("guidance, backward", [(1.0, 6), (4.5, 3)])
@pytest.mark.parametrize("name", INDICATORS)
def test_an_indicator_costs_the_source_pictures_alone(name, guidance, backward, monkeypatch):
    """n pairs and m seeds take n m generations for the scores of all sites, which are means over seeds.

    Attribution takes the backward passes of each on top, in generations of as many rows.
    Asked again, an indicator takes none.
    """
    made, honest = [], sample
    monkeypatch.setattr(
        f"textpatch.localization.{name}.sample", lambda *a, **k: made.append(a) or honest(*a, **k)
    )
    tried = Trials(
        small_pipeline(), [PAIR, PAIR[::-1]], seeds=(0, 1), guidance=guidance, ocr=Parrot()
    )
    read, first, second = Indications(tried, INDICATORS[name]), *INDICATORS[name].shown
    shares = read.score([(0,), (1,)], 2)
    assert len(made) == 4 and tried.generations == 4 * (
        1 if name == "contribution" else 1 + backward
    )
    one = [INDICATORS[name].read(tried, tried.pairs[0], seed)[0][1][first] for seed in (0, 1)]
    assert [list(x.shape) for x in shares] == [[2], [2]] and shares[1][0] == pytest.approx(
        sum(one) / 2, rel=1e-12
    )
    made.clear()
    read.score([(0,)], 2, second)
    assert made == [] and [set(record["pictures"]) for record in tried.records] == [{"source"}] * 4


@pytest.mark.parametrize(
    "second, left_out",
    [(0.55, set()), (0.45, {"contribution"}), (0.05, {"contribution", "attribution"})],
)
@pytest.mark.parametrize("name", taking(("attribution",), INDICATORS))
def test_a_site_is_left_out_below_a_part_of_the_best(name, second, left_out, monkeypatch):
    """Contribution leaves out sites below half of the largest share, attribution those below a tenth.

    By default of attribution, as the rule is one and its part a number of each.
    """
    indicator, pipeline = INDICATORS[name], small_pipeline()
    shown = {0: dict.fromkeys(indicator.shown, 1.0), 1: dict.fromkeys(indicator.shown, second)}
    picture = pipeline.generate(PAIR[0], seeds=0)[0]
    monkeypatch.setitem(
        INDICATORS, name, replace(indicator, read=lambda trials, pair, seed: (shown, picture))
    )
    pairs = [PAIR, PAIR[::-1], (PAIR[0], PAIR[0].replace("HOUSE", "TIGER"))]
    result = localize(pipeline, pairs, mode=name, sites=[0, 1], first=3, ocr=Parrot()).result
    status = result["sites"][1]["status"]
    assert (status.get("by") == name) is (name in left_out)
    told = [*result["sites"][1][name].values(), *[status] * (name in left_out)]
    ends = [score[end] for score in told if isinstance(score, dict) for end in ("low", "high")]
    assert set(ends) == {None}  # alike on all pairs, and no share of a whole


@pytest.mark.parametrize(
    "share, joins", [(0.05, True), (0.021, True), (0.019, False), (-1.0, False)]
)
@pytest.mark.parametrize("name", INDICATORS)
def test_a_site_joins_the_set_unless_it_gives_next_to_nothing(name, share, joins, monkeypatch):
    """A site that is left out by its share joins all the same, from a fiftieth of the largest share on.

    Site 2 adds .2 to what 0 and 1 do.  The exhaustive search's set is then this one's.
    """
    shares, truth = {0: 1.0, 1: 0.7, 2: share}, Truth({0: 0.5, 1: 0.2, 2: 0.2})
    read = SimpleNamespace(
        score=lambda groups, n, what=None: [np.full(n, shares[site]) for (site,) in groups]
    )
    monkeypatch.setattr(modes, "Indications", lambda trials, indicator: read)

    def twice(groups, n, own=False):
        return [np.stack([values, values], axis=1) for values in truth(groups, n)]

    tried, alone = SimpleNamespace(score=twice, pairs=range(PAIRS)), [(0,), (1,), (2,)]
    screening, _ = modes.MODES[name](tried, modes.Request(name, alone, PAIRS, first=4))
    assert screening.ranked[-1] == (2,) and (2,) not in screening.kept
    assert responsible(searching._grown(tried, screening, 4)) == ((0, 1, 2) if joins else (0, 1))


# --- faults: a check, an owner, a function, a text, and the text put in its place


def joining_by_share(*args) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_a_site_joins_the_set_unless_it_gives_next_to_nothing(*args, patch)


FAULTS = {
    "what is left out may not join": (
        partial(joining_by_share, "contribution", 0.021, True),
        modes,
        "_indicated",
        "< LEAST_SHARE *",
        "< 1 *",
    ),
    "what gives nothing joins": (
        partial(joining_by_share, "attribution", 0.019, False),
        searching,
        "_grown",
        "(*measured, *screening.barred)",
        "measured",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    require_noticed(monkeypatch, FAULTS[fault])
