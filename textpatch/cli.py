"""The command line: what can be asked, and how.  `--help` imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import warnings
from importlib import metadata
from pathlib import Path

from textpatch import commands
from textpatch.exits import guarded, warn

SENTENCE = 'a red sign that says "HELLO" on a blue wall'
MODEL_HELP = ("a shipped model (tiny-mmdit, tiny-sdxl, tiny-if, planted-mmdit, planted-sdxl, planted-if; tiny-if-ii "
              "draws their pictures larger), a folder in "
              "diffusers layout, an original single .safetensors file, a sharded index, or org/name in the Hugging Face "
              "cache")  # fmt: skip
SITES_HELP = ("indices in execution order, as in the paper (57), ranges of them (55-57), names, globs ('up_blocks.*'), "
              "kind:cross, group:up")  # fmt: skip
EXAMPLES = f"""examples:
  textpatch sites tiny-mmdit
  textpatch sites --model /models/stable-diffusion-xl-base-1.0
  textpatch generate tiny-mmdit '{SENTENCE}' --seed 0 1 2
  textpatch localize planted-mmdit --pairs 8 --seeds 0 1
  textpatch localize tiny-mmdit --what style --pairs 2
  textpatch edit planted-mmdit --source '{SENTENCE}' --target 'a red sign that says "WORLD" on a blue wall'
  textpatch audit runs/edit-planted-mmdit-1a2b3c4d
  textpatch doctor
  textpatch doctor /models/sd_xl_base_1.0.safetensors
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `guarded`."""
    options = parser().parse_args(argv)
    options.command_line = shlex.join(["textpatch", *(sys.argv[1:] if argv is None else argv)])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: warn(str(message))
        return guarded(options.run, options, debug=options.debug)


class Given(argparse.Action):
    """Store an option's value.  A list grows with every repetition; another single value is an error."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = self._given(namespace)
        if before is None:
            setattr(namespace, self.dest, values)
        elif isinstance(values, list):
            setattr(namespace, self.dest, before + values)
        elif values != before:
            raise argparse.ArgumentError(self, f"{before} and {values} were given, and it takes one; leave one out")

    def _given(self, namespace):
        """What the command line gave so far, None if nothing: a default is not given."""
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            return getattr(namespace, self.dest)
        given.add(self.dest)
        return None


class Parser(argparse.ArgumentParser):
    """A parser whose options are `Given`, where argparse would keep the last value alone, silently."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register("action", None, Given)
        self.register("action", "store", Given)


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="textpatch", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find and use the attention layers through which a text-to-image model writes words.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"textpatch {metadata.version('textpatch')}")
    added = top.add_subparsers(required=True, metavar="COMMAND")
    _sites(
        _command(added, "sites", "list where text enters a model: index, name, kind, heads, parameters")
    )
    _generate(_command(added, "generate", "make pictures of prompts"))
    _localize(
        _command(
            added, "localize", "swap text K/V one site at a time and show which site carries the word"
        )
    )
    _edit(_command(added, "edit", "keep the picture of one prompt, write the word of another"))
    _audit(_command(added, "audit", "carry a finished run's swaps out again and hold each against float64"))
    _doctor(_command(added, "doctor", "check the installation, the OCR engine, and what is in weight files"))
    return top


def _command(added, name: str, text: str) -> argparse.ArgumentParser:
    command = added.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return command


def _sites(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", help=f"{MODEL_HELP}; or a published name, such as sdxl-base-1.0")
    command.add_argument("--model", dest="path", metavar="PATH", help="the same, spelled out")
    command.set_defaults(run=commands.sites)


def _audit(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", type=Path, metavar="RUN",
                         help="run folder of localize or edit; its first pair and seed are audited")  # fmt: skip
    command.add_argument("--model", help="where the model is, if not a shipped one; the run's own weights")
    command.add_argument("--device", default="cpu", help="where the model runs, as torch spells it (cpu)")
    command.set_defaults(run=commands.audit)


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="*", metavar="PATH",
                         help=f"{MODEL_HELP}; all shipped models when left out")  # fmt: skip
    command.add_argument("--scan", action="store_true",
                         help="read every number, too, and name those that are none (NaN, Inf)")  # fmt: skip
    command.set_defaults(run=commands.doctor)


def _generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument("prompts", nargs="+", metavar="PROMPT", help=f"for shipped models like: {SENTENCE}")
    command.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="noise seeds; every prompt with every seed"
    )
    command.add_argument("--negative", help="negative prompt (default: none; SDXL reads zeros then, the others the "
                                            "empty prompt)")  # fmt: skip
    _upscale(command)
    _common(command)
    command.set_defaults(run=commands.generate)


def _localize(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    _asked(command)
    command.add_argument("--sites", nargs="+", help=f"{SITES_HELP}; each tried alone (all)")
    command.add_argument("--set", dest="sets", nargs="+", action="append", metavar="SITE",
                         help="sites tried together; may be given several times, replaces --sites")  # fmt: skip
    command.add_argument("--mode", choices=["exhaustive", "staged", "contribution", "attribution"],
                         default="exhaustive",
                         help="score every site on every pair (exhaustive); or keep some by their scores on a few pairs "
                              "(staged), by what they give to the picture (contribution) or by what a backward pass at "
                              "every step promises of a swap (attribution), and score those")  # fmt: skip
    command.add_argument("--keep", type=int, help="how many sites a screening mode keeps (as many as stand out)")
    command.add_argument("--first", type=int, help="pairs it begins with, doubled for sites still in doubt (4)")
    command.add_argument("--starts", action="store_true", help="also the curve over start steps of the sites found")
    command.add_argument("--heads", action="store_true", help="also which heads of these sites do their work")
    command.add_argument("--allow", nargs="+", default=[], metavar="NAME",
                         help="go on in --out although these entries of its request differ, such as weights or "
                              "ocr.version; what is there stays, the manifest tells both values")  # fmt: skip
    _swap(command)
    _common(command)
    command.set_defaults(run=commands.localize)


def _asked(command: argparse.ArgumentParser) -> None:
    """Which prompt pairs and seeds."""
    command.add_argument("--what", metavar="ATTRIBUTE", default=commands.WORD,
                         help="what is looked for: the word (default), or the style, colour, shape, wall or pattern of the "
                              "shipped signs, in pairs that differ in nothing else")  # fmt: skip
    command.add_argument(
        "--pairs", type=int, help="how many prompt pairs of the shipped word lists (8)"
    )
    command.add_argument("--split", help="which words, ours or GlyphControl's: validation (default) or test")
    command.add_argument(
        "--same-scene", action="store_true", help="source and target prompt differ in the word alone"
    )
    command.add_argument("--prompts", type=Path, help="own prompt pairs: a file of lines `source<TAB>target`, or a "
                                                       "folder with a copy of GlyphControl-release")  # fmt: skip
    command.add_argument("--bench", help="GlyphControl's prompts: simple (default), creative, or mixed, creative with "
                                         "another sentence for the target")  # fmt: skip
    command.add_argument("--limit", type=int, help="how many of GlyphControl's pairs (all of the split)")
    command.add_argument("--strict", action="store_true",
                         help="refuse pairs that differ in more than the quoted text; of --prompts FILE they are warned of")  # fmt: skip
    command.add_argument("--shard", metavar="I/N", help="do the I-th of N parts, 0/N to N-1/N, into the run folder they "
                                                        "share (torchrun's RANK and WORLD_SIZE)")  # fmt: skip
    command.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="noise seeds; every pair with every seed (0)"
    )


def _edit(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument("--source", required=True, help="prompt whose picture is kept")
    command.add_argument("--target", required=True, help="prompt whose word is wanted")
    command.add_argument("--sites", nargs="+",
                         help=f"{SITES_HELP}; swapped together (those localised for the model)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0)
    _swap(command)
    _upscale(command)
    _common(command)
    command.set_defaults(run=commands.edit)


def _swap(command: argparse.ArgumentParser) -> None:
    command.add_argument("--start", type=int, default=0, help="first patched step, 0 = noisiest (0)")
    command.add_argument(
        "--branch", choices=["both", "cond"], default="both", help="guidance branches patched (both)"
    )


def _upscale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--upscale", metavar="MODEL", help="a stage II that draws the pictures larger; "
                                                            "of an edit it reads the source prompt and no swap")  # fmt: skip


def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="denoising steps (the model's default)")
    command.add_argument("--guidance", type=number, help="classifier-free guidance (the model's default)")
    for side in ("height", "width"):
        command.add_argument(f"--{side}", type=int, metavar="PIXELS", help=f"{side} of the pictures (the model's own)")
    command.add_argument("--out", type=Path, help="run folder (default: runs/COMMAND-MODEL-HASH)")
    command.add_argument("--device", default="cpu", help="where the model runs, as torch spells it (cpu)")
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32",
                         help="numbers the model computes in (float32)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
