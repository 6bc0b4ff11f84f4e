"""Settings and tables of every diffusion, and what its predictions say of picture and noise.

    x_t = a x + s e,   a = sqrt(abar_t),  s = sqrt(1 - abar_t)

    epsilon        e
    sample         x
    v_prediction   a e - s x          (arXiv 2202.00512, app. D)

B rows, C channels, H x W latent size, N trained timesteps
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.reference_models.schedules.base import Schedule, require_steps, undone, widened
from textpatch.reference_models.schedules.betas import BETAS, with_zero_terminal_snr
from textpatch.reference_models.schedules.spacing import SPACINGS, whole_timesteps

PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True, repr=False)
class Diffusion(Schedule):
    """Base of the diffusions, with the settings that Stable Diffusion and SDXL were trained with.

    trained_betas           all betas, in place of the three settings before
    rescale_betas_zero_snr  True leaves nothing of the picture at the last timestep
    steps_offset            by how much timesteps of "leading" spacing are moved up

    Raises PatchError for a setting of another kind, and for betas outside 0..1.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "prediction_type": PREDICTIONS,
        "timestep_spacing": SPACINGS,
    }
    # abar of the last timestep where betas are rescaled, None for the exact 0
    LAST_ABAR: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.num_train_timesteps
        ends = self.beta_start, self.beta_end
        if self.trained_betas is not None:
            if len(self.trained_betas) != n:
                raise PatchError(
                    f"{len(self.trained_betas)} trained_betas for {n} trained timesteps; give one for each"
                )
            ends = min(self.trained_betas), max(self.trained_betas)
        if not 0 < ends[0] <= ends[1] < 1:
            raise PatchError(
                f"betas from {ends[0]} to {ends[1]}; they must rise and lie between 0 and 1"
            )

    def betas(self) -> Tensor:
        """Betas of every trained timestep, (N,) float32."""
        if self.trained_betas is not None:
            betas = torch.tensor(self.trained_betas, dtype=torch.float32, device="cpu")
        else:
            make = BETAS[self.beta_schedule]
            betas = make(self.num_train_timesteps, self.beta_start, self.beta_end)
        if self.rescale_betas_zero_snr:
            return with_zero_terminal_snr(betas)
        return betas

    def timesteps(self, steps: int) -> Tensor:
        """Timesteps of a run.   Raises PatchError for less than one step, and for more than there are."""
        return torch.tensor(self._whole(steps), dtype=torch.float32, device="cpu")

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels sqrt((1 - abar) / abar).   Raises PatchError as `timesteps` does."""
        abars = self.abars(steps)
        return ((1 - abars) / abars).sqrt()

    def abars(self, steps: int) -> Tensor:
        """Values abar at each step's timestep, then the clean picture's 1, (steps + 1,) float32."""
        return F.pad(trained_abars(self)[self._whole(steps)], (0, 1), value=1.0)

    def landings(self, steps: int) -> Tensor:
        """Values abar that each step lands on, (steps,) float32."""
        return self.abars(steps)[1:]

    def noise_units(self, step: int, steps: int) -> float:
        """Noise units of a prediction at noise level sigma, where a = 1 / sqrt(sigma^2 + 1).

        A velocity has a, as e = s x_t + a v.  A sample has -1 / sigma, as e = (x_t - a x) / s.
        """
        if self.prediction_type == "epsilon":
            return 1.0
        sigma = float(self.sigmas(steps)[step])
        if self.prediction_type == "sample":
            return -1 / sigma
        return 1 / math.sqrt(sigma**2 + 1)

    def noised(self, x: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training's input a x + s e, timesteps t and what is to be predicted.

        t is the whole timestep at a share (B,) in 0..1 of all N.
        """
        last = self.num_train_timesteps - 1
        t = (share * self.num_train_timesteps).long().clamp(max=last)
        abar = trained_abars(self)[t.cpu()][:, None, None, None].to(x)
        targets = {
            "epsilon": noise,
            "sample": x,
            "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * x,
        }
        return abar.sqrt() * x + (1 - abar).sqrt() * noise, t, targets[self.prediction_type]

    def add_noise(self, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """Noise pictures x (B, C, H, W) to timestep t.   Raises PatchError for one outside 0..N - 1."""
        if not isinstance(t, Integral) or not 0 <= t < self.num_train_timesteps:
            raise PatchError(
                f"timestep {t}; the model was trained on 0..{self.num_train_timesteps - 1}"
            )
        wide, noise = widened(x, noise)
        abar = trained_abars(self)[t].to(wide)
        return (abar.sqrt() * wide + (1 - abar).sqrt() * noise).to(x.dtype)

    def clean(self, x: Tensor, output: Tensor, abar: Tensor) -> Tensor:
        """Picture that an output implies for latents x (B, C, H, W) at a level.

        Raises PatchError for a prediction of the noise where nothing of the picture is left.
        """
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return abar.sqrt() * x - (1 - abar).sqrt() * output
        require_signal(self, abar)
        return (x - (1 - abar).sqrt() * output) / abar.sqrt()

    def noise_of(self, x: Tensor, output: Tensor, abar: Tensor) -> Tensor:
        """Noise that an output implies for latents x (B, C, H, W) at a level."""
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return abar.sqrt() * output + (1 - abar).sqrt() * x
        return (x - abar.sqrt() * output) / (1 - abar).sqrt()

    def _whole(self, steps: int) -> list[int]:
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        require_steps(steps, max(self.num_train_timesteps - offset, 1))
        spacing = self.timestep_spacing
        return whole_timesteps(spacing, self.num_train_timesteps, steps, offset).tolist()


@lru_cache
def trained_abars(schedule: Diffusion) -> Tensor:
    """Values abar_t = prod over s <= t of (1 - beta_s), (N,) float32.

    They are computed once per schedule, so nobody may write to them.
    """
    abars = torch.cumprod(1 - schedule.betas(), dim=0)
    if schedule.rescale_betas_zero_snr and schedule.LAST_ABAR is not None:
        abars[-1] = schedule.LAST_ABAR
    return abars


def require_signal(schedule: Diffusion, abar: Tensor) -> None:
    """Raise PatchError for a prediction of the noise where nothing of the picture is left."""
    if not abar and schedule.prediction_type == "epsilon":
        raise PatchError(
            f"{type(schedule).__name__} with rescale_betas_zero_snr begins in noise alone, of which a "
            "prediction of the noise says nothing; give prediction_type 'v_prediction', or 'leading' "
            "timestep_spacing"
        )


def between(
    schedule: Diffusion, x: Tensor, output: Tensor, abar: Tensor, to_abar: Tensor
) -> Tensor:
    """Latents of the same picture and noise at another level (arXiv 2010.02502, eq. 12 with eta 0)."""
    wide, output = widened(x, output)
    clean = schedule.clean(wide, output, abar)
    noise = schedule.noise_of(wide, output, abar)
    return (to_abar.sqrt() * clean + (1 - to_abar).sqrt() * noise).to(x.dtype)


def back(
    schedule: Diffusion,
    x: Tensor,
    output: Tensor,
    step: int,
    steps: int,
    levels: tuple[Tensor, Tensor],
) -> Tensor:
    """Latents (B, C, H, W) that a step by `between` takes to x, given the same output.

    levels  abar entering the step, and abar that it lands on
    Raises PatchError where several latents lead to x.
    """
    if schedule.prediction_type != "epsilon":
        return undone(schedule, x, output, step, steps)
    now, after = levels
    return between(schedule, x, output, after, now)


def limited(schedule, clean: Tensor) -> Tensor:
    """Pictures (B, C, H, W) within the bounds that a schedule's settings ask for."""
    if schedule.thresholding:
        return thresholded(clean, schedule.dynamic_thresholding_ratio, schedule.sample_max_value)
    if getattr(schedule, "clip_sample", False):
        return clean.clamp(-schedule.clip_sample_range, schedule.clip_sample_range)
    return clean


def thresholded(x: Tensor, ratio: float, most: float) -> Tensor:
    """Pictures x (B, C, H, W), each clipped to -s..s over s, its quantile of |x| in 1..most."""
    s = x.abs().flatten(1).quantile(ratio, dim=1)
    s = s.clamp(1, most)[:, None, None, None]  # (B, 1, 1, 1)
    return x.clamp(-s, s) / s


def require_threshold(schedule) -> None:
    """Raise PatchError for a threshold that is no quantile or below 1, and for a range that is none."""
    if not 0 <= schedule.dynamic_thresholding_ratio <= 1 <= schedule.sample_max_value:
        raise PatchError(
            f"threshold at quantile {schedule.dynamic_thresholding_ratio} of at most "
            f"{schedule.sample_max_value}; "
            "the quantile lies in 0..1 and the most is at least 1"
        )
    if getattr(schedule, "clip_sample_range", 1) <= 0:
        raise PatchError(
            f"clip_sample_range is {schedule.clip_sample_range}; give a positive number"
        )
