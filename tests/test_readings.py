"""Readings as scores of a screening: what they cost, what they keep of it, and what they are never asked twice."""

from dataclasses import replace

import pytest
from small import small_pipeline
from test_localize import PAIR, Parrot

from textpatch import localize, trials
from textpatch.readings import READINGS, Readings
from textpatch.trials import Trials


@pytest.mark.parametrize("guidance, backward", [(1.0, 6), (4.5, 3)])
@pytest.mark.parametrize("name", READINGS)
def test_reading_costs_the_source_pictures_alone(name, guidance, backward, monkeypatch):
    """n pairs and m seeds: n m generations for scores of all sites, means over seeds, and for attribution the backward
    passes of each, in generations of as many rows; asked again, none."""
    made, honest = [], trials.sample
    monkeypatch.setattr(f"textpatch.{name}.sample", lambda *a, **k: made.append(a) or honest(*a, **k))
    tried = Trials(small_pipeline(), [PAIR, PAIR[::-1]], seeds=(0, 1), guidance=guidance, ocr=Parrot())
    read, first, second = Readings(tried, READINGS[name]), *READINGS[name].shown
    shares = read.score([(0,), (1,)], 2)
    assert len(made) == 4 and tried.generations == 4 * (1 if name == "contribution" else 1 + backward)
    one = [READINGS[name].read(tried, tried.pairs[0], seed)[0][1][first] for seed in (0, 1)]
    assert [list(x.shape) for x in shares] == [[2], [2]] and shares[1][0] == pytest.approx(sum(one) / 2, rel=1e-12)
    made.clear()
    read.score([(0,)], 2, second)
    assert made == [] and [set(record["pictures"]) for record in tried.records] == [{"source"}] * 4


@pytest.mark.parametrize("second, left_out", [(0.55, set()), (0.45, {"contribution"}), (0.05, {"contribution", "attribution"})])
@pytest.mark.parametrize("name", READINGS)
def test_a_site_is_left_out_below_a_part_of_the_best(name, second, left_out, monkeypatch):
    """Contribution leaves out what has less than half of the largest share, attribution what has less than a tenth."""
    reading, pipeline = READINGS[name], small_pipeline()
    shown = {0: dict.fromkeys(reading.shown, 1.0), 1: dict.fromkeys(reading.shown, second)}
    picture = pipeline.generate(PAIR[0], seeds=0)[0]
    monkeypatch.setitem(READINGS, name, replace(reading, read=lambda trials, pair, seed: (shown, picture)))
    result = localize(pipeline, [PAIR, PAIR[::-1]], mode=name, sites=[0, 1], first=2, ocr=Parrot()).result
    by = result["sites"][1]["status"].get("by")
    assert (by == name) is (name in left_out)
