"""The README: its blocks of code and its commands."""

import re
import shlex

from textpatch.weights.loading import SHIPPED

ROOT = SHIPPED.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.strip()
    for language, body in BLOCKS
    if language in ("", "sh", "console")
    for line in body.splitlines()
]


def starting(word: str) -> list[list[str]]:
    """Commands of the README that start with a word, split as a shell would, without comments."""
    lines = [line.removeprefix("$ ") for line in COMMANDS]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(word + " ")]
