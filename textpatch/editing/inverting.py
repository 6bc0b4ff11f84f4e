"""Methods of bringing a real picture into a run, each by its name.

A method inverts step by step, towards the noise, and samples step by step, towards a picture.  Its fields are
its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from textpatch.editing import solvers
from textpatch.editing.velocities import Prediction
from textpatch.errors import PatchError, closest

Memory = dict[str, Tensor]


class InversionMethod(Protocol):
    """A way from a picture to noise, and back.

    name   by which it is asked for
    flows  True for flows alone, False for noise models alone, None for both
    """

    name: ClassVar[str]
    flows: ClassVar[bool | None]

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        """Latents entering a step, from the latents x (B, C, H, W) after it."""

    def sample(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        """Latents after a step, from the latents x (B, C, H, W) entering it."""


class SamplerUndone:
    """Base of the methods that undo the steps of the pipeline's own sampler."""

    def sample(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        return predict.schedule.step(x, predict.at_step(x, step), step, predict.steps)


@dataclass(frozen=True)
class FixedPoint(SamplerUndone):
    """The sampler's step, solved for where it came from.

    iterations  most predictions after the first.  A new one ends the step where it moves little
    """

    iterations: int = 30
    name: ClassVar[str] = "fixed_point"
    flows: ClassVar[bool | None] = None
    TOLERANCE: ClassVar[float] = 1e-6  # of the latents' size, ten times what float32 leaves

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        return solvers.fixed_point(
            x, *predict.undoing(x, step), iterations=self.iterations, tolerance=self.TOLERANCE
        )


@dataclass(frozen=True)
class DDIM(SamplerUndone):
    """DDIM inversion, which predicts once a step, at the timestep of its noisier end."""

    name: ClassVar[str] = "ddim"
    flows: ClassVar[bool | None] = False

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        return solvers.fixed_point(x, *predict.undoing(x, step))


@dataclass(frozen=True)
class NegativePrompt(DDIM):
    """DDIM inversion, after which the other guidance branch reads the source prompt (arXiv 2305.16807)."""

    name: ClassVar[str] = "negative_prompt"


@dataclass(frozen=True)
class ReNoise(SamplerUndone):
    """ReNoise, the paper's choice for SDXL (its K is `iterations`)."""

    iterations: int = 1
    name: ClassVar[str] = "renoise"
    flows: ClassVar[bool | None] = None

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        late = bool(predict.timesteps[step] < solvers.LATE)
        return solvers.renoise(
            x, *predict.undoing(x, step), iterations=self.iterations, average=late
        )


class FlowSteps:
    """Base of the methods whose steps along a flow are the same both ways."""

    flows: ClassVar[bool | None] = True

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        after, now = predict.sigmas[step : step + 2]
        return self.go(x, predict.at_level, now, after, memory)

    def sample(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        now, after = predict.sigmas[step : step + 2]
        return self.go(x, predict.at_level, now, after, memory)


@dataclass(frozen=True)
class Euler(FlowSteps):
    """Euler steps."""

    name: ClassVar[str] = "euler"

    def go(self, x, velocity, now, after, memory: Memory) -> Tensor:
        return solvers.euler(x, velocity, now, after)


@dataclass(frozen=True)
class Midpoint(FlowSteps):
    """Midpoint steps, which RF-Solver's of second order are."""

    name: ClassVar[str] = "midpoint"

    def go(self, x, velocity, now, after, memory: Memory) -> Tensor:
        return solvers.midpoint(x, velocity, now, after)


@dataclass(frozen=True)
class RFSolver(FlowSteps):
    """RF-Solver's steps of second order in their published form."""

    name: ClassVar[str] = "rf_solver"

    def go(self, x, velocity, now, after, memory: Memory) -> Tensor:
        return solvers.rf_solver(x, velocity, now, after)


@dataclass(frozen=True)
class FireFlow(FlowSteps):
    """FireFlow's steps, which reuse the velocity of the step before."""

    name: ClassVar[str] = "fireflow"

    def go(self, x, velocity, now, after, memory: Memory) -> Tensor:
        x, memory["velocity"] = solvers.fireflow(x, velocity, now, after, memory.get("velocity"))
        return x


@dataclass(frozen=True)
class RFInversion:
    """RF-Inversion with one clock, so that the denoiser is told the noise level at which its step begins.

    gamma        pull towards the noise while inverting, 0 to 1
    eta          pull towards the picture while sampling, 0 to 1
    start, stop  shares of the run between which eta acts
    decay        power p of (1 - i/N)^p, by which eta fades.  None is no fading
    """

    gamma: float = 0.5
    eta: float = 0.9
    start: float = 0.0
    stop: float = 0.25
    decay: float | None = None
    name: ClassVar[str] = "rf_inversion"
    flows: ClassVar[bool | None] = True

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        after, now = predict.sigmas[step : step + 2]
        return solvers.towards_noise(
            x, memory["noise"], predict.at_level, now, after - now, gamma=self.gamma
        )

    def sample(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        now, after = predict.sigmas[step : step + 2]
        eta = self.pull(step, predict.steps)
        return solvers.towards_picture(x, memory["picture"], predict.at_level, now, after, eta=eta)

    def pull(self, step: int, steps: int) -> float:
        """The value of eta in a step."""
        if not int(self.start * steps) <= step < int(self.stop * steps):
            return 0.0
        if self.decay is None:
            return self.eta
        return self.eta * (1 - step / steps) ** self.decay


@dataclass(frozen=True)
class RFInversionTwoClocks(RFInversion):
    """RF-Inversion as its released code runs, with two clocks.

    The denoiser is told i / (N + 1), while the i-th step from the picture is as long as the i-th from the
    noise.  So gamma 1 does not end on the noise.
    """

    name: ClassVar[str] = "rf_inversion_two_clocks"

    def invert(self, x: Tensor, predict: Prediction, step: int, memory: Memory) -> Tensor:
        i = predict.steps - 1 - step
        now, after = predict.sigmas[i : i + 2]
        time = torch.tensor(i / (predict.steps + 1), dtype=torch.float64)
        return solvers.towards_noise(
            x, memory["noise"], predict.at_level, time, now - after, gamma=self.gamma
        )


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit, which inverts nothing and moves the picture by the difference of two velocities.

    last             share of the run, its last steps, in which the picture moves (n_max of N)
    averages         noises per step whose velocities are averaged (n_avg)
    source_guidance  guidance of the source's velocity.  The run's guidance is the target's
    """

    last: float = 0.66
    averages: int = 1
    source_guidance: float = 1.5
    name: ClassVar[str] = "flowedit"
    flows: ClassVar[bool | None] = True

    def first(self, steps: int) -> int:
        """First step of a run in which the picture moves.

        Raises PatchError for a share of the run that is no step.
        """
        moving = round(self.last * steps)
        if not 1 <= moving <= steps or self.averages < 1:
            raise PatchError(
                f"flowedit moves the picture in the last {self.last:g} of {steps} steps, with "
                f"{self.averages} noises a step; give a share of 1 to {steps} steps, and at least one noise"
            )
        return steps - moving


AnyMethod = InversionMethod | FlowEdit
INVERSIONS: dict[str, Callable[[], AnyMethod]] = {
    kind.name: kind
    for kind in (
        DDIM,
        FixedPoint,
        ReNoise,
        NegativePrompt,
        Euler,
        Midpoint,
        RFSolver,
        FireFlow,
        RFInversion,
        RFInversionTwoClocks,
        FlowEdit,
    )
}
DEFAULT = "fixed_point"


def as_method(method: str | AnyMethod, flows: bool, name: str) -> AnyMethod:
    """Method of a name, with its default settings, or the method that is given.

    flows  True for a pipeline whose schedule is a rectified flow
    name   of the pipeline
    Raises PatchError for an unknown name, and for a method of the other kind of models.
    """
    if isinstance(method, str):
        if method not in INVERSIONS:
            raise PatchError(f"no inversion is called {method!r}{closest(method, INVERSIONS)}")
        method = INVERSIONS[method]()
    wanted = getattr(method, "flows", "none")
    if wanted not in (True, False, None):
        raise PatchError(
            f"method is {method!r}; give a name, or an object of textpatch.editing.inverting"
        )
    if wanted is not None and wanted != flows:
        kinds = {True: "a rectified flow", False: "a noise model"}
        fit = [kind for kind, made in INVERSIONS.items() if made.flows in (None, flows)]
        raise PatchError(
            f"{method.name} is a method of {kinds[wanted]}, and {name} is {kinds[flows]}; "
            f"give {', '.join(fit)}"
        )
    return method


def settings(method: AnyMethod) -> dict:
    """A method as plain data, its name and its settings."""
    return {"name": method.name, **asdict(method)}
