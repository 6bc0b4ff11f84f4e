"""Guidance of a run, which tells its branches, their prompts, and how their predictions become one.

    none                   d = c
    classifier-free        d = u + s (c - u)             (arXiv 2207.12598)
    safe latent diffusion  d = u + s (c - u - gamma)     (arXiv 2211.05105)

c is the prediction with the row's prompt, u the prediction with its negative prompt, or with none.
gamma leads away from a third prediction, that of a concept.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.plan import CONDITIONAL, UNCONDITIONAL, Row

State = dict[str, Tensor]  # memory of a guidance from step to step, (B, ...) each
SAFETY = "safety"  # branch that reads the concept to keep away from


class Moment(NamedTuple):
    """Place in a run at which predictions are combined.

    step         loop index, 0 = noisiest
    noise_units  change of a prediction of the noise when the model's own output changes by one
    """

    step: int
    noise_units: float = 1.0


@runtime_checkable
class Guidance(Protocol):
    """Methods that a run needs of its guidance."""

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, in the order of the batch.

        The last is "cond", which reads the row's own prompt.
        """

    def check(self, rows: Sequence[Row]) -> None:
        """Raise PatchError for rows that this guidance cannot guide."""

    def prompt(self, branch: str, row: Row) -> str | None:
        """Prompt that another branch than "cond" of a row reads.  None is no prompt at all."""

    def begin(self, x: Tensor) -> State:
        """State of rows x (B, C, H, W) before their first step, {} where nothing is remembered."""

    def combine(
        self, predictions: dict[str, Tensor], at: Moment, state: State
    ) -> tuple[Tensor, State]:
        """Combine the predictions of all branches into the one that guides a step.

        predictions  prediction (B, C, H, W) of each branch
        Returns a prediction of that shape, and the state after the step.
        """

    def describe(self) -> float | dict:
        """Plain data for manifests and reports, a number where a number says it all."""


@dataclass(frozen=True)
class Unguided:
    """No guidance, a single branch with the row's own prompt.

    A guidance of 1 means this.
    """

    branches: tuple[str, ...] = field(default=(CONDITIONAL,), init=False, repr=False)

    def check(self, rows: Sequence[Row]) -> None:
        """Accept any rows."""

    def prompt(self, branch: str, row: Row) -> str | None:
        """Raise PatchError, because there is no other branch."""
        raise PatchError(
            f"branch {branch!r} of row {row.name!r} was asked for; a run without guidance has none"
        )

    def begin(self, x: Tensor) -> State:
        return {}

    def combine(
        self, predictions: dict[str, Tensor], at: Moment, state: State
    ) -> tuple[Tensor, State]:
        return predictions[CONDITIONAL], state

    def describe(self) -> float | dict:
        return 1.0


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance.

        d = u + scale (c - u)   (arXiv 2207.12598)

    negative  prompt of u, one for all rows, or one for each by the row's name.  None is no prompt
    Raises PatchError for a scale that is no finite number, and for the scales 0 and 1, at which a
    prompt has no effect.
    """

    scale: float
    negative: str | None | Mapping[str, str | None] = None
    branches: tuple[str, ...] = field(default=(UNCONDITIONAL, CONDITIONAL), init=False, repr=False)

    def __post_init__(self) -> None:
        require_scale(self.scale)
        if self.scale == 1:
            raise PatchError(
                "classifier-free guidance of scale 1 never reads its negative prompt; give Unguided()"
            )
        prompts = [self.negative]
        if isinstance(self.negative, Mapping):
            prompts = list(self.negative.values())
        for prompt in prompts:
            if prompt is not None and not isinstance(prompt, str):
                raise PatchError(
                    f"a negative prompt is {prompt!r}; give a text, or None for no prompt at all"
                )

    def check(self, rows: Sequence[Row]) -> None:
        """Raise PatchError unless negative prompts by name are those of all rows, and of no others."""
        if not isinstance(self.negative, Mapping):
            return
        names = [row.name for row in rows]
        for name in self.negative:
            if name not in names:
                raise PatchError(
                    f"a negative prompt is given for row {name!r}, which is none{closest(name, names)}"
                )
        for row in rows:
            self.prompt(UNCONDITIONAL, row)

    def prompt(self, branch: str, row: Row) -> str | None:
        """Negative prompt of a row.

        Raises PatchError where prompts are given by name and the row has none.
        """
        if not isinstance(self.negative, Mapping):
            return self.negative
        if row.name not in self.negative:
            raise PatchError(
                f"negative prompts are given by row, and row {row.name!r} has none; give None for no prompt"
            )
        return self.negative[row.name]

    def begin(self, x: Tensor) -> State:
        return {}

    def combine(
        self, predictions: dict[str, Tensor], at: Moment, state: State
    ) -> tuple[Tensor, State]:
        unconditional = predictions[UNCONDITIONAL]
        return unconditional + self.scale * (predictions[CONDITIONAL] - unconditional), state

    def describe(self) -> float | dict:
        if self.negative is None:
            return float(self.scale)
        if isinstance(self.negative, Mapping):
            return {"scale": float(self.scale), "negative": dict(self.negative)}
        return {"scale": float(self.scale), "negative": self.negative}


@dataclass(frozen=True)
class Safety:
    """Strength of Safe Latent Diffusion, and its first step.

    arXiv 2211.05105

    warmup     first step that is led away
    scale      s_S, by which the difference of prompt and concept is multiplied
    threshold  lambda, below which a difference counts as too near to the concept
    momentum   s_m, share of the momentum in gamma
    beta       share of its past that the momentum keeps
    Raises PatchError for a scale below 1, which the published code reads as switched off.
    """

    warmup: int
    scale: float
    threshold: float
    momentum: float
    beta: float

    def __post_init__(self) -> None:
        if not self.scale >= 1:
            raise PatchError(
                f"safety of scale {self.scale} has no effect; give 1 or more, or ClassifierFree in its place"
            )


PRESETS = {
    "weak": Safety(15, 20, 0.0, 0.0, 0.0),
    "medium": Safety(10, 1000, 0.01, 0.3, 0.4),
    "strong": Safety(7, 2000, 0.025, 0.5, 0.7),
    "max": Safety(0, 5000, 1.0, 0.5, 0.7),
}


@dataclass(frozen=True)
class SafeLatentDiffusion:
    """Safe Latent Diffusion, a guidance away from a concept.

    arXiv 2211.05105

        d = u + scale (c - u - gamma)
        mu = min(1, s_S |c - w|) where c - w < lambda, else 0       element by element, c - w signed
        gamma = mu (w - u) + s_m nu,   nu <- beta nu + (1 - beta) gamma

    w is the prediction with the concept.  gamma is left out of d before the warm-up's end, and moves
    nu from step 0 on.

    scale     scale s of the guidance
    concept   prompt of w, pooled of its own
    preset    "weak", "medium", "strong", "max", or a `Safety`
    momentum  "carried" keeps nu from step to step, as its authors do.  "reset" sets it to 0 at each
              step, as the official code of ICLR 2025 does
    units     "official" takes differences as the model predicts them.  "noise" takes those of a noise
              prediction, for which the presets were made.  They differ where a model predicts
              velocities
    negative  prompt of u, as for ClassifierFree
    Raises PatchError for another name, and as ClassifierFree does.
    """

    scale: float
    concept: str
    preset: str | Safety = "medium"
    momentum: str = "carried"
    units: str = "official"
    negative: str | None | Mapping[str, str | None] = None
    branches: tuple[str, ...] = field(
        default=(UNCONDITIONAL, SAFETY, CONDITIONAL), init=False, repr=False
    )

    def __post_init__(self) -> None:
        ClassifierFree(self.scale, self.negative)
        if not isinstance(self.concept, str) or not self.concept.strip():
            raise PatchError(f"the concept to keep away from is {self.concept!r}; give a text")
        if not isinstance(self.preset, Safety) and self.preset not in PRESETS:
            raise PatchError(
                f"no preset {self.preset!r}{closest(str(self.preset), PRESETS)}; or give a Safety"
            )
        for name, known in (("momentum", ("carried", "reset")), ("units", ("official", "noise"))):
            if getattr(self, name) not in known:
                raise PatchError(
                    f"{name} is {getattr(self, name)!r}; give {known[0]!r} or {known[1]!r}"
                )

    @property
    def safety(self) -> Safety:
        """Strength that the preset names."""
        if isinstance(self.preset, Safety):
            return self.preset
        return PRESETS[self.preset]

    def check(self, rows: Sequence[Row]) -> None:
        """Raise PatchError unless negative prompts by name are those of all rows, and of no others."""
        ClassifierFree(self.scale, self.negative).check(rows)

    def prompt(self, branch: str, row: Row) -> str | None:
        """Concept in the branch "safety", the row's negative prompt in the unconditional one."""
        if branch == SAFETY:
            return self.concept
        return ClassifierFree(self.scale, self.negative).prompt(branch, row)

    def begin(self, x: Tensor) -> State:
        """Momentum of zeros, like the rows x (B, C, H, W)."""
        return {"momentum": torch.zeros_like(x)}

    def combine(
        self, predictions: dict[str, Tensor], at: Moment, state: State
    ) -> tuple[Tensor, State]:
        u, w, c = (predictions[branch] for branch in self.branches)
        units = at.noise_units if self.units == "noise" else 1.0
        safety = self.safety
        momentum = state["momentum"] if self.momentum == "carried" else torch.zeros_like(u)
        gamma = self._near(units * (c - w)) * (w - u)
        # at pure noise a velocity says nothing of the noise, and there is no momentum yet
        if units != 0:
            gamma = gamma + safety.momentum * (momentum / units)
        guidance = c - u
        if at.step >= safety.warmup:
            guidance = guidance - gamma
        after = safety.beta * momentum + (1 - safety.beta) * (units * gamma)
        return u + self.scale * guidance, {"momentum": after}

    def _near(self, difference: Tensor) -> Tensor:
        """Factor mu, 0 to 1, by which each element is led away from the concept."""
        scaled = (self.safety.scale * difference.abs()).clamp(max=1.0)
        return scaled.where(difference < self.safety.threshold, torch.zeros_like(scaled))

    def describe(self) -> float | dict:
        plain = ClassifierFree(self.scale, self.negative).describe()
        return {
            "guidance": plain,
            "concept": self.concept,
            "safety": asdict(self.safety),
            "momentum": self.momentum,
            "units": self.units,
        }


def as_guidance(guidance: float | Guidance, negative: str | None = None) -> Guidance:
    """Guidance object that a number means.

    A number is the scale of classifier-free guidance, and 1 is none.  An object stays as it is.

    negative  prompt of the unconditional branch, one for all rows
    Raises PatchError for
    - a number that is no scale
    - a negative prompt that nothing would read
    - an object whose last branch is not "cond"
    """
    if isinstance(guidance, Real) and not isinstance(guidance, bool):
        return _of_scale(cast(float, guidance), negative)
    if not isinstance(guidance, Guidance):
        raise PatchError(
            f"guidance is {guidance!r}; give a number, or an object of textpatch.guidance"
        )
    if negative is not None:
        raise PatchError(
            f"negative prompt {negative!r} was given beside {guidance!r}, which says its own; "
            "leave one of them out"
        )
    if guidance.branches[-1] != CONDITIONAL:
        raise PatchError(
            f"the branches of {guidance!r} are {guidance.branches}; their last must be {CONDITIONAL!r}"
        )
    return guidance


def _of_scale(scale: float, negative: str | None) -> Guidance:
    """Classifier-free guidance of a scale, none for 1."""
    require_scale(scale)
    if scale != 1:
        return ClassifierFree(scale, negative)
    if negative is not None:
        raise PatchError(
            f"negative prompt {negative!r} has no effect at guidance 1; leave one of them out"
        )
    return Unguided()


def require_scale(scale: object) -> None:
    """Raise PatchError unless a guidance scale is a finite number other than 0."""
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise PatchError(
            f"guidance is {scale!r}; give a finite number, or an object of textpatch.guidance"
        )
    if scale == 0:
        raise PatchError(
            "guidance 0 was asked for, at which the prompt has no effect; give 1 for no guidance"
        )


def described(guidance: float | Guidance) -> float | dict:
    """Guidance as plain data for manifests and reports.  A number stays as it was given."""
    if isinstance(guidance, Guidance):
        return guidance.describe()
    return guidance


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
    twins = [replace(row, prompt=negative, pooled=None, branch=UNCONDITIONAL) for row in rows]
    return [*twins, *rows]
