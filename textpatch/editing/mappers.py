"""Which source tokens each target token stands for.   (Hertz et al. 2022, arXiv 2208.01626)

S source tokens, T target tokens, both padded to the length that the model reads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textpatch.errors import PromptError
from textpatch.prompts.tokens import Places, TokenizedPrompt

OFFICIAL = "official"
CORRECTED = "corrected"
ALIGNMENTS = OFFICIAL, CORRECTED
MATCH = 1
MISMATCH = -1
GAP = 0


@dataclass(frozen=True)
class Mapper:
    """Map M of a source's tokens to a target's.

    matrix  (S, T) float64; column n has the shares of the source tokens that target token n stands for
    alpha   (T,) float64; 1 for a target token that stands for some source token, 0 for a new one
    """

    matrix: Tensor
    alpha: Tensor


def identity_mapper(length: int) -> Mapper:
    """Mapper by which every token stands for itself."""
    return Mapper(torch.eye(length).double(), torch.ones(length).double())


def swap_mapper(
    source: TokenizedPrompt, target: TokenizedPrompt, length: int, align: str = CORRECTED
) -> Mapper:
    """Mapper of two prompts of equally many words, some of which are others.

        M[m, n] = 1           m, n of one word, if it has as many tokens in both prompts
        M[m, n] = 1 / |T_w|   m, n of a word w that has |T_w| tokens in the target, and others in the source

    align  "corrected": all tokens between and behind the words stand for their own in the source.
           "official": behind the last swapped word M[n, n] = 1, as published.  After a word with another
           number of tokens these read source tokens that are off by the difference.
    Raises PromptError for prompts of different numbers of words.
    """
    matrix = torch.zeros(length, length).double()
    m = 0
    n = 0
    for old, new in swapped_words(source, target):
        between = torch.arange(old[0] - m)
        matrix[m + between, n + between] = 1
        matrix[old[0] : old[-1] + 1, new[0] : new[-1] + 1] = _shares(len(old), len(new))
        m = old[-1] + 1
        n = new[-1] + 1
    behind = torch.arange(length - max(m, n))
    own = n if align == OFFICIAL else m
    matrix[own + behind, n + behind] = 1
    return Mapper(matrix, torch.ones(length).double())


def _shares(old: int, new: int) -> Tensor:
    """Shares (old, new) that the tokens of a swapped word have in those of the other."""
    if old == new:
        return torch.eye(old).double()
    return torch.full((old, new), 1 / new, dtype=torch.float64)


def swapped_words(source: TokenizedPrompt, target: TokenizedPrompt) -> list[tuple[Places, Places]]:
    """Tokens in the source and in the target of each word that is another in the target.

    Words behind the last token that is read are left out.
    Raises PromptError for prompts of different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise PromptError(
            f"a swap of words needs prompts of equally many words; {source.text!r} has {len(source.words)} "
            f"and {target.text!r} {len(target.words)}; write one for one, or take edit='refine'"
        )
    pairs = zip(source.words, target.words, source.word_places, target.word_places, strict=True)
    return [(old, new) for word, other, old, new in pairs if word != other and old and new]


def refine_mapper(source: TokenizedPrompt, target: TokenizedPrompt, length: int) -> Mapper:
    """Mapper of two prompts of which one has words more or fewer, by the best alignment of their tokens.

    Needleman and Wunsch's, with 1 for equal tokens, -1 for different ones and 0 for a gap.  New tokens stand
    for none.  Behind the target's last token n stands for n, as published.
    """
    origins = [*_aligned(source.ids, target.ids), *range(len(target.ids), length)]
    matrix = torch.zeros(length, length).double()
    alpha = torch.zeros(length).double()
    for n, m in enumerate(origins):
        if m is not None:
            matrix[m, n] = 1
            alpha[n] = 1
    return Mapper(matrix, alpha)


def _aligned(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """Source token of each target token in the best alignment, None for an inserted one.

    Of equally good steps back an insertion is preferred, then a deletion.
    """
    best = _scores(source, target)
    origins: list[int | None] = [None] * len(target)
    m = len(source)
    n = len(target)
    while m and n:
        if best[m][n] == best[m][n - 1] + GAP:
            n -= 1
        elif best[m][n] == best[m - 1][n] + GAP:
            m -= 1
        else:
            m -= 1
            n -= 1
            origins[n] = m
    return origins


def _scores(source: Sequence[int], target: Sequence[int]) -> list[list[int]]:
    """Best score of the first m source tokens beside the first n target tokens, at [m][n]."""
    best = [[GAP * n for n in range(len(target) + 1)]]
    for own in source:
        above = best[-1]
        row = [above[0] + GAP]
        for n, other in enumerate(target):
            kept = above[n] + (MATCH if own == other else MISMATCH)
            row.append(max(row[n] + GAP, above[n + 1] + GAP, kept))
        best.append(row)
    return best


def block_diagonal(mappers: Sequence[Mapper], total: int) -> Mapper:
    """Mapper of a model whose tokenizers read the prompt one after the other.

    total  number of text tokens.  Those behind the last mapper stand for themselves
    """
    rest = identity_mapper(total - sum(len(mapper.alpha) for mapper in mappers))
    parts = [*mappers, rest]
    matrix = torch.block_diag(*(part.matrix for part in parts if len(part.alpha)))
    return Mapper(matrix, torch.cat([part.alpha for part in parts]))
