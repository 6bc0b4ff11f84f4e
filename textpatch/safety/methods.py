"""Ways to keep a harmful word out of a picture, as methods of editing its prompt into the clean one.

    localized        the harmful prompt's run reads the clean prompt's text at the localised sites
    prompt_swap      the clean prompt's own run, which is another picture
    negative_prompt  guidance away from a prompt with the harmful word
    safe_guidance    Safe Latent Diffusion (arXiv 2211.05105), guidance away from a concept

The first two are those of `textpatch.editing`, whose other methods serve, too.  All begin with the noise of
the seed.  ("Precise Parameter Localization for Textual Generation in Diffusion Models", ICLR 2025, sec. 5.3)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from textpatch.editing.localized import Localized
from textpatch.editing.methods import Method, PromptSwap
from textpatch.editing.result import Edit
from textpatch.errors import PatchError, closest
from textpatch.guidance import ClassifierFree, Guidance, SafeLatentDiffusion, Safety
from textpatch.pipelines import SupportsSampling
from textpatch.plan import Plan, Row
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, quoted_texts
from textpatch.sampling import sample

# the concept of Safe Latent Diffusion's authors
CONCEPT = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, "
    "blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, "
    "brutality, cruelty"
)
WORD = "{}"  # in a template, where the harmful words go


@dataclass(frozen=True)
class HarmfulPair(Pair):
    """A harmful prompt and the clean one.

    found  harmful texts of the source, all that it quotes when empty
    """

    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class NegativePrompt:
    """Method of editing that guides the source's run away from its harmful words.

    template  negative prompt, with {} where the words go
    """

    name = "negative_prompt"
    template: str = f'text "{WORD}"'

    def __call__(
        self,
        pipeline: SupportsSampling,
        pair: Pair,
        *,
        seed: int,
        steps: int,
        guidance: float | Guidance,
        also: Sequence[str] = (SOURCE, TARGET),
    ) -> Edit:
        """Make the picture.  See `textpatch.editing.methods.Method`.

        Raises PatchError for a guidance that is no number.
        """
        scale = _scale(self.name, guidance)
        away = ClassifierFree(scale, _filled(self.template, pair))
        return _guided(self.name, pipeline, pair, seed, steps, guidance, away, also)


@dataclass(frozen=True)
class SafeGuidance:
    """Method of editing that guides the source's run away from a concept, by Safe Latent Diffusion.

    concept  prompt of the concept, with {} where the harmful words go if they are to be named.  When None
             that of its authors, which names no words
    preset   "weak", "medium", "strong", "max", or a Safety
    momentum, units  as in SafeLatentDiffusion
    """

    name = "safe_guidance"
    concept: str = CONCEPT
    preset: str | Safety = "medium"
    momentum: str = "carried"
    units: str = "official"

    def __call__(
        self,
        pipeline: SupportsSampling,
        pair: Pair,
        *,
        seed: int,
        steps: int,
        guidance: float | Guidance,
        also: Sequence[str] = (SOURCE, TARGET),
    ) -> Edit:
        """Make the picture.  See `textpatch.editing.methods.Method`.

        Raises PatchError for a guidance that is no number, and as SafeLatentDiffusion does.
        """
        away = SafeLatentDiffusion(
            _scale(self.name, guidance),
            _filled(self.concept, pair),
            preset=self.preset,
            momentum=self.momentum,
            units=self.units,
        )
        return _guided(self.name, pipeline, pair, seed, steps, guidance, away, also)


METHODS: dict[str, Callable[..., Method]] = {
    made.name: made for made in (Localized, PromptSwap, NegativePrompt, SafeGuidance)
}


def method_named(name: str) -> Method:
    """Method of a name, with its defaults.  Raises PatchError for another name."""
    if name not in METHODS:
        raise PatchError(f"no method {name!r}{closest(name, METHODS)}")
    return METHODS[name]()


def _guided(
    name: str,
    pipeline: SupportsSampling,
    pair: Pair,
    seed: int,
    steps: int,
    guidance: float | Guidance,
    away: Guidance,
    also: Sequence[str],
) -> Edit:
    """Edit whose picture is the source's under a guidance away from something.

    guidance  of the plain pictures that are asked for beside it
    """
    made = sample(pipeline, [Row(SOURCE, pair.source, seed)], steps=steps, guidance=away)
    prompts = {SOURCE: pair.source, TARGET: pair.target}
    rows = [Row(plain, prompt, seed) for plain, prompt in prompts.items() if plain in also]
    beside = sample(pipeline, rows, steps=steps, guidance=guidance).images if rows else {}
    return Edit(
        image=made.images[SOURCE],
        source=beside.get(SOURCE),
        target=beside.get(TARGET),
        plan=Plan(),
        pair=pair,
        seed=seed,
        steps=steps,
        guidance=away,
        method=name,
        generations=1 + len(rows),
    )


def _scale(name: str, guidance: float | Guidance) -> float:
    """Scale of the guidance.  Raises PatchError if the run has a guidance of its own kind."""
    if not isinstance(guidance, Real):
        raise PatchError(
            f"method {name!r} is a guidance itself, and guidance {guidance!r} was given; give a number"
        )
    return float(guidance)


def _filled(template: str, pair: Pair) -> str:
    """A template with the harmful words in it."""
    if isinstance(pair, HarmfulPair) and pair.found:
        return template.replace(WORD, " ".join(pair.found))
    return template.replace(WORD, " ".join(quoted_texts(pair.source)))
