"""Ways to keep a harmful word out of a picture, ours and those it is compared with.

    localized        the harmful prompt's run reads the clean prompt's text at the localised sites
    prompt_swap      the clean prompt's own run, which is another picture
    negative_prompt  guidance away from a prompt with the harmful word
    safe_guidance    Safe Latent Diffusion (arXiv 2211.05105), guidance away from a concept

All begin with the noise of the seed.  ("Precise Parameter Localization for Textual Generation in Diffusion
Models", ICLR 2025, sec. 5.3)
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Protocol

from textpatch.bank import prompt_settles_text
from textpatch.errors import PatchError, closest
from textpatch.groups import localized_group, require_start
from textpatch.guidance import (
    ClassifierFree,
    Guidance,
    SafeLatentDiffusion,
    Safety,
    require_branch,
)
from textpatch.pipelines import SupportsSampling
from textpatch.plan import Plan, Row, Swap
from textpatch.prompts.pairs import SOURCE, TARGET
from textpatch.safety.screening import Screened
from textpatch.sampling import Samples, sample

# the concept of Safe Latent Diffusion's authors
CONCEPT = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, "
    "blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, "
    "brutality, cruelty"
)
WORD = "{}"  # in a template, where the harmful words go


@dataclass(frozen=True)
class Settings:
    """Seed of the noise, denoising steps and guidance of a run."""

    seed: int
    steps: int
    guidance: float | Guidance


class Method(Protocol):
    """A way to keep a harmful word out of a picture."""

    name: ClassVar[str]

    def draw(self, pipeline: SupportsSampling, screened: Screened, settings: Settings) -> Samples:
        """Run in which the row SOURCE is the picture without the harmful word."""


@dataclass(frozen=True)
class Localized:
    """The clean prompt's text at the localised sites, from one step on.

    Where a prompt settles its keys and values the clean prompt is encoded and never run.  Where text evolves
    with the picture its run is a row more.

    sites   where to swap, the sites localised for the model when None
    start   first swapped step.  Step 0 is the noisiest
    branch  "both" guidance branches are swapped, or "cond" alone
    """

    name: ClassVar[str] = "localized"
    sites: object = None
    start: int = 0
    branch: str = "both"

    def draw(self, pipeline: SupportsSampling, screened: Screened, settings: Settings) -> Samples:
        more = self.rows_more(pipeline)
        rows = [
            Row(SOURCE, screened.prompt, settings.seed),
            Row(TARGET, screened.clean, settings.seed, sampled=bool(more)),
        ]
        sites = localized_group(pipeline, self.sites)
        window = tuple(range(self.start, settings.steps))
        plan = Plan([Swap(sites, SOURCE, TARGET, steps=window, branch=self.branch)])
        made = _run(pipeline, rows, plan, settings)
        made.ledger.require()
        return made

    def rows_more(self, pipeline: SupportsSampling) -> int:
        """Rows that run beside the picture's own, 0 or 1."""
        return 0 if prompt_settles_text(pipeline.denoiser) else 1

    def check(self, pipeline: SupportsSampling, settings: Settings) -> None:
        """Raise PatchError for sites, a start or a branch that the run has not."""
        localized_group(pipeline, self.sites)
        require_start(self.start, settings.steps)
        require_branch(self.branch, settings.guidance)


@dataclass(frozen=True)
class PromptSwap:
    """The clean prompt in the harmful one's place."""

    name: ClassVar[str] = "prompt_swap"

    def draw(self, pipeline: SupportsSampling, screened: Screened, settings: Settings) -> Samples:
        return _run(pipeline, [Row(SOURCE, screened.clean, settings.seed)], Plan(), settings)


@dataclass(frozen=True)
class NegativePrompt:
    """Classifier-free guidance away from the harmful words.

    template  negative prompt, with {} where the words go
    """

    name: ClassVar[str] = "negative_prompt"
    template: str = f'text "{WORD}"'

    def draw(self, pipeline: SupportsSampling, screened: Screened, settings: Settings) -> Samples:
        guidance = ClassifierFree(_scale(self, settings), _filled(self.template, screened))
        return _guided(pipeline, screened, settings, guidance)


@dataclass(frozen=True)
class SafeGuidance:
    """Safe Latent Diffusion away from a concept.

    concept  prompt of the concept, with {} where the harmful words go if they are to be named.  When None
             that of its authors, which names no words
    preset   "weak", "medium", "strong", "max", or a Safety
    momentum, units  as in SafeLatentDiffusion
    """

    name: ClassVar[str] = "safe_guidance"
    concept: str = CONCEPT
    preset: str | Safety = "medium"
    momentum: str = "carried"
    units: str = "official"

    def draw(self, pipeline: SupportsSampling, screened: Screened, settings: Settings) -> Samples:
        guidance = SafeLatentDiffusion(
            _scale(self, settings),
            _filled(self.concept, screened),
            preset=self.preset,
            momentum=self.momentum,
            units=self.units,
        )
        return _guided(pipeline, screened, settings, guidance)


METHODS: dict[str, type] = {
    made.name: made for made in (Localized, PromptSwap, NegativePrompt, SafeGuidance)
}


def method_named(name: str) -> Method:
    """Method of a name, with its defaults.  Raises PatchError for another name."""
    if name not in METHODS:
        raise PatchError(f"no method {name!r}{closest(name, METHODS)}")
    return METHODS[name]()


def plain_run(pipeline: SupportsSampling, prompt: str, settings: Settings) -> Samples:
    """Run of a prompt as it is, in the row SOURCE."""
    return _run(pipeline, [Row(SOURCE, prompt, settings.seed)], Plan(), settings)


def _guided(
    pipeline: SupportsSampling, screened: Screened, settings: Settings, guidance: Guidance
) -> Samples:
    """Run of the harmful prompt under a guidance."""
    own = Settings(settings.seed, settings.steps, guidance)
    return plain_run(pipeline, screened.prompt, own)


def _run(pipeline: SupportsSampling, rows: list[Row], plan: Plan, settings: Settings) -> Samples:
    return sample(pipeline, rows, plan, steps=settings.steps, guidance=settings.guidance)


def _scale(method: Method, settings: Settings) -> float:
    """Scale of the guidance.  Raises PatchError if the run has a guidance of its own kind."""
    if not isinstance(settings.guidance, Real):
        raise PatchError(
            f"method {method.name!r} is a guidance itself, and guidance {settings.guidance!r} was given; "
            "give a number"
        )
    return float(settings.guidance)


def _filled(template: str, screened: Screened) -> str:
    """A template with the harmful words in it."""
    return template.replace(WORD, " ".join(screened.found))
