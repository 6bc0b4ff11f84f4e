"""Settings a model is run with when nothing else is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral

from textpatch.errors import PatchError
from textpatch.finite import is_finite
from textpatch.guidance import Embedded, Guidance, as_guidance
from textpatch.reference_models.drawn_words import DrawnWords

Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels
# most latents along a side, far beyond what any model draws
LARGEST = 32768
# What each of the fields of `Defaults` must be.
WANTED = {
    "height": "a whole number of 1 to 32768",
    "width": "a whole number of 1 to 32768",
    "steps": "a positive whole number",
    "guidance": "a finite number",
    "text_box": "four whole numbers: left, top, right, bottom; or as many for each line of text",
    "localized": "site indices, whole numbers",
    "replaced": "site indices, whole numbers",
    "micro": "six whole numbers",
    "level": "a timestep, a whole number",
    "embeds_guidance": "true or false",
    "draws": "DrawnWords, or None where nobody knows them",
}


@dataclass(frozen=True)
class Defaults:
    """Settings of a model, each used where nothing else is asked for.

    height, width  size of the latents
    steps          denoising steps of a run
    guidance       scale of classifier-free guidance
    text_box       left, top, right and bottom of the lettering in pixels, or a box for each line of text in
                   the order they are read; None where it is not fixed
    localized      indices of the sites measured to carry the word
    replaced       indices of the sites at which `sanitize` replaces it, where these are others
    micro          SDXL's six: height and width of the original, top and left of the crop, height and width
                   wanted; None for the other models
    level          timestep of the noise that a stage II gets in the small pictures
    embeds_guidance  True for a distilled model, to which every number of guidance is told
    draws          words that the model draws, so that prompts with others are refused; None where nobody
                   knows them

    Raises PatchError for a value that no run can be given.
    """

    height: int
    width: int
    steps: int
    guidance: float
    text_box: Box | tuple[Box, ...] | None = None
    localized: tuple[int, ...] = ()
    micro: tuple[int, ...] | None = None
    level: int = 250
    embeds_guidance: bool = False
    draws: DrawnWords | None = None
    replaced: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _fits(field.name, value):
                found = f"{field.name} is {value!r} among what a model is run with"
                raise PatchError(f"{found}; give {WANTED[field.name]}")

    def run(
        self, steps: int | None, guidance: float | Guidance | None
    ) -> tuple[int, float | Guidance]:
        """Steps and guidance of a run, the model's own in place of None.

        Raises PatchError for steps that are no whole number, and for a guidance that `as_guidance` does
        not know.
        """
        if steps is None:
            steps = self.steps
        if guidance is None:
            guidance = self.guidance
        if not is_whole(steps):
            raise PatchError(f"{steps!r} steps were asked for; give a whole number of them")
        guidance = self.meant(guidance)
        as_guidance(guidance)
        return steps, guidance

    def require_drawn(self, prompts: Sequence[str | None], name: str) -> None:
        """Raise PromptError for a prompt that quotes words which the model of this name does not draw."""
        if self.draws is not None:
            self.draws.require(prompts, name)

    def meant(self, guidance: float | Guidance) -> float | Guidance:
        """Guidance that is asked for, where a number is told to a distilled model."""
        if self.embeds_guidance and not isinstance(guidance, Guidance):
            return Embedded(guidance)
        return guidance


def is_whole(value) -> bool:
    """True for a whole number that is no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_whole(values, count: int | None = None) -> bool:
    """True for a tuple or list of whole numbers, of the given length if there is one."""
    if not isinstance(values, (tuple, list)) or not all(map(is_whole, values)):
        return False
    return count is None or len(values) == count


def _fits(name: str, value) -> bool:
    """True where a field of `Defaults` may have this value."""
    if name in ("height", "width"):
        return is_whole(value) and 0 < value <= LARGEST
    if name == "steps":
        return is_whole(value) and value > 0
    if name == "guidance":
        return is_finite(value)
    if name == "level":
        return is_whole(value)
    if name == "embeds_guidance":
        return isinstance(value, bool)
    if name == "draws":
        return value is None or isinstance(value, DrawnWords)
    if name in ("localized", "replaced"):
        return _are_whole(value)
    if name == "text_box" and isinstance(value, (tuple, list)) and value and not is_whole(value[0]):
        return all(_are_whole(box, 4) for box in value)
    return value is None or _are_whole(value, {"text_box": 4, "micro": 6}[name])
