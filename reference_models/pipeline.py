"""A pipeline of encoders, denoiser, schedule and decoder, with the one denoising loop of the project.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.devices import device_of
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, Moment, State, as_guidance, branch_rows, told
from textpatch.memory import with_less
from textpatch.pipelines import OnStep, Slots
from textpatch.pipelines import TextCondition as EncodedText
from textpatch.plan import Row
from textpatch.reference_models.defaults import Defaults, is_whole
from textpatch.reference_models.layers import Denoiser, TextCondition
from textpatch.reference_models.predictions import OF_SCHEDULE, guided, parted
from textpatch.reference_models.requests import each_seed, listed, parts, read_by, sampled_by
from textpatch.reference_models.schedules import Schedule
from textpatch.reference_models.schedules.published import chosen
from textpatch.reference_models.shown import Pictures, html_of, lines_of
from textpatch.reference_models.upscaling import read_beside, require_one_each, small_tensor
from textpatch.seeds import HEARD, whole_seeds

if TYPE_CHECKING:
    from textpatch.reference_models.text_encoders import TextEncoders

# prompts given to the encoders at once to see whether they can be read
AT_ONCE = 16
# given to every draw, because torch's defaults would otherwise decide what noise a seed is
CPU_FLOAT32 = dict(dtype=torch.float32, device="cpu")


class Pipeline(nn.Module):
    """Encoders, denoiser, schedule and decoder, from a prompt to a picture.

    encoders  encoders(prompts) -> TextCondition
    denoiser  denoiser(x, t, text, slots=) -> Tensor
    schedule  a `schedules.Schedule`: the timesteps of a run and its steps
    decoder   decoder(latents) -> pictures
    defaults  settings used where nothing else is asked for
    name      which weights these are

    `notes` holds a line on what was loaded, and one for each thing that was dropped or decided.
    """

    def __init__(
        self,
        encoders: TextEncoders,
        denoiser: Denoiser,
        schedule: Schedule,
        decoder: Callable[[Tensor], list[Image.Image]],
        defaults: Defaults,
        name: str,
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.denoiser = denoiser
        self.schedule = schedule
        self.decoder = decoder
        if getattr(getattr(denoiser, "config", None), "guidance_embeds", False):
            defaults = replace(defaults, embeds_guidance=True)
        self.defaults = defaults
        self.name = name
        self.notes: tuple[str, ...] = ()
        self.schedule = schedule.for_image(self._image_tokens())

    def __repr__(self) -> str:
        return "\n".join(lines_of(self))

    def _repr_html_(self) -> str:
        return html_of(self)

    @property
    def device(self) -> torch.device:
        return device_of(self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    def with_schedule(self, schedule: Schedule | str) -> Pipeline:
        """A pipeline of the same weights that is sampled by another schedule.

        schedule  an object of `textpatch.reference_models.schedules`, or a name of its `published.NAMES`,
                  which takes the settings that this pipeline's own schedule has, too.  The name of the
                  new pipeline tells it

        Raises PatchError for an unknown name, for settings that the named schedule cannot have, and for a
        diffusion in place of a flow or a flow in place of a diffusion.
        """
        schedule = chosen(schedule, self.schedule)
        other = self._copy()
        other.schedule = schedule.for_image(self._image_tokens())
        other.name = sampled_by(self.name, schedule)
        return other

    def _image_tokens(self) -> int:
        """Number of image tokens of a denoiser that reads patches, or of latents where it does not."""
        patch = getattr(getattr(self.denoiser, "config", None), "patch_size", 1)
        return (self.defaults.height // patch) * (self.defaults.width // patch)

    def at(self, height: int, width: int) -> Pipeline:
        """A pipeline of the same weights for latents of another size.

        The sizes that SDXL is told grow along.  `text_box` is None, because where letters stand is unknown.
        A denoiser refuses sizes that it cannot take when it runs (MMDiT: sides that are no whole patches, or
        more patches than its position table holds).  Raises PatchError for a size of no pixels.
        """
        if not is_whole(height) or not is_whole(width) or min(height, width) < 1:
            raise PatchError(
                f"latents of {height}x{width} asked for; give a height and a width of 1 or more"
            )
        now = self.defaults
        micro = now.micro
        if micro is not None:
            growth = (height / now.height, width / now.width) * 3
            micro = tuple(round(side * by) for side, by in zip(micro, growth, strict=True))
        other = self._copy()
        other.defaults = replace(now, height=height, width=width, micro=micro, text_box=None)
        other.schedule = self.schedule.for_image(other._image_tokens())
        return other

    def with_clip_skip(self, layers: int) -> Pipeline:
        """A pipeline of the same weights whose CLIPs are read some layers before their end.

        `text_encoders.TextEncoders.skipping` says how layers are counted.  The name tells them.
        Raises PatchError for encoders that are not read so, and for more layers than there are.
        """
        return self._read_by(self.encoders.skipping(layers))

    def with_long_prompts(self, windows: int) -> Pipeline:
        """A pipeline that reads prompts in several windows, as `TextEncoders.in_windows` says."""
        return self._read_by(self.encoders.in_windows(windows))

    def _read_by(self, encoders) -> Pipeline:
        other = self._copy()
        other.encoders = encoders
        other.name = read_by(self.name, encoders)
        return other

    def _copy(self) -> Pipeline:
        """A copy with a dict of modules of its own, so that one replaced in it stays in this pipeline."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        return other

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | None]) -> TextCondition:
        """Text condition of tokens (R, T, C) and pooled vectors (R, P), in the denoiser's dtype.

        A prompt of None is "no prompt".  Encoders that give no pooled vector leave the pooling to a denoiser
        that pools (DeepFloyd IF); Stable Diffusion 1 and 2 have none.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise PatchError(f"prompts to encode are {prompts!r}; give one or more in a list")
        self.defaults.require_drawn(prompts, self.name)
        text = self.encoders(prompts).to(self.device, self.dtype)
        if text.pooled is None and hasattr(self.denoiser, "pool"):
            text = replace(text, pooled=self.denoiser.pool(text.tokens))
        if self.defaults.micro is not None:
            micro = torch.tensor(self.defaults.micro, device=self.device, dtype=torch.float32)
            text = replace(text, micro=micro.expand(len(prompts), -1))
        return text

    def check(self, prompts: Sequence[str], *, seeds: Sequence[int], steps: int) -> None:
        """Raise PatchError for unknown and undrawn words, a seed that is none, and less than one step."""
        self.schedule.timesteps(steps)
        whole_seeds(seeds)
        distinct = list(dict.fromkeys(prompts))
        self.defaults.require_drawn(distinct, self.name)
        read = getattr(self.encoders, "check", self.encode)  # other people's may have no check
        for start in range(0, len(distinct), AT_ONCE):
            read(distinct[start : start + AT_ONCE])

    def noises(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Endless standard normal draws (B, C, H, W).

        The first is the starting noise, and each step that asks for noise takes one more.  Every seed has a
        CPU generator of its own, so that neither the batch nor the device matters.  C is `latent_channels`.
        Raises PatchError as `textpatch.seeds.whole_seeds` does, before the first draw.
        """
        return self._draws(whole_seeds(seeds))

    def _draws(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        # the generator would take more bits, and hear 32 of them
        generators = [torch.Generator().manual_seed(seed % HEARD) for seed in seeds]
        shape = self.latent_channels, self.defaults.height, self.defaults.width
        while True:
            rows = [
                torch.randn(shape, generator=generator, **CPU_FLOAT32) for generator in generators
            ]
            yield torch.stack(rows).to(self.device, self.dtype)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, without those of the small picture that a stage II reads beside."""
        return getattr(self.denoiser.config, "latent_channels", self.denoiser.config.in_channels)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Starting noise (B, C, H, W), the first draw of `noises`."""
        return next(self.noises(seeds))

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        text: EncodedText,
        *,
        steps: int,
        guidance: float | Guidance,
        slots: Slots | None = None,
        on_step: OnStep | None = None,
        noises: Iterator[Tensor] | None = None,
        **beside: Tensor,
    ) -> Tensor:
        """Run the loop from starting noise x (B, C, H, W) to clean latents.

        text     B rows for each branch of the guidance, branch by branch: the unconditional rows come
                 first under classifier-free guidance, and without guidance there are B rows alone
        slots    slots(step) gives the denoiser's slots of a step
        on_step  on_step(step, latents entering it) is called before each step, and once more after the last
        noises   what a stochastic schedule adds, `noises(seeds)` after its first draw
        beside   further arguments of the denoiser, one row per row of x
        """
        guidance = as_guidance(self.defaults.meant(guidance))
        x = self.enter(x, steps)
        x, _ = self.advance(
            x,
            text,
            self.begin(x, guidance),
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
        """Latents entering step 0 of a run, from standard normal noise (B, C, H, W)."""
        return self.schedule.start(noise, steps)

    def begin(self, x: Tensor, guidance: Guidance) -> State:
        """Memory of rows x (B, C, H, W) before their first step, the guidance's and the schedule's."""
        own = {OF_SCHEDULE + name: value for name, value in self.schedule.begin(x).items()}
        return {**guidance.begin(x), **own}

    def model_input(self, x: Tensor, step: int, steps: int) -> Tensor:
        """Input of the denoiser, from the latents x (B, C, H, W) entering a step."""
        return self.schedule.model_input(x, step, steps)

    @torch.no_grad()
    def advance(
        self,
        x: Tensor,
        text: EncodedText,
        state: State,
        *,
        only: range,
        steps: int,
        guidance: float | Guidance,
        slots: Slots | None = None,
        on_step: OnStep | None = None,
        noises: Iterator[Tensor] | None = None,
        **beside: Tensor,
    ) -> tuple[Tensor, State]:
        """Run some consecutive steps of the loop.

        x      latents (B, C, H, W) entering the first of these steps
        state  memory of these rows, `begin(x, guidance)` or the state after the steps before
        only   the steps
        The other arguments are those of `denoise`.  on_step is not called after the last step.

        Returns the latents after the last of these steps, and the state then.
        """
        guidance = as_guidance(self.defaults.meant(guidance))
        self._require_told(guidance)
        state, memory = parted(state)
        times = self.schedule.timesteps(steps).to(x.device)
        for i in only:
            if on_step:
                on_step(i, x)
            inputs = self.model_input(x, i, steps)
            now = slots(i) if slots else None
            predictions = self._predict(inputs, times[i], text, guidance, now, beside)
            at = Moment(i, self.schedule.noise_units(i, steps))
            output, state = guided(predictions, guidance, at, state, channels=x.shape[1])
            if not self.schedule.reads_variance:
                output = output[:, : x.shape[1]]
            noise = None
            if noises and self.schedule.adds_noise(i, steps):
                noise = next(noises)
            x, memory = self.schedule.advance(x, output, i, steps, noise, memory)
        return x, state | {OF_SCHEDULE + name: value for name, value in memory.items()}

    def _predict(
        self, x, t, text, guidance: Guidance, slots, beside: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Predictions (B, C', H, W) by branch, all from one call of the denoiser."""
        branches = guidance.branches
        repeated = {name: torch.cat([value] * len(branches)) for name, value in beside.items()}
        whole = torch.cat([x] * len(branches))
        output = self.denoiser(whole, t, text, slots=slots, **repeated, **told(guidance))
        return dict(zip(branches, output.chunk(len(branches)), strict=True))

    def _require_told(self, guidance: Guidance) -> None:
        if told(guidance) and not self.defaults.embeds_guidance:
            raise PatchError(
                f"{guidance!r} was asked of {self.name}, which reads no guidance as a number; "
                "give a number, which is classifier-free guidance here"
            )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, H, W).   Raises PatchError for NaN and infinity."""
        return self.decoder(latents)

    @property
    def upscales(self) -> bool:
        """True for a stage II, which draws small pictures larger."""
        return getattr(self.denoiser.config, "class_embed_type", None) is not None

    def forward(self, prompts: str | Sequence[str], **asked: object) -> list[Image.Image]:
        """Generate pictures, with the arguments of `generate`."""
        return self.generate(prompts, **asked)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] | Tensor = 0,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        negative: str | None = None,
        micro_batch: int = 64,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Generate one picture per (prompt, seed) pair.

        prompts      a string or a sequence
        seeds        an int for all, or one per prompt
        steps        denoising steps; the model's default when None
        guidance     a scale or a `Guidance`; the model's default when None
        negative     one text for all; None is "no prompt", which SDXL reads as zeros and the others as ""
        micro_batch  the most pictures made at once, or half as many where the memory does not hold them
        on_step      called as `denoise` says, for each of these batches

        A guidance that names rows finds the prompts as rows "0", "1" and so on.
        Raises PatchError if the numbers of prompts and seeds differ, and for a stage II.
        """
        prompts = listed(prompts)
        seeds = each_seed(seeds, len(prompts))
        if len(seeds) != len(prompts) or not prompts:
            raise PatchError(
                f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed, or one per prompt"
            )
        if self.upscales:
            raise PatchError(
                f"{self.name} draws small pictures larger; "
                "give it some: upscale(pictures, prompts, ...)"
            )
        rows, steps, guidance = self._asked(prompts, steps, guidance, negative)

        def drawn(at_once: int) -> list[Image.Image]:
            pictures = Pictures()
            for part in parts(len(prompts), at_once):
                noises = self.noises(seeds[part])
                latents = self._run(next(noises), noises, rows[part], steps, guidance, on_step)
                pictures += self.decode(latents)
            return pictures

        return with_less(drawn, micro_batch, of=len(prompts))

    if TYPE_CHECKING:
        __call__ = generate

    def upscale(
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        seeds: int | Sequence[int],
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        negative: str | None = None,
        level: int | None = None,
        micro_batch: int = 64,
    ) -> list[Image.Image]:
        """Draw the pictures again at this stage II's size, as `enlarge` does.

        One picture and its prompt may come without a list, and one seed for all.  micro_batch is the most
        pictures made at once, and the other arguments are those of `enlarge`.

        Raises PatchError as `enlarge` does, and for pictures of several sizes.
        """
        pictures = listed(pictures)
        prompts = listed(prompts)
        seeds = each_seed(seeds, len(pictures))
        require_one_each(pictures, prompts, seeds)
        small = small_tensor(pictures)
        rows, steps, guidance = self._asked(prompts, steps, guidance, negative)
        large = Pictures()
        for part in parts(len(small), micro_batch):
            latents = self._enlarged(small[part], rows[part], seeds[part], steps, guidance, level)
            large += self.decode(latents)
        return large

    @torch.no_grad()
    def enlarge(
        self,
        small: Tensor,
        prompts: Sequence[str],
        *,
        seeds: int | Sequence[int],
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        negative: str | None = None,
        level: int | None = None,
    ) -> Tensor:
        """Draw small pictures again at the pipeline's size, (B, 3, H, W), as stage II of DeepFloyd IF does.

        small  (B, 3, h, w) in -1..1, one picture per prompt
        level  timestep 0..999 that the enlarged small pictures are noised to; the model's default when None
        The other arguments are those of `generate`.

        The result depends on picture, prompt and seed alone.  The second draw of each seed noises the small
        picture, which the denoiser reads beside its own.
        Raises PatchError if this is no stage II, and if the numbers of pictures, prompts and seeds differ.
        """
        seeds = each_seed(seeds, len(small))
        require_one_each(small, prompts, seeds)
        rows, steps, guidance = self._asked(prompts, steps, guidance, negative)
        return self._enlarged(small, rows, seeds, steps, guidance, level)

    @torch.no_grad()
    def _enlarged(
        self, small: Tensor, rows: list[Row], seeds: list[int], steps, guidance, level: int | None
    ) -> Tensor:
        """`enlarge` of rows that were checked."""
        if not self.upscales:
            raise PatchError(
                f"{self.name} draws pictures from noise alone; "
                "a stage II is needed to draw them larger"
            )
        if level is None:
            level = self.defaults.level
        noises = self.noises(seeds)
        x = next(noises)
        beside = read_beside(self.schedule, small.to(x), next(noises), level)
        return self._run(x, noises, rows, steps, guidance, **beside)

    def _asked(self, prompts, steps, guidance, negative) -> tuple[list[Row], int, Guidance]:
        """Rows, steps and guidance of a request, with the model's defaults in place of None."""
        steps, guidance = self.defaults.run(steps, guidance)
        guidance = as_guidance(guidance, negative)
        rows = [Row(str(place), prompt) for place, prompt in enumerate(prompts)]
        guidance.check(rows, steps)
        return rows, steps, guidance

    def _run(
        self,
        x: Tensor,
        noises,
        rows: list[Row],
        steps: int,
        guidance: Guidance,
        on_step=None,
        **beside,
    ) -> Tensor:
        """Denoise x for the prompts of rows."""
        text = self.encode([row.prompt for row in branch_rows(rows, guidance)])
        run = dict(steps=steps, guidance=guidance, noises=noises, on_step=on_step)
        return self.denoise(x, text, **run, **beside)
