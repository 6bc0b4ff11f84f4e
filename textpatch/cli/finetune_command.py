"""The verb `textpatch finetune`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from textpatch.cli.adapted import (
    AFTER,
    BEFORE,
    Shown,
    sites_of,
    tell_projections,
    training_processes,
)
from textpatch.cli.models import load_model
from textpatch.cli.opening import folder_of, notes_of, open_folder, whole_request
from textpatch.cli.options import (
    SITES_HELP,
    Help,
    add_device_option,
    add_folder_option,
    add_loading_options,
    add_model,
    number,
)
from textpatch.cli.outcome import Outcome
from textpatch.errors import PatchError
from textpatch.runs.interrupts import told_on_interrupt

# those of textpatch.tuning, which is not imported before it is known that something is to be done
TARGETS = ["text_kv", "qkvo", "text_all", "all"]
TIMES = ["uniform", "logit_normal"]
WEIGHTINGS = ["none", "min_snr", "sigma_squared", "cosmap"]
INITIAL = ["uniform", "gaussian"]
SIGNS = "signs"
EXAMPLES = 256  # signs drawn where no number is given
SHOWN = 4  # prompts drawn where none is given
PARTS = 3  # of a training, between which samples are drawn
ADAPTER = "adapter.safetensors"
# options that are arguments of `finetune`, and settle what a step does
SETTINGS = "rank alpha initial rate batch dropout times weighting average autocast seed".split()

HELP = Help(
    usage="textpatch finetune MODEL --data FOLDER [options]",
    summary="train a LoRA at the sites that carry the word",
    about="""\
Train an adapter, a low-rank change of the projections of some sites, on pictures with captions.

Before anything is trained the projections are printed, with their number and share of the
model. adapter.safetensors is read by `textpatch generate --lora`, and by diffusers. sheet.png
shows some prompts before, on the way, and after.

Cost: for each step the denoiser forwards, and backwards down to the first trained site. After
Ctrl-C, which is heard after the step, the same command goes on to the same adapter.\
""",
    examples=(
        (
            "pictures of faded signs, of which the captions do not speak, at the localised sites",
            "textpatch finetune tiny-sdxl --data signs:faded --sites localized --steps 60 --batch 16",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch finetune`."""
    add_model(command)
    _add_data(command.add_argument_group("what is learned"))
    _add_places(command.add_argument_group("what is trained"))
    _add_training(command.add_argument_group("how it is trained"))
    _add_samples(command.add_argument_group("what is shown and kept"))
    add_loading_options(command)
    command.set_defaults(run=finetune, height=None, width=None)


def _add_data(group) -> None:
    group.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="folder of pictures with captions (x.png beside x.txt, or metadata.jsonl with file_name and "
        "text), a .safetensors file of latents with captions, or signs or signs:faded, which are drawn",
    )
    group.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="number of signs that are drawn (default: 256)",
    )


def _add_places(group) -> None:
    group.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        default=["localized"],
        help=f"sites that are trained: {SITES_HELP}, all, or localized, those localised for the model "
        "(default)",
    )
    group.add_argument(
        "--targets",
        choices=TARGETS,
        default=TARGETS[0],
        help="their projections: text_kv, keys and values of the text (default), qkvo, as in the paper, "
        "text_all, all of the text, or all",
    )
    group.add_argument("--rank", type=int, metavar="R", default=4, help="rank (default: 4)")
    group.add_argument("--alpha", type=number, metavar="ALPHA", help="alpha (default: the rank)")
    group.add_argument(
        "--initial",
        choices=INITIAL,
        default=INITIAL[0],
        help="how A begins: uniform, as in peft (default), or gaussian, as in the paper",
    )


def _add_training(group) -> None:
    group.add_argument("--steps", type=int, metavar="N", default=100, help="steps (default: 100)")
    group.add_argument(
        "--rate", type=number, metavar="RATE", default=1e-2, help="AdamW's rate (default: 0.01)"
    )
    group.add_argument(
        "--batch", type=int, metavar="N", default=8, help="rows of a step (default: 8)"
    )
    group.add_argument(
        "--dropout",
        type=number,
        metavar="SHARE",
        default=0.0,
        help="share of captions left out, for guidance (default: 0)",
    )
    group.add_argument(
        "--times",
        choices=TIMES,
        default=TIMES[0],
        help="how times are drawn: uniform (default), or logit_normal, as for SD3",
    )
    group.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        default=WEIGHTINGS[0],
        help="weights of the loss by time: none (default), min_snr for diffusions, sigma_squared or cosmap "
        "for flows",
    )
    group.add_argument(
        "--average",
        type=number,
        metavar="DECAY",
        help="decay of a moving average, which is what is kept (default: no average)",
    )
    group.add_argument("--autocast", action="store_true", help="multiply in bfloat16")
    group.add_argument(
        "--checkpointing",
        action="store_true",
        help="run blocks again in the backward pass, which saves memory",
    )
    group.add_argument("--seed", type=int, metavar="SEED", default=0, help="seed (default: 0)")
    add_device_option(group)
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="numbers of the model's own weights; the adapter's are float32 (default: float32)",
    )


def _add_samples(group) -> None:
    group.add_argument(
        "--sample",
        nargs="+",
        metavar="PROMPT",
        help=f"prompts that are drawn before, on the way and after (default: {SHOWN} of the captions)",
    )
    group.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="steps between two samples, and two states to go on from (default: a third of the steps)",
    )
    add_folder_option(group)


def finetune(options) -> Outcome:
    """Train an adapter, and keep it with pictures made before and under it."""
    from textpatch.tuning.finetuning import prepared, require_counts

    every = options.every
    if every is None:
        every = max(1, math.ceil(options.steps / PARTS))
    require_counts(steps=options.steps, every=every)
    settings = {name: getattr(options, name) for name in SETTINGS}
    pipeline = load_model(options)
    sites = sites_of(pipeline, options.sites)
    data = _data(options)
    prompts = options.sample or _some_captions(data)
    pipeline.check(prompts, seeds=[options.seed], steps=pipeline.defaults.steps)
    with training_processes(options.device):
        training = prepared(pipeline, data, sites, options.targets, settings, options.checkpointing)
        whole = dict(
            command="finetune",
            sites=list(sites),
            targets=options.targets,
            steps=options.steps,
            every=every,
            samples=prompts,
            **training.settings,
        )
        request = whole_request(options, pipeline, whole)
        folder = folder_of(options, request)
        if training.processes.rank:  # the first process alone shows and keeps
            training.resumed(folder, options.steps)
            training.run(options.steps, folder, every, None)
            return Outcome(silent=True)
        if not options.quiet:
            tell_projections(pipeline, sites, options.targets, training.changes)
        run = open_folder(options, request, loaded=notes_of(pipeline))
        training.resumed(run.folder, options.steps)
        shown = Shown(run, pipeline, prompts, options.seed)
        with told_on_interrupt(_Progress(training, options.steps, run.folder)):
            _train(training, options.steps, every, shown)
            return _finish(run, training, shown)


def _train(training, steps: int, every: int, shown) -> None:
    """Make the steps that are missing, and draw before them and on the way."""
    from textpatch.tuning.low_rank import Adapter

    def due() -> bool:
        return 0 < training.step < steps and training.step % every == 0

    def after(step: int, loss: float) -> None:
        if due():
            shown.draw(f"step {training.step}")

    shown.draw(BEFORE)
    if due():  # a run that goes on may have been stopped while it drew
        shown.draw(f"step {training.step}", Adapter(training.changes))
    training.run(steps, shown.run.folder, every, after)


def _some_captions(data: list) -> list[str]:
    """First captions of a data set, each once.   Raises PatchError for a data set of none."""
    captions = list(dict.fromkeys(caption for caption, _ in data))[:SHOWN]
    if not captions:
        raise PatchError("the data are of no example; give some")
    return captions


def _data(options) -> list:
    """Captions with pictures or latents, read or drawn.

    Raises PatchError for --examples of what is read.
    """
    name, _, style = options.data.partition(":")
    if name == SIGNS:
        from textpatch.weights.signs.examples import sign_examples

        count = EXAMPLES if options.examples is None else options.examples
        return sign_examples(count, style=style or "plain", seed=options.seed)
    if options.examples is not None:
        raise PatchError(
            f"--examples {options.examples} is a number of signs that are drawn, and --data "
            f"{options.data} is read whole; leave it out"
        )
    from textpatch.tuning.data_files import read_data

    return read_data(options.data)


def _finish(run, training, shown) -> Outcome:
    """Keep the adapter, what was measured, and the sheet."""
    adapter = training.adapter()
    adapter.save(run.folder / ADAPTER)
    shown.draw(AFTER, adapter)
    result = {
        "schema_version": 1,
        "projections": list(adapter.changes),
        "parameters": adapter.parameters,
        "adapter_sha256": adapter.sha256,
        "losses": training.losses,
        "pictures": shown.pictures,
    }
    run.write_json("results.json", result)
    sheet = run.write_bytes("sheet.png", shown.sheet())
    return Outcome(str(run.folder / ADAPTER), result, sheet, run.folder)


class _Progress:
    """Words about how far a training is, for somebody who interrupts it."""

    def __init__(self, training, steps: int, folder: Path) -> None:
        self.training = training
        self.steps = steps
        self.folder = folder

    def __str__(self) -> str:
        return (
            f"{self.training.step} of {self.steps} steps are made and in {self.folder}; the same command "
            "goes on with the rest"
        )
