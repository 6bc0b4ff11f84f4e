"""Precision, recall, density and coverage beside recorded values, a double loop, and small sets by hand."""

import json
import random
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from support.planting import plant
from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.metrics import neighbours

GOLDEN = Path(__file__).parents[1] / "golden" / "knn"
SCORES = "precision", "recall", "density", "coverage"
COPIES = "duplicates", 3  # every point four times, which is refused here


def recorded() -> list[dict]:
    """Recorded values, each with its features, but for the points of which there are k copies."""
    features = load_file(GOLDEN / "features.safetensors")
    values = json.loads((GOLDEN / "values.json").read_text())
    return [
        {**value, **{side: features[f"{value['set']}.{side}"] for side in ("real", "generated")}}
        for value in values
        if (value["set"], value["k"]) != COPIES
    ]


def require_recorded_values():
    """All sets, with and without the rim of the balls, within 1e-12."""
    for value in recorded():
        for rim, key in ((False, "prdc"), (True, "with_rim")):
            found = metrics.neighbours_of(value["real"], value["generated"], value["k"], rim=rim)
            scores = [getattr(found, score) for score in SCORES]
            assert scores == pytest.approx(value[key], abs=1e-12), (value["set"], value["k"], rim)


def test_values_are_those_recorded():
    """Ten sets, alike, shifted, shrunk, of other sizes, with outliers, and far from zero."""
    assert len(recorded()) == 19
    require_recorded_values()


def looped(real: list, generated: list, k: int) -> list[float]:
    """The four scores by loops over exact whole numbers."""

    def far(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    def radius(points, i):
        return sorted(far(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    balls = [radius(real, i) for i in range(len(real))]
    reach = [radius(generated, i) for i in range(len(generated))]
    held = [sum(far(r, g) < ball for r, ball in zip(real, balls, strict=True)) for g in generated]
    covered = [
        any(far(r, g) < ball for g in generated) for r, ball in zip(real, balls, strict=True)
    ]
    recalled = [
        any(far(r, g) < ball for g, ball in zip(generated, reach, strict=True)) for r in real
    ]
    return [
        sum(count > 0 for count in held) / len(generated),
        sum(recalled) / len(real),
        sum(held) / (k * len(generated)),
        sum(covered) / len(real),
    ]


@settings(deadline=None, derandomize=True, print_blob=True, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([1, 7, 2**23]))
def test_values_are_those_of_a_double_loop(seed, k, chunk):
    """Points on a grid, where distances tie, no point twice, in any chunks."""
    dice = random.Random(seed)
    grid = [(x, y, z) for x in range(4) for y in range(4) for z in range(3)]
    real = dice.sample(grid, dice.randint(4, 12))
    generated = dice.sample(grid, dice.randint(4, 12))
    held = neighbours.CHUNK
    neighbours.CHUNK = chunk
    try:
        found = metrics.neighbours_of(real, torch.tensor(generated), k)
    finally:
        neighbours.CHUNK = held
    wanted = looped(real, generated, k)
    assert [getattr(found, score) for score in SCORES] == pytest.approx(wanted, abs=1e-12)


def test_a_line_by_hand():
    """R = 0, 1, 3 and G = .5, 3.2, 10 with k = 1: radii 1, 1, 2 and 2.7, 2.7, 6.8."""
    found = metrics.neighbours_of([[0], [1], [3]], [[0.5], [3.2], [10]], 1)
    assert [getattr(found, score) for score in SCORES] == pytest.approx([2 / 3, 1, 1, 1])
    assert (found.k, found.n_real, found.n_generated, found.dimensions) == (1, 3, 3, 1)


@pytest.mark.parametrize("n, m, k", [(6, 3, 1), (5, 5, 3), (4, 7, 2)])
def test_the_expected_coverage_counts_orders(n, m, k):
    """Of all ways to place m generated points among the others, those with none in the first k places."""
    places = n - 1 + m
    missed = comb(places - k, m) / comb(places, m)
    assert metrics.expected_coverage(n, m, k) == pytest.approx(1 - missed)


def test_the_expected_coverage_is_the_mean_of_draws():
    """200 draws of 12 and 9 points each: within five standard errors, in two dimensions."""
    rng = np.random.default_rng(0)
    found = [
        metrics.neighbours_of(rng.normal(size=(12, 2)), rng.normal(size=(9, 2)), 2).coverage
        for _ in range(200)
    ]
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - metrics.expected_coverage(12, 9, 2)) < 5 * error


SPREAD = [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [5.0, 1.0]]


@pytest.mark.parametrize(
    "real, generated, k, message",
    [
        (SPREAD, SPREAD[:3], 3, "asked for neighbour 3; a point of the smaller set has 2 others"),
        (SPREAD, SPREAD, 0, "asked for neighbour 0"),
        (SPREAD, SPREAD, 1.5, "asked for neighbour 1.5"),
        (SPREAD, [[0.0], [1.0]], 1, "real features have 2 dimensions and generated ones 1"),
        (SPREAD, [[0.0, np.nan], [1.0, 1.0]], 1, "1 of 2 generated features are not finite"),
        (SPREAD, [0.0, 1.0], 1, r"generated features are \(2,\)"),
        ([], SPREAD, 1, r"real features are \(0,\)"),
        (SPREAD[:2] * 2, SPREAD, 1, "4 of 4 real points have 1 exact copies or more"),
    ],
)
def test_refusals(real, generated, k, message):
    """A neighbour that is not there, points that cannot be compared, and balls of no size."""
    with pytest.raises(PatchError, match=message):
        metrics.neighbours_of(real, generated, k)


def test_recorded_copies_are_refused():
    """Balls of no size hold nothing, and three of four scores would be 0 for the same pictures."""
    features = load_file(GOLDEN / "features.safetensors")
    with pytest.raises(PatchError, match="40 of 40 real points have 3 exact copies or more"):
        metrics.neighbours_of(features["duplicates.real"], features["duplicates.generated"], 3)


def test_notes_say_what_is_hard_to_compare(monkeypatch):
    """Sizes that differ, few points, and copies, and nothing of sets without these."""
    notes = metrics.neighbours_of([*SPREAD, SPREAD[0]], SPREAD, 2).notes
    assert [note.split(":")[0].split(" are exact")[0] for note in notes] == [
        "5 real points and 4 generated ones",
        "4 points are few",
        "1 real points",
    ]
    monkeypatch.setattr(neighbours, "FEW", 4)
    assert metrics.neighbours_of(SPREAD, SPREAD, 2).notes == ()


@pytest.mark.parametrize(
    "function, old, new",
    [
        (
            "_radii",
            "np.partition(found, k, axis=1)[:, k]",
            "np.partition(found, k - 1, axis=1)[:, k - 1]",
        ),
        ("_points", "np.float64", "np.float16).astype(np.float64"),
        ("_within", "distances < radii", "distances <= radii"),
        ("neighbours_of", "reach[None]", "radii.max()"),
        ("neighbours_of", "held.mean() / k", "held.mean()"),
        ("neighbours_of", "inside.any(axis=1)", "inside.any()"),
    ],
)
def test_planted_faults_are_noticed(monkeypatch, function, old, new):
    """The point as its own neighbour, few digits, the rim, balls of the other set, and other counts."""
    plant(monkeypatch, neighbours, function, old, new)
    with pytest.raises((AssertionError, PatchError)):
        require_recorded_values()


def test_distances_by_products_would_be_noticed(monkeypatch):
    """Fault: |a|^2 + |b|^2 - 2ab in float32, which has no digit left where features are far from zero."""
    plant(
        monkeypatch,
        neighbours,
        "_distances",
        'torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist")',
        'torch.cdist(*(side.float() for side in pair), compute_mode="use_mm_for_euclid_dist").double()',
    )
    with pytest.raises((AssertionError, PatchError)):
        require_recorded_values()


@pytest.mark.parametrize("old, new", [("np.arange(k)", "np.arange(k + 1)"), ("+ n_generated", "")])
def test_planted_faults_of_the_expected_coverage_are_noticed(monkeypatch, old, new):
    """One neighbour too many, and others among the real points alone."""
    plant(monkeypatch, neighbours, "expected_coverage", old, new)
    with pytest.raises(AssertionError):
        test_the_expected_coverage_counts_orders(6, 3, 1)
