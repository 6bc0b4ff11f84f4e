"""The authors' recorded SD3 runs, reproduced in one batch by a plan, and by capture then patch."""

import json
from contextlib import ExitStack
from functools import cache as remembered
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textpatch import Plan, Row, Swap, capture, patch, sample
from textpatch.reference_models import TextCondition
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import FlowMatchEuler

GOLDEN = Path(__file__).parent / "golden" / "sd3"
META = json.loads((GOLDEN / "runs.json").read_text())
RUNS = {run["name"]: run for run in META["runs"]}
INPUTS, RECORDED = load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "runs_float64.safetensors")
STEPS, TOKENS, PROMPTS = META["steps"], META["tokens"], range(META["prompts"])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
every_run = pytest.mark.parametrize("name", RUNS)


def recorded_texts(labels) -> TextCondition:
    """A label such as `B1` or `negA0` -> the recorded embedding of that prompt."""
    prompts, negatives = ("prompt_embeds", "pooled"), ("negative", "negative_pooled")

    def one(label, part):
        kind, number = (prompts if label[:-1] in "AB" else negatives)[part], int(label[-1])
        return INPUTS[f"{kind}.{label[:-1]}"][number]

    return TextCondition(*(torch.stack([one(label, part) for label in labels]) for part in (0, 1)))


@remembered
def pipeline(dtype) -> Pipeline:
    """The recorded model, schedule and noise; a seed is the number of a prompt."""
    config = {k: v for k, v in json.loads((GOLDEN / "config.json").read_text()).items() if k[0] != "_"}
    shift = json.loads((GOLDEN / "scheduler_config.json").read_text())["shift"]
    model = MMDiT(MMDiTConfig(**config)).to(dtype).requires_grad_(False)
    model.load_state_dict(load_file(GOLDEN / "diffusion_pytorch_model.safetensors"))
    defaults = Defaults(8, 12, STEPS, META["guidance_scale"])
    made = Pipeline(recorded_texts, model, FlowMatchEuler(shift=shift), list, defaults, "recorded")
    made.noise = lambda seeds: INPUTS["init_noise"][list(seeds)].to(dtype)
    return made


def batch(name: str, who: str) -> list[Row]:
    """The batch rows of source or donor of a run, in the recorded order."""
    run = RUNS[name]
    negative = run["negative" if who == "source" else "donor_negative"]
    twins = [] if negative is None else [Row(f"{who}{p}", f"{negative}{p}", p, "uncond") for p in PROMPTS]
    return twins + [Row(f"{who}{p}", f"{run[who]}{p}", p) for p in PROMPTS]


def plan_of(name: str, source="source", donor="donor") -> Plan:
    run, late = RUNS[name], range(RUNS[name].get("start", 0), STEPS)
    heads = run.get("heads") or {}
    return Plan(Swap(site, f"{source}{p}", f"{donor}{p}", steps=late, heads=heads.get(str(site)))
                for site in run["layers"] for p in PROMPTS)  # fmt: skip


def latents(dtype, rows, slots=None) -> torch.Tensor:
    """Latents after each step, (N, conditional rows, C, H, W)."""
    model, seen, conditional = pipeline(dtype), [], [row for row in rows if row.branch == "cond"]
    guidance = 1 if len(conditional) == len(rows) else model.defaults.guidance
    noise, text = model.noise([row.seed for row in conditional]), model.encode([row.prompt for row in rows])
    options = {"steps": STEPS, "guidance": guidance, "slots": slots}
    model.denoise(noise, text, on_step=lambda step, x: seen.append(x), **options)
    return torch.stack(seen[1:])


def distance(made, recorded) -> float:
    return float((made.double() - recorded).abs().max() / recorded.abs().max())


def donor_cache(dtype, name: str, sites):
    rows = batch(name, "donor")
    with capture(pipeline(dtype).denoiser, sites, rows=rows) as kept:
        latents(dtype, rows)
    return kept


def test_the_schedule():
    """Our sigmas and timesteps are the recorded ones, bit for bit."""
    schedule = pipeline(torch.float32).schedule
    assert torch.equal(schedule.sigmas(STEPS), INPUTS["sigmas"])
    assert torch.equal(schedule.timestep(schedule.sigmas(STEPS)[:-1]), INPUTS["timesteps"])


@both_dtypes
@every_run
def test_in_one_batch(name, dtype):
    """Source and donor rows in lock-step, the plan as slots = recorded."""
    who = ["source", "donor"] if RUNS[name]["layers"] else ["source"]
    parts = [batch(name, w) for w in who]
    rows = [row for branch in ("uncond", "cond") for part in parts for row in part if row.branch == branch]
    plan, sites = plan_of(name), pipeline(dtype).denoiser.sites
    made = latents(dtype, rows, lambda step: plan.slots(step, rows, sites, tokens=TOKENS))
    assert distance(made[:, : len(PROMPTS)], RECORDED[f"{name}.latents"]) <= TOLERANCE[dtype]


@both_dtypes
@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["layers"] and not run["heads"]])
def test_capture_then_patch(name, dtype):
    """The donor's run captured, the source's run patched from the start step on = recorded."""
    sites, steps = RUNS[name]["layers"], range(RUNS[name]["start"], STEPS)
    kept = donor_cache(dtype, name, sites)
    with patch(pipeline(dtype).denoiser, kept, sites, rows=batch(name, "donor"), steps=steps):
        made = latents(dtype, batch(name, "source"))
    assert distance(made, RECORDED[f"{name}.latents"]) <= TOLERANCE[dtype]


@both_dtypes
@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.get("heads")])
def test_capture_then_patch_heads(name, dtype):
    """The named heads of every site, put in from the same cache by nested patches = recorded."""
    run, rows = RUNS[name], batch(name, "donor")
    kept, late = donor_cache(dtype, name, run["layers"]), range(run["start"], STEPS)
    with ExitStack() as stack:
        for site, heads in run["heads"].items():
            block = patch(pipeline(dtype).denoiser, kept, int(site), rows=rows, steps=late, heads=heads)
            stack.enter_context(block)
        made = latents(dtype, batch(name, "source"))
    assert distance(made, RECORDED[f"{name}.latents"]) <= TOLERANCE[dtype]


@both_dtypes
@pytest.mark.parametrize("name", ["patch_2", "neg_patch_2", "nocfg_patch_2"])
def test_captured_keys_and_values(name, dtype):
    """KVCache of run B at site 2: every step, row and head = what the authors' code cached."""
    kept, group = donor_cache(dtype, name, 2), name.removesuffix("patch_2").replace("_", ".")
    for part in "kv":
        recorded = RECORDED[f"cache.{group}{part}.2"].transpose(2, 3).flatten(3)  # (N, R, T, W)
        for step, row in product(range(STEPS), range(recorded.shape[1])):
            made = kept["transformer_blocks.2.attn", step, batch(name, "donor")[row].label, part]
            assert distance(made, recorded[step, row]) <= TOLERANCE[dtype]


@both_dtypes
def test_all_runs_of_one_negative_at_once(dtype):
    """sample(): every run with the empty negative as rows of one plan, the donor rows shared = recorded."""
    runs = [name for name, run in RUNS.items() if run["negative"] == "empty"]
    rows = [Row(f"{name}:{p}", f"{RUNS[name]['source']}{p}", p) for name in runs for p in PROMPTS]
    plan = sum((plan_of(name, f"{name}:", "B:") for name in runs), Plan())
    made = sample(pipeline(dtype), rows, plan, negative="empty0")
    for name in runs:
        final = torch.stack([made.latents[f"{name}:{p}"] for p in PROMPTS])
        assert distance(final, RECORDED[f"{name}.latents"][-1]) <= TOLERANCE[dtype]
