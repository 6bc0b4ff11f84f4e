"""Guided predictions of a denoiser for some rows, at a step of a run or at any noise level of a flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textpatch.classifier_free import Guidance, Moment, told
from textpatch.editing.solvers import Predict, Undo
from textpatch.errors import PatchError


@dataclass
class Prediction:
    """Predictions in a run of some steps.

    text      condition of the rows, branch by branch
    schedule  deterministic schedule of the run
    slots     slots of the step, None where every row reads its own text
    calls     how often the denoiser was called

    sigmas (N + 1,) are the schedule's in float64 on the CPU, so that a level between two of them is exact.
    timesteps (N,) are float32 on the latents' device.
    """

    pipeline: Any
    schedule: Any
    text: Any
    steps: int
    guidance: Guidance
    slots: Any = None
    calls: int = 0

    def __post_init__(self) -> None:
        device = self.pipeline.device
        self.sigmas = self.schedule.sigmas(self.steps).double().cpu()
        self.timesteps = self.schedule.timesteps(self.steps).to(device)

    def at_step(self, x: Tensor, step: int) -> Tensor:
        """Guided output (B, C, H, W) for latents x (B, C, H, W) entering a step."""
        return self._in_step(self.schedule.model_input(x, step, self.steps), step)

    def _in_step(self, inputs: Tensor, step: int) -> Tensor:
        """Guided output (B, C, H, W) for what the denoiser is given at the timestep of a step."""
        moment = Moment(step, self.schedule.noise_units(step, self.steps))
        outputs = self._outputs(inputs, self.timesteps[step])
        return self.guidance.combine(outputs, moment, {})[0]

    def at_level(self, x: Tensor, level: Tensor) -> Tensor:
        """Guided velocity (B, C, H, W) of a flow at a noise level of 0 to 1, which no step need have."""
        return self.combined(self.outputs_at(x, level), self.guidance, level)

    def outputs_at(self, x: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Velocities (B, C, H, W) of a flow at a noise level, by guidance branch."""
        time = (level * self.schedule.num_train_timesteps).float()
        return self._outputs(x, time.to(x.device))

    def combined(self, outputs: dict[str, Tensor], guidance: Guidance, level: Tensor) -> Tensor:
        """Velocity (B, C, H, W) that a guidance makes of those of its branches."""
        return guidance.combine(outputs, Moment(0, float(1 - level)), {})[0]

    def undoing(self, x: Tensor, step: int) -> tuple[Tensor, Predict, Undo]:
        """First output, `predict` and `undo` of a step, as `solvers.fixed_point` takes them.

        x  (B, C, H, W) after the step.  The denoiser is first given what it would be given for x where x
           lies, and told the timestep of the noisier end
        """
        output = self._in_step(self.schedule.model_input(x, step + 1, self.steps), step)

        def predict(y: Tensor) -> Tensor:
            return self.at_step(y, step)

        def undo(x: Tensor, output: Tensor) -> Tensor:
            return self.schedule.invert_step(x, output, step, self.steps)

        return output, predict, undo

    @torch.no_grad()
    def _outputs(self, x: Tensor, time: Tensor) -> dict[str, Tensor]:
        """Outputs (B, C, H, W) by guidance branch, without a learned variance."""
        self.calls += 1
        names = self.guidance.branches
        rows = torch.cat([x] * len(names))
        whole = self.pipeline.denoiser(
            rows, time, self.text, slots=self.slots, **told(self.guidance)
        )
        parts = whole[:, : x.shape[1]].chunk(len(names))
        return dict(zip(names, parts, strict=True))


def require_forgetful(guidance: Guidance) -> None:
    """Raise PatchError for a guidance that remembers earlier steps, which a solver may take twice."""
    if guidance.begin(torch.zeros(1, 1, 1, 1)):
        raise PatchError(
            f"{type(guidance).__name__} remembers the steps before, and a picture is inverted without "
            "that memory; give a scale, or ClassifierFree"
        )
