"""Precision, recall, density and coverage of generated features, by their nearest neighbours.

How well two sets of points fill the same region is asked of balls.  The ball of a point reaches to its k-th
nearest other point of its own set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from textpatch.errors import PatchError

CHUNK = 2**23  # distances held at once, 64 MB in float64
FEW = 1000  # points below which all four scores move much from draw to draw


class Neighbours(NamedTuple):
    """What balls around the points of two sets hold.

    precision  share of the generated points that lie in the ball of a real point
    recall     share of the real points that lie in the ball of a generated point
    density    number of real balls that hold a generated point, in the mean, divided by k
    coverage   share of the real points whose ball holds a generated point
    expected_coverage  what coverage would be, in the mean, if both sets were drawn from one distribution
    k          neighbours that a ball reaches to
    n_real, n_generated, dimensions  of the sets
    notes      sentences on what makes these numbers hard to compare, () where there is nothing to say
    """

    precision: float
    recall: float
    density: float
    coverage: float
    expected_coverage: float
    k: int
    n_real: int
    n_generated: int
    dimensions: int
    notes: tuple[str, ...]


def neighbours_of(
    real: ArrayLike, generated: ArrayLike, k: int = 5, *, rim: bool = False
) -> Neighbours:
    """Compare generated features with real ones.

    Precision and recall are those of Kynkaanniemi et al. 2019 (arXiv 1904.06991), density and coverage those
    of Naeem et al. 2020 (arXiv 2002.09797).

        density = sum over g of #{r : |g - r| < radius_k(r)} / (k n_generated)

    real, generated  finite features (n, dimensions), arrays or tensors
    k    5 in the second paper, and 3 in the first
    rim  True if a ball holds its rim, as in the first paper.  False leaves it out, as the second one does

    Distances are sums of squared differences in float64, so that a common offset of all features does no
    harm.  At most CHUNK of them are held at once.  A set of 1000 against another, in 512 dimensions, takes
    3 s on one core, and ten times as many points a hundred times as long.
    Not comparable across k, features or numbers of points.
    Raises PatchError for features of two widths or not finite, for a k that a set is too small for, and for
    points with k exact copies or more, whose balls would have no size.
    """
    real = _points(real, "real")
    generated = _points(generated, "generated")
    _require_k(k, real, generated)
    if real.shape[1] != generated.shape[1]:
        raise PatchError(
            f"real features have {real.shape[1]} dimensions and generated ones {generated.shape[1]}; "
            "take both from one model"
        )
    radii = _radii(real, k, "real")
    reach = _radii(generated, k, "generated")
    held = np.zeros(len(generated), np.int64)  # number of real balls that hold each generated point
    covered = np.zeros(len(real), bool)
    recalled = np.zeros(len(real), bool)
    for rows, distances in _distances(real, generated):
        inside = _within(distances, radii[rows, None], rim)
        held += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = _within(distances, reach[None], rim).any(axis=1)
    return Neighbours(
        precision=float((held > 0).mean()),
        recall=float(recalled.mean()),
        density=float(held.mean() / k),
        coverage=float(covered.mean()),
        expected_coverage=expected_coverage(len(real), len(generated), k),
        k=k,
        n_real=len(real),
        n_generated=len(generated),
        dimensions=real.shape[1],
        notes=tuple(_notes(real, generated)),
    )


def expected_coverage(n_real: int, n_generated: int, k: int) -> float:
    """Mean coverage of two sets that are drawn from one distribution, whatever it is.

        1 - product over i < k of (n_real - 1 - i) / (n_real + n_generated - 1 - i)

    Every other point is as likely to be the nearest neighbour of a real point.  The point is not covered if
    its first k neighbours are all real.
    """
    steps = np.arange(k)
    others = n_real + n_generated - 1 - steps
    return float(1 - np.prod((n_real - 1 - steps) / others))


def _points(features: ArrayLike, name: str) -> np.ndarray:
    """Features as finite float64 numbers (n, dimensions)."""
    points = np.asarray(features, np.float64)
    if points.ndim != 2 or not points.size:
        raise PatchError(f"{name} features are {points.shape}; needs (n, dimensions), not empty")
    wrong = int((~np.isfinite(points)).any(axis=1).sum())
    if wrong:
        raise PatchError(f"{wrong} of {len(points)} {name} features are not finite; leave them out")
    return np.ascontiguousarray(points)


def _require_k(k: int, *sets: np.ndarray) -> None:
    least = min(map(len, sets))
    if not isinstance(k, int) or not 1 <= k < least:
        raise PatchError(
            f"asked for neighbour {k}; a point of the smaller set has {least - 1} others, so take k from 1 "
            f"to {least - 1}, or give more points"
        )


def _distances(points: np.ndarray, others: np.ndarray):
    """Yield a slice of the points and its distances to the others, (rows, others), a chunk at a time."""
    import torch

    step = max(1, CHUNK // len(others))
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        pair = torch.from_numpy(points[rows]), torch.from_numpy(others)
        # |a|^2 + |b|^2 - 2ab would lose all digits where features have a common offset
        found = torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist")
        yield rows, found.numpy()


def _radii(points: np.ndarray, k: int, name: str) -> np.ndarray:
    """Distance of every point to its k-th nearest other point."""
    # the nearest of all is the point itself
    nearest = [np.partition(found, k, axis=1)[:, k] for _, found in _distances(points, points)]
    radii = np.concatenate(nearest)
    flat = int((radii == 0).sum())
    if flat:
        raise PatchError(
            f"{flat} of {len(points)} {name} points have {k} exact copies or more, so that their balls have "
            "no size; leave copies out, or take a larger k"
        )
    return radii


def _within(distances: np.ndarray, radii: np.ndarray, rim: bool) -> np.ndarray:
    if rim:
        return distances <= radii
    return distances < radii


def _notes(real: np.ndarray, generated: np.ndarray) -> list[str]:
    """Sentences on what makes the scores of these sets hard to compare."""
    sizes = len(real), len(generated)
    notes = []
    if sizes[0] != sizes[1]:
        notes.append(
            f"{sizes[0]} real points and {sizes[1]} generated ones: precision and recall lean to the larger "
            "set in opposite ways"
        )
    if min(sizes) < FEW:
        notes.append(f"{min(sizes)} points are few: all four scores move with their number")
    for name, points in (("real", real), ("generated", generated)):
        copies = len(points) - len(np.unique(points, axis=0))
        if copies:
            notes.append(f"{copies} {name} points are exact copies of others, which shrinks balls")
    return notes
