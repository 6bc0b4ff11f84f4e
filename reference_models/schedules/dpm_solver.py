"""Multistep solvers of order one to three, also stochastic (arXiv 2206.00927, 2211.01095).

    x_t = a x + s e,   lambda = log(a / s)

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import (
    Memory,
    require_one_of,
    require_steps,
    required_noise,
    undone,
    widened,
)
from textpatch.reference_models.schedules.diffusion import (
    PREDICTIONS,
    Diffusion,
    limited,
    require_threshold,
    trained_abars,
)
from textpatch.reference_models.schedules.levels import LEVELS, timesteps_of
from textpatch.reference_models.schedules.spacing import SPACINGS, leading, trailing_of

FLOW = "flow_prediction"
OF_THE_PICTURE = ("dpmsolver++", "sde-dpmsolver++")
STOCHASTIC = ("sde-dpmsolver", "sde-dpmsolver++")
FEW_STEPS = 15  # lower_order_final concerns runs of fewer steps


class Level(NamedTuple):
    """Factors of picture and noise at a level, the logarithm of their ratio, and the table's sigma."""

    signal: Tensor
    noise: Tensor
    log: Tensor
    sigma: Tensor


@dataclass(frozen=True, repr=False)
class DPMSolver(Diffusion):
    """Steps of DPM-Solver++ (2M and 3M), of its stochastic form (2M SDE), and of DPM-Solver.

    algorithm_type     "dpmsolver++" integrates the picture, "dpmsolver" the noise, "sde-" draws noise besides
    solver_order       outputs that a step reads, 1 to 3
    solver_type        form of the second order
    lower_order_final  True lowers the order at the end of runs of fewer than 15 steps
    euler_at_final     True takes a last step of order one
    use_*_sigmas       at most one of them, noise levels of another form between the trained ends
    use_lu_lambdas     levels whose lambda falls linearly
    use_flow_sigmas    levels of a rectified flow with `flow_shift`
    lambda_min_clipped  lambda below which no timestep is visited
    variance_type      of a model that predicts a variance, which is not read

    Raises PatchError as Diffusion does, and for settings that exclude each other.
    """

    solver_order: int = 2
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -float("inf")
    variance_type: str | None = None

    LAST_ABAR: ClassVar[float | None] = 2**-24
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = Diffusion.CHOICES | {
        "prediction_type": (*PREDICTIONS, FLOW),
        "timestep_spacing": SPACINGS,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "variance_type": ("learned", "learned_range"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self)
        require_one_of(self, *LEVELS, "use_lu_lambdas", "use_flow_sigmas")
        if not 1 <= self.solver_order <= 3:
            raise PatchError(f"solver_order is {self.solver_order}; give 1, 2 or 3")
        if self.flow_shift <= 0:
            raise PatchError(f"flow_shift is {self.flow_shift}; give a positive number")
        self._require_algorithm()

    def _require_algorithm(self) -> None:
        """Raise PatchError for what the algorithm asked for cannot do."""
        algorithm = self.algorithm_type
        if algorithm not in OF_THE_PICTURE and self.final_sigmas_type == "zero":
            raise PatchError(
                f"{algorithm} cannot end on the clean picture; give final_sigmas_type 'sigma_min'"
            )
        if algorithm not in OF_THE_PICTURE and self.prediction_type == FLOW:
            raise PatchError(f"{algorithm} cannot read a {FLOW}; give algorithm_type 'dpmsolver++'")
        if algorithm == "sde-dpmsolver" and self.solver_order == 3:
            raise PatchError(f"{algorithm} has the solver_order 1 or 2, and 3 was asked for")

    @property
    def flows(self) -> bool:
        return self.prediction_type == FLOW

    @property
    def stochastic(self) -> bool:
        return self.algorithm_type in STOCHASTIC

    @property
    def remembers(self) -> bool:
        return self.solver_order > 1

    def deterministic(self) -> DPMSolver:
        return replace(
            self,
            algorithm_type="dpmsolver++",
            solver_order=1,
            thresholding=False,
        )

    def timesteps(self, steps: int) -> Tensor:
        """Timesteps of a run.   Raises PatchError for less than one step, and for more than there are."""
        return _tables(self, steps)[0].clone()

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels, of which the last step lands on the last.   Raises PatchError as `timesteps` does."""
        return _tables(self, steps)[1].clone()

    def adds_noise(self, step: int, steps: int) -> bool:
        return self.stochastic and bool(self.sigmas(steps)[step + 1] > 0)

    def noise_units(self, step: int, steps: int) -> float:
        """Noise units of the prediction, as those of every diffusion, and of a flow's velocity 1 - s."""
        if self.flows:
            return 1 - float(self.sigmas(steps)[step])
        return super().noise_units(step, steps)

    def noised(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training's input, timesteps and target, those of a diffusion or of a rectified flow."""
        if not self.flows:
            return super().noised(x, noise, share)
        s = share[:, None, None, None].to(x)
        return (1 - s) * x + s * noise, self.num_train_timesteps * share, noise - x

    def begin(self, x: Tensor) -> Memory:
        """Zeros in place of the outputs that no step has made yet."""
        (zeros,) = widened(torch.zeros_like(x))
        return {f"output_{i}": zeros for i in range(1, self.solver_order)}

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        Raises PatchError for an order above 1, whose steps remember.
        """
        if self.remembers:
            return super().step(x, output, step, steps, noise)
        return self.advance(x, output, step, steps, noise, {})[0]

    def advance(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Latents one noise level further, and the memory of the rows after it.

        noise  standard normal, of x's shape, for a stochastic algorithm
        Raises PatchError if it is missing.
        """
        wide, output = widened(x, output)
        made = self.converted(wide, output, self.level(step, steps))
        older = [memory[f"output_{i}"] for i in range(1, self.solver_order)]
        order = min(self.solver_order, step + 1, self._most(step, steps))
        levels = [self.level(i, steps) for i in range(step + 1, step - order, -1)]
        kept = [made, *older]
        wide = self._solved(wide, kept[:order], levels)
        if self.adds_noise(step, steps):
            noise = required_noise(noise, step, steps)
            wide = wide + self._deviation(*levels[:2]) * noise
        memory = {f"output_{i}": kept[i - 1] for i in range(1, self.solver_order)}
        return wide.to(x.dtype), memory

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output.

        Raises PatchError for a schedule that is not deterministic, and where several latents lead to x.
        """
        if replace(self, thresholding=False) != self.deterministic() or self.thresholding:
            raise PatchError(f"steps of {self!r} cannot be undone; those of deterministic() can")
        return undone(self, x, output, step, steps)

    def level(self, step: int, steps: int) -> Level:
        """Level entering a step."""
        sigma = self.sigmas(steps)[step]
        if self.use_flow_sigmas:
            signal = 1 - sigma
            noise = sigma
        else:
            signal = 1 / ((sigma**2 + 1) ** 0.5)
            noise = sigma * signal
        return Level(signal, noise, torch.log(signal) - torch.log(noise), sigma)

    def converted(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """Picture, or for "dpmsolver" the noise, that an output implies for latents x (B, C, H, W)."""
        if self.algorithm_type in OF_THE_PICTURE:
            return limited(self, self._picture(x, output, level))
        noise = self._noise(x, output, level)
        if not self.thresholding:
            return noise
        picture = limited(self, (x - level.noise * noise) / level.signal)
        return (x - level.signal * picture) / level.noise

    def _picture(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return level.signal * x - level.noise * output
        if self.prediction_type == FLOW:
            return x - level.sigma * output
        return (x - level.noise * output) / level.signal

    def _noise(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        if self.prediction_type == "sample":
            return (x - level.signal * output) / level.noise
        if self.prediction_type == "v_prediction":
            return level.signal * output + level.noise * x
        return output

    def _most(self, step: int, steps: int) -> int:
        """Highest order at a step, which is lower at the end of a run."""
        lowers = self.lower_order_final and steps < FEW_STEPS
        ends = self.euler_at_final or lowers or self.final_sigmas_type == "zero"
        if step == steps - 1 and ends:
            return 1
        if step == steps - 2 and lowers:
            return 2
        return 3

    def _solved(self, x: Tensor, outputs: list[Tensor], levels: list[Level]) -> Tensor:
        """Latents at levels[0], of outputs at the levels after it, the latest first."""
        after, now = levels[:2]
        h = after.log - now.log
        terms = _differences(outputs, levels, h)
        # the midpoint form of order two takes half the first term's factor for the second
        halved = len(outputs) == 2 and self.solver_type == "midpoint"
        return FORMS[self.algorithm_type](x, terms, after, now, h, halved)

    def _deviation(self, after: Level, now: Level) -> Tensor:
        """Standard deviation of the noise that a stochastic algorithm adds."""
        h = after.log - now.log
        if self.algorithm_type == "sde-dpmsolver++":
            return after.noise * torch.sqrt(1.0 - torch.exp(-2 * h))
        return after.noise * torch.sqrt(torch.exp(2 * h) - 1.0)

    def tables(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps (steps,) and noise levels (steps + 1,)."""
        trained = _trained(self)
        last = trained[0] if self.final_sigmas_type == "sigma_min" else 0.0
        levels = self._formed(trained, steps)
        if levels is not None:
            timesteps = self._rounded(timesteps_of(levels, np.log(trained)))
        elif self.use_flow_sigmas:
            levels = self._flow_levels(steps)
            timesteps = levels * self.num_train_timesteps
        else:
            timesteps = self._spaced(steps)
            levels = np.interp(timesteps, np.arange(len(trained)), trained)
        return timesteps.astype(np.int64), np.append(levels, last)

    def _formed(self, trained: np.ndarray, steps: int) -> np.ndarray | None:
        """Levels (steps,) of another form between the trained ends, None where none was asked for."""
        if self.use_lu_lambdas:
            logs = np.log(trained)
            most = logs[-1].item()
            return np.exp(most + np.linspace(0, 1, steps) * (logs[0].item() - most))
        for name, form in LEVELS.items():
            if getattr(self, name):
                return form(trained[-1].item(), trained[0].item(), steps)
        return None

    def _rounded(self, timesteps: np.ndarray) -> np.ndarray:
        """Timesteps rounded where the published code rounds them before it cuts their fractions off."""
        rounds = self.use_karras_sigmas or self.use_lu_lambdas
        if rounds and self.beta_schedule != "squaredcos_cap_v2":
            return timesteps.round()
        return timesteps

    def _flow_levels(self, steps: int) -> np.ndarray:
        shares = 1.0 - np.linspace(1, 1 / self.num_train_timesteps, steps + 1)
        return np.flip(self.flow_shift * shares / (1 + (self.flow_shift - 1) * shares))[:-1].copy()

    def _spaced(self, steps: int) -> np.ndarray:
        """Whole timesteps (steps,), of which none has a lambda below the clipped one."""
        n = self.num_train_timesteps
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        require_steps(steps, max(n - offset - 1, 1))
        last = n - self._clipped()
        if self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
        elif self.timestep_spacing == "leading":
            timesteps = leading(n, last // (steps + 1), steps + 1, offset)[:-1]
        else:
            timesteps = trailing_of(last, n, steps)
        if len(timesteps) < steps:
            raise PatchError(
                f"asked for {steps} steps; trailing spacing has {len(timesteps)} of them above "
                f"lambda_min_clipped {self.lambda_min_clipped}"
            )
        return timesteps.astype(np.int64)

    def _clipped(self) -> int:
        """Number of trained timesteps whose lambda lies below the clipped one."""
        abars = trained_abars(self)
        lambdas = torch.log(abars.sqrt()) - torch.log((1 - abars).sqrt())
        return int(torch.searchsorted(torch.flip(lambdas, [0]), self.lambda_min_clipped))


def _differences(outputs: list[Tensor], levels: list[Level], h: Tensor) -> list[Tensor]:
    """Latest output, and its divided differences with those before, one for each further output."""
    latest = outputs[0]
    if len(outputs) == 1:
        return [latest]
    ratio = (levels[1].log - levels[2].log) / h
    first = (1.0 / ratio) * (latest - outputs[1])
    if len(outputs) == 2:
        return [latest, first]
    older_ratio = (levels[2].log - levels[3].log) / h
    older = (1.0 / older_ratio) * (outputs[1] - outputs[2])
    mixed = first + (ratio / (ratio + older_ratio)) * (first - older)
    return [latest, mixed, (1.0 / (ratio + older_ratio)) * (first - older)]


def _of_pictures(x, terms: list[Tensor], after: Level, now: Level, h, halved: bool) -> Tensor:
    """Step of DPM-Solver++ (arXiv 2211.01095, algorithm 2)."""
    below = torch.exp(-h) - 1.0
    x = (after.noise / now.noise) * x - (after.signal * below) * terms[0]
    if halved:
        return x - 0.5 * (after.signal * below) * terms[1]
    if len(terms) > 1:
        x = x + (after.signal * (below / h + 1.0)) * terms[1]
    if len(terms) > 2:
        x = x - (after.signal * ((below + h) / h**2 - 0.5)) * terms[2]
    return x


def _of_noise(x, terms: list[Tensor], after: Level, now: Level, h, halved: bool) -> Tensor:
    """Step of DPM-Solver (arXiv 2206.00927, algorithms 1 and 2, as multistep)."""
    above = torch.exp(h) - 1.0
    x = (after.signal / now.signal) * x - (after.noise * above) * terms[0]
    if halved:
        return x - 0.5 * (after.noise * above) * terms[1]
    if len(terms) > 1:
        x = x - (after.noise * (above / h - 1.0)) * terms[1]
    if len(terms) > 2:
        x = x - (after.noise * ((above - h) / h**2 - 0.5)) * terms[2]
    return x


def _of_pictures_with_noise(
    x, terms: list[Tensor], after: Level, now: Level, h, halved: bool
) -> Tensor:
    """Step of SDE-DPM-Solver++ (arXiv 2211.01095, section 5), without its noise."""
    whole = 1.0 - torch.exp(-2.0 * h)
    x = (after.noise / now.noise * torch.exp(-h)) * x + (after.signal * whole) * terms[0]
    if halved:
        return x + 0.5 * (after.signal * whole) * terms[1]
    if len(terms) > 1:
        x = x + (after.signal * (whole / (-2.0 * h) + 1.0)) * terms[1]
    if len(terms) > 2:
        x = x + (after.signal * ((whole - 2.0 * h) / (2.0 * h) ** 2 - 0.5)) * terms[2]
    return x


def _of_noise_with_noise(
    x, terms: list[Tensor], after: Level, now: Level, h, halved: bool
) -> Tensor:
    """Step of SDE-DPM-Solver, without its noise."""
    above = torch.exp(h) - 1.0
    x = (after.signal / now.signal) * x - 2.0 * (after.noise * above) * terms[0]
    if halved:
        return x - (after.noise * above) * terms[1]
    if len(terms) > 1:
        x = x - 2.0 * (after.noise * (above / h - 1.0)) * terms[1]
    return x


FORMS = {
    "dpmsolver++": _of_pictures,
    "dpmsolver": _of_noise,
    "sde-dpmsolver++": _of_pictures_with_noise,
    "sde-dpmsolver": _of_noise_with_noise,
}


def _trained(schedule: DPMSolver) -> np.ndarray:
    """Noise levels of the trained timesteps, (N,) float32, rising."""
    abars = trained_abars(schedule)
    return ((1 - abars) / abars).sqrt().numpy()


@lru_cache(maxsize=256)
def _tables(schedule: DPMSolver, steps: int) -> tuple[Tensor, Tensor]:
    """Tables of a run in float32, which nobody may write to."""
    require_steps(steps, schedule.num_train_timesteps)
    timesteps, levels = schedule.tables(steps)
    return torch.from_numpy(timesteps).float(), torch.from_numpy(levels.astype(np.float32))
