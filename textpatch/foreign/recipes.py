"""Recipes of the calls of diffusers' own pipelines, by the names of their classes.

A recipe is data about the arguments of a call.  Nothing here imports diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError, closest
from textpatch.pipelines import denoiser_of


@dataclass(frozen=True)
class Recipe:
    """How one class of pipelines is called.

    guidance   argument that a run's guidance is given as, in the pipeline's own unit
    negative   argument of the negative prompt, None where there is none
    scale      argument above whose `unguided` a call runs a second branch.  `guidance` when None
    unguided   value of that argument up to which there is no second branch, None where there never is one
    blank      negative prompt without which there would be no second branch, None where none is needed
    most       most tokens of a prompt, None where the pipeline's own arguments say
    output     attribute of what the call gives
    each       arguments of which each prompt gets one, be it the same for all
    prior      method of the pipeline that draws what a prompt's picture begins from, and the argument that
               takes it.  None where there is none
    """

    guidance: str = "guidance_scale"
    negative: str | None = "negative_prompt"
    scale: str | None = None
    unguided: float | None = 1.0
    blank: str | None = None
    most: int | None = None
    output: str = "images"
    each: tuple[str, ...] = ()
    prior: tuple[str, str] | None = None


PLAIN = Recipe()
EMBEDDED = Recipe(negative=None, unguided=None)  # guidance is a number that the model reads
SOUND = Recipe(output="audios")
RECIPES = {
    "StableDiffusionPipeline": PLAIN,
    "StableDiffusionXLPipeline": PLAIN,
    "StableDiffusion3Pipeline": PLAIN,
    "IFPipeline": Recipe(most=77),
    "FluxPipeline": Recipe(scale="true_cfg_scale", blank=""),
    "Flux2Pipeline": EMBEDDED,
    "QwenImagePipeline": Recipe("true_cfg_scale", blank=" "),
    "ZImagePipeline": Recipe(unguided=0.0),
    "PixArtAlphaPipeline": PLAIN,
    "PixArtSigmaPipeline": PLAIN,
    "SanaPipeline": PLAIN,
    "Lumina2Pipeline": PLAIN,
    "CogView4Pipeline": PLAIN,
    "ChromaPipeline": PLAIN,
    "AuraFlowPipeline": PLAIN,
    "GlmImagePipeline": Recipe(negative=None, prior=("generate_prior_tokens", "prior_token_ids")),
    "HunyuanImagePipeline": Recipe("distilled_guidance_scale"),
    "AudioLDM2Pipeline": SOUND,
    "StableAudioPipeline": SOUND,
    "AceStepPipeline": Recipe(negative=None, output="audios", each=("lyrics",)),
}


class CalledPipe:
    """The call of one of diffusers' pipelines as a `draw`.

    pipe     the pipeline
    options  further arguments of every call, such as height and width
    Raises PatchError for a pipeline of no known class, and for options that its call does not have.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any]) -> None:
        self.pipe = pipe
        self.recipe = _recipe_of(pipe)
        self.options = dict(options)
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        for name in self.options:
            if name not in self.parameters:
                near = closest(name, self.parameters)
                raise PatchError(f"{type(pipe).__name__} is called without {name!r}{near}")

    @property
    def denoiser(self) -> nn.Module:
        """Model whose calls make the steps.  Raises PatchError where the pipeline has none."""
        name = denoiser_of(self.pipe)
        if name is None:
            raise PatchError(
                f"{type(self.pipe).__name__} has no transformer and no unet; "
                "give the denoiser and a function that draws: textpatch.wrap(denoiser, draw, ...)"
            )
        return getattr(self.pipe, name)

    @property
    def steps(self) -> int:
        """Steps of a call that does not say how many."""
        return self.parameters["num_inference_steps"].default

    @property
    def guidance(self) -> float:
        """Guidance of a call that does not say which."""
        return self.parameters[self.recipe.guidance].default

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        negative: str | None,
    ) -> list[Any]:
        """What the pipeline draws of each prompt, from noise of its own seed.

        Raises PatchError for a negative prompt that the call would not read.
        """
        arguments = {self.recipe.guidance: guidance, **self.options}
        negative = self._negative(arguments, negative)
        if negative is not None and self.recipe.negative is not None:
            arguments[self.recipe.negative] = [negative] * len(prompts)
        for name in self.recipe.each:
            given = arguments.get(name, self.parameters[name].default)
            arguments[name] = [given] * len(prompts) if isinstance(given, str) else given
        if self.recipe.prior is not None:
            method, name = self.recipe.prior
            arguments[name] = self._prior(method, prompts, seeds)
        made = self.pipe(
            prompt=list(prompts),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            **arguments,
        )
        return list(getattr(made, self.recipe.output))

    def _prior(self, method: str, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """What each prompt's picture begins from, drawn by the chance of its own seed.

        The call itself would draw that of all prompts by the first one's.
        Raises PatchError where the size of the pictures is not said.
        """
        size = {name: self.options.get(name) for name in ("height", "width")}
        if None in size.values():
            raise PatchError(
                f"{type(self.pipe).__name__} was wrapped with {size}, and has no size of its own; give "
                "wrap(pipe, height=1024, width=1024)"
            )
        drawn: dict[tuple[str, int], Tensor] = {}
        for prompt, seed in zip(prompts, seeds, strict=True):
            if (prompt, seed) not in drawn:
                chance = torch.Generator().manual_seed(seed)
                made = getattr(self.pipe, method)([prompt], **size, generator=chance)
                drawn[prompt, seed] = made[0]
        return torch.cat([drawn[pair] for pair in zip(prompts, seeds, strict=True)])

    def _negative(self, arguments: Mapping[str, Any], asked: str | None) -> str | None:
        """Negative prompt of a call.   Raises PatchError for one that the call would not read."""
        recipe = self.recipe
        guided = False
        if recipe.unguided is not None:
            scale = recipe.scale or recipe.guidance
            default = self.parameters[scale].default
            guided = arguments.get(scale, default) > recipe.unguided
        if asked is None:
            return recipe.blank if guided else None
        if recipe.negative is None or not guided:
            raise PatchError(
                f"negative prompt {asked!r} was given, and this call of {type(self.pipe).__name__} reads "
                f"none; leave it out{self._cure()}"
            )
        return asked

    def _cure(self) -> str:
        if self.recipe.scale is None:
            return ""
        return f", or wrap(pipe, {self.recipe.scale}=...) with a scale above {self.recipe.unguided}"

    def require_whole(self, prompts: Sequence[str]) -> None:
        """Raise PatchError for a prompt that no encoder of the pipeline reads to its end."""
        readers = [self._reader(name) for name in vars(self.pipe) if name.startswith("tokenizer")]
        limits = [reader for reader in readers if reader is not None]
        for prompt in prompts:
            found = [(_tokens(tokenizer, prompt), most) for tokenizer, most in limits]
            if found and all(tokens > most for tokens, most in found):
                tokens, most = max(found, key=lambda pair: pair[1])
                raise PatchError(
                    f"the prompt {prompt!r} has {tokens} tokens, and {type(self.pipe).__name__} cuts it "
                    f"after {most}; give a shorter one{self._longer()}"
                )

    def _longer(self) -> str:
        if "max_sequence_length" in self.parameters and self.recipe.most is None:
            return ", or wrap(pipe, max_sequence_length=...)"
        return ""

    def _reader(self, name: str) -> tuple[Any, int] | None:
        """A tokenizer and the most tokens that are read by it, None for what is none."""
        tokenizer = getattr(self.pipe, name)
        if not callable(tokenizer) or not hasattr(tokenizer, "model_max_length"):
            return None
        most = self.recipe.most or tokenizer.model_max_length
        longest = self.options.get("max_sequence_length")
        if longest is None and "max_sequence_length" in self.parameters:
            longest = self.parameters["max_sequence_length"].default
        if longest is not None:
            most = min(most, longest)
        return tokenizer, most


def _tokens(tokenizer: Any, prompt: str) -> int:
    return len(tokenizer(prompt, truncation=False).input_ids)


def _recipe_of(pipe: Any) -> Recipe:
    """Recipe of a pipeline's class, or of one that it inherits.  Raises PatchError where there is none."""
    for kind in type(pipe).__mro__:
        if kind.__name__ in RECIPES:
            return RECIPES[kind.__name__]
    raise PatchError(
        f"no recipe is known for calling a {type(pipe).__name__}{closest(type(pipe).__name__, RECIPES)}; "
        "give its denoiser and a function that draws: "
        "textpatch.wrap(pipe.transformer, draw, steps=..., guidance=...)"
    )
