"""Safe Latent Diffusion, a guidance of three branches that leads away from a concept.

    d = u + s (c - u - gamma)      (arXiv 2211.05105)

c, u and w are the predictions with the row's prompt, its negative prompt, and the concept.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from textpatch.classifier_free import ClassifierFree, Moment, State
from textpatch.errors import PatchError, closest
from textpatch.finite import is_finite
from textpatch.plan import CONDITIONAL, UNCONDITIONAL, Row

SAFETY = "safety"  # branch that reads the concept to keep away from


@dataclass(frozen=True)
class Safety:
    """Strength of Safe Latent Diffusion, and its first step.

    arXiv 2211.05105

    warmup     first step that is led away
    scale      s_S, by which the difference of prompt and concept is multiplied
    threshold  lambda, below which a difference counts as too near to the concept
    momentum   s_m, share of the momentum in gamma
    beta       share of its past that the momentum keeps
    Raises PatchError for a scale below 1, which the published code reads as switched off, for a
    warm-up that is no step, and for other numbers that are not finite.
    """

    warmup: int
    scale: float
    threshold: float
    momentum: float
    beta: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not is_finite(value):
                raise PatchError(f"{name} of safety is {value!r}; give a finite number")
        if not isinstance(self.warmup, int) or self.warmup < 0:
            raise PatchError(f"warmup of safety is {self.warmup!r}; give a step, 0 or a later one")
        if self.scale < 1:
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
        _ = self._plain  # refuses the scale and the negative prompt
        if not isinstance(self.concept, str) or not self.concept.strip():
            raise PatchError(f"the concept to keep away from is {self.concept!r}; give a text")
        named = isinstance(self.preset, str) and self.preset in PRESETS
        if not named and not isinstance(self.preset, Safety):
            raise PatchError(
                f"no preset {self.preset!r}{closest(str(self.preset), PRESETS)}; or give a Safety"
            )
        for name, known in (("momentum", ("carried", "reset")), ("units", ("official", "noise"))):
            if getattr(self, name) not in known:
                raise PatchError(
                    f"{name} is {getattr(self, name)!r}; give {known[0]!r} or {known[1]!r}"
                )

    @property
    def _plain(self) -> ClassifierFree:
        """The same guidance without the concept."""
        return ClassifierFree(self.scale, self.negative)

    @property
    def safety(self) -> Safety:
        """Strength that the preset names."""
        if isinstance(self.preset, Safety):
            return self.preset
        return PRESETS[self.preset]

    def check(self, rows: Sequence[Row], steps: int) -> None:
        """Raise PatchError for a run that ends before the warm-up, and as ClassifierFree does."""
        self._plain.check(rows, steps)
        if steps <= self.safety.warmup:
            raise PatchError(
                f"safety acts from step {self.safety.warmup} on, and this run has steps 0..{steps - 1}; "
                "give more steps, or a preset or Safety that begins earlier"
            )

    def prompt(self, branch: str, row: Row) -> str | None:
        """Concept in the branch "safety", the row's negative prompt in the unconditional one."""
        if branch == SAFETY:
            return self.concept
        return self._plain.prompt(branch, row)

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

    def describe(self) -> float | dict[str, object]:
        return {
            "guidance": self._plain.describe(),
            "concept": self.concept,
            "safety": asdict(self.safety),
            "momentum": self.momentum,
            "units": self.units,
        }
