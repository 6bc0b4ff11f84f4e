"""Scores of the background, beside loops over the pixels and windows that touch no box."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.planting import plant, raw
from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.localization.scores import all_scores, picture_scores
from textpatch.metrics import background

HEIGHT, WIDTH = 36, 40


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def similar(seed: int) -> np.ndarray:
    """The picture `noise(seed)` with half of another laid over it."""
    return (noise(seed) // 2 + noise(seed + 1) // 2).astype(np.uint8)


@st.composite
def boxes(draw) -> list[tuple[int, int, int, int]]:
    """One to three boxes, at the edges and beyond too, in the left part of the picture."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(-4, 14)), draw(st.integers(-4, HEIGHT - 2))
        right = draw(st.integers(max(left, 0) + 1, 18))
        found.append((left, top, right, draw(st.integers(max(top, 0) + 1, HEIGHT + 4))))
    return found


def window_similarity(a: np.ndarray, b: np.ndarray, y: int, x: int) -> np.ndarray:
    """SSIM of one 11 x 11 window by its definition, (3,)."""
    rows, columns = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(rows**2 + columns**2) / 4.5)
    weights = (weights / weights.sum())[..., None]
    p, q = (z[y : y + 11, x : x + 11].astype(float) for z in (a, b))
    mp, mq = (weights * p).sum((0, 1)), (weights * q).sum((0, 1))
    vp = (weights * (p - mp) ** 2).sum((0, 1))
    vq = (weights * (q - mq) ** 2).sum((0, 1))
    cov = (weights * (p - mp) * (q - mq)).sum((0, 1))
    c1, c2 = 2.55**2, 7.65**2
    return (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))


@settings(deadline=None, derandomize=True, print_blob=True, max_examples=3)
@given(st.integers(0, 2**32 - 2), boxes())
def test_scores_are_means_beside_all_boxes(seed, some):
    """MSE over the pixels in no box, PSNR of it, SSIM over the windows that overlap none, and their share."""
    a, b = noise(seed), similar(seed)
    found = metrics.background_scores(a, b, some)
    free = [
        (y, x)
        for y, x in np.ndindex(HEIGHT, WIDTH)
        if not any(left <= x < right and top <= y < bottom for left, top, right, bottom in some)
    ]
    squares = [(a[place].astype(float) - b[place]) ** 2 for place in free]
    windows = [
        window_similarity(a, b, y, x)
        for y, x in np.ndindex(HEIGHT - 10, WIDTH - 10)
        if all(
            x + 11 <= left or x >= right or y + 11 <= top or y >= bottom
            for left, top, right, bottom in some
        )
    ]
    assert found.masked == pytest.approx(1 - len(free) / (HEIGHT * WIDTH))
    assert found.mse == pytest.approx(np.mean(squares))
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(squares)))
    assert found.ssim == pytest.approx(np.mean(windows), abs=1e-10)
    assert found.reason == ""


def test_blackened_boxes_are_no_background():
    """Blackened lettering counts as equal and lifts a score, but not the mean over free windows."""
    a, b = noise(1), noise(3)
    box = (0, 0, 22, HEIGHT)
    found = metrics.background_scores(a, b, [box])
    for picture in (a, b):
        picture[:, :22] = 0
    assert metrics.background_scores(a, b, [box]) == found
    assert metrics.ssim(a, b) > found.ssim + 0.2


def test_equal_backgrounds():
    """PSNR is infinite and says so, whatever stands in the boxes."""
    a = noise(1)
    b = a.copy()
    b[:10, :10] = 0
    found = metrics.background_scores(Image.fromarray(a), Image.fromarray(b), [(0, 0, 10, 10)])
    assert (found.mse, found.psnr) == (0, np.inf)
    assert found.ssim == pytest.approx(1)


@pytest.mark.parametrize(
    "box, masked, why",
    [
        ((0, 0, WIDTH, 33), 33 / 36, "lettering fills 92% of the picture, and at most 90% may be"),
        ((10, 10, 30, 26), 20 * 16 / (36 * 40), "leaves no window of 11 x 11 pixels"),
    ],
)
def test_too_little_background_has_a_reason(box, masked, why):
    """Neither nan nor the score of a strip, and records say why."""
    found = metrics.background_scores(noise(1), noise(2), [box])
    assert found.masked == pytest.approx(masked)
    assert (found.mse, found.psnr, found.ssim) == (None, None, None)
    assert why in found.reason
    scored = picture_scores(Image.fromarray(noise(1)), Image.fromarray(noise(2)), [box])
    assert (scored["masked"], scored["no_background"]) == (found.masked, found.reason)


def test_pictures_without_background_are_left_out_of_the_means():
    """Two of three pictures have a background, and the masked share is theirs."""
    picture = Image.fromarray(noise(1))
    some = [[(0, 0, 10, 10)], [(0, 0, WIDTH, HEIGHT)], []]
    words = {
        f"{part}_{side}": 1.0
        for part in ("exact", "edit", "precision", "recall")
        for side in ("source", "target")
    }
    records = [
        {"pair": i, "pictures": {"site-0": {**words, **picture_scores(picture, picture, box)}}}
        for i, box in enumerate(some)
    ]
    found = all_scores(records, "site-0")
    assert (found["n"], found["n_background"]) == (3, 2)
    assert found["masked"]["value"] == pytest.approx(100 / (HEIGHT * WIDTH) / 2)
    for record in records:
        del record["pictures"]["site-0"]["masked"]  # as versions before wrote it
    assert "masked" not in all_scores(records, "site-0")


@pytest.mark.parametrize("some", [[(0, 0, 10, 10)], [(0, 0, WIDTH, HEIGHT)]])
def test_pictures_of_two_sizes_are_refused(some):
    """Whatever the boxes leave."""
    with pytest.raises(PatchError, match=r"\(36, 40\) and \(36, 39\)"):
        metrics.background_scores(noise(1), noise(2)[:, :39], some)


@pytest.mark.parametrize(
    "function, old, new",
    [
        ("background_scores", "mse(a, b, pixels)", "mse(a, b)"),
        ("background_scores", "ssim(a, b, windows)", "ssim(a, b, pixels)"),
        ("outside_all", "counts & mask", "mask"),
        ("masked_share", "pixels_outside", "windows_outside"),
    ],
)
def test_planted_faults_are_noticed(monkeypatch, function, old, new):
    """The whole picture, windows that touch a box, the last box alone, and windows in place of pixels."""
    check = raw(test_scores_are_means_beside_all_boxes, 0, [(0, 0, 8, 8), (4, 20, 18, 36)])
    plant(monkeypatch, background, function, old, new)
    with pytest.raises(AssertionError):
        check()
