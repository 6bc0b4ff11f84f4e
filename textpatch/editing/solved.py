"""Pipelines whose runs are solved by a method of inversion, for `sample` and its plans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from textpatch.classifier_free import NO_GUIDANCE, ClassifierFree, Guidance, State, Unguided
from textpatch.editing.inverting import FlowEdit, InversionMethod, Memory
from textpatch.editing.solvers import noised
from textpatch.editing.velocities import Prediction, require_forgetful
from textpatch.errors import PatchError
from textpatch.guidance import as_guidance


class Beside:
    """Base of the pipelines that differ from another in how a run goes, and in nothing else."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.schedule = pipeline.schedule.deterministic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def enter(self, noise: Tensor, steps: int) -> Tensor:
        return self.schedule.start(noise, steps)

    def begin(self, x: Tensor, guidance: Guidance) -> State:
        """Nothing, because a method fills its memory as it goes."""
        return {}

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        return self.schedule.model_input(x, step, steps)

    def denoise(self, x: Tensor, text: Any, *, steps: int, guidance, on_step=None, **how) -> Tensor:
        x = self.enter(x, steps)
        x, _ = self.advance(
            x, text, {}, only=range(steps), steps=steps, guidance=guidance, on_step=on_step, **how
        )
        if on_step:
            on_step(steps, x)
        return x

    @torch.no_grad()
    def advance(
        self,
        x: Tensor,
        text: Any,
        state: State,
        *,
        only: range,
        steps: int,
        guidance: float | Guidance,
        slots=None,
        on_step=None,
        noises: Iterator[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Latents after the steps `only`, and what the method remembers, by row."""
        guiding = as_guidance(guidance)
        require_forgetful(guiding)
        predict = Prediction(self._pipeline, self.schedule, text, steps, guiding)
        memory = dict(state)
        for step in only:
            if on_step:
                on_step(step, x)
            predict.slots = slots(step) if slots else None
            x = self.go(x, predict, step, memory, noises)
        return x, memory

    def go(self, x: Tensor, predict: Prediction, step: int, memory: Memory, noises) -> Tensor:
        """Latents after a step."""
        raise NotImplementedError


class Solved(Beside):
    """Pipeline whose runs sample by a method.

    picture  (1, C, H, W) latents that the method may pull towards
    """

    def __init__(self, pipeline: Any, method: InversionMethod, picture: Tensor) -> None:
        super().__init__(pipeline)
        self.method = method
        self.picture = picture

    def go(self, x: Tensor, predict: Prediction, step: int, memory: Memory, noises) -> Tensor:
        memory["picture"] = self.picture.expand_as(x)
        return self.method.sample(x, predict, step, memory)


class Moving(Beside):
    """Pipeline whose runs move a picture by FlowEdit.

        x_b <- x_b + h mean of (v_b - v_0),   v_b = v(z_A + (x_b - x_0))

    The first row is the source's and stays the picture bit for bit, since it moves by nothing.  A row of the
    target's prompt is FlowEdit as published.  A patched row has the source's velocity with the target's text
    K and V at some sites.

    method  its settings
    noises  of each row's seed, one per step and average.  Rows of one seed share them
    """

    def __init__(self, pipeline: Any, method: FlowEdit) -> None:
        super().__init__(pipeline)
        self.method = method

    def go(self, x: Tensor, predict: Prediction, step: int, memory: Memory, noises) -> Tensor:
        now, after = predict.sigmas[step : step + 2]
        picture = x[:1]
        moves = []
        for _ in range(self.method.averages):
            at = noised(picture, next(noises).to(x), x, now)
            velocity = self._velocities(at, predict, now)
            moves.append(velocity - velocity[:1])
        return x + (after - now) * torch.stack(moves).mean(0)

    def _velocities(self, x: Tensor, predict: Prediction, level: Tensor) -> Tensor:
        """Velocities (B, C, H, W), the first guided as the source's and the others as the target's."""
        target = predict.guidance
        source = rescaled(target, self.method.source_guidance)
        outputs = predict.outputs_at(x, level)
        others = predict.combined(outputs, target, level)
        own = {name: output[:1] for name, output in outputs.items()}
        return torch.cat([predict.combined(own, source, level), others[1:]])


def rescaled(guidance: Guidance, scale: float) -> Guidance:
    """Guidance of the source's velocity, of another scale and with the same branches.

    Raises PatchError for a guidance that is neither classifier-free nor none, and for a scale that the run's
    branches do not allow.
    """
    if isinstance(guidance, ClassifierFree):
        return Unguided() if scale in NO_GUIDANCE else ClassifierFree(scale, guidance.negative)
    if isinstance(guidance, Unguided) and scale in NO_GUIDANCE:
        return guidance
    raise PatchError(
        f"FlowEdit's source has guidance {scale:g}, and the run's is {guidance.describe()!r}; "
        "give the run another scale than 0 and 1, or FlowEdit a source_guidance of 1"
    )
