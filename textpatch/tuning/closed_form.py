"""The closed form of an edit of a matrix, which lets it read some vectors as others.

    minimise over W  sum_j w_j ||W x_j - W_0 y_j||^2 + lambda ||W - W_0||^2

    W - W_0 = E^T (lambda I_n + X X^T)^-1 X,   rows of X: sqrt(w_j) x_j,   of E: sqrt(w_j) W_0 (y_j - x_j)
            = E^T X (lambda I_C + X^T X)^-1

TIME (arXiv 2303.08084), UCE (arXiv 2308.14761) and LocoEdit (arXiv 2405.01008) are this form, with other
rows, weights and lambda.  It is solved in float64 for the n rows, or for the width C where this is less, and
has at most the rank of the lesser.  The target W_0 y_j is without a bias, which the layer adds as before.

n rows, C width read, W width made
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from textpatch.changes import LowRank
from textpatch.errors import PatchError


@dataclass(frozen=True, eq=False)
class Readings:
    """Vectors that a matrix is to read as others.

    read     x_j (n, C)
    wanted   y_j (n, C).  A row equal to its x_j is preserved
    weights  w_j (n,)
    """

    read: Tensor
    wanted: Tensor
    weights: Tensor


def solved(weight: Tensor, readings: Readings, ridge: float) -> tuple[LowRank, float]:
    """Change of a matrix weight (W, C), and what it leaves of ||V - X W^T|| as a share of ||E||.

    ridge  lambda.  With 0 the change is the smallest one of least error
    The factors are float64 for a weight in float64, else float32.
    Raises PatchError if every row is read as it is.
    """
    roots = readings.weights.double().sqrt()[:, None]
    x = roots * readings.read.double()
    asked = roots * (readings.wanted.double() - readings.read.double())
    matrix = weight.double()
    error = asked @ matrix.mT  # E (n, W)
    if not error.any():
        raise PatchError(
            "every vector is to be read as it is already, so the edit would have no effect; "
            "give texts that differ at the tokens that are edited"
        )
    inverse = _inverse(x, ridge)
    left = error - x @ inverse.mT @ error
    change = _low_rank(error.mT, inverse, weight.dtype)
    return change, float(left.norm() / error.norm())


def _inverse(x: Tensor, ridge: float) -> Tensor:
    """(ridge I_n + x x^T)^-1 x of rows x (n, C), or the transposed pseudo-inverse of x for a ridge of 0."""
    n, width = x.shape
    if not ridge:
        return torch.linalg.pinv(x).mT
    if n <= width:
        return torch.linalg.solve(x @ x.mT + ridge * torch.eye(n).to(x), x)
    gram = x.mT @ x + ridge * torch.eye(width).to(x)  # (C, C)
    return torch.linalg.solve(gram, x.mT).mT


def _low_rank(up: Tensor, down: Tensor, dtype: torch.dtype) -> LowRank:
    """Change B A of least rank, without the rows of A that B leaves out."""
    used = up.ne(0).any(dim=0)
    up = up[:, used]
    down = down[used]
    width = down.shape[1]
    if len(down) > min(len(up), width):
        whole = up @ down
        if width <= len(up):
            up, down = whole, torch.eye(width).to(whole)
        else:
            up, down = torch.eye(len(up)).to(whole), whole
    factors = torch.float64 if dtype == torch.float64 else torch.float32
    return LowRank(down.to(factors).contiguous(), up.to(factors).contiguous(), len(down))
