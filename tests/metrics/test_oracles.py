"""The scores beside their definitions, written here a second time: of words as of recursions and sets, of pictures as of sums."""

import functools
import random
from collections import Counter

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from textpatch import metrics

# Latin, both cases; composed and combining accents; CJK; emoji, joined and with skin; Arabic and Hebrew; blanks; marks
LETTERS = [
    *"abcABC",
    "é",
    "e\u0301",
    "ß",
    "İ",
    "ﬁ",
    *"日本語",
    "👨\u200d👩\u200d👧",
    "👍🏽",
    *"שלם",
    *"سلا",
    " ",
    "\u3000",
    "\u202e",
    "-",
]


def pairs_of_words(n: int) -> list[tuple[str, str]]:
    """Unrelated ones, edited ones, equal and empty ones."""
    dice = random.Random(0)
    word = lambda: [dice.choice(LETTERS) for _ in range(dice.choice([0, 1, 2, 3, 4, 5, 6, 9]))]  # noqa: E731
    found = []
    for _ in range(n):
        one = word()
        other = (
            word() if dice.random() < 0.4 else [c for c in one if dice.random() < 0.8] + word()[:1]
        )
        found.append(("".join(one), "".join(other)))
    return found


def distance(a: str, b: str) -> int:
    """Levenshtein's recursion from the front, on code points."""

    @functools.cache
    def rest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        if a[i] == b[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


def test_ten_thousand_pairs_of_words():
    """Distance = the recursion's; P and R = matched characters one by one; exact = equal lower case; all symmetric."""
    words = pairs_of_words(10_000)
    for a, b in words:
        low, high = a.lower(), b.lower()
        found = metrics.edit_distance(a, b)
        assert found == distance(low, high) == metrics.edit_distance(b, a), (a, b)
        assert metrics.exact(a, b) == (low == high) == (found == 0)
        left, common = [c.strip() for c in b], 0
        left = [c.lower() for c in left]
        for c in a:
            if c.strip().lower() in left:
                left.remove(c.strip().lower())
                common += 1
        match = metrics.characters(a, b)
        wanted = common / len(a) if a else 0, common / len(b) if b else 0
        assert match[:2] == pytest.approx(wanted, abs=1e-7)
        assert match.exact_multiset == (
            Counter(c.strip().lower() for c in a) == Counter(c.strip().lower() for c in b)
        )
    p, q = (np.mean([metrics.characters(a, b)[i] for a, b in words]) for i in (0, 1))
    assert metrics.f1(words) == pytest.approx(2 * p * q / (p + q), rel=1e-5)
    assert sum(a == "" for a, _ in words) > 100 and sum(a == b for a, b in words) > 50


def test_no_detour_is_shorter():
    """d(a, c) <= d(a, b) + d(b, c) for 2,000 threes of words."""
    words = pairs_of_words(2_000)
    for (a, b), (c, _) in zip(words, words[1:]):
        assert metrics.edit_distance(a, c) <= metrics.edit_distance(a, b) + metrics.edit_distance(
            b, c
        )


@pytest.mark.parametrize("a, b, edits, same", [
    ("", "", 0, True), ("", "日本", 2, False), ("é", "e\u0301", 2, False), ("ﬁ", "fi", 2, False), ("É", "é", 0, True),
    ("日本", "本日", 2, False), ("👨\u200d👩\u200d👧", "👨👩👧", 2, False), ("👍🏽", "👍", 1, False), ("שלום", "םולש", 4, False),
    ("a\u202eb", "ab", 1, False), ("ß", "SS", 2, False), ("İ", "i\u0307", 0, True), ("\ud800", "\ud800", 0, True),
])  # fmt: skip
def test_what_a_character_is(a, b, edits, same):
    """A code point of the lower-cased text, as in the official code: composed and combining forms differ, and no NaN."""
    assert metrics.edit_distance(a, b) == edits and metrics.exact(a, b) is same
    assert all(0 <= score <= 1 for score in metrics.characters(a, b)[:2])


# --- pictures


def pictures(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures (H, W, 3) of the same odd or even size."""
    height, width = rng.integers(11, 40, 2)
    a = rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "grey":
        a = np.repeat(a[..., :1], 3, 2)
    if kind == "constant":
        a = np.full_like(a, rng.integers(256))
    noise = rng.normal(0, rng.choice([0.3, 3, 40]), a.shape)
    b = {"identical": a, "unrelated": rng.permutation(a.reshape(-1, 3)).reshape(a.shape)}.get(kind)
    return a, (a + noise).clip(0, 255).astype(np.uint8) if b is None else b


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004: every 11 x 11 window weighted at once by the two-dimensional Gaussian, centred moments."""
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / 4.5) / np.exp(-(x**2 + y**2) / 4.5).sum()
    p, q = (
        sliding_window_view(z.astype(float), (11, 11), (0, 1)) for z in (a, b)
    )  # (H - 10, W - 10, 3, 11, 11)
    mean = lambda z: np.einsum("hwcij,ij->hwc", z, weights)  # noqa: E731
    mp, mq = mean(p), mean(q)
    dp, dq = p - mp[..., None, None], q - mq[..., None, None]
    c1, c2 = 2.55**2, 7.65**2
    return float(
        (
            (2 * mp * mq + c1)
            * (2 * mean(dp * dq) + c2)
            / ((mp**2 + mq**2 + c1) * (mean(dp**2) + mean(dq**2) + c2))
        ).mean()
    )


@pytest.mark.parametrize("kind", ["colour", "grey", "constant", "identical", "unrelated"])
def test_two_hundred_pairs_of_pictures(kind):
    """40 pairs a kind: MSE as a sum in exact integers, PSNR from it, SSIM window by window, within 1e-10."""
    rng = np.random.default_rng(len(kind))
    for _ in range(40):
        a, b = pictures(kind, rng)
        squares = sum((int(x) - int(y)) ** 2 for x, y in zip(a.flat, b.flat))
        assert metrics.mse(a, b) == pytest.approx(squares / a.size, rel=1e-12)
        wanted = 10 * np.log10(255**2 * a.size / squares) if squares else np.inf
        assert metrics.psnr(a, b) == pytest.approx(wanted, abs=1e-10)
        assert metrics.ssim(a, b) == pytest.approx(ssim(a, b), abs=1e-10)
        if kind == "identical":
            assert (metrics.mse(a, b), metrics.psnr(a, b)) == (0, np.inf) and metrics.ssim(
                a, b
            ) == pytest.approx(1, abs=1e-12)
        if kind == "grey":
            grey = [Image.fromarray(z[..., 0]) for z in (a, b)]
            assert metrics.mse(*grey) == metrics.mse(*(z.convert("RGB") for z in grey))
