"""`textpatch audit`: its options, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.opening import load_model


def add_audit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run_folder",
        type=Path,
        metavar="RUN",
        help="run folder of localize or edit; its first pair and seed are audited",
    )
    command.add_argument(
        "--model", help="where the model is, if not a shipped one; the run's own weights"
    )
    command.add_argument(
        "--device", default="cpu", help="where the model runs, as torch spells it (cpu)"
    )
    command.set_defaults(run=audit)


def audit(options) -> None:
    """`textpatch audit`: every swap of a run's first pair at three steps, against float64; exit code 2 if one fails."""
    from textpatch.auditing.finished import audit_run
    from textpatch.weights.fingerprint import model_sha256

    def load(name: str, dtype: str):
        options.model, options.dtype = options.model or name, dtype
        return load_model(options), model_sha256(options.model)

    report = audit_run(options.run_folder, load=load)
    print(report)
    report.require()
