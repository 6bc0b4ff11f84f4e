"""Recorded runs of the authors, and textpatch asked to do the same with their rows, plan, noise and text."""

import json
from contextlib import ExitStack
from functools import cache as remembered
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from textpatch import Plan, Row, Swap, capture, inject, patch
from textpatch.reference_models import deepfloyd_if, mmdit, sdxl
from textpatch.reference_models.layers import TextCondition, timestep_sinusoids
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler, MeanFactors
from textpatch.weights.configs import denoiser_from_config

FOLDER = Path(__file__).parents[1] / "golden"
SCHEDULES = {"sdxl": Euler, "if": DDPM, "sd3": FlowMatchEuler}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class RecordedDDPM(DDPM):
    """A DDPM with the factors of the authors' machine.

    Square roots in float32 differ in the last bit from CPU to CPU.
    """

    def factors(self, step: int, steps: int) -> MeanFactors:
        names = "sqrt_alpha_prod", "sqrt_beta_prod", "coef_x0", "coef_xt"
        return MeanFactors(*(RECORDINGS["if"].inputs[name][step] for name in names))


class Recording:
    """Recorded runs of one family.

    A row's seed is the number of its prompt.  `site` is the one whose cache is recorded.
    """

    def __init__(self, family: str):
        self.family = family
        folder = FOLDER / family
        self.meta = json.loads((folder / "runs.json").read_text())
        self.runs = {run["name"]: run for run in self.meta["runs"]}
        self.inputs = load_file(folder / "inputs.safetensors")
        self.recorded = load_file(folder / "runs_float64.safetensors")
        self.steps, self.tokens, self.prompts = (
            self.meta[k] for k in ("steps", "tokens", "prompts")
        )
        self.site = next(
            run["layers"][0] for name, run in self.runs.items() if name.startswith("nocfg_patch")
        )

    def texts(self, labels) -> TextCondition:
        """Embedding that was recorded for a prompt, by a label such as `B1`, `negA0` or `zeros0`.

        Its pooled vector is None for IF.
        """
        pooled = (
            None if self.family == "if" else torch.stack([self._text(x, "pooled") for x in labels])
        )
        return TextCondition(torch.stack([self._text(x, "tokens") for x in labels]), pooled)

    def _text(self, label: str, part: str) -> torch.Tensor:
        kind = label[:-1]
        number = int(label[-1])
        prompt, negative = {
            "tokens": ("prompt_embeds", "negative"),
            "pooled": ("pooled", "negative_pooled"),
        }[part]
        if kind == "zeros":
            return torch.zeros_like(self.inputs[f"{negative}.empty"][number])
        return self.inputs[f"{prompt if kind in 'AB' else negative}.{kind}"][number]

    @remembered  # noqa: B019  recordings live as long as the tests
    def pipeline(self, dtype) -> Pipeline:
        """The recorded model, schedule and noise."""
        folder = FOLDER / self.family
        make, config = denoiser_from_config(json.loads((folder / "config.json").read_text()))
        model = make(config).to(dtype).requires_grad_(False).eval()
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        sizes = self.meta.get("time_ids")
        micro = sizes and (*sizes["original_size"], *sizes["crops"], *sizes["target_size"])
        defaults = Defaults(
            *self.meta["latent_shape"][-2:], self.steps, self.meta["guidance_scale"], micro=micro
        )
        schedule = RecordedDDPM() if self.family == "if" else SCHEDULES[self.family]()
        made = Pipeline(self.texts, model, schedule, list, defaults, self.family)
        noises = [self.inputs["init_noise"], *self.inputs.get("step_noise", [])]

        def recorded_noises(seeds):
            return iter([noise[list(seeds)].to(dtype) for noise in noises])

        made.noises = recorded_noises
        return made

    def batch(self, name: str, who: str) -> list[Row]:
        """The batch rows of source or donor of a run, in the recorded order."""
        run = self.runs[name]
        negative = run["negative" if who == "source" else "donor_negative"]
        prompts = range(self.prompts)
        twins = (
            []
            if negative is None
            else [Row(f"{who}{p}", f"{negative}{p}", p, "uncond") for p in prompts]
        )
        return twins + [Row(f"{who}{p}", f"{run[who]}{p}", p) for p in prompts]

    def plan(self, name: str, source="source", donor="donor") -> Plan:
        run = self.runs[name]
        late = range(self.runs[name].get("start", 0), self.steps)
        heads = run.get("heads") or {}
        return Plan(
            Swap(site, f"{source}{p}", f"{donor}{p}", steps=late, heads=heads.get(str(site)))
            for site in run["layers"]
            for p in range(self.prompts)
        )

    def latents(self, dtype, rows, slots=None) -> torch.Tensor:
        """Latents after each step, (N, conditional rows, C, H, W)."""
        pipeline = self.pipeline(dtype)
        seen = []
        conditional = [row for row in rows if row.branch == "cond"]
        guidance = 1 if len(conditional) == len(rows) else pipeline.defaults.guidance
        noises = pipeline.noises([row.seed for row in conditional])
        text = pipeline.encode([r.prompt for r in rows])
        options = {"steps": self.steps, "guidance": guidance, "slots": slots, "noises": noises}
        with self.recorded_sinusoids():
            pipeline.denoise(next(noises), text, on_step=lambda step, x: seen.append(x), **options)
        return torch.stack(seen[1:])

    def sinusoids(self, t: torch.Tensor, width: int) -> torch.Tensor:
        """Sinusoids of the authors' machine for recorded timesteps.

        Cosines in float32 differ in the last bits from CPU to CPU.
        """
        made = timestep_sinusoids(t, width)
        known = dict(zip(self.inputs["timesteps"].tolist(), self.inputs["t_emb"], strict=True))
        if width == self.inputs["t_emb"].shape[-1]:
            for row, time in zip(made, t.tolist(), strict=True):
                row.copy_(known.get(time, row))
        return made

    def recorded_sinusoids(self) -> ExitStack:
        """The block in which the models read them."""
        stack = ExitStack()
        for model in (sdxl, deepfloyd_if, mmdit):
            stack.enter_context(mock.patch.object(model, "timestep_sinusoids", self.sinusoids))
        return stack

    def donor_cache(self, dtype, name: str, sites):
        rows = self.batch(name, "donor")
        with capture(self.pipeline(dtype).denoiser, sites, rows=rows) as kept:
            self.latents(dtype, rows)
        return kept


RECORDINGS = {family: Recording(family) for family in SCHEDULES}


def distance(made, recorded) -> float:
    return float((made.double() - recorded).abs().max() / recorded.abs().max())


def agrees(made, family: str, name: str, dtype) -> bool:
    return distance(made, RECORDINGS[family].recorded[f"{name}.latents"]) <= TOLERANCE[dtype]


def in_one_batch(family: str, name: str, dtype) -> None:
    """Law of the run with source and donor rows in lock-step and the plan as slots."""
    recording = RECORDINGS[family]
    who = ["source", "donor"] if recording.runs[name]["layers"] else ["source"]
    parts = [recording.batch(name, w) for w in who]
    rows = [
        row
        for branch in ("uncond", "cond")
        for part in parts
        for row in part
        if row.branch == branch
    ]
    plan = recording.plan(name)
    sites = recording.pipeline(dtype).denoiser.sites
    made = recording.latents(
        dtype, rows, lambda step: plan.slots(step, rows, sites, tokens=recording.tokens)
    )
    assert agrees(made[:, : recording.prompts], family, name, dtype)


def by_capture(family: str, name: str, dtype) -> None:
    """Law of the donor's run captured, and the source's run patched from the start step on."""
    recording = RECORDINGS[family]
    sites = recording.runs[name]["layers"]
    steps = range(recording.runs[name]["start"], recording.steps)
    kept = recording.donor_cache(dtype, name, sites)
    with patch(
        recording.pipeline(dtype).denoiser,
        kept,
        sites,
        rows=recording.batch(name, "donor"),
        steps=steps,
    ):
        made = recording.latents(dtype, recording.batch(name, "source"))
    assert agrees(made, family, name, dtype)


def by_injection(family: str, name: str, dtype) -> None:
    """Law of text fed to the projections of the sites, without a cache.

    It is refused where the text stream evolves.
    """
    recording = RECORDINGS[family]
    pipeline = recording.pipeline(dtype)
    layers = recording.runs[name]["layers"]
    text = pipeline.encode([row.prompt for row in recording.batch(name, "donor")])
    if family == "sd3":
        with (
            pytest.raises(RuntimeError, match="injection is undefined"),
            inject(pipeline.denoiser, text, layers),
        ):
            pass
    else:
        with inject(pipeline.denoiser, text, layers):
            made = recording.latents(dtype, recording.batch(name, "source"))
        assert agrees(made, family, name, dtype)
