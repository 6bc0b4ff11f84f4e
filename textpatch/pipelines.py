"""Parts that an application may ask of a pipeline, and pipelines for pictures of another size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from textpatch.devices import device_of
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, State
from textpatch.memory import bytes_of_call, require_room
from textpatch.plan import Plan, Row
from textpatch.ports.shipped import HasDenoiser
from textpatch.windows import NoiseSchedule

if TYPE_CHECKING:
    from PIL import Image

Slots = Callable[[int], object]  # step -> slots as the denoiser takes them
OnStep = Callable[[int, Tensor], object]  # (step, latents entering it)
# left, upper, right and lower pixel of the place where words stand, or these of each line
TextBox = tuple[int, int, int, int] | tuple[tuple[int, int, int, int], ...]
AnyPipeline = TypeVar("AnyPipeline", bound="SupportsSizes")


class TextCondition(Protocol):
    """Encoded prompts, one row for each."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass, which `replace` copies

    @property
    def tokens(self) -> Tensor:
        """Vectors (R, T, C) of the tokens."""

    @property
    def pooled(self) -> Tensor | None:
        """Vectors (R, P), None of a model without them."""

    def __getitem__(self, rows: list[int]) -> TextCondition:
        """Condition of some rows, in the order given."""


class DrawnDefaults(Protocol):
    """Settings of a pipeline where nothing else is asked for."""

    @property
    def text_box(self) -> TextBox | None:
        """Place where words stand, None if nobody knows it."""

    @property
    def localized(self) -> tuple[int, ...]:
        """Indices of the sites that were found to carry words."""

    def run(
        self, steps: int | None, guidance: float | Guidance | None
    ) -> tuple[int, float | Guidance]:
        """Steps and guidance asked for, with the pipeline's own in the place of None."""


class RunDefaults(DrawnDefaults, Protocol):
    """Settings of a pipeline that has latents, and their size."""

    @property
    def height(self) -> int:
        """Height of the latents."""

    @property
    def width(self) -> int:
        """Width of the latents."""


class SupportsPrompts(HasDenoiser, Protocol):
    """Part of a pipeline that the others share."""

    name: str

    # Read-only, or a type checker would refuse pipelines that compute them or narrow their type.
    @property
    def decoder(self) -> Callable[[Tensor], list[Image.Image]]:
        """What makes pictures of latents."""

    @property
    def defaults(self) -> RunDefaults:
        """Sizes and settings of a run of which nothing else is asked."""

    def encode(self, prompts: Sequence[str | None]) -> TextCondition:
        """TextCondition of some prompts."""


class SupportsSampling(SupportsPrompts, Protocol):
    """Part of a pipeline that `sample` and `edit` need."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels of a run."""

    @property
    def device(self) -> torch.device:
        """Device of the denoiser's weights."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the denoiser's weights."""

    def noises(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Standard normal draws (B, C, H, W), the starting one and one per step that asks for noise."""

    def denoise(
        self,
        x: Tensor,
        text: TextCondition,
        *,
        steps: int,
        guidance: float | Guidance,
        slots: Slots | None = None,
        on_step: OnStep | None = None,
        noises: Iterator[Tensor] | None = None,
    ) -> Tensor:
        """Clean latents (B, C, H, W) of starting noise x (B, C, H, W)."""

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, H, W)."""


class TimesAndLevels(Protocol):
    """Times and noise levels of a run."""

    def timesteps(self, steps: int) -> Tensor:
        """Times (steps,) that the denoiser is told."""

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,)."""


class DrawsByItself(HasDenoiser, Protocol):
    """Part of a pipeline that draws by a call of its own, which carries a plan out as a whole.

    `sample`, `edit` and `localize` take it in the place of `SupportsSampling`.  What asks for latents or for
    the denoiser's own call does not.
    """

    name: str

    @property
    def schedule(self) -> TimesAndLevels:
        """What the denoiser is told of a run's steps."""

    @property
    def defaults(self) -> DrawnDefaults:
        """Settings of a run of which nothing else is asked."""

    def draw_rows(
        self,
        rows: Sequence[Row],
        plan: Plan,
        *,
        steps: int,
        guidance: float | Guidance,
        negative: str | None = None,
        micro_batch: int = 64,
    ) -> tuple[dict[str, Any], Any]:
        """What is drawn of each row by its name, and the ledger of the plan.

        plan  with loop indices, without a window
        """

    def cost(
        self, rows: int, steps: int, guidance: float | Guidance, micro_batch: int
    ) -> tuple[int, float]:
        """Calls of the denoiser and seconds that a run of so many rows takes."""

    def audited_batch(
        self, rows: Sequence[Row], guidance: float | Guidance, negative: str | None
    ) -> list[Row]:
        """Rows of the one call of a step that an audit records.

        Raises PatchError where it cannot replay the calls.
        """


class SupportsPartialRuns(Protocol):
    """Part of a pipeline that rows with latents of their own need, and rows that join later.

    The rows of `start_curve` join later.
    """

    def enter(self, noise: Tensor, steps: int) -> Tensor:
        """Latents entering step 0, of standard normal noise (B, C, H, W)."""

    def begin(self, x: Tensor, guidance: Guidance) -> State:
        """Memory of rows x (B, C, H, W) before their first step, the guidance's and the schedule's."""

    def advance(
        self,
        x: Tensor,
        text: TextCondition,
        state: State,
        *,
        only: range,
        steps: int,
        guidance: float | Guidance,
        slots: Slots | None = None,
        on_step: OnStep | None = None,
        noises: Iterator[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Latents and the rows' memory after the steps `only` of a run.

        only  consecutive steps among range(steps)
        """


class SupportsPairs(Protocol):
    """Part of a pipeline that `localize` and `Trials` need beside sampling."""

    @property
    def upscales(self) -> bool:
        """True for a stage II, which draws small pictures larger."""

    def check(self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int) -> None:
        """Raise PatchError for what would stop a run."""


class SupportsWordTokens(Protocol):
    """Part of a pipeline in which contribution finds a word among the text tokens.

    encoders  object with `tokenizers`
    """

    encoders: object


class SupportsModelCalls(Protocol):
    """Part of a pipeline that attribution needs to call the denoiser itself, as denoiser(x, t, text)."""

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        """Input of the denoiser for latents x (B, C, H, W) entering a step."""


class SupportsSizes(SupportsPrompts, Protocol):
    """Part of a pipeline that pictures of another size need."""

    def at(self: AnyPipeline, height: int, width: int) -> AnyPipeline:
        """Pipeline for latents of another height and width, weights shared."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal noise (B, C, H, W) that a run starts from."""

    def denoise(
        self, x: Tensor, text: TextCondition, *, steps: int, guidance: float | Guidance
    ) -> Tensor:
        """Clean latents (B, C, H, W) of starting noise x (B, C, H, W)."""


def draws_by_itself(pipeline: object) -> TypeGuard[DrawsByItself]:
    """True for a pipeline that draws by a call of its own."""
    return all(hasattr(pipeline, name) for name in _members(DrawsByItself))


def require_sampling(pipeline: object, asker: str) -> None:
    """Raise PatchError unless a pipeline can draw the rows of a plan, in either way."""
    if not draws_by_itself(pipeline):
        require_parts(pipeline, asker, SupportsSampling)


def require_parts(pipeline: object, asker: str, *parts: type) -> None:
    """Raise PatchError unless a pipeline has every member of the parts.

    asker  the application, as the message names it
    """
    if isinstance(pipeline, str):
        raise PatchError(
            f"{asker} was given the name {pipeline!r}, and needs a loaded pipeline: load({pipeline!r})"
        )
    for part in parts:
        members = _members(part)
        lacking = [name for name in members if not hasattr(pipeline, name)]
        if lacking:
            raise PatchError(
                f"{asker} needs a pipeline with {', '.join(members)} (textpatch.pipelines.{part.__name__}), "
                f"and {type(pipeline).__name__} has no {', '.join(lacking)}; {_cure(pipeline)}"
            )


def _members(part: type) -> list[str]:
    """Names of the attributes and methods of a part."""
    kinds = [kind for kind in reversed(part.__mro__) if kind not in (object, Generic, Protocol)]
    names = [name for kind in kinds for name in (*kind.__annotations__, *vars(kind))]
    return [*dict.fromkeys(name for name in names if not name.startswith("_"))]


def _cure(pipeline: object) -> str:
    """Advice for an object that lacks a part."""
    if draws_by_itself(pipeline):
        return (
            "a wrapped pipeline runs as a whole, by its own call; take what asks for whole runs alone, such "
            "as the modes exhaustive and staged of localize, or a pipeline from load()"
        )
    if denoiser_of(pipeline) is not None:
        return "somebody else's pipeline is wrapped first: textpatch.wrap(pipe)"
    if isinstance(pipeline, nn.Module):
        return (
            "a model alone takes capture, patch and swap; a pipeline comes from load(), or from "
            "textpatch.wrap(model, draw)"
        )
    return "a pipeline comes from load(), or from textpatch.wrap"


def denoiser_of(pipe: object) -> str | None:
    """Name of the part of somebody else's pipeline that is its denoiser, None where there is none."""
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipe, name, None), nn.Module):
            return name
    return None


def draws_pictures(pipeline: SupportsSizes | SupportsSampling | DrawsByItself) -> bool:
    """False for a pipeline of sounds."""
    return getattr(pipeline.defaults, "height", 0) is not None


def bytes_of_rows(pipeline: SupportsSizes, rows: int, height: int, width: int) -> int | None:
    """Most bytes that a step of some rows holds at one time, None where nobody can tell.

    height, width  of the latents
    """
    text = pipeline.encode([None] * rows)
    noise = pipeline.noise([0])

    def step() -> None:
        x = noise.new_empty((rows, noise.shape[1], height, width))
        pipeline.denoiser(x, noise.new_tensor(500.0), text)

    return bytes_of_call(step)


def picture_size(pipeline: SupportsSizes | SupportsSampling) -> tuple[int, int]:
    """Height and width of a pipeline's pictures in pixels."""
    side = _pixels_per_latent(pipeline)
    return side * pipeline.defaults.height, side * pipeline.defaults.width


def sized(pipeline: AnyPipeline, height: int | None, width: int | None) -> AnyPipeline:
    """Pipeline for pictures of another size, weights shared.

    A pipeline that already has the size is returned as it is, since it knows where its letters stand.
    Any other is tried for one step.

    height, width  in pixels.  The pipeline's own where None
    Raises PatchError for pixels that are no whole number, or no whole number of latents, and for a
    size that the denoiser cannot take.
    """
    side = _pixels_per_latent(pipeline)
    own = picture_size(pipeline)
    asked = (
        own[0] if height is None else height,
        own[1] if width is None else width,
    )
    for pixels in asked:
        if isinstance(pixels, bool) or not isinstance(pixels, Integral):
            raise PatchError(f"a side of {pixels!r} pixels was asked for; give a whole number")
    if asked == own:
        return pipeline
    if any(pixels % side for pixels in asked):
        raise PatchError(
            f"pictures of {asked[0]}x{asked[1]} pixels (height x width) asked for, and those of "
            f"{pipeline.name} are decoded {side}x{side} at a time; give multiples of {side}"
        )
    latents = asked[0] // side, asked[1] // side
    if asked[0] * asked[1] > own[0] * own[1]:
        device = device_of(pipeline.denoiser)
        what = f"pictures of {asked[0]}x{asked[1]} pixels (height x width)"
        require_room(bytes_of_rows(pipeline, 1, *latents), device, what)
    other = pipeline.at(*latents)
    other.denoise(other.noise([0]), other.encode([None]), steps=1, guidance=1)
    return other


def _pixels_per_latent(pipeline: SupportsSizes | SupportsSampling) -> int:
    """Pixels along each side of a latent.

    1 where pictures are denoised themselves, without a VAE.
    """
    vae = getattr(pipeline.decoder, "vae", None)
    if vae is None:
        return 1
    return vae.config.downsampling
