"""Guidance of a run, which tells its branches, their prompts, and how their predictions become one.

`classifier_free` has the rules of a guidance, classifier-free guidance and none.  `safe_guidance` has
Safe Latent Diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import cast

from textpatch.classifier_free import (
    NO_GUIDANCE,
    ClassifierFree,
    Embedded,
    Guidance,
    Moment,
    State,
    Unguided,
    require_scale,
    told,
)
from textpatch.errors import PatchError
from textpatch.plan import CONDITIONAL, Row
from textpatch.safe_guidance import PRESETS, SAFETY, SafeLatentDiffusion, Safety
from textpatch.swaps import BRANCHES

__all__ = [
    "PRESETS",
    "SAFETY",
    "ClassifierFree",
    "Embedded",
    "Guidance",
    "Moment",
    "SafeLatentDiffusion",
    "Safety",
    "State",
    "Unguided",
    "as_guidance",
    "branch_rows",
    "described",
    "require_branch",
    "told",
    "with_guidance",
]


def as_guidance(guidance: float | Guidance, negative: str | None = None) -> Guidance:
    """Guidance object that a number means.

    A number is the scale of classifier-free guidance.  0 and 1 are none, 1 by the equation and 0 as the
    cards of few-step models write it.  Where diffusers takes .5 for none, too, it is the mean of both
    predictions here.  An object stays as it is.

    negative  prompt of the unconditional branch, one for all rows
    Raises PatchError for
    - a number that is no scale
    - a negative prompt that nothing would read
    - an object whose last branch is not "cond"
    """
    if isinstance(guidance, Real) and not isinstance(guidance, (bool, Guidance)):
        return _of_scale(cast(float, guidance), negative)
    if not isinstance(guidance, Guidance) or isinstance(guidance, type):
        raise PatchError(
            f"guidance is {guidance!r}; give a number, or an object of textpatch.guidance"
        )
    if negative is not None:
        raise PatchError(
            f"negative prompt {negative!r} was given beside {guidance!r}, which says its own; "
            "leave one of them out"
        )
    if guidance.branches[-1:] != (CONDITIONAL,):
        raise PatchError(
            f"the branches of {guidance!r} are {guidance.branches}; their last must be {CONDITIONAL!r}"
        )
    return guidance


def _of_scale(scale: float, negative: str | None) -> Guidance:
    """Classifier-free guidance of a scale, none for 0 and 1."""
    require_scale(scale)
    if scale not in NO_GUIDANCE:
        return ClassifierFree(scale, negative)
    if negative is not None:
        raise PatchError(
            f"negative prompt {negative!r} has no effect at guidance {scale:g}; leave one of them out"
        )
    return Unguided()


def described(guidance: float | Guidance) -> float | dict[str, object]:
    """Guidance as plain data for manifests and reports.  A number stays as it was given."""
    if isinstance(guidance, Guidance):
        return guidance.describe()
    return guidance


def require_branch(branch: str, guidance: float | Guidance) -> None:
    """Raise PatchError unless a swap can act in "both" branches of a run, or in "cond" beside another."""
    if branch not in BRANCHES:
        raise PatchError(f"branch is {branch!r}; known: {', '.join(BRANCHES)}")
    if branch == CONDITIONAL and len(as_guidance(guidance).branches) == 1:
        raise PatchError(
            f"branch is {branch!r} at guidance {guidance!r}, where there is no other branch; leave it out"
        )


def branch_rows(rows: Sequence[Row], guidance: Guidance) -> list[Row]:
    """Batch of a run over conditional rows, branch by branch, with every row in each.

    A row of another branch reads the prompt that the guidance gives it, and is pooled of it.
    """
    others = [
        replace(row, prompt=guidance.prompt(branch, row), pooled=None, branch=branch)
        for branch in guidance.branches[:-1]
        for row in rows
    ]
    return [*others, *rows]


def with_guidance(rows: Sequence[Row], negative: str | None = None) -> list[Row]:
    """Unconditional twins of all rows, then the rows themselves, which is diffusers' batch order.

    The labels suit the batch of one's own loop, for `capture` and `patch`.

    negative  prompt that the twins read
    """
    return branch_rows(rows, ClassifierFree(2, negative))  # the scale is no matter here
