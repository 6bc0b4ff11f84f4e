"""The scores beside their definitions, which are written here a second time.

Those of words are recursions and sets, those of pictures are sums.
"""

import functools
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from textpatch import metrics

LETTERS = [
    *"abcABC",
    # composed, combining and ligated letters
    *["é", "e\u0301", "ß", "İ", "ﬁ"],
    *"日本語",
    # emoji, joined and with a skin
    *["👨\u200d👩\u200d👧", "👍🏽"],
    *"שלם",
    *"سلا",
    # blanks and marks
    *[" ", "\u3000", "\u202e", "-"],
]


def pairs_of_words(n: int) -> list[tuple[str, str]]:
    """Unrelated ones, edited ones, equal and empty ones."""
    dice = random.Random(0)

    def word() -> list[str]:
        return [dice.choice(LETTERS) for _ in range(dice.choice([0, 1, 2, 3, 4, 5, 6, 9]))]

    found = []
    for _ in range(n):
        one = word()
        other = [c for c in one if dice.random() < 0.8] + word()[:1]
        if dice.random() < 0.4:
            other = word()
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


def test_pairs_of_words(long):
    """Every score of words is what its definition gives.

    The distance is the recursion's and symmetric, P and R match characters one by one, and exact is equal
    lower case.  By default on 2,000 pairs, and on 10,000 with --long.
    """
    words = pairs_of_words(10_000 if long else 2_000)
    for a, b in words:
        found = metrics.edit_distance(a, b)
        assert found == distance(a.lower(), b.lower()) == metrics.edit_distance(b, a), (a, b)
        assert metrics.exact(a, b) == (a.lower() == b.lower()) == (found == 0)
        common = matched(a, b)
        match = metrics.characters(a, b)
        wanted = (common / max(len(a), 1), common / max(len(b), 1))
        assert match[:2] == pytest.approx(wanted, abs=1e-7)
        assert match.exact_multiset == (Counter(compared(a)) == Counter(compared(b)))
    p, q = (np.mean([metrics.characters(a, b)[i] for a, b in words]) for i in (0, 1))
    assert metrics.f1(words) == pytest.approx(2 * p * q / (p + q), rel=1e-5)
    assert sum(a == "" for a, _ in words) > len(words) / 100
    assert sum(a == b for a, b in words) > len(words) / 200


def compared(word: str) -> list[str]:
    """Characters as they are compared, in lower case and without their blanks."""
    return [character.strip().lower() for character in word]


def matched(a: str, b: str) -> int:
    """Number of characters of a word that are matched one by one in the other."""
    left = compared(b)
    common = 0
    for character in compared(a):
        if character in left:
            left.remove(character)
            common += 1
    return common


def test_no_detour_is_shorter():
    """d(a, c) <= d(a, b) + d(b, c) for 2,000 threes of words."""
    words = pairs_of_words(2_000)
    distance = metrics.edit_distance
    for (a, b), (c, _) in itertools.pairwise(words):
        assert distance(a, c) <= distance(a, b) + distance(b, c)


@pytest.mark.parametrize(
    "a, b, edits, same",
    [
        ("", "", 0, True),
        ("", "日本", 2, False),
        ("é", "e\u0301", 2, False),
        ("ﬁ", "fi", 2, False),
        ("É", "é", 0, True),
        ("日本", "本日", 2, False),
        ("👨\u200d👩\u200d👧", "👨👩👧", 2, False),
        ("👍🏽", "👍", 1, False),
        ("שלום", "םולש", 4, False),
        ("a\u202eb", "ab", 1, False),
        ("ß", "SS", 2, False),
        ("İ", "i\u0307", 0, True),
        ("\ud800", "\ud800", 0, True),
    ],
)
def test_what_a_character_is(a, b, edits, same):
    """A character is a code point of the lower-cased text, as in the official code.

    So composed and combining forms differ.
    """
    assert metrics.edit_distance(a, b) == edits
    assert metrics.exact(a, b) is same
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
    if kind == "identical":
        return a, a
    if kind == "unrelated":
        return a, rng.permutation(a.reshape(-1, 3)).reshape(a.shape)
    return a, (a + noise).clip(0, 255).astype(np.uint8)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM by Wang et al. 2004, with centred moments.

    Every 11 x 11 window is weighted at once by the two-dimensional Gaussian.
    """
    y, x = np.mgrid[-5:6, -5:6]
    gauss = np.exp(-(x**2 + y**2) / 4.5)
    weights = gauss / gauss.sum()

    def mean(windows: np.ndarray) -> np.ndarray:
        return np.einsum("hwcij,ij->hwc", windows, weights)

    p = sliding_window_view(a.astype(float), (11, 11), (0, 1))  # (H - 10, W - 10, 3, 11, 11)
    q = sliding_window_view(b.astype(float), (11, 11), (0, 1))
    mp = mean(p)
    mq = mean(q)
    dp = p - mp[..., None, None]
    dq = q - mq[..., None, None]
    c1 = 2.55**2
    c2 = 7.65**2
    above = (2 * mp * mq + c1) * (2 * mean(dp * dq) + c2)
    below = (mp**2 + mq**2 + c1) * (mean(dp**2) + mean(dq**2) + c2)
    return float((above / below).mean())


@pytest.mark.parametrize("kind", ["colour", "grey", "constant", "identical", "unrelated"])
def test_pairs_of_pictures(kind):
    """MSE is a sum in exact integers, PSNR comes from it, SSIM is taken window by window, within 1e-10."""
    rng = np.random.default_rng(len(kind))
    for _ in range(20):
        a, b = pictures(kind, rng)
        squares = sum((int(x) - int(y)) ** 2 for x, y in zip(a.flat, b.flat, strict=True))
        assert metrics.mse(a, b) == pytest.approx(squares / a.size, rel=1e-12)
        wanted = np.inf
        if squares:
            wanted = 10 * np.log10(255**2 * a.size / squares)
        assert metrics.psnr(a, b) == pytest.approx(wanted, abs=1e-10)
        assert metrics.ssim(a, b) == pytest.approx(ssim(a, b), abs=1e-10)
        if kind == "identical":
            assert (metrics.mse(a, b), metrics.psnr(a, b)) == (0, np.inf)
            assert metrics.ssim(a, b) == pytest.approx(1, abs=1e-12)
        if kind == "grey":
            grey = [Image.fromarray(z[..., 0]) for z in (a, b)]
            assert metrics.mse(*grey) == metrics.mse(*(z.convert("RGB") for z in grey))
