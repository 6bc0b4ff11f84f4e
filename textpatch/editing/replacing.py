"""Columns of a target's attention maps that are read from a source's, without any map.

    a_B'(n) = u(n) sum_m a_A(m) M[m, n] + r(n) a_B(n)                                 (columns of text)
    out_B   = softmax(Q_A K_A^T / sqrt(D)) M (u V_B) + softmax(Q_B K_B^T / sqrt(D)) (r V_B)

The second line is what the first puts out, in two ordinary calls of attention, because attention is linear
in its values.  Image columns have M = 1 and u = 1, or u = 0.

H heads, N image tokens, S = T text tokens, D head width
A pair of rows is the source's, then the target's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.editing.mappers import Mapper

Values = Callable[[Tensor | None, Tensor | None], Tensor]  # of image and text values, an output


class Heads(NamedTuple):
    """Queries and keys of both rows, (2, H, n, D) each, and the values (H, n, D) of the target's."""

    q_image: Tensor
    q_text: Tensor | None
    k_image: Tensor | None
    k_text: Tensor | None
    v_image: Tensor | None
    v_text: Tensor | None


class TextStep(NamedTuple):
    """Text columns that are the source's in one step.

    matrix  M (S, T)
    taken   u (T,), weight of the source's map
    kept    r (T,), weight of the target's own
    keeps   whether any r is not 0
    """

    matrix: Tensor
    taken: Tensor
    kept: Tensor
    keeps: bool


def text_steps(mapper: Mapper, windows: Tensor, factors: Tensor) -> list[TextStep | None]:
    """Text columns of each step, None where all stay the target's own.

        u = w c alpha,  r = (1 - w) + w c (1 - alpha)

    windows  w (steps, T), 1 where a token is edited and 0 where it is not
    factors  c (T,), by which the edited columns are multiplied
    All is in the dtype and on the device of the mapper's matrix.
    """
    matrix = mapper.matrix
    steps: list[TextStep | None] = []
    for w in windows.double():
        taken = w * factors * mapper.alpha
        kept = (1 - w) + w * factors * (1 - mapper.alpha)
        step = TextStep(matrix, taken.to(matrix), kept.to(matrix), keeps=bool(kept.any()))
        unedited = not taken.any() and bool((kept == 1).all())
        steps.append(None if unedited else step)
    return steps


@dataclass(frozen=True)
class Columns:
    """Columns that are the source's in one step.

    image  whether those of the image are
    text   those of the text, None where all stay the target's
    """

    image: bool
    text: TextStep | None = None

    @property
    def nothing(self) -> bool:
        """True where the map stays the target's."""
        return not self.image and self.text is None

    def taken(self, image: Tensor | None, text: Tensor | None) -> Tensor | None:
        """Values (H, N + T, D) beside the source's map, None if all are 0."""
        if self.nothing:
            return None
        if image is not None and not self.image:
            image = torch.zeros_like(image)
        if text is not None:
            text = self._text_taken(text)
        return joined(image, text, dim=1)

    def kept(self, image: Tensor | None, text: Tensor | None) -> Tensor | None:
        """Values (H, N + T, D) beside the target's own map, None if all are 0."""
        nothing_of_image = image is None or self.image
        nothing_of_text = text is None or (self.text is not None and not self.text.keeps)
        if nothing_of_image and nothing_of_text:
            return None
        if image is not None and self.image:
            image = torch.zeros_like(image)
        if text is not None and self.text is not None:
            text = self.text.kept.to(text)[:, None] * text
        return joined(image, text, dim=1)

    def _text_taken(self, text: Tensor) -> Tensor:
        if self.text is None:
            return torch.zeros_like(text)
        weighted = self.text.taken.to(text)[:, None] * text
        return self.text.matrix.to(text) @ weighted


def by_columns(
    heads: Heads, columns: Columns, all_queries: bool = False, renormalise: bool = False
) -> Values:
    """Attention of the target's row with some columns of its map from the source's.

    all_queries  the text's queries, too, in place of the image's alone
    renormalise  whether the edited weights of each query are divided by their sum
    """
    q = joined(heads.q_image, heads.q_text if all_queries else None)
    k = joined(heads.k_image, heads.k_text)

    def linear(image: Tensor | None, text: Tensor | None) -> Tensor:
        parts = [columns.taken(image, text), columns.kept(image, text)]
        there = [row for row, part in enumerate(parts) if part is not None]
        rows = slice(there[0], there[-1] + 1)
        values = torch.stack([part for part in parts if part is not None])
        return F.scaled_dot_product_attention(q[rows], k[rows], values).sum(0)

    def normal(image: Tensor | None, text: Tensor | None) -> Tensor:
        ones = [None if x is None else torch.ones_like(x) for x in (image, text)]
        return linear(image, text) / linear(*ones)

    return normal if renormalise else linear


def of_row(heads: Heads, row: int) -> Values:
    """Attention of one row as it is, of the image's queries alone."""
    q = heads.q_image[row : row + 1]
    k = joined(heads.k_image, heads.k_text)[row : row + 1]

    def attend(image: Tensor | None, text: Tensor | None) -> Tensor:
        values = joined(image, text, dim=1)
        return F.scaled_dot_product_attention(q, k, values[None])[0]

    return attend


def by_queries_and_keys(heads: Heads) -> Values:
    """Attention of the target's row with the image queries and keys of the source's.

    One call, whose weights sum to one.  (Shin et al. 2025, arXiv 2508.07519)
    The text's queries, keys and all values are the target's.
    """
    q = joined(heads.q_image[:1], None if heads.q_text is None else heads.q_text[1:])
    k = joined(
        None if heads.k_image is None else heads.k_image[:1],
        None if heads.k_text is None else heads.k_text[1:],
    )

    def attend(image: Tensor | None, text: Tensor | None) -> Tensor:
        values = joined(image, text, dim=1)
        return F.scaled_dot_product_attention(q, k, values[None])[0]

    return attend


def joined(image: Tensor | None, text: Tensor | None, dim: int = 2) -> Tensor:
    """Image, then text, along the tokens."""
    there = [part for part in (image, text) if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there, dim=dim)
