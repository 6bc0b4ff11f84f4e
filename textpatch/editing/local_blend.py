"""Edits kept to where two words are, as attention finds them.

    m = pool(mean over sites and heads of sum over steps so far of sum over the word's tokens n of a(n))
    x_B := x_A + [m_A / max m_A > threshold or m_B / max m_B > threshold] (x_B - x_A)

The sum over tokens is read with a 1 as value of each of them and never as a map.  (Hertz et al. 2022)

h x w size of a map, H x W of the latents
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.editing.replacing import Heads, Values
from textpatch.errors import PatchError
from textpatch.prompts.tokens import Places
from textpatch.sites import Selectors


@dataclass(frozen=True)
class LocalBlend:
    """Request to keep an edit to where its words are.

    words      one word or phrase of the source, one of the target
    sites      sites whose maps are read, all of one size.  Any selector of sites
    threshold  share of a map's maximum from which on a place belongs to the word
    Raises PatchError for words that are not two texts, for no sites, and for a threshold outside 0 to 1.
    """

    words: tuple[str, str]
    sites: Selectors
    threshold: float = 0.3

    def __post_init__(self) -> None:
        words = self.words
        if not isinstance(words, (tuple, list)) or len(words) != 2 or not all(map(_is_word, words)):
            raise PatchError(
                f"the words of a local blend are {words!r}; give a pair, a word of the source and one of "
                "the target"
            )
        if self.sites is None:
            raise PatchError("a local blend has no sites to read its words at; name some")
        if not isinstance(self.threshold, Real) or not 0 <= self.threshold < 1:
            raise PatchError(
                f"the threshold of a local blend is {self.threshold!r}; give a share of the largest weight, "
                "from 0 to below 1"
            )


def _is_word(word: object) -> bool:
    return isinstance(word, str) and bool(word.strip())


@dataclass
class WordMaps:
    """Weights of two words at some sites, summed over the steps so far.

    places     text tokens of the source's word in its prompt, and of the target's in its own
    total      number of text tokens
    threshold  share of a map's maximum from which on a place belongs to its word
    sums       weight of each query (2, h w) by site
    """

    places: tuple[Places, Places]
    total: int
    threshold: float
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, site: str, source: Values, target: Values, heads: Heads) -> None:
        """Read a site once more, by the attention of the source's row and the target's."""
        reads = zip((source, target), self.places, strict=True)
        now = torch.stack([self._weights(attend, own, heads) for attend, own in reads])
        self.sums[site] = self.sums.get(site, 0) + now

    def _weights(self, attend: Values, places: Places, heads: Heads) -> Tensor:
        """Weight of some tokens, (h w,), mean over heads."""
        like = heads.q_image[0]  # (H, h w, D)
        # as wide as any value, or no backend of attention would do without a map
        text = like.new_zeros(len(like), self.total, like.shape[2])
        text[:, list(places)] = 1
        image = None
        if heads.v_image is not None:
            image = torch.zeros_like(heads.v_image)
        return attend(image, text)[:, : like.shape[1], 0].mean(0)

    def mask(self, height: int, width: int) -> Tensor:
        """Places (H, W) of either word, bool.

        Raises PatchError for maps of several sizes.
        """
        sizes = {x.shape[1] for x in self.sums.values()}
        if len(sizes) != 1:
            raise PatchError(
                f"the sites of a local blend have maps of {sorted(sizes)} places; name sites of one size"
            )
        shape = map_shape(sizes.pop(), height, width)
        mean = torch.stack([*self.sums.values()]).mean(0).unflatten(1, shape)[:, None]
        spread = F.max_pool2d(mean, 3, stride=1, padding=1)
        large = F.interpolate(spread, size=(height, width))[:, 0]  # (2, H, W)
        return (large / large.amax((1, 2), keepdim=True) > self.threshold).any(0)


def blended(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Latents (C, H, W) of the target where mask (H, W) is true, of the source elsewhere."""
    return source + mask.to(source) * (target - source)


def map_shape(queries: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a map with some queries, of latents (H, W) that are halved and rounded up.

    Raises PatchError if no halving gives so many.
    """
    h = height
    w = width
    while h * w > queries:
        h = (h + 1) // 2
        w = (w + 1) // 2
    if h * w != queries:
        raise PatchError(
            f"a map of {queries} places is none of latents of {height}x{width} halved; name other sites for "
            "the local blend"
        )
    return h, w
