"""Counts of how the sources read: sentences, lines, functions and files, folder by folder.

    python tests/support/prose.py          the table, a column for each folder and one for all
    python tests/support/prose.py --list   and every place that counts against a limit

Code lines are all lines but docstrings, comment lines and blank lines.  A first sentence is the docstring's
text up to the first full stop that a blank or the end of its paragraph follows.

A first sentence begins well if it begins with a verb, or with a noun phrase that names the result or
the thing.  That is checked by what it may not begin with, as follows.

- Its first word is a word, not a symbol, a number or an equation: two letters or more, or the article "a".
- That word is none of `NO_BEGINNING`, the English prepositions, pronouns, conjunctions, question words and
  auxiliary verbs, and no adverb in -ly.
- After a word that only introduces a noun (an article, a number, "all", a participle in -ed) no word of
  `NO_BEGINNING` follows: "all sites" begins well, "all that reads" and "moved to the device" do not.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("textpatch", "reference_models", "weights")

# in percent, per 100 code lines, in columns, and in lines
MOST_GLUED = 15
LEAST_BEGUN = 60
MOST_CONDITIONALS = 3
MOST_P90 = 95
MOST_COLUMNS = 110
MOST_MEDIAN = 12
MOST_FUNCTION = 60
MOST_FILE = 400
MOST_MODEL_FILE = 500

NO_BEGINNING = frozenset(
    (
        # prepositions
        "about above across after against along among around as at before behind below "
        "beneath beside besides between beyond by despite during except for from in inside "
        "into like near of off on onto out outside over past per since than through "
        "throughout to toward towards under until up upon via with within without "
        # pronouns
        "anybody anyone anything everybody everyone everything he her hers him his i it its "
        "itself me my nobody none nothing our ours she somebody someone something that their "
        "theirs them themselves these they this those us we who whoever whom whose you your "
        # conjunctions, question words, and adverbs that are not in -ly
        "again already also although always and because but either else even here hence how "
        "however if instead just less more most much neither never nor not now often once or "
        "otherwise quite rather so still such then there therefore though thus too very what "
        "whatever when whenever where wherever whether which while why yet "
        # auxiliary verbs
        "am are be been being can could did do does had has have is may might must shall "
        "should was were will would"
    ).split()
)
INTRODUCES = frozenset(
    (
        "a an the all any another both each every no other some "
        "one two three four five six seven eight nine ten"
    ).split()
)
# neither adverbs nor participles, for all their ends
NO_ADVERB = frozenset("apply assembly family imply multiply rely reply supply".split())
NO_PARTICIPLE = frozenset("bed embed exceed feed need proceed seed speed succeed".split())


@dataclass
class Counts:
    """Everything counted in some sources, each entry with its place."""

    sentences: list[tuple[str, str]] = field(default_factory=list)  # (place, first sentence)
    code: list[int] = field(default_factory=list)  # lengths of code lines
    too_long: list[str] = field(default_factory=list)
    tuple_assigns: list[str] = field(default_factory=list)
    conditionals: list[str] = field(default_factory=list)
    lambdas: list[str] = field(default_factory=list)
    functions: list[tuple[str, int]] = field(default_factory=list)  # (place, lines)
    files: list[tuple[str, int]] = field(default_factory=list)

    @property
    def glued(self) -> list[tuple[str, str]]:
        """First sentences that hold a semicolon or a colon."""
        return [(place, text) for place, text in self.sentences if ";" in text or ":" in text]

    @property
    def badly_begun(self) -> list[tuple[str, str]]:
        """First sentences that begin with neither a verb nor a noun phrase."""
        return [(place, text) for place, text in self.sentences if not begins_well(text)]

    def p90(self) -> int:
        """Length that nine of ten code lines do not exceed."""
        lengths = sorted(self.code)
        return lengths[-(-9 * len(lengths) // 10) - 1]

    def percent_glued(self) -> float:
        """Glued first sentences, in percent of all."""
        return 100 * len(self.glued) / len(self.sentences)

    def percent_begun(self) -> float:
        """Well begun first sentences, in percent of all."""
        return 100 - 100 * len(self.badly_begun) / len(self.sentences)

    def per_hundred(self, places: list[str]) -> float:
        """Places per 100 code lines."""
        return 100 * len(places) / len(self.code)

    def median_function(self) -> float:
        """Median of the functions' lengths in lines, docstrings included."""
        return median(lines for _, lines in self.functions)

    def longest_function(self) -> int:
        """Lines of the longest function."""
        return max(lines for _, lines in self.functions)

    def longest_file(self) -> int:
        """Lines of the longest file."""
        return max(lines for _, lines in self.files)


def first_sentence(docstring: str) -> str:
    """First sentence of a cleaned docstring, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def begins_well(sentence: str) -> bool:
    """True where a sentence begins with a verb or a noun phrase, by the rule above."""
    words = re.findall(r"[^\s,;:.()]+", sentence)
    if not words or not sentence[0].isalpha():
        return False
    first = words[0].lower()
    if first in NO_BEGINNING or not re.fullmatch(r"[^\W\d_][\w.'-]+|a", first):
        return False
    if first.endswith("ly") and first not in NO_ADVERB:
        return False
    participle = first.endswith("ed") and first not in NO_PARTICIPLE
    if first in INTRODUCES or participle:
        return len(words) > 1 and words[1].lower() not in NO_BEGINNING
    return True


def counted(paths: list[Path]) -> Counts:
    """Counts of the given sources taken together."""
    counts = Counts()
    for path in paths:
        _count(path, counts)
    return counts


def sources(folder: str) -> list[Path]:
    """Python files below a folder of the repository, in order."""
    return sorted((ROOT / folder).rglob("*.py"))


def _count(path: Path, counts: Counts) -> None:
    text = path.read_text()
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(text)
    lines = text.splitlines()
    code = _code_lines(text, tree)
    counts.code += [len(lines[number - 1]) for number in sorted(code)]
    counts.too_long += [
        f"{name}:{i}" for i, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS
    ]
    counts.files.append((name, len(lines)))
    for node in ast.walk(tree):
        place = f"{name}:{getattr(node, 'lineno', 1)}"
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                counts.sentences.append((place, first_sentence(docstring)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            counts.functions.append((place, node.end_lineno - node.lineno + 1))
        if isinstance(node, ast.IfExp):
            counts.conditionals.append(place)
        if _binds_a_tuple(node):
            counts.tuple_assigns.append(place)
        counts.lambdas += [place] * _bound_lambdas(node)


def _code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold a token other than a comment, docstrings left out."""
    left_out = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines = text.splitlines()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in left_out:
            code |= set(range(token.start[0], token.end[0] + 1))
    code = {number for number in code if lines[number - 1].strip()}
    for first, last in _docstrings(tree):
        code -= set(range(first, last + 1))
    return code


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every docstring."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node) is not None:
            yield node.body[0].lineno, node.body[0].end_lineno


def _binds_a_tuple(node: ast.AST) -> bool:
    """True for `a, b = x, y`, which assigns several things on one line."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def _bound_lambdas(node: ast.AST) -> int:
    """Lambdas that an assignment binds to a name, alone or as part of a tuple."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) or node.value is None:
        return 0
    value = node.value
    values = value.elts if _binds_a_tuple(node) else [value]
    return sum(isinstance(value, ast.Lambda) for value in values)


def table(columns: list[Counts]) -> list[tuple]:
    """Rows of the table, each what is counted, its limit, and a value for each column."""
    rows = {
        "first sentences": ("", lambda c: len(c.sentences)),
        "  with ; or :, %": (f"<= {MOST_GLUED}", Counts.percent_glued),
        "  begun with verb or noun, %": (f">= {LEAST_BEGUN}", Counts.percent_begun),
        "code lines": ("", lambda c: len(c.code)),
        "  conditionals per 100": (
            f"<= {MOST_CONDITIONALS}",
            lambda c: c.per_hundred(c.conditionals),
        ),
        "  tuple assigns per 100": ("", lambda c: c.per_hundred(c.tuple_assigns)),
        "  p90 of length": (f"<= {MOST_P90}", Counts.p90),
        f"lines over {MOST_COLUMNS} columns": ("0", lambda c: len(c.too_long)),
        "lambdas bound to names": ("0", lambda c: len(c.lambdas)),
        "functions": ("", lambda c: len(c.functions)),
        "  median lines": (f"<= {MOST_MEDIAN}", Counts.median_function),
        "  most lines": (f"<= {MOST_FUNCTION}", Counts.longest_function),
        "most lines of a file": (
            f"<= {MOST_FILE}, models {MOST_MODEL_FILE}",
            Counts.longest_file,
        ),
    }
    return [
        (what, limit, *(round(value(c), 1) for c in columns))
        for what, (limit, value) in rows.items()
    ]


def most_lines(name: str) -> int:
    """Limit of a file's lines, larger for a model, which is read from top to bottom."""
    if name.startswith("reference_models/"):
        return MOST_MODEL_FILE
    return MOST_FILE


def offences(counts: Counts) -> Iterator[str]:
    """Places that count against a limit, a line for each."""
    for place, sentence in counts.glued:
        yield f"{place}: glued: {sentence}"
    for place, sentence in counts.badly_begun:
        yield f"{place}: begins badly: {sentence}"
    places = {
        "conditional": counts.conditionals,
        "tuple assign": counts.tuple_assigns,
        f"over {MOST_COLUMNS} columns": counts.too_long,
        "lambda bound to a name": counts.lambdas,
    }
    for what, found in places.items():
        yield from (f"{place}: {what}" for place in found)
    yield from (
        f"{place}: a function of {n} lines" for place, n in counts.functions if n > MOST_FUNCTION
    )
    yield from (f"{name}: {n} lines" for name, n in counts.files if n > most_lines(name))


def main(arguments: list[str]) -> None:
    """Print the table, and with --list the places."""
    every = [path for folder in FOLDERS for path in sources(folder)]
    columns = [counted(sources(folder)) for folder in FOLDERS] + [counted(every)]
    rows = [("", "limit", *FOLDERS, "all"), *table(columns)]
    for what, limit, *values in rows:
        print(f"{what:<28} {limit:>18}", *(f"{value!s:>17}" for value in values))
    if "--list" in arguments:
        print(*sorted(offences(columns[-1])), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
