"""The laws of the scores, of words and of pictures."""

import subprocess
import sys
from math import comb
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.planting import plant
from textpatch import metrics
from textpatch.errors import PatchError
from textpatch.localization import scores as trials
from textpatch.metrics import image as image_scores
from textpatch.metrics import intervals

checked = settings(deadline=None, derandomize=True, print_blob=True, max_examples=50)
words = st.text("abABcC é", max_size=7)
seeds = st.integers(0, 2**32 - 1)


def noise(seed, height=24, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# strings


@pytest.mark.parametrize(
    "read, wanted, precision, recall, same",
    [
        ("CAT", "cat", 1, 1, True),
        ("TAC", "cat", 1, 1, True),  # an anagram is an exact multiset
        ("BALL", "LAB", 3 / 4, 1, False),  # the second L matches nothing
        ("A B", "AB", 2 / 3, 1, False),  # a blank read counts in the length
        ("A B", "C\tD", 1 / 3, 1 / 3, False),  # and matches any other blank
        ("", "cat", 0, 0, False),
        ("", "", 0, 0, True),
    ],
)
def test_characters_by_hand(read, wanted, precision, recall, same):
    """P = |R n W| / |R| and Q = |R n W| / |W| on multisets of lower-cased characters."""
    assert metrics.characters(read, wanted) == (
        pytest.approx(precision),
        pytest.approx(recall),
        same,
    )


@checked
@given(words, words, seeds)
def test_characters_ignores_order_and_swaps_sides(read, wanted, seed):
    """Shuffling `read` changes nothing; exchanging the strings exchanges precision and recall."""
    shuffled = "".join(np.random.default_rng(seed).permutation(list(read))) if read else ""
    match = metrics.characters(read, wanted)
    assert metrics.characters(shuffled, wanted) == match
    assert metrics.characters(wanted, read) == (match.recall, match.precision, match.exact_multiset)


def test_f1_is_of_the_means():
    """P = (1, 1/4), Q = (1/2, 1): F1 of the means 5/8, 3/4 is 15/22, the mean of F1s would be 8/15."""
    assert metrics.f1([("A", "AB"), ("AXYZ", "a")]) == pytest.approx(15 / 22, abs=1e-6)


@checked
@given(st.lists(st.tuples(words.filter(bool), words.filter(bool)), min_size=1, max_size=6))
def test_f1_range(pairs):
    """0 <= F1 <= 1, and 1 up to the official 1e-6 when every wanted word was read."""
    assert 0 <= metrics.f1(pairs) <= 1
    assert metrics.f1([(w, w) for _, w in pairs]) == pytest.approx(1, abs=1e-6)


def test_f1_needs_pairs():
    """The F1 of nothing is an error, never 0."""
    with pytest.raises(PatchError, match="no readings"):
        metrics.f1([])


@pytest.mark.parametrize(
    "a, b, distance",
    [("kitten", "SITTING", 3), ("", "abc", 3), ("ab", "", 2), ("Flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edit_distance_by_hand(a, b, distance):
    """Insertions, deletions and replacements cost one each, upper case nothing."""
    assert metrics.edit_distance(a, b) == distance


@checked
@given(words, words, words)
def test_edit_distance_is_a_metric(a, b, c):
    """d(a, b) = d(b, a) <= d(a, c) + d(c, b), and d = 0 only for what `exact` calls equal."""
    d = metrics.edit_distance
    assert d(a, b) == d(b, a) <= d(a, c) + d(c, b)
    assert (d(a, b) == 0) is metrics.exact(a, b)


@checked
@given(words, words)
def test_edit_distance_bounds(a, b):
    """The length difference bounds it from below, the longer length from above, and multisets from below."""
    unmatched = max(len(a), len(b)) - round(metrics.characters(a, b).recall * (len(b) + 1e-8))
    assert unmatched <= metrics.edit_distance(a, b) <= max(len(a), len(b))
    assert abs(len(a) - len(b)) <= metrics.edit_distance(a, b)


# intervals


def test_bootstrap_of_a_mean_has_the_normal_width():
    """Of 400 standard normal values the 95 % interval of the mean is +-1.96 std/20, within a tenth."""
    values = np.random.default_rng(1).normal(size=400)
    low, high = metrics.bootstrap(values, n=4000)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_covers():
    """A 90 % interval of the mean holds the true mean in 80 to 97 % of 200 data sets."""
    sets = np.random.default_rng(2).normal(3, 1, (200, 60))
    held = [
        low <= 3 <= high for low, high in (metrics.bootstrap(s, n=300, level=0.9) for s in sets)
    ]
    assert 0.80 < np.mean(held) < 0.97


def test_bootstrap_keeps_columns_together():
    """Where recall = 1 - precision in every item, mean P + mean Q = 1 in every resample."""
    p = np.random.default_rng(3).uniform(size=50)
    low, high = metrics.bootstrap(
        np.stack([p, 1 - p], 1), lambda a, b, axis: a.mean(axis) + b.mean(axis)
    )
    assert low == pytest.approx(1) and high == pytest.approx(1)


def test_bootstrap_is_the_loop_it_stands_for(monkeypatch):
    """In any chunks: quantiles of the statistic over rng.integers draws, one draw at a time."""
    values = np.random.default_rng(4).uniform(size=(37, 2))
    rng = np.random.default_rng(5)
    drawn = [metrics.f1_of_means(*values[rng.integers(37, size=37)].T) for _ in range(101)]
    for chunk in (1, 200, 2**20):
        monkeypatch.setattr("textpatch.metrics.intervals.CHUNK", chunk)
        interval = metrics.bootstrap(values, metrics.f1_of_means, n=101, level=0.8, seed=5)
        assert interval == pytest.approx(np.quantile(drawn, [0.1, 0.9]))


@pytest.mark.parametrize(
    "values, options",
    [([], {}), ([1, np.inf], {}), ([1, np.nan], {}), ([1, 2], {"level": 1}), ([1, 2], {"n": 0})],
)
def test_bootstrap_refuses(values, options):
    """No items, values that are not finite, or senseless options are errors, never nan."""
    with pytest.raises(PatchError, match="bootstrap got"):
        metrics.bootstrap(values, **options)


def test_bootstrap_refuses_a_statistic_that_ignores_the_axis():
    """A statistic over all resamples at once would give an interval of width 0."""
    with pytest.raises(PatchError, match="must reduce the given axis"):
        metrics.bootstrap([1.0, 2.0], lambda x, axis: x.mean())


@checked
@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.997]))
def test_wilson_s_ends_are_the_shares_that_just_fit(n, share, level):
    """Both ends q solve (p - q)^2 = z^2 q (1 - q) / n, the normal test of q.

    The share lies between the ends, and they are apart.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    low, high = metrics.wilson(share, n, level=level)
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-12)
    assert 0 <= low <= share <= high <= 1 and high - low > 0.999 * z**2 / (n + z**2)


def test_wilson_of_all_alike():
    """n times yes is n / (n + z^2) to 1, n times no the mirror image, such as 34 % to 100 % for two."""
    for n in (1, 2, 3, 24, 283):
        assert metrics.wilson(1.0, n) == pytest.approx((n / (n + 1.959964**2), 1), abs=1e-6)
        assert metrics.wilson(0.0, n) == pytest.approx(
            (0, 1.959964**2 / (n + 1.959964**2)), abs=1e-6
        )


@pytest.mark.parametrize("n", [2, 3, 8, 24, 48])
def test_wilson_covers(n):
    """The 95 % interval holds the true share with probability 0.93 to 0.98, on average over shares.

    The probability is summed over all outcomes.
    """
    ends = [metrics.wilson(k / n, n) for k in range(n + 1)]
    held = []
    for p in np.linspace(0.005, 0.995, 100):
        inside = [k for k, (low, high) in enumerate(ends) if low <= p <= high]
        held.append(sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside))
    assert 0.93 < np.mean(held) < 0.98


@pytest.mark.parametrize("arguments", [(0.5, 0), (1.5, 3), (-0.1, 3), (float("nan"), 3)])
def test_wilson_refuses(arguments):
    """No answers, or a share that is none."""
    with pytest.raises(PatchError, match="wilson got share="):
        metrics.wilson(*arguments)


def test_a_planted_fault_of_wilson_s_interval_is_noticed(monkeypatch):
    """Fault: the interval of the textbook, p -+ z sqrt(p (1 - p) / n), about a moved middle.

    It is too narrow for n times yes.
    """
    plant(monkeypatch, intervals, "wilson", " + z**2 / (4 * n**2)", "")
    with pytest.raises(AssertionError):
        test_wilson_s_ends_are_the_shares_that_just_fit.hypothesis.inner_test(3, 1.0, 0.95)
    with pytest.raises(AssertionError):
        test_wilson_of_all_alike()


# pictures


def slow_ssim(a, b):
    """SSIM by its definition: a loop over windows, weights from the two-dimensional Gaussian."""
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for top, left, c in np.ndindex(a.shape[0] - 10, a.shape[1] - 10, 3):
        p, q = (z[top : top + 11, left : left + 11, c].astype(float) for z in (a, b))
        mp, mq = (weights * p).sum(), (weights * q).sum()
        vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
        cov = (weights * (p - mp) * (q - mq)).sum()
        c1, c2 = 2.55**2, 7.65**2
        found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.reshape(found, (a.shape[0] - 10, a.shape[1] - 10, 3))


@settings(checked, max_examples=10)
@given(seeds, st.integers(11, 24), st.integers(11, 20), st.floats(0, 1))
def test_ssim_is_its_definition(seed, height, width, mix):
    """ssim equals the slow loop, masked and not, for unrelated and for similar pictures, to rounding."""
    a, other = noise(seed, height, width), noise(seed + 1, height, width)
    b = (mix * a + (1 - mix) * other).astype(np.uint8)
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    mask[5, 5] = True
    assert metrics.ssim(a, b) == pytest.approx(slow_ssim(a, b).mean(), abs=1e-10)
    assert metrics.ssim(a, b, mask) == pytest.approx(
        slow_ssim(a, b)[mask[5:-5, 5:-5]].mean(), abs=1e-10
    )


def test_ssim_of_constants():
    """Of flat pictures only brightness remains: (2 m n + C1) / (m^2 + n^2 + C1), C1 = 2.55^2."""
    a, b = (np.full((24, 64, 3), m, np.uint8) for m in (100, 180))
    expected = (2 * 100 * 180 + 2.55**2) / (100**2 + 180**2 + 2.55**2)
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-12)


@checked
@given(seeds)
def test_image_scores_are_symmetric_and_know_equality(seed):
    """Every score is symmetric; equal pictures have mse 0, psnr inf, ssim 1, and officially 148.13 dB."""
    a, b = noise(seed), noise(seed + 1)
    for name in "mse psnr ssim mse_uint8_wrapped psnr_uint8_wrapped".split():
        score = getattr(metrics, name)
        assert score(a, b) == pytest.approx(score(b, a), rel=1e-12)
    assert (metrics.mse(a, a), metrics.psnr(a, a), metrics.mse_uint8_wrapped(a, a)) == (
        0,
        np.inf,
        0,
    )
    assert metrics.ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert metrics.psnr_uint8_wrapped(a, a) == pytest.approx(148.13, abs=0.005)


@checked
@given(seeds, st.integers(1, 255))
def test_mse_of_a_constant_shift(seed, shift):
    """Adding d to every pixel gives mse d^2 and psnr 20 log10(255 / d); the official mse is d^2 mod 256."""
    a = noise(seed) % (256 - shift)
    b = (a + shift).astype(np.uint8)
    assert metrics.mse(a, b) == shift**2
    assert metrics.psnr(a, b) == pytest.approx(20 * np.log10(255 / shift))
    assert metrics.mse_uint8_wrapped(a, b) == shift**2 % 256


def test_wrapped_floor():
    """Unrelated pictures: officially mean(d^2 mod 256) = 105.5 or 27.90 dB, correctly 255 * 257 / 6."""
    a, b = noise(7, 512, 512), noise(8, 512, 512)
    assert sum(d * d % 256 for d in range(256)) / 256 == pytest.approx(105.5)
    assert metrics.mse_uint8_wrapped(a, b) == pytest.approx(105.5, abs=0.5)
    assert metrics.psnr_uint8_wrapped(a, b) == pytest.approx(27.90, abs=0.02)
    assert metrics.mse(a, b) == pytest.approx((256**2 - 1) / 6, rel=0.01)


@checked
@given(seeds, st.integers(1, 23))
def test_mask_scores_only_what_counts(seed, height):
    """A mask of the upper rows scores the upper rows; the full mask scores the whole picture."""
    a, b = noise(seed), noise(seed + 1)
    mask = np.zeros((24, 30), bool)
    mask[:height] = True
    for score in (metrics.mse, metrics.psnr):
        assert score(a, b, mask) == pytest.approx(score(a[:height], b[:height]))
    for score in (metrics.mse, metrics.psnr, metrics.ssim):
        assert score(a, b, mask | True) == pytest.approx(score(a, b), rel=1e-12)


def test_pil_pictures_score_as_arrays():
    """A PIL picture and its RGB array are the same picture."""
    a, b = noise(9), noise(10)
    for score in (metrics.mse, metrics.ssim, metrics.psnr_uint8_wrapped):
        assert score(Image.fromarray(a), Image.fromarray(b)) == score(a, b)


@pytest.mark.parametrize(
    "score", [metrics.mse, metrics.psnr, metrics.ssim, metrics.mse_uint8_wrapped]
)
def test_pictures_must_be_comparable(score):
    """Other sizes are named with both values; floats are refused, for 0..1 would score as near equal."""
    with pytest.raises(PatchError, match=r"\(24, 30\) and \(24, 31\)"):
        score(noise(1), noise(2, width=31))
    with pytest.raises(PatchError, match="found float64"):
        score(noise(1) / 255, noise(2) / 255)


@pytest.mark.parametrize(
    "mask", [np.zeros((24, 30), bool), np.ones((24, 30)), np.ones((24, 31), bool)]
)
def test_masks_must_leave_something(mask):
    """An empty mask, one that is not bool, or one of another size is an error, never nan."""
    for score in (metrics.mse, metrics.psnr, metrics.ssim):
        with pytest.raises(PatchError, match="mask"):
            score(noise(1), noise(2), mask)


def test_ssim_needs_a_whole_window():
    """Ten pixels hold no 11 x 11 window, nor does a mask of the outermost five."""
    border = np.ones((24, 30), bool)
    border[5:-5, 5:-5] = False
    for arguments in ((noise(1, 10), noise(2, 10)), (noise(1), noise(2), border)):
        with pytest.raises(PatchError, match="ssim needs|nothing to score"):
            metrics.ssim(*arguments)


LETTERING = (7, 9, 81, 24)  # of the shipped models' pictures of 32 x 96


@st.composite
def boxes(draw, height=32, width=40):
    """Boxes, at the edges too, that leave a window at their left or above them."""
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    assume(max(left, width - right) >= 11 or max(top, height - bottom) >= 11)
    return left, top, right, bottom


@settings(checked, max_examples=30)
@given(seeds, boxes())
def test_the_background_s_ssim_knows_nothing_of_the_box(seed, box):
    """Whatever stands in the box: bit for bit the same ssim and mse of the background."""
    a, b = noise(seed, 32, 40), noise(seed + 1, 32, 40)
    left, top, right, bottom = box
    lettered = b.copy()
    lettered[top:bottom, left:right] = noise(seed + 2, bottom - top, right - left)
    found, other = (background(a, one, box) for one in (b, lettered))
    assert found == other


@settings(checked, max_examples=10)
@given(seeds, boxes())
def test_the_background_s_ssim_is_the_mean_of_the_windows_beside_the_box(seed, box):
    """The slow loop's windows, each asked whether it overlaps the box; without a box it is the plain ssim."""
    a, b = noise(seed, 32, 40), noise(seed + 1, 32, 40)
    left, top, right, bottom = box
    similar = slow_ssim(a, b)
    free = [
        similar[y, x]
        for y, x in np.ndindex(similar.shape[:2])
        if x + 11 <= left or x >= right or y + 11 <= top or y >= bottom
    ]
    assert background(a, b, box)[0] == pytest.approx(np.mean(free), abs=1e-10)
    assert background(a, b, None) == (metrics.ssim(a, b), metrics.mse(a, b))


def background(a, b, box) -> tuple[float, float]:
    scores = trials.picture_scores(Image.fromarray(a), Image.fromarray(b), [box])
    return scores["ssim"], scores["mse"]


@pytest.mark.parametrize(
    "height, width, box, bound", [(32, 96, LETTERING, 0.2), (128, 256, (20, 40, 200, 80), 0.05)]
)
def test_backgrounds_without_likeness_score_near_nothing(height, width, box, bound):
    """Backgrounds of independent noise are not alike.

    A window correlates by 0.02, give or take 0.19, as it weighs 4 pi 1.5^2 = 28 pixels.  The free windows
    weigh as much as 10 and 900 windows apart would, in three channels each.  The bounds are five standard
    errors more.
    """
    for seed in range(0, 20, 2):
        a = noise(seed, height, width)
        b = noise(seed + 1, height, width)
        assert abs(background(a, b, box)[0]) < bound


@pytest.mark.parametrize(
    "box, why", [((0, 0, 40, 32), "fills 100% of the picture"), ((10, 10, 30, 22), "no window")]
)
def test_a_box_that_leaves_no_window_is_told(box, why):
    """Neither nan nor a score of strips in which no window of 11 pixels has room."""
    a, b = (Image.fromarray(noise(seed, 32, 40)) for seed in (1, 2))
    scores = trials.picture_scores(a, b, [box])
    assert why in scores["no_background"]
    assert {"ssim", "mse"}.isdisjoint(scores)
    assert scores["mse_uint8_wrapped"] == metrics.mse_uint8_wrapped(a, b)


def test_planted_windows_that_touch_the_lettering_are_noticed(monkeypatch):
    """Fault: a window counts as soon as its middle is outside the box."""
    plant(
        monkeypatch, image_scores, "windows_outside", "pixels_outside(touched", "pixels_outside(box"
    )
    for law in (
        test_the_background_s_ssim_knows_nothing_of_the_box,
        test_the_background_s_ssim_is_the_mean_of_the_windows_beside_the_box,
    ):
        with pytest.raises(AssertionError):
            law.hypothesis.inner_test(0, (16, 12, 40, 20))


@pytest.mark.parametrize("name, wrong", [("C1", 1.0), ("C2", 0.01), ("SIGMA", 1.6), ("RANGE", 1)])
def test_planted_faults_of_image_scores_are_noticed(monkeypatch, name, wrong):
    """A wrong constant breaks the definition of ssim or the law of the constant shift."""
    monkeypatch.setattr(image_scores, name, wrong)
    with pytest.raises(AssertionError):
        test_ssim_is_its_definition.hypothesis.inner_test(0, 24, 20, 0.9)
        test_mse_of_a_constant_shift.hypothesis.inner_test(0, 10)


def test_importing_needs_no_engine():
    """`import textpatch.metrics` loads neither torch nor an engine and starts no program."""
    code = (
        "import os, sys; os.environ['PATH'] = ''; import textpatch.metrics; "
        "sys.exit(not {'torch', 'pytesseract', 'ocrust', 'onnxruntime'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
