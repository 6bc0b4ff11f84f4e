"""Classifier-free guidance and none, and what a run asks of any guidance.

    none             d = c
    classifier-free  d = u + s (c - u)      (arXiv 2207.12598)
    embedded         d = c(s)               (arXiv 2210.03142)

c is the prediction with the row's prompt, u the prediction with its negative prompt, or with none.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from textpatch.errors import PatchError, closest
from textpatch.finite import is_finite
from textpatch.plan import CONDITIONAL, UNCONDITIONAL, Row

NO_GUIDANCE = (0, 1)  # numbers that mean no guidance
State = dict[str, Tensor]  # memory of a guidance from step to step, (B, ...) each


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

    def check(self, rows: Sequence[Row], steps: int) -> None:
        """Raise PatchError for rows that it cannot guide, and for a run in which it would have no effect."""

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

    def describe(self) -> float | dict[str, object]:
        """Plain data for manifests and reports, a number where a number says it all."""


@dataclass(frozen=True)
class Unguided:
    """No guidance, a single branch with the row's own prompt.

    The numbers 0 and 1 mean this.
    """

    branches: tuple[str, ...] = field(default=(CONDITIONAL,), init=False, repr=False)

    def check(self, rows: Sequence[Row], steps: int) -> None:
        """Accept any run."""

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

    def describe(self) -> float | dict[str, object]:
        return 1.0


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance.

        d = u + scale (c - u)   (arXiv 2207.12598)

    negative  prompt of u, one for all rows, or one for each by the row's name.  None is no prompt
    Raises PatchError for a scale that is no finite number, and for the scales 0 and 1, at which one of the
    prompts has no effect.
    """

    scale: float
    negative: str | None | Mapping[str, str | None] = None
    branches: tuple[str, ...] = field(default=(UNCONDITIONAL, CONDITIONAL), init=False, repr=False)

    def __post_init__(self) -> None:
        require_scale(self.scale)
        unread: dict[float, str] = {0: "the rows' own prompts", 1: "its negative prompt"}
        if self.scale in unread:
            raise PatchError(
                f"classifier-free guidance of scale {self.scale:g} never reads {unread[self.scale]}; "
                "give Unguided()"
            )
        prompts = [self.negative]
        if isinstance(self.negative, Mapping):
            prompts = list(self.negative.values())
        for prompt in prompts:
            if prompt is not None and not isinstance(prompt, str):
                raise PatchError(
                    f"a negative prompt is {prompt!r}; give a text, or None for no prompt at all"
                )

    def check(self, rows: Sequence[Row], steps: int) -> None:
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

    def describe(self) -> float | dict[str, object]:
        if self.negative is None:
            return float(self.scale)
        if isinstance(self.negative, Mapping):
            return {"scale": float(self.scale), "negative": dict(self.negative)}
        return {"scale": float(self.scale), "negative": self.negative}


class Embedded(float):
    """Guidance that a distilled model is told as a number, in a single branch (FLUX.1-dev, arXiv 2210.03142).

    It is that number, and records hold it as one.  On a pipeline of such a model every number means this,
    and `ClassifierFree` is what its authors call the true scale.
    """

    branches = (CONDITIONAL,)

    def __new__(cls, scale: float) -> Embedded:
        require_scale(scale)
        return super().__new__(cls, scale)

    def __repr__(self) -> str:
        return f"Embedded({float(self)!r})"

    def check(self, rows: Sequence[Row], steps: int) -> None:
        """Accept any run."""

    def prompt(self, branch: str, row: Row) -> str | None:
        """Raise PatchError, because there is no other branch."""
        return Unguided().prompt(branch, row)

    def begin(self, x: Tensor) -> State:
        return {}

    def combine(
        self, predictions: dict[str, Tensor], at: Moment, state: State
    ) -> tuple[Tensor, State]:
        return predictions[CONDITIONAL], state

    def describe(self) -> float | dict[str, object]:
        return float(self)


def told(guidance: Guidance) -> dict[str, float]:
    """Argument of the denoiser that a guidance asks for, {} for all but `Embedded`."""
    if isinstance(guidance, Embedded):
        return {"guidance": float(guidance)}
    return {}


def require_scale(scale: object) -> None:
    """Raise PatchError unless a guidance scale is a finite number."""
    if not is_finite(scale):
        raise PatchError(
            f"guidance is {scale!r}; give a finite number, or an object of textpatch.guidance"
        )
