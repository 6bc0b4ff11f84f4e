"""`textpatch doctor`: its options, and what it does."""

from __future__ import annotations

import argparse

from textpatch.cli.opening import versions
from textpatch.cli.options import MODEL_HELP
from textpatch.errors import PatchError
from textpatch.exits import printable


def add_doctor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", nargs="*", metavar="PATH", help=f"{MODEL_HELP}; all shipped models when left out"
    )
    command.add_argument(
        "--scan",
        action="store_true",
        help="read every number, too, and name those that are none (NaN, Inf)",
    )
    command.set_defaults(run=doctor)


def doctor(options) -> None:
    """`textpatch doctor`: what is installed and whether every part works."""
    from textpatch.exits import broken
    from textpatch.metrics import Tesseract

    for name, version in versions().items():
        print(f"{name:<14}{version}")
    for name, fault in broken().items():
        print(f"{name:<14}installed and broken: {printable(fault)}; install it anew or remove it")
    from textpatch.weights.doctor import (
        UNUSABLE,
        examine,
    )  # transformers, which some of these would break

    print(f"{'attention':<14}{_attention()}")
    reader = Tesseract()
    reader.self_test()
    print(f"{'tesseract':<14}{reader.describe()['version']}, reads its self-test")
    unusable = 0
    for model in options.model or _shipped():
        for line in examine(model, numbers=options.scan):
            print(line)
            unusable += line.lstrip().startswith(UNUSABLE)
    if unusable:
        raise PatchError(
            f"{unusable} of the parts above cannot be used; the lines that begin with {UNUSABLE!r} say why"
        )


def _attention() -> str:
    """Which backend attention runs on here, plain and through slots, and whether the kernels could."""
    import torch

    from textpatch.attention import choose_backend
    from textpatch.kernels import refusal

    there = torch.cuda.is_available()
    q = torch.empty(
        0,
        1,
        0,
        64,
        device="cuda" if there else "cpu",
        dtype=torch.bfloat16 if there else torch.float32,
    )
    plain, table = (choose_backend(q, table=table) for table in (False, True))
    return f"{plain}, through slots {table}; triton kernels: {refusal(q) or 'can run'}"


def _shipped() -> list[str]:
    from textpatch.weights import shipped_models

    return shipped_models()
