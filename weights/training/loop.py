"""Training of the shipped models, by  python -m textpatch.weights.training tiny-mmdit

Diffusion or rectified flow is trained on signs drawn on the fly.  A planted model is trained through the
swap. At its sites every row reads its neighbour's text keys and values, and the picture asked for is its
own sign and wall with the neighbour's word.

recipes      what is trained, and how
families     first weights of each kind of model
batches      prompts, pictures and slots of a step
feeding      batches in order, drawn ahead
noising      noisy pictures, and the loss of a denoiser's answer
optimizers   Muon and AdamW
state        a training on disk
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from textpatch.devices import first_device, usable_device
from textpatch.disk import writing
from textpatch.errors import PatchError, closest
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.defaults import Defaults
from textpatch.reference_models.pipeline import Pipeline
from textpatch.seeds import HEARD
from textpatch.weights.loading import SHIPPED, load
from textpatch.weights.saving import save_pipeline
from textpatch.weights.training.batches import Batch, number_of_sites
from textpatch.weights.training.families import FAMILIES
from textpatch.weights.training.feeding import batches
from textpatch.weights.training.noising import objective
from textpatch.weights.training.optimizers import Optimizers
from textpatch.weights.training.recipes import RECIPES, Recipe
from textpatch.weights.training.state import in_words, resume, save

if TYPE_CHECKING:
    from textpatch.reference_models.text_encoders import Tokens

MOST_WORKERS = 64  # far more than keep one device busy


class Trainee(nn.Module):
    """Denoiser and encoders, trained together."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        family = FAMILIES[type(recipe.denoiser)]
        self.denoiser = family.denoiser(recipe.denoiser)
        self.encoders = _encoders(recipe)


def _encoders(recipe: Recipe) -> nn.Module:
    make = FAMILIES[type(recipe.denoiser)].encoders
    if recipe.signs.lines == 1:
        return make()
    return make(recipe.signs, recipe.tokens)


def loss_of(model: Trainee, recipe: Recipe, batch: Batch, tokens: Tokens, weight: Tensor) -> Tensor:
    """Weighted error of the denoiser's answers, one value per row (B,).

    tokens  of the batch's prompts
    weight  (H, W) of the error of each pixel, on the device of the batch
    """
    asked = objective(recipe.schedule, recipe.variance_steps or recipe.steps)
    noisy, t = asked.mix(batch.pictures, batch.noise, batch.share)
    with torch.autocast(noisy.device.type, torch.bfloat16):
        text = model.encoders.read(tokens, batch.prompts)
        if recipe.micro is not None:
            micro = torch.tensor(recipe.micro, device=noisy.device)
            text = replace(text, micro=micro.expand(len(noisy), -1))
        slots = batch.slots(number_of_sites(recipe), text.tokens.shape[1])
        output = model.denoiser(noisy, t, text, slots=slots, **batch.beside)
    error = asked.error(output.float(), batch.pictures, batch.noise, t)
    return (error * weight).mean(dim=(1, 2, 3))


def text_weights(recipe: Recipe) -> Tensor:
    """Loss weights (H, W) of mean one, `text_weight` times heavier where letters stand."""
    weight = torch.ones(recipe.signs.height, recipe.signs.width)
    for left, top, right, bottom in recipe.signs.line_boxes:
        weight[top:bottom, left:right] = recipe.text_weight
    return weight / weight.mean()


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
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Path:
    """Train one of the shipped models, from where an earlier call stopped.   Returns its folder `out/<name>`.

    out         folder of the state, the log and the model
    seed        of weights and data; the recipe's when None
    images      pictures to train on; the recipe's number when None.  A run may go on with another until its
                rate falls
    save_every  seconds between two states
    device      where it is trained; its first weights are the same on all
    workers     processes that draw and tokenize ahead, as in `feeding.batches`

    The result is deterministic in name, seed and images on one device and thread count of it.

    Raises

    - PatchError for an unknown name, seed, device or number of workers, fewer images than one step takes, the
      state of another run, and a loss that is no number,
    - DiskError for a full disk, after which the same call goes on.
    """
    recipe = recipe_named(name)
    device = usable_device(device)
    if seed is None:
        seed = recipe.seed
    if images is None:
        images = recipe.images
    _require_possible(name, recipe.batch, images, seed, workers)
    steps = images // recipe.batch
    model, average = _first_model(recipe, seed, device)
    optimizers = Optimizers(model, recipe)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    run = {"model": name, "seed": seed, "steps": steps}
    state = run | in_words(recipe)
    start = resume(out, state, model, optimizers, average)
    weight = text_weights(recipe).to(device)
    saved = time.monotonic()
    with _progress(out / "log.jsonl", name, start, steps) as note:
        fed = batches(recipe, seed, model.encoders, range(start, steps), workers)
        for step, (batch, tokens) in enumerate(fed, start):
            rows = loss_of(model, recipe, batch.on(device), tokens, weight)
            note(step, *train_step(recipe, step, steps, rows, model, optimizers, average))
            if time.monotonic() - saved > save_every:
                save(out, {**state, "step": step + 1}, model, optimizers, average)
                saved = time.monotonic()
    save(out, {**state, "step": steps}, model, optimizers, average)
    return export(recipe, out / name, average, run)


def _first_model(
    recipe: Recipe, seed: int, device: torch.device
) -> tuple[Trainee, dict[str, Tensor]]:
    """Model that a training begins with, in float32, and the average that begins there.

    It is made on the CPU, where a seed gives the same numbers for every device.
    """
    torch.manual_seed(seed)
    model = Trainee(recipe)
    if recipe.starts_from:
        adopt(model, SHIPPED / recipe.starts_from)
    model.to(device)
    return model, {key: value.detach().clone() for key, value in model.state_dict().items()}


@contextmanager
def _progress(path: Path, name: str, start: int, steps: int) -> Iterator[Callable[..., None]]:
    """Show a bar and append the mean losses of every 50 steps to the log, as each step is noted."""
    losses = []
    bar = tqdm(total=steps, initial=start, desc=name, unit="step", disable=None)
    with bar, writing(path), open(path, "a") as log:

        def note(step: int, loss: float, at_noise: float) -> None:
            losses.append((loss, at_noise))
            bar.update()
            if step % 50 == 49:
                bar.set_postfix(_logged(log, step + 1, losses))
                losses.clear()

        yield note


def _logged(log, step: int, losses: list[tuple[float, float]]) -> dict[str, float]:
    """Append the means of some steps' losses to the log, and return them."""
    loss, at_noise = np.mean(losses, axis=0).round(4).tolist()
    means = {"loss": loss, "at_noise": at_noise}
    line = {"step": step, "seconds": round(time.time(), 1), **means}
    print(json.dumps(line), file=log, flush=True)
    return means


def _require_possible(name: str, batch: int, images: int, seed: int, workers: int) -> None:
    if images < batch:
        raise PatchError(
            f"{images} images asked for; one step of {name} takes {batch}, "
            "so give that many or more"
        )
    if not isinstance(seed, int) or not 0 <= seed < HEARD:
        raise PatchError(
            f"seed {seed!r} does not fit torch's generator; give a whole number of 0 to {HEARD - 1}"
        )
    if not isinstance(workers, int) or not 0 <= workers <= MOST_WORKERS:
        raise PatchError(
            f"{workers!r} workers asked for; give a whole number of 0 to {MOST_WORKERS}"
        )


def train_step(recipe, step, steps, rows, model, optimizers, average) -> tuple[float, float]:
    """Update the weights and their average once.   Returns the loss of all rows and of those at pure noise.

    rows  loss of each row (B,), those at pure noise first

    Raises PatchError for a loss that is no number.
    """
    if not rows.isfinite().all():
        raise PatchError(
            f"the loss of step {step} is {rows.mean().item()}: the training diverged; "
            "give another --seed, or the recipe lower rates"
        )
    rows.mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(rate_factor(recipe, step, steps))
    keep = min(recipe.ema, (step + 1) / (step + 10))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - keep)
    return rows.mean().item(), rows[: recipe.batch // 8].mean().item()


def export(recipe: Recipe, folder: Path, average: dict[str, Tensor], run: dict) -> Path:
    """Write the averaged weights as a pipeline that `load` reads."""
    model = Trainee(recipe)
    model.load_state_dict(average)
    # sites are measured in the model of the recipe's seed alone
    measured = run["seed"] == recipe.seed
    defaults = Defaults(
        height=recipe.signs.height,
        width=recipe.signs.width,
        steps=recipe.steps,
        guidance=recipe.guidance,
        text_box=recipe.text_box,
        localized=recipe.localized if measured else (),
        replaced=recipe.replaced if measured else (),
        micro=recipe.micro,
        level=recipe.level,
        draws=recipe.draws,
    )
    trained = {**run, "images": run["steps"] * recipe.batch, "recipe": asdict(recipe)}
    pipeline = Pipeline(
        model.encoders, model.denoiser, recipe.schedule, pixels, defaults, folder.name
    )
    save_pipeline(folder, pipeline, trained, matrices=getattr(torch, recipe.matrices))
    return folder


def adopt(model: Trainee, folder: Path) -> None:
    """Start from the weights of a shipped model."""
    pipeline = load(folder)
    model.denoiser.load_state_dict(pipeline.denoiser.state_dict())
    model.encoders.load_state_dict(pipeline.encoders.state_dict())


def recipe_named(name: str) -> Recipe:
    """Recipe of a shipped model.   Raises PatchError for an unknown name."""
    if name not in RECIPES:
        raise PatchError(f"no recipe {name!r}{closest(name, RECIPES)}")
    return RECIPES[name]


def main() -> None:
    """Train the model that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m textpatch.weights.training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", help=f"which model: {', '.join(RECIPES)}")
    parser.add_argument(
        "--out", type=Path, help="folder for state, log and weights (default runs/train-NAME)"
    )
    parser.add_argument("--seed", type=int, help="of weights and data (the recipe's)")
    parser.add_argument("--images", type=int, help="how many pictures to train on")
    parser.add_argument(
        "--device",
        default="auto",
        help="where it is trained (auto: cuda, mps or cpu, the first that is there)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw and tokenize ahead (0)"
    )
    options = parser.parse_args()
    out = options.out or Path("runs") / f"train-{options.name}"
    device = first_device() if options.device == "auto" else options.device
    made = train(
        options.name,
        out,
        seed=options.seed,
        images=options.images,
        device=device,
        workers=options.workers,
    )
    print(made)
