"""Stochastic steps with a fixed or learned variance (DeepFloyd IF), and deterministic ones.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import required_noise, widened
from textpatch.reference_models.schedules.diffusion import (
    PREDICTIONS,
    Diffusion,
    back,
    between,
    limited,
    require_signal,
    require_threshold,
    thresholded,
)
from textpatch.reference_models.schedules.spacing import SPACINGS

LEARNED = ("learned", "learned_range")
LEAST_VARIANCE = 1e-20  # so that its logarithm is a number


class MeanFactors(NamedTuple):
    """Factors of clean = (x - noise e) / signal and of the next mean, of_clean clean + of_x x."""

    signal: Tensor
    noise: Tensor
    of_clean: Tensor
    of_x: Tensor


@dataclass(frozen=True, repr=False)
class DDPM(Diffusion):
    """Stochastic steps, by default with the learned variance and dynamic thresholding of DeepFloyd IF.

    - mean: q(x_prev | x_t, x_0) of arXiv 2006.11239, eq. 7
    - learned variance: arXiv 2102.09672, eq. 15, with the beta between the timesteps that are taken
    - x_0 is pushed into -1..1 as in arXiv 2205.11487, section 2.3

    variance_type  "fixed_small" and "fixed_large" are the two bounds of arXiv 2006.11239, section 3.2,
                   "learned" is the output's own number, "learned_range" its place between the bounds

    Raises PatchError as Diffusion does, and for a threshold that is no quantile or below 1.
    """

    beta_start: float = 1e-4  # not read by the squared cosine
    beta_end: float = 0.02
    beta_schedule: str = "squaredcos_cap_v2"
    steps_offset: int = 0
    variance_type: str = "learned_range"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = True
    dynamic_thresholding_ratio: float = 0.95
    sample_max_value: float = 1.5  # 1.0 in stage II

    stochastic: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
        "prediction_type": PREDICTIONS,
        "timestep_spacing": SPACINGS,
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", *LEARNED),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self)

    @property
    def reads_variance(self) -> bool:
        return self.variance_type in LEARNED

    def adds_noise(self, step: int, steps: int) -> bool:
        """True for all steps but one at timestep 0."""
        return self.stochastic and self._whole(steps)[step] > 0

    def step(
        self, x: Tensor, output: Tensor, step: int, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Latents one noise level further down, from x (B, C, H, W).

        output  (B, 2 C, H, W), the noise and then the variance, or (B, C, H, W) where none is learned
        noise   standard normal, of x's shape; a step at timestep 0 adds none

        Raises PatchError if the noise is missing, and for an output of another number of channels.
        """
        self._require_channels(x, output)
        now, after = self.abars(steps)[step : step + 2]
        require_signal(self, now)
        wide, output = widened(x, output)
        prediction = output[:, : x.shape[1]]
        share = output[:, x.shape[1] :]
        wide = self._mean(wide, prediction, self.factors(step, steps))
        if self.adds_noise(step, steps):
            noise = required_noise(noise, step, steps)
            wide = wide + self.deviation(share, now, after) * noise
        return wide.to(x.dtype)

    def factors(self, step: int, steps: int) -> MeanFactors:
        """Factors of a step's mean, float32.   Their last bits depend on the CPU's square roots."""
        now, after = self.abars(steps)[step : step + 2]
        alpha = now / after  # of this step, not of a trained one
        of_clean = after.sqrt() * (1 - alpha) / (1 - now)
        of_x = alpha.sqrt() * (1 - after) / (1 - now)
        return MeanFactors(now.sqrt(), (1 - now).sqrt(), of_clean, of_x)

    def _mean(self, x: Tensor, prediction: Tensor, factors: MeanFactors) -> Tensor:
        clean = prediction
        if self.prediction_type == "v_prediction":
            clean = factors.signal * x - factors.noise * prediction
        elif self.prediction_type == "epsilon":
            clean = (x - factors.noise * prediction) / factors.signal
        return factors.of_clean * limited(self, clean) + factors.of_x * x

    def threshold(self, x: Tensor) -> Tensor:
        """Pictures x (B, C, H, W), each clipped to -s..s over s, its quantile of |x| in 1..most."""
        return thresholded(x, self.dynamic_thresholding_ratio, self.sample_max_value)

    def deviation(self, share: Tensor, now: Tensor, after: Tensor) -> Tensor:
        """Standard deviation of a step's noise.

        share  what was learned of it (B, C, H, W).  For "learned_range" it is the place of the variance's
               logarithm between its two bounds, in -1..1
        """
        most = 1 - now / after
        least = ((1 - after) / (1 - now) * most).clamp(min=LEAST_VARIANCE)
        if self.variance_type == "learned":
            return share.sqrt()
        if self.variance_type == "fixed_large":
            return most.sqrt()
        if self.variance_type == "fixed_small_log":
            return (0.5 * least.log()).exp()
        if self.variance_type == "fixed_small":
            return least.sqrt()
        share = (share + 1) / 2
        return (0.5 * (share * most.log() + (1 - share) * least.log())).exp()

    def deterministic(self) -> DeterministicDDPM:
        return DeterministicDDPM(**vars(self))

    def _require_channels(self, x: Tensor, output: Tensor) -> None:
        wanted = x.shape[1] * (2 if self.reads_variance else 1)
        if output.shape[1] != wanted:
            raise PatchError(
                f"{output.shape[1]} channels predicted for {x.shape[1]}; "
                f"with variance_type {self.variance_type!r} they are {wanted}"
            )


@dataclass(frozen=True, repr=False)
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
        return between(self, x, output[:, : x.shape[1]], now, after)

    def invert_step(self, x: Tensor, output: Tensor, step: int, steps: int) -> Tensor:
        """Latents (B, C, H, W) that `step` takes to x, given the same output."""
        levels = tuple(self.abars(steps)[step : step + 2])
        return back(self, x, output[:, : x.shape[1]], step, steps, levels)
