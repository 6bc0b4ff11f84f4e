"""Noise levels, and the steps from each to the next.

There are two families.

- A diffusion mixes  x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e  at whole timesteps t, and its denoiser
  predicts the noise e.
- A rectified flow mixes  x_s = (1 - s) x + s e  at shares of noise s, and its denoiser predicts the
  velocity e - x.

Tables and coefficients are float32, as in the published pipelines.  Latents in float64 are never rounded, and
latents in half precision are computed in float32 and rounded once per step.

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.errors import PatchError

# A table of all trained timesteps is made.  The published models have 1,000.
MOST_TRAINED = 100_000
# settings of published configurations that would move the noise levels
IN_PLACE = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}


class Schedule:
    """Base of the schedules, with what the denoising loop asks of each.

    timesteps(steps)  (steps,) float32 in 0..N, the timesteps that the denoiser is told
    sigmas(steps)     (steps + 1,) float32, noise levels from the first step to where the last one lands
    step(x, output, step, steps, noise)  x one step further; step 0 is the noisiest, and only stochastic
                      schedules read `noise`
    noised(x, noise, share)  what training shows the denoiser: (its input, timesteps, what it is to predict)
    FIXED             settings that a published configuration must have besides the fields, because nothing
                      else is implemented

    Fields are named as in the published configurations.
    """

    FIXED: ClassVar[dict[str, object]]
    stochastic: ClassVar[bool] = False
    flows: ClassVar[bool] = False  # True for a rectified flow, whose denoiser predicts a velocity

    def deterministic(self) -> Schedule:
        """Schedule of the same noise levels whose steps draw nothing, and can be undone by `invert_step`."""
        return self

    def start(self, noise: Tensor, steps: int) -> Tensor:
        """Latents entering step 0, from standard normal noise (B, C, H, W)."""
        return noise

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        """Input of the denoiser, from latents (B, C, H, W)."""
        return x

    def noise_units(self, step: int, steps: int) -> float:
        """By how much the noise it implies changes when the denoiser's output at a step changes by one."""
        return 1.0


@dataclass(frozen=True)
class FlowMatchEuler(Schedule):
    """Euler steps along a rectified flow with shifted noise levels (Stable Diffusion 3, arXiv 2403.03206).

    sigma' = shift sigma / (1 + (shift - 1) sigma);  x <- x + (sigma_next - sigma) velocity.
    `prediction` says what the denoiser's output is: the `velocity` e - x, or the `sample` x itself.
    Raises PatchError for another prediction, and for numbers of no schedule.
    """

    num_train_timesteps: int = 1000
    shift: float = 3.0
    prediction: str = "velocity"

    flows: ClassVar[bool] = True
    FIXED: ClassVar[dict[str, object]] = IN_PLACE | {
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "invert_sigmas": False,
    }

    def __post_init__(self):
        _require_trained(self.num_train_timesteps)
        if self.prediction not in ("velocity", "sample"):
            raise PatchError(
                f"prediction is {self.prediction!r}; a flow's denoiser predicts 'velocity' or 'sample'"
            )
        if not isinstance(self.shift, Real) or not 0 < self.shift < math.inf:
            raise PatchError(f"shift is {self.shift!r}; give a positive number")

    def timesteps(self, steps: int) -> Tensor:
        """Timesteps N sigma.   Raises PatchError for less than one step or more than N."""
        return self.sigmas(steps)[:-1] * self.num_train_timesteps

    def sigmas(self, steps: int) -> Tensor:
        """Shares of noise, falling from 1 to a final 0.  Raises PatchError as `timesteps` does.

        The ends of the shifted training table are spaced evenly and shifted once more, as the published
        pipeline does: 28 steps at shift 3 end on 0.00893, not on 0.00299.
        """
        n = self.num_train_timesteps
        _require_steps(steps, n)
        first, last = self._shift(torch.tensor([1.0, 1.0 / n], dtype=torch.float32)).tolist()
        even = torch.linspace(first * n, last * n, steps, dtype=torch.float64) / n
        return F.pad(self._shift(even).float(), (0, 1))

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W)."""
        now, after = self.sigmas(steps)[step : step + 2]
        wide, output = _widened(x, output)
        if self.prediction == "sample":
            output = (wide - output) / now
        return (wide + (after - now) * output).to(x.dtype)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same velocity.

        Raises PatchError for a denoiser that predicts the sample, whose velocity is that of latents not
        known yet.
        """
        if self.prediction != "velocity":
            raise PatchError(
                f"steps of a flow whose prediction is {self.prediction!r} cannot be undone; "
                "a prediction of 'velocity' can"
            )
        return _euler_undone(x, output, *self.sigmas(steps)[step : step + 2])

    def noise_units(self, step: int, steps: int) -> float:
        """Noise units of the prediction at noise level s.

        A velocity has 1 - s, as e = x_s + (1 - s) v.
        The sample has (s - 1) / s, as e = (x_s - (1 - s) x) / s.
        """
        sigma = float(self.sigmas(steps)[step])
        if self.prediction == "velocity":
            return 1 - sigma
        return (sigma - 1) / sigma

    def noised(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training's input (1 - s) x + s e, timesteps N s and target, of shares of noise s (B,) in 0..1."""
        s = share[:, None, None, None].to(x)
        mixed = (1 - s) * x + s * noise
        target = x if self.prediction == "sample" else noise - x
        return mixed, self.num_train_timesteps * share, target

    def _shift(self, sigma: Tensor) -> Tensor:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


class Diffusion(Schedule):
    """Whole timesteps, N // steps apart and ending on `steps_offset` ("leading"), and abar at each."""

    FIXED: ClassVar[dict[str, object]] = {
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    }
    num_train_timesteps: int
    steps_offset: int

    def timesteps(self, steps: int) -> Tensor:
        """Whole timesteps.   Raises PatchError for less than one step, or so many that one exceeds N - 1."""
        return torch.tensor(self._whole(steps), dtype=torch.float32)

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels sqrt((1 - abar) / abar).   Raises PatchError as `timesteps` does."""
        abars = self.abars(steps)
        return ((1 - abars) / abars).sqrt()

    def abars(self, steps: int) -> Tensor:
        """Values abar at each step's timestep, then the clean picture's 1, (steps + 1,) float32."""
        return F.pad(trained_abars(self)[self._whole(steps)], (0, 1), value=1.0)

    def noised(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training's input sqrt(abar_t) x + sqrt(1 - abar_t) e, timesteps t and target e.

        t is the whole timestep at a share (B,) in 0..1 of all N.
        """
        last = self.num_train_timesteps - 1
        t = (share * self.num_train_timesteps).long().clamp(max=last)
        abar = trained_abars(self)[t.cpu()][:, None, None, None].to(x)
        return abar.sqrt() * x + (1 - abar).sqrt() * noise, t, noise

    def _whole(self, steps: int) -> list[int]:
        _require_steps(steps, self.num_train_timesteps - self.steps_offset)
        apart = self.num_train_timesteps // steps
        return [i * apart + self.steps_offset for i in reversed(range(steps))]


@dataclass(frozen=True)
class ScaledLinear(Diffusion):
    """Noise levels that Stable Diffusion and SDXL were trained on, whose sqrt(beta) rises linearly.

    Raises PatchError for betas outside 0..1 and for a steps_offset that is neither 0 nor 1.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps_offset: int = 1

    FIXED: ClassVar[dict[str, object]] = Diffusion.FIXED | {"beta_schedule": "scaled_linear"}

    def __post_init__(self):
        _require_trained(self.num_train_timesteps)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise PatchError(
                f"betas from {self.beta_start} to {self.beta_end}; they must rise and lie between 0 and 1"
            )
        if self.steps_offset not in (0, 1):
            raise PatchError(
                f"steps_offset is {self.steps_offset}; the last step's timestep must be 0 or 1"
            )

    def betas(self) -> Tensor:
        """Betas of every trained timestep, (N,) float32."""
        ends = self.beta_start**0.5, self.beta_end**0.5
        n = self.num_train_timesteps
        return torch.linspace(*ends, n, dtype=torch.float32, device="cpu") ** 2


@dataclass(frozen=True)
class Euler(ScaledLinear):
    """Euler steps of SDXL's probability flow in  x / sqrt(abar)  (arXiv 2206.00364, algorithm 1
    without its second-order correction).

    x <- x + (sigma_next - sigma) e;  the denoiser receives  x / sqrt(sigma^2 + 1).
    """

    FIXED: ClassVar[dict[str, object]] = (
        ScaledLinear.FIXED
        | IN_PLACE
        | {
            "timestep_type": "discrete",
            "interpolation_type": "linear",
            "final_sigmas_type": "zero",
        }
    )

    def start(self, noise: Tensor, steps: int) -> Tensor:
        return noise * self._scale(0, steps)

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        return x / self._scale(step, steps)

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W)."""
        now, after = self.sigmas(steps)[step : step + 2]
        wide, output = _widened(x, output)
        return (wide + (after - now) * output).to(x.dtype)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output."""
        return _euler_undone(x, output, *self.sigmas(steps)[step : step + 2])

    def _scale(self, step: int, steps: int) -> Tensor:
        return (self.sigmas(steps)[step] ** 2 + 1).sqrt()


@dataclass(frozen=True)
class DDIM(ScaledLinear):
    """Deterministic steps between noise levels, and back (arXiv 2010.02502, eq. 12 with eta 0)."""

    FIXED: ClassVar[dict[str, object]] = ScaledLinear.FIXED | {
        "set_alpha_to_one": False,
        "clip_sample": False,
        "thresholding": False,
    }

    def abars(self, steps: int) -> Tensor:
        """Values abar at each step's timestep, then at timestep 0, (steps + 1,) float32."""
        return trained_abars(self)[[*self._whole(steps), 0]]

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W)."""
        now, after = self.abars(steps)[step : step + 2]
        return _ddim(x, output, now, after)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output.

        A picture is inverted from step steps - 1 up to 0.  The output is the denoiser's for x at the timestep
        of the step undone, which is the noisier end.
        """
        now, after = self.abars(steps)[step : step + 2]
        return _ddim(x, output, after, now)


class MeanFactors(NamedTuple):
    """Factors of clean = (x - noise e) / signal and of the next mean, of_clean clean + of_x x."""

    signal: Tensor
    noise: Tensor
    of_clean: Tensor
    of_x: Tensor


@dataclass(frozen=True)
class DDPM(Diffusion):
    """Stochastic steps with learned variance and dynamic thresholding (DeepFloyd IF).

    - mean: q(x_prev | x_t, x_0) of arXiv 2006.11239, eq. 7
    - variance: arXiv 2102.09672, eq. 15, with the beta between the timesteps that are taken
    - x_0 is pushed into -1..1 as in arXiv 2205.11487, section 2.3

    Raises PatchError for a threshold that is no quantile or below 1.
    """

    num_train_timesteps: int = 1000
    dynamic_thresholding_ratio: float = 0.95
    sample_max_value: float = 1.5  # 1.0 in stage II

    FIXED: ClassVar[dict[str, object]] = Diffusion.FIXED | {
        "beta_schedule": "squaredcos_cap_v2",
        "steps_offset": 0,
        "variance_type": "learned_range",
        "thresholding": True,
    }
    steps_offset: ClassVar[int] = 0
    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        _require_trained(self.num_train_timesteps)
        if not 0 <= self.dynamic_thresholding_ratio <= 1 <= self.sample_max_value:
            raise PatchError(
                f"threshold at quantile {self.dynamic_thresholding_ratio} of at most "
                f"{self.sample_max_value}; "
                "the quantile lies in 0..1 and the most is at least 1"
            )

    def betas(self) -> Tensor:
        """Betas of every trained timestep, (N,) float32, by a squared cosine (arXiv 2102.09672, eq. 17)."""
        n = self.num_train_timesteps
        level = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = [min(1 - level[i + 1] / level[i], 0.999) for i in range(n)]
        return torch.tensor(betas, dtype=torch.float32, device="cpu")

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        output  (B, 2 C, H, W), the noise and then the variance
        noise   standard normal, of x's shape; the last step adds none

        Raises PatchError if the noise is missing, and for an output without variance.
        """
        if output.shape[1] != 2 * x.shape[1]:
            raise PatchError(
                f"{output.shape[1]} channels predicted for {x.shape[1]}; "
                f"with a learned variance they are {2 * x.shape[1]}"
            )
        last = step == steps - 1
        if noise is None and not last:
            raise PatchError(
                f"step {step} of {steps} adds noise and was given none; draw it per row and step"
            )
        now, after = self.abars(steps)[step : step + 2]
        wide, output = _widened(x, output)
        epsilon, share = output.chunk(2, dim=1)
        wide = self._mean(wide, epsilon, self.factors(step, steps))
        if not last:
            wide = wide + _deviation(share, now, after) * noise
        return wide.to(x.dtype)

    def factors(self, step: int, steps: int) -> MeanFactors:
        """Factors of a step's mean, float32.   Their last bits depend on the CPU's square roots."""
        now, after = self.abars(steps)[step : step + 2]
        alpha = now / after  # of this step, not of a trained one
        of_clean = after.sqrt() * (1 - alpha) / (1 - now)
        of_x = alpha.sqrt() * (1 - after) / (1 - now)
        return MeanFactors(now.sqrt(), (1 - now).sqrt(), of_clean, of_x)

    def _mean(self, x: Tensor, epsilon: Tensor, factors: MeanFactors) -> Tensor:
        clean = self.threshold((x - factors.noise * epsilon) / factors.signal)
        return factors.of_clean * clean + factors.of_x * x

    def threshold(self, x: Tensor) -> Tensor:
        """Pictures x (B, C, H, W), each clipped to -s..s over s, its quantile of |x| in 1..most."""
        s = x.abs().flatten(1).quantile(self.dynamic_thresholding_ratio, dim=1)
        s = s.clamp(1, self.sample_max_value)[:, None, None, None]  # (B, 1, 1, 1)
        return x.clamp(-s, s) / s

    def add_noise(self, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """Noise pictures x (B, C, H, W) to timestep t.   Raises PatchError for one outside 0..N - 1."""
        if not isinstance(t, Integral) or not 0 <= t < self.num_train_timesteps:
            raise PatchError(
                f"timestep {t}; the model was trained on 0..{self.num_train_timesteps - 1}"
            )
        wide, noise = _widened(x, noise)
        abar = trained_abars(self)[t].to(wide)
        return (abar.sqrt() * wide + (1 - abar).sqrt() * noise).to(x.dtype)

    def deterministic(self) -> DeterministicDDPM:
        return DeterministicDDPM(self.num_train_timesteps)


@dataclass(frozen=True)
class DeterministicDDPM(DDPM):
    """Deterministic steps between DeepFloyd IF's noise levels (arXiv 2010.02502, eq. 12 with eta 0).

    The variance is not read, and nothing is thresholded, so that a step can be undone.
    """

    stochastic: ClassVar[bool] = False

    def deterministic(self) -> DeterministicDDPM:
        return self

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W) and the output's first C channels."""
        now, after = self.abars(steps)[step : step + 2]
        return _ddim(x, output[:, : x.shape[1]], now, after)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output."""
        now, after = self.abars(steps)[step : step + 2]
        return _ddim(x, output[:, : x.shape[1]], after, now)


@lru_cache
def trained_abars(schedule: Diffusion) -> Tensor:
    """Values abar_t = prod over s <= t of (1 - beta_s), (N,) float32.

    They are computed once per schedule, so nobody may write to them.
    """
    return torch.cumprod(1 - schedule.betas(), dim=0)


def _ddim(x: Tensor, epsilon: Tensor, abar: Tensor, to_abar: Tensor) -> Tensor:
    wide, epsilon = _widened(x, epsilon)
    clean = (wide - (1 - abar).sqrt() * epsilon) / abar.sqrt()
    return (to_abar.sqrt() * clean + (1 - to_abar).sqrt() * epsilon).to(x.dtype)


def _euler_undone(x: Tensor, output: Tensor, now: Tensor, after: Tensor) -> Tensor:
    wide, output = _widened(x, output)
    return (wide - (after - now) * output).to(x.dtype)


def _deviation(share: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """Standard deviation of a learned variance.

    share  where the logarithm of the variance lies between its two bounds, in -1..1
    """
    most = 1 - now / after
    least = (1 - after) / (1 - now) * most
    share = (share + 1) / 2
    return (0.5 * (share * most.log() + (1 - share) * least.log())).exp()


def _widened(*tensors: Tensor) -> Iterator[Tensor]:
    return (x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def _require_trained(steps: int) -> None:
    if not isinstance(steps, Integral) or not 1 <= steps <= MOST_TRAINED:
        raise PatchError(
            f"num_train_timesteps is {steps!r}; give a whole number of 1 to {MOST_TRAINED:,}"
        )


def _require_steps(steps: int, most: int) -> None:
    if not isinstance(steps, Integral) or not 1 <= steps <= most:
        raise PatchError(f"asked for {steps} steps; this schedule has 1 to {most}")
