"""Time a training step of adapters at the sites found and at all, and of peft's LoRA on the same modules.

    python benchmarks/training_speed.py [MODEL ...]

  ours   textpatch.finetune's steps
  peft   the same loss, batches, clipping and optimizer, with peft's layers in a copy of the denoiser

Both train the text's keys and values in float32, from the same factors.  Before anything is timed, losses and
factors of some steps are found equal to the bit, since the same products are made in the same order.  Without
peft the column `note` says so.  On a CPU the time is that of the processor.  To time beside peft:
`pip install peft`.

  median_ms    of a step, as low_ms and high_ms
  against      the way that the ratio is taken against
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from finetuning import RANK, drawing
from measure import TIMES, Table, arguments, environment, in_turns, parsed, require_close, timed
from textpatch import load
from textpatch.reference_models.pipeline import Pipeline
from textpatch.tuning.targets import target_names
from textpatch.tuning.training import BETAS, DECAY, Training, batch_loss
from textpatch.tuning.training_data import Examples, batch_of, examples
from textpatch.weights.signs.examples import sign_examples

MODELS = "tiny-sdxl", "tiny-if", "tiny-mmdit"
COMPARED = 3  # steps
TIMED = 4  # steps of one call, whose mean is a step's time
RATE = 1e-3
# a way of training, and the one that its ratio is taken against
PAIRS = [
    ("found, ours", "all, ours"),
    ("found, peft", "all, peft"),
    ("found, ours", "found, peft"),
    ("all, ours", "all, peft"),
]
COLUMNS = ["model", "sites", "way", "projections", "batch", *TIMES, "against", "note"]


class Ours:
    """Steps of `textpatch.finetune` at some projections."""

    def __init__(self, pipeline, own: list, names: list[str], options) -> None:
        settings = dict(projections=names, rank=RANK, alpha=RANK, initial="uniform", average=None)
        settings |= dict(rate=RATE, weighting="none", autocast=False, **drawing(options, 0))
        data = examples(pipeline, own, options.batch)
        self.training = Training(pipeline, data, settings, checkpointing=False)

    def __call__(self, steps: int = 1) -> None:
        self.training.run(self.training.step + steps, None, 1, None)

    @property
    def losses(self) -> list[float]:
        return self.training.losses

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B by the projection's name."""
        changes = self.training.changes
        return {name: (one.down.detach(), one.up.detach()) for name, one in changes.items()}


class Peft:
    """Steps of peft's LoRA in a copy of the denoiser, from the factors of ours."""

    def __init__(self, pipeline, ours: Ours, options) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.options = options
        self.data: Examples = ours.training.own
        parts = (pipeline.schedule, pipeline.decoder, pipeline.defaults, pipeline.name)
        self.pipeline = Pipeline(pipeline.encoders, copy.deepcopy(pipeline.denoiser), *parts)
        first = ours.factors()
        config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=list(first))
        inject_adapter_in_model(config, self.pipeline.denoiser)
        self.losses: list[float] = []
        with torch.no_grad():
            for name, (down, up) in self.factors().items():
                down.copy_(first[name][0])
                up.copy_(first[name][1])
        self.weights = [x for x in self.pipeline.denoiser.parameters() if x.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, betas=BETAS, weight_decay=DECAY)

    def __call__(self, steps: int = 1) -> None:
        for _ in range(steps):
            drawn = batch_of(self.data, len(self.losses), **drawing(self.options, 0))
            loss = batch_loss(self.pipeline, drawn)
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(float(loss.detach()))

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B by the projection's name."""
        return {
            name: (part.lora_A["default"].weight, part.lora_B["default"].weight)
            for name, part in self.pipeline.denoiser.named_modules()
            if hasattr(part, "lora_A")
        }


def compare(ours: Ours, peft: Peft) -> None:
    """Train both some steps.  Raises Unequal unless all losses and factors are equal to the bit."""
    ours(COMPARED)
    peft(COMPARED)
    made, wanted = torch.tensor(ours.losses), torch.tensor(peft.losses)
    require_close("losses", made, wanted, 0.0)
    theirs = peft.factors()
    for name, pair in ours.factors().items():
        for one, other in zip(pair, theirs[name], strict=True):
            require_close(name, one, other.detach(), 0.0)


def ways(pipeline, sites: list[int], own: list, options) -> tuple[dict[str, Callable], dict]:
    """Both ways of training some sites, and what is said of each."""
    names = target_names(pipeline.denoiser, [pipeline.denoiser.sites[i] for i in sites], "text_kv")
    made: dict[str, Callable] = {"ours": Ours(pipeline, own, names, options)}
    told = {"projections": len(names), "batch": options.batch}
    try:
        made["peft"] = Peft(pipeline, made["ours"], options)
    except ImportError as reason:
        made["ours"](1)
        return made, told | {"note": f"peft is absent: {reason}"}
    compare(made["ours"], made["peft"])
    return made, told


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=8)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"shipped models {MODELS}")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step (16)")
    parser.add_argument("--examples", type=int, default=64, help="pictures to train on (64)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device, "peft"), options.csv, options.append)
    own = sign_examples(options.examples)
    clock = time.process_time if options.device.type == "cpu" else time.perf_counter
    for name in options.models or MODELS:
        pipeline = load(name, device=options.device, dtype=options.dtype)
        arms = {
            "all": [site.index for site in pipeline.denoiser.sites],
            "found": list(pipeline.defaults.localized),
        }
        every, said = {}, {}
        for arm, sites in arms.items():
            made, said[arm] = ways(pipeline, sites, own, options)
            every |= {f"{arm}, {way}": partial(step, TIMED) for way, step in made.items()}
        calls = in_turns(every, rounds=options.rounds, device=options.device, clock=clock)
        taken = {each: [seconds / TIMED for seconds in own] for each, own in calls.items()}
        for one, other in PAIRS:
            if one in taken and other in taken:
                arm, way = one.split(", ")
                told = timed(taken, one, other) | said[arm]
                table.add(model=name, sites=arm, way=way, against=other, **told)


if __name__ == "__main__":
    main()
