"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

SENTENCE = 'a red sign that says "HELLO" on a blue wall'
MODEL_HELP = (
    "a shipped model (tiny-mmdit, tiny-sdxl, tiny-if, planted-mmdit, planted-sdxl, planted-if; tiny-if-ii "
    "draws their pictures larger), a folder in "
    "diffusers layout, an original single .safetensors file, a sharded index, or org/name in the Hugging Face "
    "cache"
)
SITES_HELP = (
    "indices in execution order, as in the paper (57), ranges of them (55-57), names, globs ('up_blocks.*'), "
    "kind:cross, group:up"
)


def add_command(added, name: str, text: str) -> argparse.ArgumentParser:
    command = added.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument(
        "--debug", action="store_true", help="show the whole traceback of an error"
    )
    return command


def add_swap_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--start", type=int, default=0, help="first patched step, 0 = noisiest (0)"
    )
    command.add_argument(
        "--branch",
        choices=["both", "cond"],
        default="both",
        help="guidance branches patched (both)",
    )


def add_upscale_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--upscale",
        metavar="MODEL",
        help="a stage II that draws the pictures larger; "
        "of an edit it reads the source prompt and no swap",
    )


def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def add_common_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="denoising steps (the model's default)")
    command.add_argument(
        "--guidance", type=number, help="classifier-free guidance (the model's default)"
    )
    for side in ("height", "width"):
        command.add_argument(
            f"--{side}",
            type=int,
            metavar="PIXELS",
            help=f"{side} of the pictures (the model's own)",
        )
    command.add_argument("--out", type=Path, help="run folder (default: runs/COMMAND-MODEL-HASH)")
    command.add_argument(
        "--device", default="cpu", help="where the model runs, as torch spells it (cpu)"
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="numbers the model computes in (float32)",
    )
