"""A pipeline: encoders + denoiser + schedule + decoder, and the one denoising loop of the project.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.reference_models.layers import TextCondition


@dataclass(frozen=True)
class Defaults:
    """What a model is run with when nothing else is asked for."""

    height: int  # latent size
    width: int
    steps: int
    guidance: float
    text_box: tuple[int, int, int, int] | None = None  # left, top, right, bottom of the lettering, if fixed
    localized: tuple[int, ...] = ()  # sites measured to carry the word


def pixels(latents: Tensor) -> list[Image.Image]:
    """The decoder of pixel-space models: (B, 3, H, W) in -1..1 to pictures."""
    array = (latents.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def _require_seeds(seeds: Sequence[int]) -> None:
    wrong = [seed for seed in seeds if not -(2**63) <= seed < 2**63]
    if wrong:
        raise PatchError(
            f"seed {wrong[0]} does not fit the noise generator; give a whole number of at most 63 bits"
        )


class Pipeline(nn.Module):
    """Everything between a prompt and a picture.

    encoders(prompts) -> TextCondition; denoiser(x, t, text, slots=) -> Tensor; schedule gives noise levels
    and steps; decoder(latents) -> pictures.  `name` says which weights these are.
    """

    def __init__(self, encoders, denoiser, schedule, decoder: Callable, defaults: Defaults, name: str):
        super().__init__()
        self.encoders, self.denoiser = encoders, denoiser
        self.schedule, self.decoder, self.defaults, self.name = schedule, decoder, defaults, name

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Text of (R, T, C) tokens and (R, P) pooled vectors, in the denoiser's dtype."""
        return self.encoders(prompts).to(self.dtype)

    def check(self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int) -> None:
        """Raise PatchError for what would stop a run: an unknown word, a seed that is none, less than one step."""
        self.schedule.sigmas(steps)
        _require_seeds(seeds)
        for prompt in dict.fromkeys(prompts):
            self.encode([prompt])

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Starting latents (B, C, H, W): one CPU generator per seed, so that neither batch nor device matters."""
        _require_seeds(seeds)
        shape = (self.denoiser.config.in_channels, self.defaults.height, self.defaults.width)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device, self.dtype)

    @torch.no_grad()
    def denoise(
        self, x: Tensor, text: TextCondition, *, steps: int, guidance: float, slots=None, on_step=None
    ) -> Tensor:
        """Run the loop from latents x (B, C, H, W) to clean ones.

        text holds B rows, or 2 B when guidance is not 1: the unconditional rows first.
        velocity = u + guidance (c - u).   slots(step) gives the denoiser's slots of a step;
        on_step(step, latents entering it) is called before each step, and once more after the last.
        """
        sigmas = self.schedule.sigmas(steps).to(x.device)
        for i in range(steps):
            if on_step:
                on_step(i, x)
            rows = x if guidance == 1 else torch.cat([x, x])
            t = self.schedule.timestep(sigmas[i])
            output = self.denoiser(rows, t, text, slots=slots(i) if slots else None)
            if guidance != 1:
                unconditional, conditional = output.chunk(2)
                output = unconditional + guidance * (conditional - unconditional)
            x = self.schedule.step(x, output, sigmas[i], sigmas[i + 1])
        if on_step:
            on_step(steps, x)
        return x

    def decode(self, latents: Tensor) -> list[Image.Image]:
        return self.decoder(latents)

    def generate(self, prompts, *, seeds, steps=None, guidance=None, negative=None) -> list[Image.Image]:
        """Plain generation: one picture per (prompt, seed) pair.

        prompts: a string or a sequence; seeds: an int for all, or one per prompt; the rest is the model's
        default when None.  Raises PatchError if the numbers of prompts and seeds differ.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(prompts) or not prompts:
            raise PatchError(
                f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed, or one per prompt"
            )
        steps = self.defaults.steps if steps is None else steps
        guidance = self.defaults.guidance if guidance is None else guidance
        if negative and guidance == 1:
            raise PatchError(f"negative prompt {negative!r} has no effect at guidance 1; leave one of them out")
        rows = prompts if guidance == 1 else [negative or ""] * len(prompts) + prompts
        latents = self.denoise(self.noise(seeds), self.encode(rows), steps=steps, guidance=guidance)
        return self.decode(latents)
