"""What an application may ask of a pipeline: that it is one, and pictures of another size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.guidance import Guidance, State

Slots = Callable[[int], object]  # step -> what the denoiser takes as `slots`


class RunDefaults(Protocol):
    """What a model is run with when nothing else is asked for."""

    @property
    def height(self) -> int:
        """Of latents."""

    @property
    def width(self) -> int:
        """Of latents."""

    @property
    def text_box(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of the lettering, if fixed."""

    @property
    def localized(self) -> tuple[int, ...]:
        """Sites measured to carry the word."""

    def run(
        self, steps: int | None, guidance: float | Guidance | None
    ) -> tuple[int, float | Guidance]:
        """What was asked for, and in the place of None the model's own."""


class NoiseSchedule(Protocol):
    """The noise levels of a run."""

    def timesteps(self, steps: int) -> Tensor:
        """(steps,) what the denoiser is told."""

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) noise levels, from the first to the one that the last step lands on."""


class SupportsSampling(Protocol):
    """What `sample` and `edit` need."""

    name: str
    denoiser: nn.Module
    schedule: NoiseSchedule
    decoder: Callable

    # Read-only, or a type checker would refuse pipelines that compute them or narrow their type.
    @property
    def defaults(self) -> RunDefaults:
        """What it is run with when nothing else is asked for."""

    @property
    def device(self) -> torch.device:
        """Where its denoiser lies."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its denoiser's weights."""

    def encode(self, prompts: Sequence[str | None]):
        """The TextCondition of some prompts."""

    def noises(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Standard normal draws (B, C, H, W): the starting one, then one per step that asks for noise."""

    def denoise(
        self,
        x: Tensor,
        text,
        *,
        steps: int,
        guidance: float | Guidance,
        slots: Slots | None = None,
        on_step=None,
        noises: Iterator[Tensor] | None = None,
    ) -> Tensor:
        """Clean latents of starting noise x (B, C, H, W)."""

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, H, W)."""


class SupportsPartialRuns(Protocol):
    """What rows with latents of their own need, and rows that join later, as those of `start_curve`."""

    def enter(self, noise: Tensor, steps: int) -> Tensor:
        """Standard normal noise (B, C, H, W) to the latents entering step 0."""

    def advance(
        self,
        x: Tensor,
        text,
        state: State,
        *,
        only: range,
        steps: int,
        guidance: float | Guidance,
        slots: Slots | None = None,
        on_step=None,
        noises: Iterator[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Latents and the guidance's state after some consecutive steps of a run."""


class SupportsPairs(Protocol):
    """What `localize` and `Trials` need beside sampling."""

    @property
    def upscales(self) -> bool:
        """Whether it is a stage II, which draws small pictures larger."""

    def check(self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int) -> None:
        """Raise PatchError for what would stop a run."""


class SupportsWordTokens(Protocol):
    """What contribution needs to find a word among the text tokens: encoders with `tokenizers`."""

    encoders: object


class SupportsModelCalls(Protocol):
    """What attribution needs to call the denoiser by itself, as denoiser(x, t, text)."""

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        """What the denoiser receives of the latents x (B, C, H, W) entering a step."""


def require_parts(pipeline, asker: str, *parts: type) -> None:
    """Raise PatchError unless a pipeline has every member of the parts.

    asker  the application, as the message names it
    """
    if isinstance(pipeline, str):
        raise PatchError(
            f"{asker} was given the name {pipeline!r}, and needs a loaded pipeline: load({pipeline!r})"
        )
    for part in parts:
        lacking = [name for name in _members(part) if not hasattr(pipeline, name)]
        if lacking:
            raise PatchError(
                f"{asker} needs a pipeline with {', '.join(_members(part))} (textpatch.pipelines.{part.__name__}), and "
                f"{type(pipeline).__name__} has no {', '.join(lacking)}; {_cure(pipeline)}"
            )


def _members(part: type) -> list[str]:
    methods = [name for name in vars(part) if not name.startswith("_")]
    return [*part.__annotations__, *methods]


def _cure(pipeline) -> str:
    """What to do with an object that is no pipeline of ours."""
    model = next((name for name in ("transformer", "unet") if hasattr(pipeline, name)), None)
    if model is not None:
        return (
            f"for somebody else's pipeline use capture and patch on its .{model}, "
            "or save it and give load() the folder"
        )
    if isinstance(pipeline, nn.Module):
        return "a model alone takes capture and patch; a pipeline comes from load()"
    return "a pipeline comes from load()"


def picture_size(pipeline) -> tuple[int, int]:
    """Height and width of the pictures it makes, in pixels."""
    side = _pixels_per_latent(pipeline)
    return side * pipeline.defaults.height, side * pipeline.defaults.width


def sized(pipeline, height: int | None, width: int | None):
    """The pipeline for pictures of that height and width in pixels, weights shared; where None, its own.

    Raises PatchError for pixels that are no whole number of latents, and for a size that the denoiser cannot take:
    it is run for one step.
    """
    own, side = picture_size(pipeline), _pixels_per_latent(pipeline)
    asked = own[0] if height is None else height, own[1] if width is None else width
    if asked == own:
        return pipeline  # which knows where its letters stand
    if any(pixels % side for pixels in asked):
        raise PatchError(
            f"pictures of {asked[0]}x{asked[1]} pixels (height x width) asked for, and those of "
            f"{pipeline.name} are decoded {side}x{side} at a time; give multiples of {side}"
        )
    other = pipeline.at(*(pixels // side for pixels in asked))
    other.denoise(other.noise([0]), other.encode([None]), steps=1, guidance=1)
    return other


def _pixels_per_latent(pipeline) -> int:
    """Along each side; pictures that are denoised themselves, without a VAE, are their own latents."""
    vae = getattr(pipeline.decoder, "vae", None)
    return 1 if vae is None else vae.config.downsampling
