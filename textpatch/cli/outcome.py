"""What a command says at its end, to a person or to a program, and what is remembered of it.

A verb's function returns an Outcome.  What it prints before that stands above the Outcome's text.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from textpatch.cli.workers import worker_of
from textpatch.disk import read_json
from textpatch.errors import PatchError, Unfinished
from textpatch.runs.answers import FILE, Answer, keep, recalled

# options that change nothing of a result
SAID = (
    "run",
    "given",
    "worker",
    "command_line",
    "debug",
    "quiet",
    "verbose",
    "json",
    "open",
    "config",
)
WHERE = ("device", "out", "batch_size", "plan")
# verbs whose answers are remembered
REMEMBERED = ("generate", "localize", "edit", "sanitize")


class Outcome(NamedTuple):
    """What a command has made.

    text    lines for a person
    result  the same for a program, JSON
    made    the file that a person looks at, None for none
    folder  the run folder, None for a command without one
    silent  whether nothing is said at all
    fault   an error with which the command ends after all is said, None for none
    """

    text: str = ""
    result: dict | None = None
    made: Path | None = None
    folder: Path | None = None
    silent: bool = False
    fault: PatchError | None = None


def carried_out(options) -> None:
    """Carry a command out, or find its answer in a finished run folder, and say what was made."""
    asked = _asked(options)  # before the verb puts in what was left out
    outcome = _remembered(options, asked)
    if outcome is None:
        with _stdout_kept_free(options) as printed:
            outcome = _run(options)
        _remember(options, asked, outcome)
        outcome = outcome._replace(text=printed.getvalue() + outcome.text)
    _tell(options, outcome)
    if outcome.fault is not None:
        raise outcome.fault


def _run(options) -> Outcome:
    """Call the verb's function, by its worker where that can be divided."""
    if not hasattr(options, "shard"):
        return options.run(options)
    with worker_of(options) as options.worker:
        try:
            return options.run(options)
        except Unfinished as told:
            return Outcome(str(told), silent=not options.worker.speaks)


def _tell(options, outcome: Outcome) -> None:
    """Print an outcome as the options ask for it, and open what was made."""
    if outcome.silent:
        return
    if options.json:
        print(json.dumps(_for_programs(options, outcome)))
    else:
        if outcome.text and not (options.quiet and outcome.made):
            print(outcome.text)
        if outcome.made is not None:
            print(linked(outcome.made))
    if options.open and outcome.made is not None:
        import webbrowser

        webbrowser.open(outcome.made.resolve().as_uri())


def _for_programs(options, outcome: Outcome) -> dict:
    """The one object of --json."""
    told = {"verb": options.verb}
    if outcome.folder is not None:
        told["folder"] = str(outcome.folder)
    if outcome.made is not None:
        told["made"] = str(outcome.made)
    return told | {"text": outcome.text, "result": outcome.result}


def linked(path: Path) -> str:
    """A path as text, on a terminal also as a link to the file."""
    if not sys.stdout.isatty() or os.environ.get("TERM") in (None, "dumb", "linux"):
        return str(path)
    return f"\033]8;;{path.resolve().as_uri()}\033\\{path}\033]8;;\033\\"


@contextlib.contextmanager
def _stdout_kept_free(options) -> Iterator[io.StringIO]:
    """Keep what is printed meanwhile for the one object of --json.  Without --json it is printed."""
    printed = io.StringIO()
    if not options.json:
        yield printed
        return
    with contextlib.redirect_stdout(printed):
        yield printed


# --- answers of finished commands


def _remembered(options, asked: dict) -> Outcome | None:
    """Return what a finished run folder answers to the same command, None if there is none."""
    if not _may_remember(options):
        return None
    for folder in _folders(options):
        answer = recalled(folder, asked)
        if answer is not None and getattr(options, "plan", False):
            return nothing_left(folder)
        if answer is not None:
            made = None
            if answer.made:
                made = folder / answer.made
            return Outcome(answer.text, read_json(folder / "results.json"), made, folder)
    return None


def nothing_left(folder: Path) -> Outcome:
    """What --plan says of a run of which everything is there."""
    return Outcome(f"everything is there, in {folder}; nothing is left to make", {"generations": 0})


def _remember(options, asked: dict, outcome: Outcome) -> None:
    """Keep an outcome in its run folder, where everything that decided it is in files."""
    planned = getattr(options, "plan", False)
    if outcome.folder is None or planned or not _may_remember(options):
        return
    from textpatch.errors import WeightsError
    from textpatch.weights.loading import find

    try:
        others = ("upscale", "text_encoders", "vae")
        models = [options.model, *(getattr(options, name, None) for name in others)]
        read = [find(model) for model in models if model is not None]
    except WeightsError:  # a model that is no file
        return
    made = ""
    if outcome.made is not None:
        made = outcome.made.relative_to(outcome.folder).as_posix()
    answer = Answer(outcome.folder, outcome.text, made)
    keep(answer, asked, [*read, *_named_files(options)])


def _may_remember(options) -> bool:
    """True for the verbs that fill a run folder, alone and as a whole."""
    divided = getattr(options, "shard", None) or os.environ.get("WORLD_SIZE", "1") != "1"
    return options.verb in REMEMBERED and not divided


def _folders(options) -> list[Path]:
    """Run folders that may hold the answer."""
    if options.out is not None:
        return [options.out]
    return [path.parent for path in Path("runs").glob(f"*/{FILE}")]


def _asked(options) -> dict:
    """What decides the answer: the options, where the paths in them begin, and this version."""
    asked = {
        name: _plain(value) for name, value in vars(options).items() if name not in (*SAID, *WHERE)
    }
    return asked | {"from": os.getcwd(), "textpatch": metadata.version("textpatch")}


def _plain(value):
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _named_files(options) -> Iterator[Path]:
    """Files and folders that the options name, and the program that reads pictures."""
    for name, value in vars(options).items():
        values = value if isinstance(value, list) else [value]
        for one in values:
            if name != "out" and isinstance(one, str | Path) and os.path.exists(one):
                yield Path(one)
    reader = shutil.which("tesseract")
    if reader is not None:
        yield Path(reader)
