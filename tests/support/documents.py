"""The pages, a README.md each: their blocks of code, their commands, and what else they name."""

import re
import shlex
from pathlib import Path

from textpatch.weights.loading import SHIPPED

ROOT = SHIPPED.parent
FOLDERS = "benchmarks", "reference_models", "tests", "textpatch", "weights"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# languages of blocks that hold commands; `text` is what is printed, or only shown
RUN = ("", "sh", "console")


def read_pages() -> dict[str, str]:
    """Path from the root -> text of every page, the top one first."""
    paths = [ROOT / "README.md"]
    for folder in FOLDERS:
        paths += sorted((ROOT / folder).rglob("README.md"))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


PAGES = read_pages()
README = PAGES["README.md"]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, body) of the fenced blocks of a page."""
    return FENCED.findall(PAGES[page])


def commands() -> list[str]:
    """The lines of all blocks of commands."""
    found = []
    for page in PAGES:
        for language, body in blocks(page):
            if language in RUN:
                found += [line.strip().removeprefix("$ ") for line in body.splitlines()]
    return found


def starting(word: str) -> list[list[str]]:
    """Commands of all pages that start with a word, split as a shell would, without comments, each once."""
    split = [shlex.split(line, comments=True) for line in commands() if line.startswith(word + " ")]
    return [list(words) for words in dict.fromkeys(map(tuple, split))]


def spans(page: str) -> list[str]:
    """What stands between single backticks in the prose and the tables of a page, on one line each."""
    prose = FENCED.sub("", PAGES[page])
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def links(page: str) -> list[tuple[Path, str]]:
    """(file, heading or "") of every link of a page that stays in the repository."""
    found = []
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if "://" not in target:
            path, _, heading = target.partition("#")
            found.append(((ROOT / page).parent / path if path else ROOT / page, heading))
    return found


def anchors(path: Path) -> set[str]:
    """Names by which the headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_decimals(text: str) -> list[str]:
    """The words of an output, with `#` for every decimal number, whose last digits are the machine's."""
    return re.sub(r"\d+\.\d+(e[+-]\d+)?", "#", text).split()
