"""Noise levels, and the steps from each to the next.

There are two families.

- A diffusion mixes  x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e  at trained timesteps t, and its denoiser
  predicts the noise e, the picture x or the velocity sqrt(abar_t) e - sqrt(1 - abar_t) x.
- A rectified flow mixes  x_s = (1 - s) x + s e  at shares of noise s, and its denoiser predicts the
  velocity e - x.

Tables and coefficients are float32, as in the published pipelines.  Latents in float64 are never rounded, and
latents in half precision are computed in float32 and rounded once per step.

base            what the denoising loop asks of a schedule
betas           what a diffusion was trained on
spacing         which timesteps a run visits
levels          noise levels of Karras, exponential and beta form
diffusion       settings and tables of every diffusion
euler           Euler and ancestral steps in  x / sqrt(abar)
ddim            deterministic and stochastic steps between levels
ddpm            stochastic steps with a fixed or learned variance
dpm_solver      DPM-Solver and DPM-Solver++, multistep, also stochastic
pndm            linear multistep, with or without Runge-Kutta steps before
lcm             latent consistency
flow            Euler steps of a rectified flow
"""

from textpatch.reference_models.schedules.base import Schedule
from textpatch.reference_models.schedules.ddim import DDIM
from textpatch.reference_models.schedules.ddpm import DDPM, DeterministicDDPM, MeanFactors
from textpatch.reference_models.schedules.diffusion import Diffusion, trained_abars
from textpatch.reference_models.schedules.dpm_solver import DPMSolver
from textpatch.reference_models.schedules.euler import Euler, EulerAncestral
from textpatch.reference_models.schedules.flow import FlowMatchEuler
from textpatch.reference_models.schedules.lcm import LCM
from textpatch.reference_models.schedules.pndm import PNDM

__all__ = [
    "DDIM",
    "DDPM",
    "LCM",
    "PNDM",
    "DPMSolver",
    "DeterministicDDPM",
    "Diffusion",
    "Euler",
    "EulerAncestral",
    "FlowMatchEuler",
    "MeanFactors",
    "Schedule",
    "trained_abars",
]
