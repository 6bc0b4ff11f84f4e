"""A walk through the command line: commands as people type them, with exit codes and phrases of the answers.

By default they are given in this process; --long gives them again in processes whose output is a pipe.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import terminals
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
    ("edit M --source 'a wall' --word C", 2, "which quotes nothing"),
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


WORDS = """'a red sign that says "OPEN" and "DAILY" on a blue wall'"""
GREEN = """'a green badge that says "TIGER" on a blue wall'"""
RUN = "runs/localize-planted"
# what is carried out, each command in the folder that those before it have left
CARRIED_OUT = [
    ("sites tiny-mmdit", 0, "898,992 parameters, 6 sites in execution order"),
    ("sites tiny-mmdit --json", 0, '"verb": "sites"'),
    ("sites sdxl-base-1.0", 0, "70 sites in execution order"),
    ("sites tiny-mndit", 2, "closest: tiny-mmdit"),
    (f"generate tiny-mmdit {SIGN}", 0, "1 picture is in runs/generate-tiny-mmdit-"),
    (
        f"generate tiny-mmdit {SIGN} --plan",
        0,
        "everything is there, in runs/generate-tiny-mmdit-",
    ),
    (f"generate tiny-mmdit {SIGN} --seeds 0 --seeds 2", 0, "2 pictures are in"),
    (f"generate tiny-mmdit {SIGN} --seeds 0-2 -q", 0, "sheet.png"),
    (f"generate tiny-mmdit {SIGN} --seeds 0-2 --json", 0, '"verb": "generate"'),
    (f"generate tiny-mmdit {SIGN} --steps 2 --guidance 1 --out few", 0, "1 picture is in few"),
    (f"generate tiny-mmdit {SIGN} --steps 3 --guidance 1 --out few", 2, "steps"),
    (f"generate tiny-mmdit {SIGN} --negative 'a green wall' --steps 2", 0, "1 picture is in"),
    ("generate tiny-mmdit 'a red sign that says HELLO on a blue wall'", 0, "quotes nothing"),
    (
        "generate tiny-mmdit 'a red sign that says \"TOOLONG\" on a blue wall'",
        2,
        "words of 3 to 6 letters",
    ),
    ("generate tiny-mmdit 'a red sign that says \"hello\" on a blue wall'", 2, 'write "HELLO"'),
    ("generate tiny-mmdit 'a crimson sign on a blue wall'", 2, "does not know 'crimson'"),
    (f"generate tiny-words {SIGN.replace('HELLO', 'CROCODILE')}", 2, "words of 3 to 8 letters"),
    (f"generate tiny-words {WORDS} --steps 2", 0, "1 picture is in"),
    ("generate tiny-mmdit --prompts windows.txt --steps 2", 0, "2 pictures are in"),
    ("generate tiny-mmdit --prompts windows.txt --limit 1 --steps 2", 0, "1 picture is in"),
    (f"generate tiny-if {SIGN} --steps 2 --upscale tiny-if-ii", 0, "1 picture is in"),
    (f"generate tiny-mmdit {SIGN} --upscale tiny-sdxl", 2, "give a stage II"),
    (f"generate tiny-mmdit {SIGN} --height 33", 2, "do not divide into patches"),
    (f"generate tiny-sdxl {SIGN} --height 32000 --width 32000", 2, "memory"),
    (f"generate tiny-sdxl {SIGN} --height 48 --width 96 --steps 2", 0, "1 picture is in"),
    (f"generate tiny-mmdit {SIGN} --lora gone.safetensors", 2, "gone.safetensors"),
    (f"generate tiny-mmdit {SIGN} --seed 5 --device cuda", 2, "cuda"),
    (f"generate nothing-here {SIGN}", 2, "nothing-here"),
    (f"localize planted-mmdit --pairs 3 --out {RUN} --plan", 0, "3 pairs x 1 seed x (6 sites"),
    (
        f"localize planted-mmdit --pairs 3 --out {RUN}",
        0,
        "Site 1 (transformer_blocks.1.attn) carries",
    ),
    (f"localize planted-mmdit --pairs 3 --out {RUN}", 0, "report.html"),
    (f"localize planted-mmdit --pairs 3 --out {RUN} --plan", 0, f"everything is there, in {RUN}"),
    (f"localize planted-mmdit --pairs 3 --out {RUN} --json", 0, '"ranked": [1'),
    (f"localize planted-mmdit --pairs 4 --out {RUN}", 2, "pairs"),
    ("localize tiny-mmdit --pairs 2 --sites 1 --sites 2 --out two", 0, "Not clear yet"),
    ("localize tiny-mmdit --pairs 3 --sites 9", 2, "no site index 9 among the 6"),
    ("localize tiny-mmdit --pairs 3 --sites 1 --set 1 2", 2, "--set replaces --sites"),
    ("localize tiny-mmdit --pairs 3 --start 8", 2, "start is 8 of 8 steps"),
    ("localize tiny-mmdit --prompts same.tsv", 2, "pairs 0 and 1 are the same"),
    ("localize tiny-mmdit --prompts pairs.tsv", 2, "no quoted word"),
    ("localize tiny-if-ii --pairs 2", 2, "draws small pictures larger"),
    (
        f"edit tiny-mmdit --source {SIGN} --word TIGER --out edited",
        0,
        "The edited picture reads TIGER",
    ),
    (f"edit tiny-mmdit --source {SIGN} --target {GREEN} --sites 1 --start 2", 0, "sheet.png"),
    (f"edit tiny-mmdit --source {SIGN} --word 'TOOLONG' --steps 2", 2, "words of 3 to 6 letters"),
    (f"edit tiny-mmdit --source {SIGN} --word HELLO", 2, "HELLO"),
    (f"edit tiny-mmdit --source {SIGN} --word TIGER --method best", 2, "best"),
    (f"edit tiny-words --source {WORDS} --word 2=TIGER", 0, "TIGER"),
    (f"edit tiny-words --source {WORDS} --word 3=TIGER", 2, "quotes 2"),
    ("edit tiny-mmdit --pairs 2 --method localized prompt_swap --steps 4", 0, "prompt_swap"),
    ("sanitize tiny-mmdit --prompts signs.txt --words frogs.txt", 0, "replaced"),
    ("sanitize tiny-mmdit --prompts signs.txt", 2, "--words"),
    ("rewrite tiny-sdxl --old 'a red sign' --new 'a green sign' --out red", 0, "red"),
    ("rewrite tiny-mmdit --old 'a red sign' --new 'a green sign'", 0, "adapter.safetensors"),
    ("finetune tiny-sdxl --data signs:faded --steps 1 --batch 2 --out tuned", 0, "tuned"),
    (f"export {RUN} --for peft", 0, "target_modules"),
    ("export edited --for peft", 2, "which finds no sites"),
    ("audit edited", 0, "checks passed"),
    (f"audit {RUN} --json", 0, '"verb": "audit"'),
    ("audit few", 2, "generate"),
    ("runs", 0, "finished"),
    ("runs --json", 0, '"verb": "runs"'),
    (f"report {RUN}", 0, "report.html"),
    ("report edited", 2, "localize"),
    (f"compare {RUN} two", 0, "model"),
    (f"localize tiny-mmdit --config {RUN}/manifest.json --out other", 0, "other/report.html"),
    ("doctor", 0, "tesseract"),
    ("doctor gone", 2, "gone"),
]
COMMANDS += [("audit gone", 2, "cannot read gone/manifest.json")]


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
        "windows.txt": f"{_typed(SIGN)}\r\n\r\n{_typed(GREEN)}\r\n",
        "same.tsv": f"{_typed(SIGN)}\t{_typed(GREEN)}\n" * 2,
        "signs.txt": _typed(SIGN.replace("HELLO", "FROG")),
        "frogs.txt": "frog",
    }.items():
        Path(name).write_bytes(text.encode())


def _typed(word: str) -> str:
    """A word of a command without the shell's quotes."""
    (plain,) = shlex.split(word)
    return plain


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


def said_in_a_pipe(words: list[str]) -> tuple[int, str]:
    """Exit code and words of a process in the C locale, without a home and without colours."""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"LC_ALL": "C", "NO_COLOR": "1", "COLUMNS": "80"}
    told = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert "\x1b" not in told.stdout + told.stderr and "\r" not in told.stderr
    return told.returncode, told.stdout + told.stderr


def said_on_a_terminal(words: list[str]) -> tuple[int, str]:
    """Exit code and words of a process on a terminal of 80 columns, without what moves the cursor."""
    code, written = terminals.typed(words, 80)
    return code, re.sub(r"\x1b\]8;;.*?\x1b\\|\x1b\[[0-9;]*[A-Za-z]", "", written)


# the default walk gives those that refuse, and test_documented.py carries others out
@pytest.mark.long
@pytest.mark.parametrize("said", [said_in_a_pipe, said_on_a_terminal])
def test_the_whole_walk_is_typed(here, said):
    """All commands, each a process of its own, and none ends with a traceback.

    The file that TEXTPATCH_WALK names gets all that was said, to be read.
    """
    wrong = []
    for command, code, phrase in [*COMMANDS, *CARRIED_OUT]:
        found, told = said([sys.executable, "-m", "textpatch", *shlex.split(command)])
        told = " ".join(told.split())
        with open(os.environ.get("TEXTPATCH_WALK", os.devnull), "a") as log:
            print(f"$ textpatch {command}\n{told}\n[{found}]\n", file=log)
        if found != code or " ".join(phrase.split()) not in told or "Traceback" in told:
            wrong.append((command, found, told[-300:]))
    assert wrong == []
