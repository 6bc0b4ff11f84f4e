"""The verb `textpatch doctor`."""

from __future__ import annotations

import argparse

from textpatch.cli.models import chosen
from textpatch.cli.options import LOADING, MODEL_HELP, Help, add_loading_options
from textpatch.cli.outcome import Outcome
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


def doctor(options) -> Outcome:
    """Print what is installed as it is looked at, and return it, with a fault if a model cannot be used.

    Raises PatchError for options of which one would have no effect.
    """
    if options.readers:
        return _measured_readers(options)
    from textpatch.exits import broken
    from textpatch.metrics import Tesseract
    from textpatch.metrics.readers.in_time import InTime

    installed = versions()
    for name, version in installed.items():
        print(f"{name:<14}{version}")
    for name, fault in broken().items():
        print(f"{name:<14}installed and broken: {printable(fault)}; install it anew or remove it")
    attention = _attention()
    print(f"{'attention':<14}{attention}")
    reader = Tesseract()
    InTime(reader).self_test()
    tesseract = reader.describe()["version"]
    print(f"{'tesseract':<14}{tesseract}, reads its self-test")
    asked = chosen(options, LOADING)
    models = _examined(options.model or _shipped(), {"numbers": options.scan, **asked})
    result = {
        "versions": installed,
        "broken": broken(),
        "attention": attention,
        "tesseract": tesseract,
        "models": models,
    }
    return Outcome(result=result, fault=_fault(models))


def _measured_readers(options) -> Outcome:
    """Return what every reader reads of the pictures of a calibration, one column for each reader.

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
    return Outcome("\n".join(told_calibration(columns)), {"readers": columns})


def _examined(models: list[str], asked: dict) -> list[dict]:
    """Print what each model's files are, and return that with the number of parts that cannot be used.

    asked  arguments of `examine`
    """
    # not before `broken` has spoken: it imports transformers, which a broken package may stop
    from textpatch.weights.doctor import UNUSABLE, examine

    found = []
    for model in models:
        lines = []
        for line in examine(model, **asked):
            print(line)
            lines.append(line)
        unusable = sum(line.lstrip().startswith(UNUSABLE) for line in lines)
        found.append({"model": model, "found": lines, "unusable": unusable})
    return found


def _fault(models: list[dict]) -> PatchError | None:
    """An error that tells how many parts cannot be used, None where all can."""
    from textpatch.weights.doctor import UNUSABLE

    unusable = sum(model["unusable"] for model in models)
    if not unusable:
        return None
    return PatchError(
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
