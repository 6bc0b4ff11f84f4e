"""Recorded runs of Prompt-to-Prompt by published code, and textpatch asked to do the same."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from safetensors.torch import load_file

from support.recorded_runs import RECORDINGS
from textpatch.bank import encode
from textpatch.editing.edited_run import EditedRun
from textpatch.editing.local_blend import LocalBlend
from textpatch.editing.mappers import identity_mapper
from textpatch.editing.pair_edit import PairEdit
from textpatch.editing.prompt_to_prompt import PromptToPrompt
from textpatch.editing.replacing import text_steps
from textpatch.guidance import ClassifierFree, branch_rows
from textpatch.plan import Row
from textpatch.prompts.pairs import Pair
from textpatch.reference_models import sdxl
from textpatch.reference_models.layers import TextCondition, timestep_sinusoids
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import Euler

FOLDER = Path(__file__).parents[1] / "golden" / "p2p"
ALIGNERS = json.loads((FOLDER / "aligners.json").read_text())
SAID = json.loads((FOLDER / "runs.json").read_text())
RUNS = SAID["runs"]
INPUTS = load_file(FOLDER / "inputs.safetensors")
RECORDED = load_file(FOLDER / "runs.safetensors")
TOKENS = 77
BEGIN = 49406
END = 49407
EDITS = {"replace": "swap", "refine": "refine", "reweight": "reweight"}
TOLERANCE = 1e-12  # in float64, of the largest number


class RecordedEuler(Euler):
    """Euler steps with the noise levels of the recording machine.

    Logarithms and roots in float32 differ in the last bit from CPU to CPU.
    """

    def sigmas(self, steps: int) -> torch.Tensor:
        return INPUTS[f"sigmas.{steps}"]

    def _scale(self, step: int, steps: int) -> torch.Tensor:
        return INPUTS[f"input_scale.{steps}"][step]


class FourLetters:
    """Tokenizer of the recorded runs, which cuts words into pieces of four letters."""

    model_max_length = TOKENS

    def __call__(self, text: str, **options) -> SimpleNamespace:
        pieces, ids = SAID["prompts"][text]
        spans = [(0, 0)]
        for piece in pieces:
            first = text.index(piece, spans[-1][1])
            spans.append((first, first + len(piece)))
        return SimpleNamespace(
            input_ids=ids,
            offset_mapping=[*spans, (0, 0)],
            special_tokens_mask=[int(one in (BEGIN, END)) for one in ids],
        )


class RecordedTexts:
    """Encoders that give each prompt its recorded embedding, and zeros for no prompt where asked for."""

    tokenizers = (FourLetters(),)

    def __init__(self, negative: str):
        self.negative = negative

    def __call__(self, prompts) -> TextCondition:
        tokens = torch.stack(
            [self.part(prompt, "prompt_embeds", "negative_embeds") for prompt in prompts]
        )
        pooled = torch.stack([self.part(prompt, "pooled", "negative_pooled") for prompt in prompts])
        return TextCondition(tokens, pooled)

    def part(self, prompt, name: str, negative: str) -> torch.Tensor:
        if prompt is not None:
            return INPUTS[f"{name}.{list(SAID['prompts']).index(prompt)}"]
        if self.negative == "zeros":
            return torch.zeros_like(INPUTS[negative])
        return INPUTS[negative]


def pipeline_of(name: str) -> Pipeline:
    """The recorded model in float64, with the text and the noise of a run."""
    run = RUNS[name]
    micro = tuple(map(int, INPUTS["time_ids"][0]))
    defaults = Defaults(*run["latent_size"], run["steps"], SAID["guidance_scale"], micro=micro)
    model = RECORDINGS["sdxl"].pipeline(torch.float64).denoiser
    made = Pipeline(RecordedTexts(run["negative"]), model, RecordedEuler(), list, defaults, name)
    noise = INPUTS[run["init_noise"]].double()
    made.noises = lambda seeds: iter([noise.expand(len(seeds), -1, -1, -1)])
    return made


def sinusoids(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids of the recording machine for recorded timesteps."""
    made = timestep_sinusoids(t, width)
    for steps in (3, 4, 6):
        times = INPUTS[f"timesteps.{steps}"].tolist()
        known = dict(zip(times, INPUTS[f"t_emb.{steps}"], strict=True))
        if width == len(INPUTS[f"t_emb.{steps}"][0]):
            for row, time in zip(made, t.tolist(), strict=True):
                row.copy_(known.get(time, row))
    return made


def method_of(name: str) -> PromptToPrompt:
    """The method that a recorded run used, in textpatch's words."""
    run = RUNS[name]
    weights = {}
    if "equalizer" in run:
        weights = {run["equalizer"]["word"]: run["equalizer"]["value"]}
    method = PromptToPrompt(
        edit=EDITS[run["edit"].removesuffix("+reweight")],
        cross_window=run["cross_replace_steps"],
        self_window=run["self_replace_steps"],
        weights=weights,
        align=run["mapper_rule"],
    )
    if "attn_res" in run:
        method = replace(method, self_limit=run["attn_res"][0] ** 2)
    if "local_blend_words" in run:
        words = tuple(run["local_blend_words"])
        blend = LocalBlend(words, blend_sites(name), run["local_blend_threshold"])
        method = replace(method, blend=blend)
    return method


def blend_sites(name: str) -> list:
    """Sites whose maps the published code blends by.

    diffusers' takes the third and fourth on the way down and the first three on the way up, RoyiRa's the
    deepest, whose maps are as large as its `attn_res`.
    """
    if "attn_res" in RUNS[name]:
        return ["down_blocks.2.*", "mid_block.*", "up_blocks.0.*"]
    sites = RECORDINGS["sdxl"].pipeline(torch.float64).denoiser.sites
    down = [site.index for site in sites if site.name.startswith("down_blocks")]
    up = [site.index for site in sites if site.name.startswith("up_blocks")]
    return [*down[2:4], *up[:3]]


def recorded_sinusoids():
    """The block in which the model reads the sinusoids of the recording machine."""
    return mock.patch.object(sdxl, "timestep_sinusoids", sinusoids)


def edited_path(pipeline, method, pair: Pair, steps: int, guidance) -> list[torch.Tensor]:
    """Latents (source and target, C, H, W) after each step of an edit of a pair."""
    rows = [Row("source", pair.source), Row("edited", pair.target)]
    texts = encode(pipeline, branch_rows(rows, guidance))
    seen = []
    run = EditedRun(pipeline, rows, texts, "source", "edited", steps, guidance)
    edit = method.of(pipeline, pair, steps, texts.tokens)
    run.latents(edit, on_step=lambda step, x: seen.append(x))
    return seen[1:]


def paths(name: str, method: PromptToPrompt, target: int = 1) -> list[torch.Tensor]:
    """Latents (source and target, C, H, W) after each step of a recorded run edited by a method."""
    run = RUNS[name]
    pair = Pair(run["prompts"][0], run["prompts"][target])
    guidance = ClassifierFree(SAID["guidance_scale"])
    with recorded_sinusoids():
        return edited_path(pipeline_of(name), method, pair, run["steps"], guidance)


def farthest(made: list[torch.Tensor], recorded: torch.Tensor) -> float:
    """Largest distance of latents (C, H, W) from the recorded ones (steps or last, C, H, W)."""
    last = torch.stack(made[-len(recorded) :]).double()
    return float((last - recorded).abs().max() / recorded.abs().max())


# --- joint and added attention, recorded with explicit maps

JOINT = json.loads((FOLDER / "joint.json").read_text())
JOINT_RECORDED = load_file(FOLDER / "joint.safetensors")


def joint_edit(family: str, name: str) -> PairEdit:
    """The edit of a recorded run on joint or added attention."""
    run = next(run for run in JOINT[family] if run["name"] == name)
    recording = RECORDINGS[family]
    edited = run["steps_edited"]
    windows = torch.zeros(recording.steps, recording.tokens)
    windows[edited] = 1
    if run["w"] != "ones":
        windows *= JOINT_RECORDED[f"{family}.w.{run['w']}"]
    mapper = identity_mapper(recording.tokens)
    if run["mapper"] == "mapper":
        mapper = replace(mapper, matrix=JOINT_RECORDED[f"{family}.mapper"])
    text = [None] * recording.steps
    if run["variant"] in ("whole_image_rows", "whole_all_rows", "text_columns"):
        text = text_steps(mapper, windows, torch.ones(recording.tokens))
    image = range(edited[0], edited[-1] + 1)
    if run["variant"] in ("none", "text_columns"):
        image = range(0)
    sites = None
    if run["sites"] is not None:
        known = recording.pipeline(torch.float64).denoiser.sites
        sites = frozenset(known[index].name for index in run["sites"])
    return PairEdit(
        text,
        image,
        sites,
        one_call=run["variant"] == "qk_image",
        all_queries=run["variant"] == "whole_all_rows",
        renormalise=run["renormalise"],
    )


def joint_path(family: str, edit: PairEdit, also=None) -> list[torch.Tensor]:
    """Latents (source and target, C, H, W) after each step of an edited run.

    also  a function of each step and the latents entering it
    """
    recording = RECORDINGS[family]
    pipeline = recording.pipeline(torch.float64)
    rows = [Row("source", "A0", 0), Row("edited", "B0", 0)]
    guidance = ClassifierFree(pipeline.defaults.guidance, "empty0")
    texts = encode(pipeline, branch_rows(rows, guidance))
    seen = []

    def keep(step: int, x: torch.Tensor) -> None:
        seen.append(x)
        if also:
            also(step, x)

    run = EditedRun(pipeline, rows, texts, "source", "edited", recording.steps, guidance)
    with recording.recorded_sinusoids():
        run.latents(edit, on_step=keep)
    return seen[1:]
