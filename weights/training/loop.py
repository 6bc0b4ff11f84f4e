"""The recipe that made the shipped models:  python -m textpatch.weights.training tiny-mmdit

Diffusion or rectified flow on signs drawn on the fly: `noising` has what each schedule shows and asks, `families`
how each kind of model begins.  A planted model is trained through the swap: at its sites every row reads its
neighbour's text keys and values, and the picture asked for is its own sign and wall with the neighbour's word.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from textpatch.attention import row_slots
from textpatch.disk import placed, writing
from textpatch.errors import PatchError, WeightsError, closest
from textpatch.reference_models.defaults import Defaults
from textpatch.reference_models.pipeline import SEEDS, Pipeline, pixels
from textpatch.reference_models.upscaling import read_beside
from textpatch.weights.loading import SHIPPED, load
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.saving import save_pipeline
from textpatch.weights.signs.drawing import SAYINGS, Sign, draw_sign, random_sign, with_word
from textpatch.weights.signs.words import TEST, VALIDATION
from textpatch.weights.training.families import FAMILIES
from textpatch.weights.training.noising import objective
from textpatch.weights.training.recipes import RECIPES, Recipe

HELD_OUT = frozenset(TEST) | frozenset(VALIDATION)


class Trainee(nn.Module):
    """Denoiser and encoders, trained together."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        family = FAMILIES[type(recipe.denoiser)]
        self.denoiser, self.encoders = family.denoiser(recipe.denoiser), family.encoders()


class Batch:
    """Prompts, pictures (B, 3, H, W) and slots of one training step; a function of recipe, seed and step alone."""

    def __init__(self, recipe: Recipe, seed: int, step: int):
        rng = random.Random(f"{seed}/{step}")
        signs = [self._unseen(rng, recipe) for _ in range(recipe.batch)]
        swapped = [with_word(own, donor.word) for own, donor in zip(signs, signs[1:] + signs[:1])]
        said = [sign.prompt(rng.choice(SAYINGS)) for sign in signs]
        self.prompts = [None if rng.random() < recipe.dropout else prompt for prompt in said]
        self.sites, shown = (), signs
        if recipe.planted and step % 3:
            others = [i for i in range(number_of_sites(recipe)) if i not in recipe.planted]
            self.sites = recipe.planted if step % 3 == 1 else (rng.choice(others),)
            self.prompts = said
            if self.sites == recipe.planted:
                shown = swapped
        if recipe.low_noise is not None and step % 2:
            shown = swapped  # as when a picture was edited, and stage II reads the source's prompt
        pictures = np.stack([draw_sign(sign, recipe.signs, rng) for sign in shown])
        self.pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        generator = torch.Generator().manual_seed(rng.randrange(2**62))
        self.noise = torch.randn(self.pictures.shape, generator=generator)
        self.share = _shares_of_noise(recipe, generator)
        self.beside = (
            {}
            if recipe.low_noise is None
            else self._beside(recipe, rng.randrange(recipe.low_noise), generator)
        )

    def _beside(self, recipe: Recipe, level: int, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(self.pictures.shape, generator=generator)
        return read_beside(recipe.schedule, F.avg_pool2d(self.pictures, 2), noise, level)

    @staticmethod
    def _unseen(rng: random.Random, recipe: Recipe) -> Sign:
        while (sign := random_sign(rng, recipe.signs)).word in HELD_OUT:
            pass
        return sign

    def slots(self, sites: int, tokens: int) -> list[Tensor | None] | None:
        if not self.sites:
            return None
        donors = (torch.arange(len(self.prompts)) + 1) % len(self.prompts)
        return [row_slots(donors, tokens) if i in self.sites else None for i in range(sites)]


def _shares_of_noise(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Logit-normal shares, shifted towards noise; an eighth of the rows at the most, where the word is decided."""
    share = torch.randn(recipe.batch, generator=generator).sigmoid()
    share = recipe.sigma_shift * share / (1 + (recipe.sigma_shift - 1) * share)
    first = recipe.batch // 8
    share[:first] = 0.98 + 0.02 * torch.rand(first, generator=generator)
    return recipe.noisiest * share


@lru_cache
def number_of_sites(recipe: Recipe) -> int:
    with torch.device("meta"):
        return len(FAMILIES[type(recipe.denoiser)].denoiser(recipe.denoiser).sites)


def loss_of(model: Trainee, recipe: Recipe, batch: Batch, weight: Tensor) -> Tensor:
    """Weighted error of what the schedule asks, one value per row (B,)."""
    asked = objective(recipe.schedule, recipe.variance_steps or recipe.steps)
    noisy, t = asked.mix(batch.pictures, batch.noise, batch.share)
    with torch.autocast("cpu", torch.bfloat16):
        text = model.encoders(batch.prompts)
        if recipe.micro is not None:
            text = replace(text, micro=torch.tensor(recipe.micro).expand(len(noisy), -1))
        slots = batch.slots(number_of_sites(recipe), text.tokens.shape[1])
        output = model.denoiser(noisy, t, text, slots=slots, **batch.beside)
    error = asked.error(output.float(), batch.pictures, batch.noise, t)
    return (error * weight).mean(dim=(1, 2, 3))


def text_weights(recipe: Recipe) -> Tensor:
    """(H, W) loss weights of mean one, `text_weight` times heavier where letters stand."""
    weight = torch.ones(recipe.signs.height, recipe.signs.width)
    left, top, right, bottom = recipe.signs.text_box
    weight[top:bottom, left:right] = recipe.text_weight
    return weight / weight.mean()


class Optimizers:
    """Muon on the matrices inside blocks and encoder layers, convolutions flattened, AdamW on everything else."""

    def __init__(self, model: Trainee, recipe: Recipe):
        parts = (*FAMILIES[type(recipe.denoiser)].matrices, ".layers.", ".block.")
        named = list(model.named_parameters())
        self.inner = [p for name, p in named if self._is_inner(name, p, parts)]
        outer = [p for name, p in named if not self._is_inner(name, p, parts)]
        self.matrices = [
            nn.Parameter(p.detach().flatten(1)) for p in self.inner
        ]  # views of the same numbers
        self.all = {
            "muon": torch.optim.Muon(self.matrices, lr=recipe.muon_rate, weight_decay=0.0),
            "adam": torch.optim.AdamW(
                outer, lr=recipe.adam_rate, weight_decay=0.0, betas=(0.9, 0.98)
            ),
        }
        self.rates = {"muon": recipe.muon_rate, "adam": recipe.adam_rate}

    @staticmethod
    def _is_inner(name: str, p: nn.Parameter, parts: tuple[str, ...]) -> bool:
        return (
            any(part in name for part in parts)
            and p.ndim > 1
            and "relative_attention_bias" not in name
        )

    def step(self, factor: float) -> None:
        for matrix, p in zip(self.matrices, self.inner):
            # SDXL reads no encoder's last layer but for the pooled text, so that one has no gradient
            matrix.grad, p.grad = None if p.grad is None else p.grad.flatten(1), None
        for name, optimizer in self.all.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' whole state as named tensors, for a safetensors file."""
        return {
            f"{name}.{i}.{key}": value
            for name, optimizer in self.all.items()
            for i, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, optimizer in self.all.items():
            state = optimizer.state_dict()
            for key, value in tensors.items():
                owner, i, field = key.split(".", 2)
                if owner == name:
                    state["state"].setdefault(int(i), {})[field] = value
            optimizer.load_state_dict(state)


def rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, constant, linear decay to zero over the last `decay` of the run."""
    return min(1.0, (step + 1) / recipe.warmup, (steps - step) / (recipe.decay * steps))


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    images: int | None = None,
    save_every: float = 120.0,
) -> Path:
    """Train one of the shipped models into the folder `out/<name>`, which is returned; resumes where it stopped.

    seed and images are the recipe's when None.  Deterministic in all three on one machine and thread count.
    Raises PatchError for an unknown name, a seed that torch's generator does not tell from others, fewer images than one step takes, a state that
    belongs to another run, and a loss that is no number; DiskError for a full disk, where the same call goes on.
    """
    recipe = recipe_named(name)
    seed = recipe.seed if seed is None else seed
    images = recipe.images if images is None else images
    _require_possible(name, recipe.batch, images, seed)
    steps = images // recipe.batch
    torch.manual_seed(seed)
    model = Trainee(recipe)
    optimizers, run = Optimizers(model, recipe), {"model": name, "seed": seed, "steps": steps}
    if recipe.starts_from:
        adopt(model, SHIPPED / recipe.starts_from)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    state = run | in_words(recipe)
    start = resume(out, state, model, optimizers, average)
    weight, saved = text_weights(recipe), time.monotonic()
    losses, bar = [], tqdm(total=steps, initial=start, desc=name, unit="step", disable=None)
    with bar, writing(out / "log.jsonl"), open(out / "log.jsonl", "a") as log:
        for step in range(start, steps):
            losses.append(train_step(recipe, seed, step, steps, model, optimizers, average, weight))
            bar.update()
            if step % 50 == 49:
                line = dict(zip(("loss", "at_noise"), np.mean(losses, axis=0).round(4).tolist()))
                print(
                    json.dumps({"step": step + 1, "seconds": round(time.time(), 1), **line}),
                    file=log,
                    flush=True,
                )
                bar.set_postfix(line)
                losses = []
            if time.monotonic() - saved > save_every:
                save(out, {**state, "step": step + 1}, model, optimizers, average)
                saved = time.monotonic()
    save(out, {**state, "step": steps}, model, optimizers, average)
    return export(recipe, out / name, average, run)


def _require_possible(name: str, batch: int, images: int, seed: int) -> None:
    if images < batch:
        raise PatchError(
            f"{images} images asked for; one step of {name} takes {batch}, so give that many or more"
        )
    if not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise PatchError(
            f"seed {seed!r} does not fit torch's generator; give a whole number of 0 to {SEEDS - 1}"
        )


def export(recipe: Recipe, folder: Path, average: dict[str, Tensor], run: dict) -> Path:
    """Write the averaged weights as a pipeline that `load` reads."""
    model = Trainee(recipe)
    model.load_state_dict(average)
    fmt = recipe.signs
    localized = recipe.localized if run["seed"] == recipe.seed else ()
    defaults = Defaults(
        fmt.height,
        fmt.width,
        recipe.steps,
        recipe.guidance,
        fmt.text_box,
        localized,
        recipe.micro,
        recipe.level,
    )
    trained = {**run, "images": run["steps"] * recipe.batch, "recipe": asdict(recipe)}
    pipeline = Pipeline(
        model.encoders, model.denoiser, recipe.schedule, pixels, defaults, folder.name
    )
    save_pipeline(folder, pipeline, trained, matrices=getattr(torch, recipe.matrices))
    return folder


def train_step(
    recipe, seed, step, steps, model, optimizers, average, weight
) -> tuple[float, float]:
    """One update; the loss of all rows, and of the rows at pure noise.  Raises PatchError for one that is no number."""
    batch = Batch(recipe, seed, step)
    rows = loss_of(model, recipe, batch, weight)
    if not rows.isfinite().all():
        raise PatchError(
            f"the loss of step {step} is {rows.mean().item()}: the training diverged; give another --seed, "
            "or the recipe lower rates"
        )
    rows.mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(rate_factor(recipe, step, steps))
    keep = min(recipe.ema, (step + 1) / (step + 10))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - keep)
    return rows.mean().item(), rows[: recipe.batch // 8].mean().item()


def adopt(model: Trainee, folder: Path) -> None:
    """Start from the weights of a shipped model."""
    pipeline = load(folder)
    model.denoiser.load_state_dict(pipeline.denoiser.state_dict())
    model.encoders.load_state_dict(pipeline.encoders.state_dict())


def recipe_named(name: str) -> Recipe:
    if name not in RECIPES:
        raise PatchError(f"no recipe {name!r}{closest(name, RECIPES)}")
    return RECIPES[name]


def save(
    out: Path, run: dict, model: Trainee, optimizers: Optimizers, average: dict[str, Tensor]
) -> None:
    """Model, average and optimizers in one file, replaced as a whole.  Raises DiskError for a full disk."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizers.tensors().items()}
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    with placed(out / "state.safetensors") as temporary:
        save_file(
            tensors, temporary, metadata={key: json.dumps(value) for key, value in run.items()}
        )


def in_words(recipe: Recipe) -> dict:
    """Every field as JSON has it, under its name, to tell the runs of two recipes apart."""
    return {
        f"recipe.{field}": value for field, value in json.loads(json.dumps(asdict(recipe))).items()
    }


def resume(
    out: Path, run: dict, model: Trainee, optimizers: Optimizers, average: dict[str, Tensor]
) -> int:
    """Load the state in `out` if there is one; the step to go on with.

    Raises PatchError for the state of another run, WeightsError for a damaged one and for a file that is none.
    """
    path = out / "state.safetensors"
    if not os.path.lexists(path):
        return 0
    tensors = open_tensors(path)
    step = _step_of(path, run)
    wanted = {
        f"{part}.{key}": value.shape
        for part in ("model", "average")
        for key, value in average.items()
    }
    if {
        key: entry.shape for key, entry in tensors.items() if not key.startswith("optimizer.")
    } != wanted:
        raise WeightsError(
            f"{path} holds other tensors than {run['model']} has; give another --out"
        )
    part = lambda prefix: {
        k.removeprefix(prefix): tensors.read(k) for k in tensors if k.startswith(prefix)
    }  # noqa: E731
    model.load_state_dict(part("model."))
    optimizers.load(part("optimizer."))
    for key, value in part("average.").items():
        average[key].copy_(value)
    return step


def _step_of(path: Path, run: dict) -> int:
    """The step that a state of this run is of."""
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
    if lacking := [key for key in (*run, "step") if key not in told]:
        few = ", ".join(lacking[:3])
        raise WeightsError(
            f"{path} says nothing of {few}: no state, or one of an older version; give another --out"
        )
    asked = {key: json.dumps(value) for key, value in run.items()}
    if differ := [key for key in asked if told[key] != asked[key]]:
        found, wanted = (
            ", ".join(f"{key} {which[key]}" for key in differ) for which in (told, asked)
        )
        raise PatchError(
            f"{path} holds a run of {found}, asked for {wanted}; give another --out, or the same options"
        )
    return json.loads(told["step"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m textpatch.weights.training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", help=f"which model: {', '.join(RECIPES)}")
    parser.add_argument(
        "--out", type=Path, help="folder for state, log and weights (default runs/train-NAME)"
    )
    parser.add_argument("--seed", type=int, help="of weights and data (the recipe's)")
    parser.add_argument("--images", type=int, help="how many pictures to train on")
    options = parser.parse_args()
    out = options.out or Path("runs") / f"train-{options.name}"
    print(train(options.name, out, seed=options.seed, images=options.images))
