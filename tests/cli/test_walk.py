"""A walk through the command line: commands as people type them, with exit codes and phrases of the answers.

By default they are given in this process; --long gives them again in processes whose output is a pipe.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from textpatch import cli
from textpatch.cli.parser import VERBS

SIGN = """'a red sign that says "HELLO" on a blue wall'"""
DRAW = ["generate M a", "localize M", "edit M", "sanitize M"]  # verbs that take seeds
COMMANDS = [
    *((f"{verb} --help", 0, f"usage: textpatch {verb}") for verb in VERBS),
    *((f"{verb} --no-such-option", 2, "error: ") for verb in VERBS),
    *((f"{verb} --config", 2, "expected one argument") for verb in VERBS),
    *((f"{verb} -h", 0, "what is said") for verb in VERBS),
    *((f"{start} --height tall", 2, "invalid int value: 'tall'") for start in DRAW),
    *((f"{start} --width wide", 2, "invalid int value: 'wide'") for start in DRAW),
    *((f"{start} --device", 2, "expected one argument") for start in DRAW),
    *((f"{start} --out", 2, "expected one argument") for start in DRAW),
    *((f"{start} --prompts", 2, "expected one argument") for start in DRAW),
    *((f"{start} --seeds one", 2, "'one' is no seed") for start in DRAW),
    *((f"{start} --seed 3-1", 2, "'3-1' is no range") for start in DRAW),
    *((f"{start} --limit 0", 2, "'0' is no whole number") for start in DRAW),
    *((f"{start} --steps two", 2, "invalid int value: 'two'") for start in DRAW),
    *((f"{start} --steps 1 --steps 2", 2, "1 and 2 were given") for start in DRAW),
    *((f"{start} --guidance nan", 2, "nan is no finite number") for start in DRAW),
    *((f"{start} --dtype fp16", 2, "invalid choice: 'fp16'") for start in DRAW),
    *((f"{start} --config gone.toml", 2, "cannot read options from gone.toml") for start in DRAW),
    *((f"{start} --config wrong.toml", 2, "no option 'sedes'; closest: seed") for start in DRAW),
    *((f"{start} --config kinds.toml", 2, "json is 'yes'; give true or false") for start in DRAW),
    *((f"{start} --config other.json", 2, "is of the command sites") for start in DRAW),
    ("generate M a --batch-size 0", 2, "'0' is no whole number"),
    ("localize M --batch-size many", 2, "'many' is no whole number"),
    ("localize M --reader eyes", 2, "'eyes' is no reader"),
    ("edit M --reader eyes", 2, "'eyes' is no reader"),
    ("edit M --pairs pairs.tsv", 2, "a file of pairs is named by --prompts"),
    ("edit M", 2, "edit needs --source PROMPT"),
    (f"edit M --source {SIGN}", 2, "--target PROMPT or --word WORD"),
    (f"edit M --source {SIGN} --target b --word C", 2, "both say what is wanted"),
    (f"edit M --source {SIGN} --prompts pairs.tsv", 2, "in two ways"),
    (f"edit M --source {SIGN} --word C --limit 2", 2, "--limit 2 takes the first pairs"),
    ("edit M --pairs 2 --word C", 2, "--pairs takes pairs of the shipped lists, and --word one"),
    ("edit M --prompts gone.tsv", 2, "cannot read prompts from gone.tsv"),
    ("edit M --source 'a wall' --word C", 2, "which quotes 0"),
    ("generate M", 2, "no prompt was given"),
    ("generate M a --prompts prompts.txt", 2, "leave one of them out"),
    ("generate M a --limit 2", 2, "they were typed; leave it out"),
    ("generate M --prompts gone.txt", 2, "cannot read prompts from gone.txt"),
    ("generate M --prompts empty.csv", 2, "empty.csv has no prompts"),
    ("generate M --prompts wide.csv", 2, "wide.csv, line 1: expected `prompt`"),
    ("generate M --prompts broken.jsonl", 2, "broken.jsonl, line 2: '{' is no JSON"),
    ("sanitize M", 2, "no prompts were given"),
    ("--completion fish", 2, "invalid choice: 'fish'"),
    ("nothing", 2, "invalid choice: 'nothing'"),
    ("--help", 0, "Find and use the attention layers"),
    ("--version", 0, "textpatch 0."),
    ("runs gone", 2, "no folder gone"),
    ("runs .", 0, "no run folders below ."),
    ("report gone", 2, "cannot read gone/manifest.json"),
    ("compare gone gone", 2, "cannot read gone/manifest.json"),
    ("models", 0, "they understand: a COLOUR"),
    ("models --json", 0, '"verb": "models"'),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "wrong.toml": "sedes = 3",
        "kinds.toml": 'json = "yes"',
        "other.json": '{"command": "textpatch sites M"}',
        "prompts.txt": "a\n",
        "pairs.tsv": "a\tb\n",
        "empty.csv": "prompt\n",
        "wide.csv": "a,b\n",
        "broken.jsonl": '"a"\n{\n',
    }.items():
        Path(name).write_text(text, "utf-8")


def ended(words: list[str]) -> int:
    """Exit code of a command in this process."""
    try:
        return cli.main(words)
    except SystemExit as end:
        return end.code


def test_the_walk_is_long():
    """At least 150 commands, each once."""
    assert len({command for command, _, _ in COMMANDS}) == len(COMMANDS) >= 150


def test_every_command_answers(here, capfd):
    """The exit code, and the phrase on stdout for what was done, on stderr for what was refused."""
    wrong = []
    for command, code, phrase in COMMANDS:
        found = ended(shlex.split(command))
        out, err = capfd.readouterr()
        said = " ".join((err if code else out).split())
        if found != code or " ".join(phrase.split()) not in said or "Traceback" in err:
            wrong.append((command, found, said[-300:]))
    assert wrong == []


@pytest.mark.long  # the default walk gives the same commands, in one process
def test_every_command_answers_in_a_pipe(here):
    """The same from processes in the C locale, without a home and without colours."""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"LC_ALL": "C", "NO_COLOR": "1", "COLUMNS": "80"}
    for command, code, phrase in COMMANDS:
        told = subprocess.run(
            [sys.executable, "-m", "textpatch", *shlex.split(command)],
            capture_output=True,
            text=True,
            env=environment,
        )
        said = " ".join((told.stderr if code else told.stdout).split())
        assert told.returncode == code and " ".join(phrase.split()) in said, (command, said)
        assert "\x1b" not in told.stdout + told.stderr
