"""Recorded runs of Safe Latent Diffusion by published code, and textpatch asked to do the same."""

import json
from contextlib import ExitStack
from unittest import mock

import torch
from safetensors.torch import load_file

from support.recorded_runs import FOLDER, RECORDINGS
from textpatch.guidance import SafeLatentDiffusion, Safety
from textpatch.plan import Row
from textpatch.reference_models import deepfloyd_if, mmdit, sdxl
from textpatch.reference_models.layers import TextCondition, timestep_sinusoids
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import DDPM, Euler, FlowMatchEuler, MeanFactors
from textpatch.sampling import sample_latents

RUNS = load_file(FOLDER / "sld" / "runs.safetensors")
INPUTS = load_file(FOLDER / "sld" / "inputs.safetensors")
SAID = json.loads((FOLDER / "sld" / "runs.json").read_text())
STEPWISE = [name for name in SAID if f"{name}.raw" in RUNS]  # runs with the denoiser's own outputs
TOLERANCE = 1e-10  # in float64, of the largest number
CONCEPT = "the concept"
STRENGTHS = (
    "sld_warmup_steps",
    "sld_guidance_scale",
    "sld_threshold",
    "sld_momentum_scale",
    "sld_mom_beta",
)


def guidance_of(name: str) -> SafeLatentDiffusion:
    """The guidance that a recorded run was made with."""
    said = SAID[name]
    safety = Safety(*(said["arguments"][argument] for argument in STRENGTHS))
    momentum = "carried" if said["momentum"] == "carried" else "reset"
    return SafeLatentDiffusion(said["guidance_scale"], CONCEPT, safety, momentum)


class RecordedInputs:
    """What the runs of a folder began with, by the names of the recording."""

    def __init__(self, folder: str):
        self.folder = folder

    def __getitem__(self, name: str) -> torch.Tensor:
        return INPUTS[f"{self.folder}/{name}"]

    def texts(self, prompts) -> TextCondition:
        """Embeddings of prompts "0" and "1", of the concept, and of no prompt."""
        tokens = torch.stack([self._text(prompt, "embeds") for prompt in prompts])
        if self.folder == "official_if":
            return TextCondition(tokens, None)
        return TextCondition(tokens, torch.stack([self._text(one, "pooled") for one in prompts]))

    def _text(self, prompt: str | None, part: str) -> torch.Tensor:
        if prompt is None:
            return self[f"negative_{part}"][0]
        if prompt == CONCEPT:
            concept = f"safety_{part}"
            return self[f"{concept}.near" if self.folder == "presets" else concept][0]
        own = "pooled" if part == "pooled" else "prompt_embeds"
        return self[own][int(prompt)]

    def of_run(self, name: str, steps: int) -> torch.Tensor:
        """A table of a run, whose name has its number of steps where runs differ in it."""
        return self[name if self.folder == "presets" else f"{name}.{steps}"]


class RecordedEuler(Euler):
    """Euler steps with the noise levels of the recording machine.

    Logarithms and roots in float32 differ in the last bit from CPU to CPU.
    """

    inputs: RecordedInputs

    def timesteps(self, steps: int) -> torch.Tensor:
        return self.inputs.of_run("timesteps", steps)

    def sigmas(self, steps: int) -> torch.Tensor:
        return self.inputs.of_run("sigmas", steps)

    def start(self, noise: torch.Tensor, steps: int) -> torch.Tensor:
        return noise * self.inputs.of_run("init_noise_sigma", steps)

    def _scale(self, step: int, steps: int) -> torch.Tensor:
        return self.inputs.of_run("input_scale", steps)[step]


class RecordedDDPM(DDPM):
    """A DDPM with the factors of the recording machine, for the same reason."""

    inputs: RecordedInputs

    def factors(self, step: int, steps: int) -> MeanFactors:
        names = "sqrt_alpha_prod", "sqrt_beta_prod", "coef_x0", "coef_xt"
        return MeanFactors(*(self.inputs.of_run(name, steps)[step] for name in names))


SCHEDULES = {"sdxl": RecordedEuler, "if": RecordedDDPM, "sd3": FlowMatchEuler}


def schedule_of(family: str, inputs: RecordedInputs):
    """The schedule of a family, which reads what was recorded."""
    made = SCHEDULES[family]()
    object.__setattr__(made, "inputs", inputs)  # schedules are frozen
    return made


def family_of(name: str) -> str:
    """Family of the recorded model of a run."""
    folder = name.partition("/")[0]
    return "sdxl" if folder == "presets" else folder.removeprefix("official_")


def pipeline_of(name: str) -> Pipeline:
    """The recorded model in float64, with the text and the noise of a run."""
    inputs = RecordedInputs(name.partition("/")[0])
    family = family_of(name)
    said = SAID[name]
    micro = None
    if family == "sdxl":
        micro = tuple(map(int, inputs["time_ids"][0]))
    noise = inputs["init_noise"].double()
    defaults = Defaults(*noise.shape[-2:], said["steps"], said["guidance_scale"], micro=micro)
    model = RECORDINGS[family].pipeline(torch.float64).denoiser
    made = Pipeline(inputs.texts, model, schedule_of(family, inputs), list, defaults, name)
    draws = [noise]
    if family == "if":
        draws += inputs.of_run("step_noise", said["steps"]).double()
    made.noises = lambda seeds: iter([draw[list(seeds)] for draw in draws])
    return made


def latents_of(name: str) -> torch.Tensor:
    """Latents (steps, prompts, C, H, W) after each step of a whole run of textpatch."""
    pipeline = pipeline_of(name)
    prompts = range(len(RUNS[f"{name}.latents"][0]))
    rows = [Row(str(prompt), str(prompt), prompt) for prompt in prompts]
    with recorded_sinusoids(name):
        made = sample_latents(pipeline, rows, guidance=guidance_of(name), keep_trajectory=True)
    return torch.stack([torch.stack(made.trajectory[row.name][1:]) for row in rows], dim=1)


def recorded_sinusoids(name: str) -> ExitStack:
    """The block in which the models read the sinusoids of the recording machine."""
    inputs = RecordedInputs(name.partition("/")[0])
    steps = SAID[name]["steps"]
    recorded = inputs.of_run("t_emb", steps)
    known = dict(zip(inputs.of_run("timesteps", steps).tolist(), recorded, strict=True))

    def sinusoids(t: torch.Tensor, width: int) -> torch.Tensor:
        made = timestep_sinusoids(t, width)
        if width == recorded.shape[-1]:
            for row, time in zip(made, t.tolist(), strict=True):
                row.copy_(known.get(time, row))
        return made

    stack = ExitStack()
    for model in (sdxl, deepfloyd_if, mmdit):
        stack.enter_context(mock.patch.object(model, "timestep_sinusoids", sinusoids))
    return stack
