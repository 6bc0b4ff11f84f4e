"""The verb `textpatch doctor`."""

from __future__ import annotations

import argparse

from textpatch.cli.models import chosen
from textpatch.cli.options import LOADING, MODEL_HELP, Help, add_loading_options
from textpatch.errors import OCRError, PatchError
from textpatch.exits import printable
from textpatch.runs.packages import versions

HELP = Help(
    usage="textpatch doctor [PATH ...] [--scan] [--readers]",
    summary="check the installation, the OCR engine and weight files",
    about="""\
Check that everything works: packages, attention, the OCR engine, and models.

A shipped model is loaded and draws a picture. Of other weights every component is
identified beside the published ones, and what cannot be used is said with its reason. The
exit code is 2 if a part cannot be used.

A reader that repairs letters calls broken words right. --readers lets every reader that is
installed read 240 pictures, of words that must be read and of words that must not.

Cost: some seconds for each shipped model. Of weight files only the headers are read, unless
--scan asks for every number. --readers takes less than a minute.\
""",
    examples=(
        ("the installation and all shipped models", "textpatch doctor"),
        ("what is in a file", "textpatch doctor /models/sd_xl_base_1.0.safetensors"),
        ("which reader can be trusted with what", "textpatch doctor --readers"),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch doctor`."""
    command.add_argument(
        "model", nargs="*", metavar="PATH", help=f"{MODEL_HELP}; all shipped models when left out"
    )
    command.add_argument(
        "--scan",
        action="store_true",
        help="also read every number, and name those that are NaN or Inf",
    )
    command.add_argument(
        "--readers",
        action="store_true",
        help="measure the readers alone: what each reads of words whole and broken",
    )
    add_loading_options(command)
    command.set_defaults(run=doctor)


def doctor(options) -> None:
    """Print what is installed, and whether every part works.

    Raises PatchError if a part of a model cannot be used, and for options of which one would have no effect.
    """
    if options.readers:
        _measure_readers(options)
        return
    from textpatch.exits import broken
    from textpatch.metrics import Tesseract

    for name, version in versions().items():
        print(f"{name:<14}{version}")
    for name, fault in broken().items():
        print(f"{name:<14}installed and broken: {printable(fault)}; install it anew or remove it")
    print(f"{'attention':<14}{_attention()}")
    reader = Tesseract()
    reader.self_test()
    print(f"{'tesseract':<14}{reader.describe()['version']}, reads its self-test")
    asked = chosen(options, LOADING)
    _examine(options.model or _shipped(), {"numbers": options.scan, **asked})


def _measure_readers(options) -> None:
    """Print what every reader reads of the pictures of a calibration, one column for each reader.

    Raises PatchError if models are named as well.
    """
    if options.model or options.scan or chosen(options, LOADING):
        raise PatchError(
            "--readers measures readers alone, and PATH, --scan and how a model is loaded are about models; "
            "leave out one of them"
        )
    from textpatch.metrics.calibration import EACH, calibrated, told_calibration
    from textpatch.metrics.readers.named import READERS
    from textpatch.progress import counted, phase

    columns = {}
    with phase("readers", unit="reader"):
        for name in counted(list(READERS)):
            try:
                columns[name] = calibrated(name, EACH)
            except OCRError as error:
                print(f"{name} is left out: {printable(str(error))}")
    if not columns:
        raise OCRError(
            "no reader can read here; install tesseract, or pip install 'textpatch[ocr]'"
        )
    for line in told_calibration(columns):
        print(line)


def _examine(models: list[str], asked: dict) -> None:
    """Print what each model's files are.

    asked  arguments of `examine`
    Raises PatchError if a part cannot be used.
    """
    # not before `broken` has spoken: it imports transformers, which a broken package may stop
    from textpatch.weights.doctor import UNUSABLE, examine

    unusable = 0
    for model in models:
        for line in examine(model, **asked):
            print(line)
            unusable += line.lstrip().startswith(UNUSABLE)
    if unusable:
        raise PatchError(
            f"{unusable} of the parts above cannot be used; the lines that begin with {UNUSABLE!r} say why"
        )


def _attention() -> str:
    """Name the backends of attention here, plain and through slots, and whether Triton's kernels can run."""
    import torch

    from textpatch.attention import choose_backend
    from textpatch.kernels import refusal

    q = torch.empty(0, 1, 0, 64)
    if torch.cuda.is_available():
        q = q.to("cuda", torch.bfloat16)
    plain = choose_backend(q, table=False)
    table = choose_backend(q, table=True)
    return f"{plain}, through slots {table}; triton kernels: {refusal(q) or 'can run'}"


def _shipped() -> list[str]:
    from textpatch.weights import shipped_models

    return shipped_models()
