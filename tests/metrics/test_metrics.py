"""The laws of the scores: of words, of pictures, and of the engine that reads."""

import io
import json
import os
import subprocess
import sys
import threading
from math import comb
from statistics import NormalDist

import numpy as np
import pytesseract
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from support.planting import plant
from textpatch import metrics
from textpatch.errors import OCRError, PatchError
from textpatch.localization import scores as trials
from textpatch.metrics import image as image_scores
from textpatch.metrics import intervals, ocr, ocr_process

checked = settings(deadline=None, derandomize=True, print_blob=True, max_examples=100)
words = st.text("abABcC é", max_size=7)
seeds = st.integers(0, 2**32 - 1)
WORDS = "CAT HOUSE KITCHEN BRAVE WATER SIGNAL".split()


@pytest.fixture(scope="module")
def engine():
    return metrics.Tesseract()


def noise(seed, height=24, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(word, ink=(0, 0, 0), ground=(255, 255, 255), size=20, picture=(160, 48)):
    image = Image.new("RGB", picture, ground)
    ImageDraw.Draw(image).text((20, 10), word, fill=ink, font=ImageFont.load_default(size))
    return image


def sign(word, ink, plate, wall):
    """A plate from (20, 16) to (180, 64) on a wall with stripes as dark as the ink of other signs."""
    image = Image.new("RGB", (200, 80), wall)
    draw = ImageDraw.Draw(image)
    for x in range(-80, 200, 16):
        draw.line((x, 80, x + 80, 0), fill=tuple(c // 2 for c in wall), width=6)
    draw.rectangle((20, 16, 180, 64), fill=plate)
    draw.text((30, 26), word, fill=ink, font=ImageFont.load_default(24))
    return image


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
    scores = trials.picture_scores(Image.fromarray(a), Image.fromarray(b), box)
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


@pytest.mark.parametrize("box", [(0, 0, 40, 32), (10, 10, 30, 22)])
def test_a_box_that_leaves_no_window_is_refused(box):
    """Neither nan nor a score of strips in which no window of 11 pixels has room."""
    with pytest.raises(PatchError, match="mask leaves nothing to score"):
        background(noise(1, 32, 40), noise(2, 32, 40), box)


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


# reading


def test_reads_written_words(engine):
    """Dark words on white and white words on black read exactly, in order, one answer for each picture."""
    pictures = [written(w) for w in WORDS] + [written(w, (255,) * 3, (0,) * 3) for w in WORDS]
    assert engine.read(pictures) == WORDS + WORDS


@pytest.mark.parametrize("size", [12, 60, 300])
def test_reads_any_size(engine, size):
    """Capitals of 8 to 210 px read exactly: enlargement ends where tesseract would get worse."""
    pictures = [written(word, size=size, picture=(7 * size, 2 * size)) for word in WORDS]
    assert engine.read(pictures) == WORDS


def test_tesseract_sees_small_pictures():
    """However large the letters, at most 151 px of height are read: 4 x 300 points took 0.27 s a word."""
    for size in (12, 60, 300):
        picture = written("CAT", size=size, picture=(7 * size, 2 * size))
        assert ocr._prepare(picture, None, 4, 0).height <= 151


@pytest.mark.parametrize(
    "ink, plate, wall",
    [
        ((250, 250, 250), (200, 30, 35), (245, 220, 50)),
        ((20, 20, 20), (250, 160, 195), (35, 75, 190)),
        ((250, 250, 250), (30, 140, 60), (250, 160, 195)),
    ],
)
def test_reads_signs_inside_their_box(engine, ink, plate, wall):
    """Given the box of its plate, a word reads exactly, whatever the colours and however striped the wall."""
    assert engine.read([sign(w, ink, plate, wall) for w in WORDS], box=(22, 18, 178, 62)) == WORDS


def test_blank_pictures_read_as_nothing(engine):
    """White, black, one colour, one pixel, faint noise: "" at their places, beside a word that is read."""
    faint = Image.fromarray(
        (128 + np.random.default_rng(0).normal(0, 3, (48, 160))).astype(np.uint8)
    )
    flat = [Image.new("RGB", (160, 48), c) for c in ("white", "black", "red")]
    blanks = [*flat, Image.new("L", (1, 1)), faint]
    # none may reach tesseract, which reads stretched noise as words
    assert [ocr._prepare(blank, None, 4, 0) for blank in blanks] == [None] * 5
    assert engine.read([*blanks, written("CAT"), *blanks]) == [""] * 5 + ["CAT"] + [""] * 5
    assert engine.read(blanks) == [""] * 5 and engine.read([]) == []


def test_transparent_is_white(engine):
    """Black letters on a transparent ground read like black on white."""
    clear = Image.new("RGBA", (160, 48))
    clear.paste((0, 0, 0, 255), mask=Image.eval(written("HOUSE").convert("L"), lambda v: 255 - v))
    assert engine.read([clear]) == ["HOUSE"]


def test_reads_faint_words(engine):
    """Letters 50 levels from their ground read like black on white: contrast is stretched."""
    assert engine.read([written(w, (150,) * 3, (200,) * 3) for w in WORDS]) == WORDS


def test_blank_keeps_the_gap_between_words(engine):
    """`blank=True` keeps one blank between two words, the default none."""
    picture = written("OPEN SHOP")
    assert metrics.Tesseract(blank=True).read([picture]) == ["OPEN SHOP"]
    assert engine.read([picture]) == ["OPENSHOP"]


@pytest.mark.parametrize("alphabet", ["abcdefghijklmnopqrstuvwxyz", "0123456789", "ACE"])
def test_answers_stay_in_the_alphabet(alphabet):
    """Every alphabet passes its own self-test, and nothing else is ever answered."""
    answers = metrics.Tesseract(alphabet=alphabet).read([written(w) for w in WORDS])
    assert set("".join(answers)) <= set(alphabet)


def test_reading_leaves_the_environment_alone(engine, monkeypatch):
    """OMP_THREAD_LIMIT=1 reaches tesseract, which leads a session of its own.

    os.environ is as before, also where threads read at once.
    """
    seen = []
    start = subprocess.Popen
    before = dict(os.environ)

    def spy(command, **options):
        seen.append((options["env"]["OMP_THREAD_LIMIT"], options["start_new_session"]))
        return start(command, **options)

    monkeypatch.setattr(ocr_process.subprocess, "Popen", spy)
    threads = [threading.Thread(target=engine.read, args=([written("CAT")],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) >= 3  # the first read asks for the version, too
    assert set(seen) == {("1", True)}
    assert dict(os.environ) == before


def test_describe_names_the_engine(engine):
    """A manifest gets engine, version and every setting, as plain JSON values."""
    facts = json.loads(json.dumps(engine.describe()))
    assert facts["engine"] == "tesseract" and facts["version"][0].isdigit()
    assert (facts["psm"], facts["scale"], facts["dictionaries"]) == (7, 4, False)


@pytest.mark.parametrize("answer", ["", "\f" * 17, "OPEN\n\f" * 18, "OPEN\n"])
def test_an_engine_that_cannot_read_is_an_error(monkeypatch, answer):
    """Nothing, blanks, one word for all, too few pages: OCRError before any score, never zeros."""
    monkeypatch.setattr(ocr, "tesseract", lambda *a, **k: answer)
    with pytest.raises(OCRError, match="known words|readings"):
        metrics.Tesseract().read([written("CAT")])


def test_the_self_test_is_not_trivial():
    """At least twelve words, all different, in every alphabet, with blanks and without."""
    for alphabet in (ocr.LETTERS, "abcdefgh", "0123456789", "ABCDEFGHIKLMNOPRSTUVWXYZ"):
        for blank in (False, True):
            assert len(set(ocr._known_words(alphabet, blank))) >= 12


def test_the_self_test_says_what_was_read(monkeypatch):
    """Its error holds the words, the readings and their number."""
    monkeypatch.setattr(ocr, "tesseract", lambda *a, **k: "OPEN\n\f" * 18)
    with pytest.raises(OCRError, match=r"read 1 of 18 known words.*BREAD as 'OPEN'"):
        metrics.Tesseract().self_test()


def test_the_self_test_runs_once(monkeypatch):
    """A second self-test starts no process; a failed one is not remembered as passed."""
    engine = metrics.Tesseract()
    with monkeypatch.context() as broken, pytest.raises(OCRError):
        broken.setattr(ocr, "tesseract", lambda *a, **k: "\f" * 17)
        engine.self_test()
    engine.self_test()
    monkeypatch.setattr(ocr, "tesseract", None)
    engine.self_test()


def test_a_missing_engine_is_one_line(monkeypatch, tmp_path):
    """Without the program: one line with what was asked, what was found, and what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (metrics.Tesseract().self_test, metrics.Tesseract().describe):
        with pytest.raises(OCRError, match="apt-get install tesseract-ocr.*brew install") as error:
            call()
        assert "\n" not in str(error.value)


def test_a_crash_costs_one_picture(engine, monkeypatch):
    """A picture that tesseract dies on reads as "" and is counted; all the others are read."""

    def dies(arguments, given, ask=ocr.tesseract, **options):
        if any(
            page.width == page.height
            for page in ImageSequence.Iterator(Image.open(io.BytesIO(given)))
        ):
            raise ocr_process.Crash("floating point exception")
        return ask(arguments, given, **options)

    monkeypatch.setattr(ocr, "tesseract", dies)
    square = Image.fromarray(np.pad(np.zeros((9, 9), np.uint8), 9, constant_values=255))
    before = engine.crashed
    assert engine.read([*map(written, WORDS), square, written("CAT")]) == [*WORDS, "", "CAT"]
    assert engine.crashed == before + 1


def test_a_failure_is_not_a_crash(monkeypatch):
    """A status of tesseract's own, such as for missing language data, is an OCRError with its words."""
    monkeypatch.setenv("TESSDATA_PREFIX", "/nowhere")
    with pytest.raises(OCRError, match="ended with 1: .*/nowhere"):
        metrics.Tesseract().self_test()


def test_a_missing_language_is_named(monkeypatch):
    """Where tesseract has no English data, the error names the languages it has and what to install."""
    monkeypatch.setenv("TESSDATA_PREFIX", "/nowhere")
    with pytest.raises(
        OCRError, match=r"has the languages \[\] and needs 'eng'; .*tesseract-ocr-eng"
    ):
        metrics.Tesseract().self_test()
    monkeypatch.undo()
    with pytest.raises(OCRError) as error:  # a failure that has nothing to do with languages
        ocr_process.tesseract(["/nowhere.tiff", "stdout"], timeout=20, asked="reading nothing")
    assert "languages" not in str(error.value) and ocr_process.LANGUAGE in ocr_process.languages()


def stand_in(monkeypatch, folder, script):
    """Make a shell script the program that pytesseract, and so the reader, starts."""
    path = folder / "stand-in"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", str(path))


@pytest.mark.parametrize("named", ["5.3.0", "5.3.0-46-g1569", "v5.4.0.20240606", "main"])
def test_a_version_is_told_as_the_program_tells_it(named, monkeypatch, tmp_path):
    """No part of a version is lost: two builds of one release are two engines in a manifest."""
    stand_in(monkeypatch, tmp_path, f"echo tesseract {named}")
    assert metrics.Tesseract().describe()["version"] == named


def test_languages_of_a_program_that_tells_none(monkeypatch, tmp_path):
    """A program that fails, names nothing, answers in no UTF-8, or is not there has no languages."""
    for script in ("exit 3", "exit 0", "printf '\\377\\n'", "kill -SEGV $$"):
        stand_in(monkeypatch, tmp_path, script)
        assert ocr_process.languages() == []
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "/nowhere/tesseract")
    assert ocr_process.languages() == []


def test_pytesseracts_program_is_the_one_that_reads(monkeypatch):
    """Whoever points pytesseract at a program has pointed the reader at it; the error names that program."""
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "/nowhere/tesseract")
    with pytest.raises(OCRError, match="found no program '/nowhere/tesseract'"):
        metrics.Tesseract().self_test()


def test_pytesseract_reads_the_same(engine):
    """The batch of one own call gives what pytesseract gives picture by picture with the same settings."""
    prepared = [ocr._prepare(written(word), None, 4, 0) for word in WORDS]
    asked = " ".join(engine._settings()[2:])
    read = [
        pytesseract.image_to_string(picture.copy(), lang="eng", config=asked)
        for picture in prepared
    ]
    assert ["".join(line.split()) for line in read] == engine._read(prepared)


def test_a_slow_engine_is_an_error():
    """A call that outlasts its timeout is an OCRError naming it."""
    with pytest.raises(OCRError, match="timeout=0.001 s"):
        metrics.Tesseract(timeout=0.001).self_test()


@pytest.mark.parametrize("box", [(0, 0, 161, 48), (-1, 0, 10, 10), (10, 0, 10, 10)])
def test_a_box_outside_the_picture_is_an_error(engine, box):
    """Cropping never invents pixels nor leaves none; both sizes are named."""
    with pytest.raises(OCRError, match=r"box .* is not inside picture \d of size \(160, 48\)"):
        engine.read([written("CAT"), written("CAT")], box=box)


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8), np.uint8), Image.new("F", (8, 8)), Image.new("I;16", (8, 8)), "a"]
)
def test_pictures_of_other_kinds_are_errors(engine, picture):
    """Arrays, paths, float and 16-bit pictures are refused: they would be read as blank."""
    with pytest.raises(OCRError, match="picture 0 cannot be read"):
        engine.read([picture])


@pytest.mark.parametrize(
    "options", [{"alphabet": ""}, {"alphabet": "A B"}, {"scale": 0}, {"timeout": 0}]
)
def test_senseless_engines_are_errors(options):
    """Options no reading can be made with are refused when given."""
    with pytest.raises(OCRError, match="cannot read with"):
        metrics.Tesseract(**options)


def no_box(image, box, index, luminance=ocr._luminance):
    return luminance(image, None, index)


def backwards(text, count, pages=ocr._pages):
    return pages(text, count)[::-1]


def red_sign(engine):
    test_reads_signs_inside_their_box(engine, (250, 250, 250), (200, 30, 35), (245, 220, 50))


@pytest.mark.parametrize(
    "name, wrong, law",
    [
        ("_luminance", no_box, red_sign),
        ("LEAST_SPAN", 1, test_blank_pictures_read_as_nothing),
        ("_pages", backwards, test_reads_written_words),
        (
            "_known_words",
            lambda alphabet, blank: ["I"],
            lambda engine: test_the_self_test_is_not_trivial(),
        ),
        ("TALLEST", 10**6, lambda engine: test_tesseract_sees_small_pictures()),
    ],
)
def test_planted_faults_of_reading_are_noticed(monkeypatch, name, wrong, law):
    """A reader with one wrong step breaks the law that the step is for."""
    monkeypatch.setattr(ocr, name, wrong)
    faulty = metrics.Tesseract()
    faulty._tested = True
    with pytest.raises(AssertionError):
        law(faulty)


def test_importing_needs_no_engine():
    """`import textpatch.metrics` loads neither torch nor pytesseract and starts no program."""
    code = (
        "import os, sys; os.environ['PATH'] = ''; import textpatch.metrics; "
        "sys.exit(not {'torch', 'pytesseract'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
