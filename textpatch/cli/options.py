"""Options that several verbs share, and what every verb says of itself."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

from textpatch.cli.actions import GivenSeeds, seeds

SENTENCE = 'a red sign that says "HELLO" on a blue wall'
OTHER_SENTENCE = SENTENCE.replace("HELLO", "WORLD")
MODEL_HELP = (
    "a shipped model (tiny-mmdit, tiny-sdxl, tiny-if, tiny-words, planted-mmdit, planted-sdxl, planted-if, "
    "and tiny-if-ii, which draws the pictures of the IF models larger), a folder in diffusers layout, "
    "an original single .safetensors file, a sharded index, org/name in the Hugging Face cache, or "
    "MODULE:FUNCTION, a Python function that gives a pipeline, of diffusers' or a wrapped one"
)
SITES_HELP = (
    "indices in execution order, as in the paper (57), ranges of them (55-57), names, globs ('up_blocks.*'), "
    "kind:cross, group:up"
)
# Arguments of `textpatch.load` that are options by the same names.  BORROWING are places of other models,
# and CHOSEN decide what is taken of the model's own.
BORROWING = ("text_encoders", "vae")
CHOSEN = ("schedule", "clip_skip", "long_prompts", "variant", "ema")
LOADING = (*BORROWING, *CHOSEN, "follow_links")
# those of `load_denoiser`
READING = ("variant", "ema", "follow_links")


class Help(NamedTuple):
    """A verb's account of itself.

    usage     how it is called
    summary   one line for the list of all verbs
    about     what it does and what it costs, in paragraphs
    examples  (what is asked, the command) of some calls
    """

    usage: str
    summary: str
    about: str
    examples: tuple[tuple[str, str], ...]

    @property
    def epilog(self) -> str:
        """The examples, each below what it asks."""
        shown = [f"  # {asked}\n  {command}" for asked, command in self.examples]
        return "\n".join(["examples:", *shown])


def number(text: str) -> float:
    """Read a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the model's place as the first argument."""
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_loading_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `textpatch.load` that say what is loaded, by the same names."""
    group = command.add_argument_group("how the model is loaded")
    add_borrowing_options(group)
    group.add_argument(
        "--schedule",
        metavar="NAME",
        help="schedule with the settings of the model's own, such as euler, ddim or dpmpp_2m_karras",
    )
    group.add_argument(
        "--clip-skip",
        type=whole,
        metavar="N",
        help="layers left out at the end of the CLIPs of Stable Diffusion 1, 2 and XL; 1 is diffusers' "
        "clip_skip=1, and 2 in other programs",
    )
    group.add_argument(
        "--long-prompts",
        type=whole,
        metavar="N",
        help="windows of 77 tokens in which each prompt is read, of Stable Diffusion 1, 2 and XL",
    )
    add_reading_options(group)


def add_borrowing_options(group) -> None:
    """Add the places of other models, of which parts are taken."""
    group.add_argument(
        "--text-encoders",
        metavar="MODEL",
        help="another model, whose text encoders and tokenizers are taken",
    )
    group.add_argument(
        "--vae",
        metavar="MODEL",
        help="another model, or a VAE's own folder or file, whose VAE is taken",
    )


def add_reading_options(group) -> None:
    """Add the arguments of `textpatch.load_denoiser` that say which files are read."""
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="variant of the weights, as fp16 in model.fp16.safetensors",
    )
    group.add_argument(
        "--ema",
        action="store_true",
        help="take the moving average of the denoiser's weights that training has left",
    )
    add_links_option(group)


def add_links_option(group) -> None:
    """Add the permission to follow links."""
    group.add_argument(
        "--follow-links",
        action="store_true",
        help="follow links out of a folder, where they end in a regular file",
    )


def whole(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def add_seeds_option(group) -> None:
    """Add the seeds, which multiply the prompts in every verb."""
    group.add_argument(
        "--seeds",
        "--seed",
        action=GivenSeeds,
        type=seeds,
        nargs="+",
        metavar="SEED",
        default=[0],
        help="seeds of the noise and ranges of them, such as 0-3 7; every prompt or pair is drawn with every "
        "seed (default: 0)",
    )


def add_prompts_options(group, what: str) -> None:
    """Add a file of prompts or pairs, and how many of it are taken.

    what  one entry of the file, as the help says it
    """
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=f"a file of {what}; .csv and .jsonl are read, too, with a header or without, and lines that "
        "begin with # are left out",
    )
    add_limit_option(group)


def add_limit_option(group) -> None:
    """Add how many of a file's prompts or pairs are taken."""
    group.add_argument(
        "--limit",
        type=whole,
        metavar="N",
        help="how many of --prompts, the first ones (default: all)",
    )


def add_plan_option(group) -> None:
    """Add the question what a run would do."""
    group.add_argument(
        "--plan",
        action="store_true",
        help="say what would be generated, how long it takes and how much memory, and stop there",
    )


def add_batch_option(group) -> None:
    """Add how many pictures are made at once."""
    group.add_argument(
        "--batch-size",
        type=whole,
        metavar="N",
        help="most pictures made at once (default: as many as do well; fewer where the memory is too small)",
    )


def add_swap_options(group) -> None:
    """Add which steps and which guidance branches a swap acts in."""
    group.add_argument(
        "--start",
        type=int,
        metavar="STEP",
        default=0,
        help="first step that is swapped; 0 is the noisiest, and the default",
    )
    group.add_argument(
        "--branch",
        choices=["both", "cond"],
        default="both",
        help="guidance branches that are swapped: both (default), or cond, the prompt's alone",
    )


def add_upscale_option(group) -> None:
    """Add a second model that draws the pictures larger."""
    group.add_argument(
        "--upscale",
        metavar="MODEL",
        help="a stage II that draws the pictures larger; for an edit it reads the source prompt and no swap",
    )


def add_sampling_options(group) -> None:
    """Add how pictures are generated."""
    group.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the model's own)"
    )
    group.add_argument(
        "--guidance",
        type=number,
        metavar="SCALE",
        help="classifier-free guidance, 0 or 1 for none (default: the model's own)",
    )
    for side in ("height", "width"):
        group.add_argument(
            f"--{side}",
            type=int,
            metavar="PIXELS",
            help=f"{side} of the pictures (default: the model's own)",
        )
    add_device_option(group)
    group.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="numbers the model computes in (default: float32)",
    )


def add_device_option(group) -> None:
    """Add where the model runs."""
    group.add_argument(
        "--device",
        default="auto",
        help="where the model runs, as torch spells it (default: auto, which is cuda, mps or cpu, the first "
        "that is there)",
    )


def add_folder_option(group) -> None:
    """Add which run folder keeps what is made."""
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder (default: runs/VERB-MODEL-HASH, the same for the same request)",
    )
