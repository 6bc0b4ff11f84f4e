"""Inversion of a real picture, the noise from which a model draws it again.

H x W size of the latents, C their channels, N steps
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from textpatch import metrics
from textpatch.editing.inverting import DEFAULT, FlowEdit, InversionMethod, Memory, as_method
from textpatch.editing.solved import Solved
from textpatch.editing.velocities import Prediction, require_forgetful
from textpatch.equality import equal
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, Unguided, as_guidance
from textpatch.html import figure, fragment, safe
from textpatch.pictures import as_rgb, open_given
from textpatch.pipelines import (
    SupportsModelCalls,
    SupportsPartialRuns,
    SupportsSampling,
    picture_size,
    require_parts,
)
from textpatch.plan import Row
from textpatch.sampling import sample

# Error at which half of a picture's variance comes back.  Beyond it more of what is drawn again is the
# model's than the picture's.
LIMIT = sqrt(0.5)
REBUILT = "rebuilt"
# what inverting asks of a pipeline
PARTS = SupportsSampling, SupportsPartialRuns, SupportsModelCalls


@dataclass(frozen=True)
class Errors:
    """How far a picture is from what comes back of it, each as a share of the picture's contrast.

        root of mean (a - b)^2 / standard deviation of a

    At 1 a picture of the mean colour alone is as near.

    autoencoder  through the VAE and back, the floor of all others.  None for a model of pixels, which has no
                 autoencoder
    inverted     through the inversion and back without guidance, autoencoder included
    guided       the same with the guidance that an edit has, which leaves the inverted trajectory
    """

    autoencoder: float | None
    inverted: float
    guided: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """Result of `invert`.

    picture     the picture that was given, as RGB
    trajectory  (N + 1, C, H, W) latents entering each step of the run that draws the picture, and last the
                picture's own.  As the `path` of a row it holds that row to the picture
    rebuilt     the picture drawn again from the noise without guidance
    guided      the picture drawn again with the guidance of an edit
    errors      how far both are from the picture
    calls       calls of the denoiser while inverting
    """

    picture: Image.Image
    prompt: str
    method: InversionMethod
    steps: int
    guidance: float | Guidance
    seed: int
    trajectory: Tensor = field(repr=False)
    rebuilt: Image.Image
    guided: Image.Image
    errors: Errors
    calls: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inversion) and equal(vars(self), vars(other))

    @property
    def noise(self) -> Tensor:
        """Latents (C, H, W) entering step 0."""
        return self.trajectory[0]

    def _repr_html_(self) -> str:
        pictures = {
            "picture": (self.picture, self.errors.autoencoder, "autoencoder alone"),
            "inverted": (self.rebuilt, self.errors.inverted, "without guidance"),
            "guided": (self.guided, self.errors.guided, "with guidance"),
        }
        figures = [
            figure(image, name, _told(error, what))
            for name, (image, error, what) in pictures.items()
        ]
        words = safe(f"{self.method.name}, {self.steps} steps, {self.calls} calls: {self.prompt}")
        return fragment(f'<div class="gallery">{"".join(figures)}</div><p class="note">{words}</p>')


def _told(error: float | None, what: str) -> str:
    if error is None:
        return "no autoencoder"
    return safe(f"{what}, error {error:.3f}")


def invert(
    pipeline: SupportsSampling,
    picture: Image.Image | str | os.PathLike[str],
    prompt: str,
    *,
    method: str | InversionMethod = DEFAULT,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    seed: int = 0,
    limit: float = LIMIT,
) -> Inversion:
    """Find the noise from which the model draws a real picture.

    Inverting reads the prompt without guidance, as published.  Then the picture is drawn again, without
    guidance and with that of an edit.

    picture   a PIL picture, or a PNG, JPEG or WebP file, of the size that the model draws
    prompt    what the picture shows
    method    a name of `textpatch.editing.inverting`, or an object from there
    steps     steps of the run, the pipeline's own when None
    guidance  of the second drawing, the pipeline's own when None
    seed      of the noise that RF-Inversion pulls towards.  The other methods draw none
    limit     largest error of the guided drawing

    Raises PatchError for
    - a picture of another size or mode
    - a method that the model does not admit
    - an inversion that diverges, with its step
    - a picture that the model cannot represent, which the guided drawing has lost by more than `limit`
    """
    require_parts(pipeline, "invert", *PARTS)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    chosen = as_method(method, flows(pipeline), pipeline.name)
    if isinstance(chosen, FlowEdit):
        raise PatchError(
            "flowedit inverts nothing, and moves a picture without its noise; give edit_picture this method"
        )
    guiding = as_guidance(guidance)
    require_forgetful(guiding)
    image = given_picture(pipeline, picture)
    latents = latents_of(pipeline, image)
    path, calls = inverted(pipeline, latents, [prompt], chosen, steps, seed)
    row = Row(REBUILT, prompt, seed, latents=path[0, 0])
    rebuilt, guided = _drawn_again(Solved(pipeline, chosen, latents), row, steps, guiding)
    floor = _autoencoder_error(pipeline, image, latents)
    errors = Errors(floor, error(image, rebuilt), error(image, guided))
    _require_represented(errors, limit, pipeline.name, chosen)
    return Inversion(
        picture=image,
        prompt=prompt,
        method=chosen,
        steps=steps,
        guidance=guidance,
        seed=seed,
        trajectory=path[:, 0],
        rebuilt=rebuilt,
        guided=guided,
        errors=errors,
        calls=calls,
    )


def _drawn_again(
    solved: Solved, row: Row, steps: int, guidance: Guidance
) -> tuple[Image.Image, Image.Image]:
    """Pictures of a row without guidance and with it, one picture where there is none."""
    rebuilt = sample(solved, [row], steps=steps, guidance=1).images[row.name]
    if isinstance(guidance, Unguided):
        return rebuilt, rebuilt
    return rebuilt, sample(solved, [row], steps=steps, guidance=guidance).images[row.name]


def flows(pipeline: Any) -> bool:
    """True for a rectified flow.  Raises PatchError for a schedule whose steps cannot be undone."""
    schedule = pipeline.schedule
    lacking = [name for name in ("flows", "deterministic") if not hasattr(schedule, name)]
    if lacking:
        raise PatchError(
            f"the schedule of {pipeline.name} is {type(schedule).__name__}, which has no "
            f"{', '.join(lacking)}; give it a schedule of textpatch.reference_models.schedules"
        )
    return schedule.flows


@torch.no_grad()
def inverted(
    pipeline: Any,
    latents: Tensor,
    prompts: list[str],
    method: InversionMethod,
    steps: int,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """Trajectories (N + 1, B, C, H, W) from noise to pictures, and the number of calls of the denoiser.

    latents  (B, C, H, W) of pictures, one for each prompt
    Raises PatchError, with the step, for an inversion that diverges.
    """
    schedule = pipeline.schedule.deterministic()
    predict = Prediction(pipeline, schedule, pipeline.encode(prompts), steps, Unguided())
    memory: Memory = {"noise": next(pipeline.noises([seed] * len(prompts)))}
    path = [latents]
    for step in reversed(range(steps)):
        try:
            x = method.invert(path[-1], predict, step, memory)
        except PatchError as found:
            raise _diverged(step, predict, method, str(found)) from found
        if not torch.isfinite(x).all():
            raise _diverged(step, predict, method, "its latents are not finite")
        path.append(x)
    return torch.stack(path[::-1]), predict.calls


def _diverged(step: int, predict: Prediction, method: InversionMethod, why: str) -> PatchError:
    time = float(predict.timesteps[step])
    return PatchError(
        f"{method.name} diverges at step {step} of {predict.steps}, timestep {time:.1f}: {why}; "
        "give more steps, fewer iterations, or another method"
    )


def _require_represented(errors: Errors, limit: float, name: str, method: InversionMethod) -> None:
    """Raise PatchError for a picture that an edit would lose, because the model cannot represent it."""
    if errors.guided <= limit:
        return
    floor = "it has no autoencoder"
    if errors.autoencoder is not None:
        floor = f"{errors.autoencoder:.2f} for its autoencoder alone"
    raise PatchError(
        f"drawn again by {name} after {method.name}, the picture is off by {errors.guided:.2f} of its "
        f"contrast ({errors.inverted:.2f} without guidance, {floor}), and {limit:.2f} is allowed, so an "
        "edit would show the model's picture and not this one; give a picture of the sort that the model "
        "draws and a prompt that describes it, or a higher limit"
    )


# --- pictures and latents


def given_picture(
    pipeline: SupportsSampling, picture: Image.Image | str | os.PathLike[str]
) -> Image.Image:
    """The picture that was given, opened if it is a file, as RGB.

    Raises PatchError for another size than the model's, and as `open_given` and `as_rgb` do.
    """
    image = picture
    if isinstance(picture, (str, os.PathLike)):
        image = open_given(picture)
    image = as_rgb(image, "the picture")
    height, width = picture_size(pipeline)
    if image.size != (width, height):
        raise PatchError(
            f"the picture has {image.width} x {image.height} pixels, and {pipeline.name} draws "
            f"{width} x {height} (width x height); crop or resize it, or give a pipeline of its size"
        )
    return image


@torch.no_grad()
def latents_of(pipeline: Any, picture: Image.Image) -> Tensor:
    """Latents (1, C, H, W) of a picture, the mean of the VAE's posterior, or the pixels in -1..1.

    The VAE keeps its own dtype.
    Raises PatchError for latents of other channels than pixels have, of which there is no VAE.
    """
    values = torch.from_numpy(np.asarray(picture, np.float32).copy())  # (H, W, 3)
    numbers = values.permute(2, 0, 1)[None].to(pipeline.device) / 127.5 - 1
    vae = getattr(pipeline.decoder, "vae", None)
    if vae is not None:
        dtype = next(vae.parameters()).dtype
        return vae.encode(numbers.to(dtype)).to(pipeline.dtype)
    channels = next(pipeline.noises([0])).shape[1]
    if channels != numbers.shape[1]:
        raise PatchError(
            f"latents of {pipeline.name} have {channels} channels, and its decoder has no VAE to make them "
            "of a picture; give a pipeline with one, as decoder.vae"
        )
    return numbers.to(pipeline.dtype)


def _autoencoder_error(pipeline: Any, picture: Image.Image, latents: Tensor) -> float | None:
    """Error of a picture that is encoded and decoded.  None for a model of pixels."""
    if getattr(pipeline.decoder, "vae", None) is None:
        return None
    return error(picture, pipeline.decode(latents)[0])


def error(picture: Image.Image, other: Image.Image) -> float:
    """Root of the mean squared difference, as a share of the first picture's standard deviation.

    A picture of less contrast than one grey level counts as one of that.
    """
    contrast = float(np.asarray(picture, np.float64).std())
    return sqrt(metrics.mse(picture, other)) / max(contrast, 1.0)
