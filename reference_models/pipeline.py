"""A pipeline: encoders + denoiser + schedule + decoder, and the one denoising loop of the project.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from textpatch.errors import PatchError
from textpatch.guidance import Guidance, Moment, State, as_guidance, branch_rows
from textpatch.plan import CONDITIONAL, Row
from textpatch.reference_models.layers import TextCondition

# What each of the defaults below must be.
WANTED = {
    "height": "a positive whole number",
    "width": "a positive whole number",
    "steps": "a positive whole number",
    "guidance": "a finite number",
    "text_box": "four whole numbers: left, top, right, bottom",
    "localized": "site indices, whole numbers",
    "micro": "six whole numbers",
    "level": "a finite number",
}


@dataclass(frozen=True)
class Defaults:
    """What a model is run with when nothing else is asked for.   Raises PatchError for what no run can be given."""

    height: int  # latent size
    width: int
    steps: int
    guidance: float
    text_box: tuple[int, int, int, int] | None = (
        None  # left, top, right, bottom of the lettering, if fixed
    )
    localized: tuple[int, ...] = ()  # sites measured to carry the word
    # SDXL's six: height and width of the original, top and left of the crop, height and width wanted
    micro: tuple[int, ...] | None = None
    level: int = 250  # timestep of the noise given to the small pictures of a stage II

    def __post_init__(self):
        fits = {
            name: _is_whole(value) and value > 0
            for name, value in vars(self).items()
            if name in ("height", "width", "steps")
        }
        fits |= {name: _is_finite(getattr(self, name)) for name in ("guidance", "level")}
        fits |= {
            "text_box": self.text_box is None or _are_whole(self.text_box, 4),
            "localized": _are_whole(self.localized),
            "micro": self.micro is None or _are_whole(self.micro, 6),
        }
        for name in (name for name, fit in fits.items() if not fit):
            found = f"{name} is {getattr(self, name)!r} among what a model is run with"
            raise PatchError(f"{found}; give {WANTED[name]}")

    def run(
        self, steps: int | None, guidance: float | Guidance | None
    ) -> tuple[int, float | Guidance]:
        """What was asked for, and in the place of None the model's own.

        Raises PatchError for steps that are no whole number, and for a guidance that `as_guidance` does not know.
        """
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        if not _is_whole(steps):
            raise PatchError(f"{steps!r} steps were asked for; give a whole number of them")
        as_guidance(guidance)
        return steps, guidance


SEEDS = (
    2**32
)  # torch's generator on the CPU takes a seed modulo this, so that others would repeat these
AT_ONCE = 16  # prompts that the encoders are given together to see if they can be read
CPU_FLOAT32 = dict(
    dtype=torch.float32, device="cpu"
)  # said, or torch's defaults would decide what noise a seed is


def pixels(latents: Tensor) -> list[Image.Image]:
    """The decoder of pixel-space models: (B, 3, H, W) in -1..1 to pictures.

    Raises PatchError for numbers that are none, which would be black pictures.
    """
    if not latents.isfinite().all():
        raise PatchError(
            f"{int((~latents.isfinite()).sum())} of {latents.numel()} numbers to make pictures of are not "
            f"finite, in {latents.dtype}; run in float32 or bfloat16, or with less guidance"
        )
    array = (
        (latents.float().clamp(-1, 1) * 127.5 + 127.5)
        .round()
        .byte()
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )
    return [Image.fromarray(picture) for picture in array]


class LatentPixels(nn.Module):
    """The decoder of latent-space models: (B, C, H, W) latents through a VAE to pictures."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> list[Image.Image]:
        # in the VAE's own dtype: SDXL's overflows in float16, whatever the denoiser runs in; and one picture at a
        # time: the rows of a localisation, which the denoiser takes at once, would not fit at 1024 pixels
        latents = latents.to(next(self.vae.parameters()).dtype)
        return [picture for one in latents.split(1) for picture in pixels(self.vae.decode(one))]


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_whole(values, count: int | None = None) -> bool:
    return (
        isinstance(values, (tuple, list))
        and all(map(_is_whole, values))
        and count in (None, len(values))
    )


def _is_finite(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _parts(count: int, at_once: int) -> Iterator[slice]:
    """So many at once; the bar is there for the command line's many."""
    if not _is_whole(at_once) or at_once < 1:
        raise PatchError(f"micro_batch is {at_once}; make at least one picture at once")
    starts = tqdm(
        range(0, count, at_once),
        desc="generate",
        unit="batch",
        disable=None if count > at_once else True,
        leave=False,
        dynamic_ncols=True,
    )
    return (slice(start, start + at_once) for start in starts)


def _each(seeds, count: int) -> list[int]:
    """A seed for each of so many: those of a list, or one for all."""
    if isinstance(seeds, Integral):
        return [seeds] * count
    if not isinstance(seeds, Iterable):
        raise PatchError(
            f"seeds is {seeds!r}; give a whole number for all, or a list with one for each"
        )
    return list(seeds)


def _require_one_each(pictures, prompts, seeds) -> None:
    if not 0 < len(pictures) == len(prompts) == len(seeds):
        raise PatchError(
            f"{len(pictures)} pictures, {len(prompts)} prompts, {len(seeds)} seeds; give one each"
        )


def _require_seeds(seeds: Sequence[int]) -> None:
    wrong = [seed for seed in seeds if not _is_whole(seed) or not 0 <= seed < SEEDS]
    if wrong:
        raise PatchError(
            f"seed {wrong[0]!r} does not fit the noise generator; give a whole number of 0 to {SEEDS - 1}"
        )


class Pipeline(nn.Module):
    """Everything between a prompt and a picture.

    encoders(prompts) -> TextCondition; denoiser(x, t, text, slots=) -> Tensor; schedule gives timesteps
    and steps; decoder(latents) -> pictures.  `name` says which weights these are.
    """

    def __init__(
        self, encoders, denoiser, schedule, decoder: Callable, defaults: Defaults, name: str
    ):
        super().__init__()
        self.encoders, self.denoiser = encoders, denoiser
        self.schedule, self.decoder, self.defaults, self.name = schedule, decoder, defaults, name

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    def at(self, height: int, width: int) -> Pipeline:
        """The same model, weights shared, for latents of another size; the sizes that SDXL is told grow along.

        Where letters stand is then unknown, so `text_box` is None.  Raises PatchError for a size of no pixels; the
        denoiser refuses what it cannot take when it runs (MMDiT: no whole patches, or more than its position table).
        """
        if not _is_whole(height) or not _is_whole(width) or min(height, width) < 1:
            raise PatchError(
                f"latents of {height}x{width} asked for; give a height and a width of 1 or more"
            )
        now, micro = self.defaults, self.defaults.micro
        if micro is not None:
            up, across = height / now.height, width / now.width
            micro = tuple(round(side * by) for side, by in zip(micro, (up, across) * 3))
        other = copy.copy(self)
        other._modules = dict(
            self._modules
        )  # of its own, or what is put in its place were put in this one's, too
        other.defaults = replace(now, height=height, width=width, micro=micro, text_box=None)
        return other

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | None]) -> TextCondition:
        """Text of (R, T, C) tokens and (R, P) pooled vectors, in the denoiser's dtype; None is "no prompt".

        Encoders that give no pooled vector leave the pooling to the denoiser (DeepFloyd IF).
        """
        if isinstance(prompts, str) or not len(prompts):
            raise PatchError(f"prompts to encode are {prompts!r}; give one or more in a list")
        text = self.encoders(prompts).to(self.device, self.dtype)
        if text.pooled is None:
            text = replace(text, pooled=self.denoiser.pool(text.tokens))
        if self.defaults.micro is not None:
            micro = torch.tensor(self.defaults.micro, device=self.device, dtype=torch.float32)
            text = replace(text, micro=micro.expand(len(prompts), -1))
        return text

    def check(self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int) -> None:
        """Raise PatchError for what would stop a run: an unknown word, a seed that is none, less than one step."""
        self.schedule.timesteps(steps)
        _require_seeds(seeds)
        distinct = list(dict.fromkeys(prompts))
        read = getattr(
            self.encoders, "check", self.encode
        )  # other people's encoders may have to encode to know
        for start in range(0, len(distinct), AT_ONCE):
            read(distinct[start : start + AT_ONCE])

    def noises(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Standard normal draws (B, C, H, W) without end: the starting one, then one per step that asks for noise.

        One CPU generator per seed, so that neither the batch nor the device matters.  C is the latents', which
        stage II's denoiser reads beside as many of the low-resolution picture.
        """
        _require_seeds(seeds)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        shape = self.latent_channels, self.defaults.height, self.defaults.width
        while True:
            rows = [
                torch.randn(shape, generator=generator, **CPU_FLOAT32) for generator in generators
            ]
            yield torch.stack(rows).to(self.device, self.dtype)

    @property
    def latent_channels(self) -> int:
        """Channels of what is denoised."""
        return getattr(self.denoiser.config, "latent_channels", self.denoiser.config.in_channels)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Starting noise (B, C, H, W): the first of `noises`."""
        _require_seeds(seeds)
        return next(self.noises(seeds))

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        text: TextCondition,
        *,
        steps: int,
        guidance: float | Guidance,
        slots=None,
        on_step=None,
        noises: Iterator[Tensor] | None = None,
        **beside: Tensor,
    ) -> Tensor:
        """Run the loop from starting noise x (B, C, H, W) to clean latents.

        text     rows of all branches of the guidance, branch by branch, B in each: for classifier-free guidance the
                 unconditional rows first, without guidance the B rows alone
        slots    slots(step) gives the denoiser's slots of a step
        on_step  on_step(step, latents entering it) is called before each step, and once more after the last
        noises   what a stochastic schedule adds, `noises(seeds)` after its first draw
        beside   further arguments of the denoiser, one row per row of x
        """
        guidance = as_guidance(guidance)
        x = self.enter(x, steps)
        x, _ = self.advance(
            x,
            text,
            guidance.begin(x),
            only=range(steps),
            steps=steps,
            guidance=guidance,
            slots=slots,
            on_step=on_step,
            noises=noises,
            **beside,
        )
        if on_step:
            on_step(steps, x)
        return x

    def enter(self, noise: Tensor, steps: int) -> Tensor:
        """Standard normal noise (B, C, H, W) to the latents entering step 0 of a run of so many steps."""
        return self.schedule.start(noise, steps)

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        """What the denoiser receives of the latents x (B, C, H, W) entering a step."""
        return self.schedule.model_input(x, step, steps)

    @torch.no_grad()
    def advance(
        self,
        x: Tensor,
        text: TextCondition,
        state: State,
        *,
        only: range,
        steps: int,
        guidance: float | Guidance,
        slots=None,
        on_step=None,
        noises: Iterator[Tensor] | None = None,
        **beside: Tensor,
    ) -> tuple[Tensor, State]:
        """Some consecutive steps of the loop, from the latents x (B, C, H, W) entering the first of them.

        state  what the guidance remembers of these rows: its `begin(x)`, or what the steps before gave
        only   the steps.  The rest is as for `denoise`, but that on_step is not called after the last
        Returns the latents after the last of them, and the guidance's state then.
        """
        guidance = as_guidance(guidance)
        times = self.schedule.timesteps(steps).to(x.device)
        for i in only:
            if on_step:
                on_step(i, x)
            inputs = self.model_input(x, i, steps)
            predictions = self._predict(
                inputs, times[i], text, guidance.branches, slots(i) if slots else None, beside
            )
            at = Moment(i, self.schedule.noise_units(i, steps))
            output, state = _guided(predictions, guidance, at, state, channels=x.shape[1])
            noise = next(noises) if noises and self.schedule.stochastic and i < steps - 1 else None
            x = self.schedule.step(x, output, i, steps, noise)
        return x, state

    def _predict(
        self, x, t, text, branches: tuple[str, ...], slots, beside: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Branch -> its prediction (B, C', H, W), all from one call."""
        repeated = {name: torch.cat([value] * len(branches)) for name, value in beside.items()}
        output = self.denoiser(torch.cat([x] * len(branches)), t, text, slots=slots, **repeated)
        return dict(zip(branches, output.chunk(len(branches))))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Latents (B, C, H, W) to pictures.   Raises PatchError for NaN and infinity."""
        return self.decoder(latents)

    @property
    def upscales(self) -> bool:
        """Whether this is a stage II, which draws small pictures larger."""
        return getattr(self.denoiser.config, "class_embed_type", None) is not None

    def generate(
        self, prompts, *, seeds, steps=None, guidance=None, negative=None, micro_batch: int = 64
    ) -> list[Image.Image]:
        """Plain generation: one picture per (prompt, seed) pair.

        prompts: a string or a sequence; seeds: an int for all, or one per prompt; the rest is the model's
        default when None.  negative is one text for all; None is "no prompt", which SDXL reads as zeros and the others
        as "".
        micro_batch bounds how many pictures are made at once.
        Raises PatchError if the numbers of prompts and seeds differ.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = _each(seeds, len(prompts))
        if len(seeds) != len(prompts) or not prompts:
            raise PatchError(
                f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed, or one per prompt"
            )
        if self.upscales:
            raise PatchError(
                f"{self.name} draws small pictures larger; give it some: upscale(pictures, prompts, ...)"
            )
        pictures = []
        for part in _parts(len(prompts), micro_batch):
            noises = self.noises(seeds[part])
            pictures += self.decode(
                self._run(next(noises), noises, prompts[part], steps, guidance, negative)
            )
        return pictures

    def upscale(
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        seeds: int | Sequence[int],
        steps=None,
        guidance=None,
        negative=None,
        level: int | None = None,
        micro_batch: int = 64,
    ) -> list[Image.Image]:
        """The pictures drawn again at this pipeline's size, which is a stage II's, so many at once; see `enlarge`.

        One picture and prompt may come without a list, and one seed for all.

        Raises PatchError as `enlarge` does, and for pictures of several sizes.
        """
        pictures, prompts = (
            [given] if isinstance(given, (Image.Image, str)) else list(given)
            for given in (pictures, prompts)
        )
        seeds = _each(seeds, len(pictures))
        _require_one_each(pictures, prompts, seeds)
        if len(sizes := {picture.size for picture in pictures}) > 1:
            raise PatchError(f"pictures of sizes {sorted(sizes)}; give those of one size together")
        arrays = [np.asarray(picture.convert("RGB"), np.float32) for picture in pictures]
        small = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, h, w)
        options, drawn = dict(steps=steps, guidance=guidance, negative=negative, level=level), []
        for part in _parts(len(small), micro_batch):
            drawn += self.decode(
                self.enlarge(small[part], prompts[part], seeds=seeds[part], **options)
            )
        return drawn

    @torch.no_grad()
    def enlarge(
        self,
        small: Tensor,
        prompts: Sequence[str],
        *,
        seeds: int | Sequence[int],
        steps=None,
        guidance=None,
        negative=None,
        level: int | None = None,
    ) -> Tensor:
        """Stage II of DeepFloyd IF: small (B, 3, h, w) in -1..1 drawn again at the pipeline's size, (B, 3, H, W).

        A function of picture, prompt and seed; the denoiser reads beside its own picture the enlarged small one,
        noised up to timestep `level` (0..999, the model's default when None) with the second draw of each seed.
        Raises PatchError if this is no stage II, and if the numbers of pictures, prompts and seeds differ.
        """
        if not self.upscales:
            raise PatchError(
                f"{self.name} draws pictures from noise alone; a stage II is needed to draw them larger"
            )
        seeds = _each(seeds, len(small))
        _require_one_each(small, prompts, seeds)
        noises = self.noises(seeds)
        x, level = next(noises), self.defaults.level if level is None else level
        beside = read_beside(self.schedule, small.to(x), next(noises), level)
        return self._run(x, noises, list(prompts), steps, guidance, negative, **beside)

    def _run(
        self, x, noises, prompts: list[str], steps, guidance, negative, **beside: Tensor
    ) -> Tensor:
        """`denoise` with what the model is run with when nothing else is asked for."""
        steps, guidance = self.defaults.run(steps, guidance)
        guidance = as_guidance(guidance, negative)
        rows = [Row(str(i), prompt) for i, prompt in enumerate(prompts)]
        guidance.check(rows)
        text = self.encode([row.prompt for row in branch_rows(rows, guidance)])
        return self.denoise(x, text, steps=steps, guidance=guidance, noises=noises, **beside)


def _guided(
    predictions: dict[str, Tensor], guidance: Guidance, at: Moment, state: State, channels: int
) -> tuple[Tensor, State]:
    """The branches' predictions as one, and the guidance's state.

    Only the first `channels` are guided.  What follows, a learned variance, is the conditional branch's.
    """
    heads = {branch: prediction[:, :channels] for branch, prediction in predictions.items()}
    guided, state = guidance.combine(heads, at, state)
    variance = predictions[CONDITIONAL][:, channels:]
    return torch.cat([guided, variance], dim=1) if variance.shape[1] else guided, state


def read_beside(schedule, small: Tensor, noise: Tensor, level: int) -> dict[str, Tensor]:
    """What stage II of DeepFloyd IF reads beside its own picture: the small ones, enlarged and noised, and how noisy.

    small (B, 3, h, w) in -1..1 is brought to the size of noise (B, 3, H, W) and to timestep `level`, 0..999.
    Raises PatchError for another level.
    """
    low = F.interpolate(small, noise.shape[-2:], mode="bilinear", align_corners=True)
    levels = torch.full((len(low),), level, device=low.device)
    return {"low": schedule.add_noise(low, noise, level), "level": levels}
