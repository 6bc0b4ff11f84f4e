"""Recorded inversions and edits of real pictures, by published code, and textpatch asked to do the same."""

import json
from contextlib import ExitStack
from itertools import repeat
from unittest import mock

import torch
from safetensors.torch import load_file

from support.recorded_runs import FOLDER, RECORDINGS, distance
from textpatch.editing.inversion import inverted
from textpatch.editing.inverting import FlowEdit, InversionMethod
from textpatch.editing.solved import Moving, Solved
from textpatch.guidance import ClassifierFree
from textpatch.plan import Plan, Row, Swap
from textpatch.reference_models import deepfloyd_if, mmdit, sdxl
from textpatch.reference_models.layers import timestep_sinusoids
from textpatch.reference_models.pipeline import Pipeline
from textpatch.reference_models.schedules import (
    DDIM,
    DeterministicDDPM,
    Euler,
    FlowMatchEuler,
)
from textpatch.reference_models.schedules.diffusion import trained_abars
from textpatch.sampling import sample_latents

INPUTS = load_file(FOLDER / "inversion" / "inputs.safetensors")
RUNS = load_file(FOLDER / "inversion" / "runs.safetensors")
SAID = json.loads((FOLDER / "inversion" / "runs.json").read_text())
STEPS = 8
TOLERANCE = 1e-10
FAMILIES = {"ddim_sdxl": "sdxl", "official_sdxl": "sdxl", "ddim_if": "if", "flow_sd3": "sd3"}


class TableInDouble:
    """Part of a schedule in the recordings, whose table of abar was cast to float64 before the run."""

    def abars(self, steps: int) -> torch.Tensor:
        return super().abars(steps).double()

    def landings(self, steps: int) -> torch.Tensor:
        return super().landings(steps).double()


class RecordedDDIM(TableInDouble, DDIM):
    """Schedule of the recordings of SDXL."""


class RecordedEuler(TableInDouble, Euler):
    """Schedule of the pipeline of SDXL, in  x / sqrt(abar)."""

    def sigmas(self, steps: int) -> torch.Tensor:
        abars = self.abars(steps)
        return ((1 - abars) / abars).sqrt()


class RecordedIF(TableInDouble, DeterministicDDPM):
    """Schedule of the recordings of DeepFloyd IF."""


class RecordedIFToZero(RecordedIF):
    """The same, whose last step lands on the level of timestep 0."""

    def abars(self, steps: int) -> torch.Tensor:
        abars = super().abars(steps)
        return torch.cat([abars[:-1], trained_abars(self)[:1].double()])


class RecordedFlow(FlowMatchEuler):
    """Schedule of RF-Inversion's recordings, with noise levels of their own."""

    def sigmas(self, steps: int) -> torch.Tensor:
        return INPUTS["flow_sd3/rf_inversion.sigmas"]


def recorded(folder: str, run: str) -> torch.Tensor:
    """Latents after each step that was kept, (K, P, C, H, W)."""
    return RUNS[f"{folder}/{run}.latents"]


def source(folder: str) -> torch.Tensor:
    """Latents (P, C, H, W) that are inverted."""
    return INPUTS[f"{folder.replace('official', 'ddim')}/source"].double()


def pipeline_of(folder: str, schedule, noise=None) -> Pipeline:
    """The recorded model in float64 with a schedule.

    noise  (P, C, H, W) that every draw of a run is, the picture when None
    """
    family = FAMILIES[folder]
    base = RECORDINGS[family].pipeline(torch.float64)
    made = Pipeline(base.encoders, base.denoiser, schedule, list, base.defaults, family)
    drawn = source(folder) if noise is None else noise.double()
    made.noises = lambda seeds: repeat(drawn[list(seeds)])
    return made


def sinusoids(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids of the recording machine, whose last bits differ from CPU to CPU."""
    made = timestep_sinusoids(t, width)
    if width == 256:
        known = dict(zip(INPUTS["flow_sd3/times"].tolist(), INPUTS["flow_sd3/t_emb"], strict=True))
        for row, time in zip(made, t.tolist(), strict=True):
            row.copy_(known[time])
    return made


def on_their_machine() -> ExitStack:
    """Block in which the models read its sinusoids."""
    stack = ExitStack()
    for model in (sdxl, deepfloyd_if, mmdit):
        stack.enter_context(mock.patch.object(model, "timestep_sinusoids", sinusoids))
    return stack


def inverts(folder: str, run: str, schedule, method: InversionMethod, **options) -> float:
    """Distance from the steps that were kept of a recorded inversion of prompts A."""
    pipeline = pipeline_of(folder, schedule, **options)
    expected = recorded(folder, run)
    pictures = expected.shape[1]
    prompts = [f"A{p}" for p in range(pictures)]
    with on_their_machine():
        path, _ = inverted(pipeline, source(folder)[:pictures], prompts, method, STEPS)
    return distance(path[:-1].flip(0)[-len(expected) :], expected)


def samples(
    folder: str,
    run: str,
    schedule,
    method: InversionMethod,
    *,
    begun: str,
    prompt: str = "A",
    guidance: float = 1.0,
    sites: tuple[int, ...] = (),
    first: int = 0,
) -> float:
    """Distance from the last latents of a run that begins where a recorded inversion ended.

    sites  at which rows of prompts B give the others their text, from the step `first` on
    """
    start = recorded(folder, begun)[-1]
    pictures = range(len(start))
    rows = [Row(f"row{p}", f"{prompt}{p}", p, latents=start[p]) for p in pictures]
    plan = Plan()
    if sites:
        rows += [Row(f"donor{p}", f"B{p}", p, latents=start[p]) for p in pictures]
        steps = range(first, STEPS)
        plan = Plan([Swap(sites, f"row{p}", f"donor{p}", steps=steps) for p in pictures])
    solved = Solved(pipeline_of(folder, schedule), method, source(folder)[:1])
    with on_their_machine():
        made = sample_latents(solved, rows, plan, steps=STEPS, guidance=guided(rows, guidance))
    last = torch.stack([made.latents[f"row{p}"] for p in pictures])
    return distance(last, recorded(folder, run)[-1])


def moves(run: str, method: FlowEdit, guidance: float) -> float:
    """Distance from the latents that are kept of a recorded run of FlowEdit from prompts A to B."""
    expected = recorded("flow_sd3", run)
    return distance(moved(run, method, guidance, "B")[-len(expected) :], expected)


def moved(run: str, method: FlowEdit, guidance: float, target: str) -> torch.Tensor:
    """Latents (K, P, C, H, W) after each step in which FlowEdit moves the recorded pictures.

    run  whose noises are taken.  They are zeros where none are recorded
    """
    made = []
    for p in range(2):
        pipeline = pipeline_of("flow_sd3", FlowMatchEuler())
        picture = source("flow_sd3")[p]
        first = method.first(STEPS)
        rows = [
            Row("source", f"A{p}", p, joins=first, latents=picture),
            Row("target", f"{target}{p}", p, joins=first, latents=picture),
        ]
        pipeline.noises = recorded_noises(run, p, first)
        with on_their_machine():
            ran = sample_latents(
                Moving(pipeline, method),
                rows,
                steps=STEPS,
                guidance=guided(rows, guidance),
                keep_trajectory=True,
            )
        made.append(torch.stack(ran.trajectory["target"][1:]))
    return torch.stack(made, 1)


def recorded_noises(run: str, picture: int, first: int):
    """Function `noises` of a pipeline whose draws are FlowEdit's of one picture, for all rows.

    first  step at which rows join.  A run skips one draw for every step before, and one for the start
    """
    shape = source("flow_sd3")[0]
    drawn = INPUTS.get(f"flow_sd3/{run}.noise", torch.zeros(STEPS, 2, *shape.shape))

    def noises(seeds):
        skipped = [shape] * (first + 1)
        return (x.double().expand(len(seeds), *x.shape) for x in [*skipped, *drawn[:, picture]])

    return noises


def guided(rows: list[Row], scale: float) -> float | ClassifierFree:
    """Guidance of a scale, in which every row has the recorded empty prompt of its own."""
    if scale == 1:
        return 1
    return ClassifierFree(scale, {row.name: f"empty{row.prompt[-1]}" for row in rows})
