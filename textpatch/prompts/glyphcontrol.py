"""Prompt pairs of GlyphControl's benchmarks (NeurIPS 2023, arXiv 2305.18259), split as the paper splits them.

FOLDER/text_prompts/raw/SimpleBench    four files of words by frequency, one word a line
FOLDER/text_prompts/raw/CreativeBench  one file of sentences, each with "" where the text goes

Layers and start steps are chosen on the most frequent words (validation) and reported on the others (test).
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Sequence
from pathlib import Path

from textpatch.errors import PromptError, closest
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, quoted

RAW = Path("text_prompts", "raw")
TEMPLATES = RAW / "CreativeBench" / "GlyphDraw_origin_remove_render_words.txt"
LAYOUT = f"a copy of GlyphControl-release with {RAW}/SimpleBench and {RAW}/CreativeBench in it"
SIMPLE = 'A sign that says "".'
_QUOTED = re.compile('"[^"]*"')
BENCHES = ("simple", "creative", "mixed")
SPLITS = {
    "validation": ("all_unigram_top_1000_100",),
    "test": (
        "all_unigram_1000_10000_100",
        "all_unigram_10000_100000_100",
        "all_unigram_100000_plus_100",
    ),
}


def glyphcontrol_pairs(
    folder,
    bench: str = "simple",
    split: str = "validation",
    *,
    seed: int = 0,
    limit: int | None = None,
    words: int = 1,
) -> list[Pair]:
    """The prompt pairs of one benchmark and split, the same for the same files and arguments.

    folder  a copy of the repository GlyphControl-release
    bench   "simple", one sentence for all; "creative", a random template for both prompts of a pair; "mixed",
            two different ones
    limit   how many pairs, the first of all; the buckets of a split take turns
    words   how many words each text has, joined by blanks
    Each bucket's words are laid in a random ring: every run of k words is a source's text, and the next k
    words are its target's.  So no word is on both sides of a pair, and each is equally often on either side.
    Raises PromptError, naming file and line, for files that are not as above, and for requests they cannot meet.
    """
    for name, known in ((bench, BENCHES), (split, SPLITS)):
        if name not in known:
            raise PromptError(f"GlyphControl's lists have no {name!r}{closest(name, known)}")
    buckets = _buckets(Path(folder))
    templates = [SIMPLE] if bench == "simple" else _templates(Path(folder))
    columns = [
        _pairs(buckets[name], templates, bench == "mixed", words, f"{seed}/{name}")
        for name in SPLITS[split]
    ]
    turns = [
        column[i] for i in range(max(map(len, columns))) for column in columns if i < len(column)
    ]
    if limit is not None and not 1 <= limit <= len(turns):
        raise PromptError(f"asked for {limit} pairs; the {split} words make 1 to {len(turns)}")
    return turns[:limit]


def read_pairs(path) -> list[tuple[str, str]]:
    """The prompt pairs in a file of lines `source<TAB>target`; blank lines are left out.

    A field may stand in quotes as spreadsheets write it, those inside doubled: "the word ""WORD"" here".
    Raises PromptError, naming file and line, for a line that is no pair, a field whose quotes can be read in two
    ways, a file without a pair, or one that is no text.
    """
    path = Path(path)
    lines = _lines(path, "a text of lines `source<TAB>target`")
    for place, line in lines:
        if line.count("\t") != 1:
            raise PromptError(f"{place}: expected `source<TAB>target`, found {line!r}")
    if not lines:
        raise PromptError(f"{path}: expected lines `source<TAB>target`, found none")
    pairs = []
    for place, line in lines:
        source, target = line.split("\t")
        pairs.append((_prompt(source, place), _prompt(target, place)))
    return pairs


def _prompt(field: str, place: str) -> str:
    """The prompt of a field: what it quotes if it is quoted as a whole, else the field as it stands."""
    try:
        ((prompt,),) = csv.reader([field.strip()], delimiter="\t", strict=True)
    except csv.Error:  # quotes that are not around the whole: "OPEN" on a red sign
        _require_inner_quotes(field, place)
        return field
    if '"' in field and '"' not in prompt:
        raise PromptError(
            f"{place}: the only quotes of {field!r} are those around the field, so no word is quoted; quote the word too, "
            'and double its quotes: "the word ""WORD"" here"'
        )
    return prompt if field.strip().startswith('"') else field


def _require_inner_quotes(field: str, place: str) -> None:
    """Raise PromptError if a field may be quoted as a whole around quotes that are not doubled, "a sign "WORD" here"."""
    field = field.strip()
    texts = field.split('"')[1::2]
    if field.endswith('"') and any(text != text.strip() for text in texts):
        raise PromptError(
            f"{place}: the quotes of {field!r} may be those around the field or those around words; "
            'leave out the outer ones, or double the inner ones: "the word ""WORD"" here"'
        )


def differing(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs whose prompts differ in more than what stands between their quotes; blanks are blanks."""
    scene = lambda prompt: " ".join(_QUOTED.sub('""', prompt).split())  # noqa: E731
    return [(source, target) for source, target in pairs if scene(source) != scene(target)]


def require_one_scene(pairs: Sequence[tuple[str, str]]) -> None:
    """Raise PromptError if prompts of a pair differ in more than the quoted text: a swap would move more than a word."""
    found = differing(pairs)
    if found:
        raise PromptError(
            f"{len(found)} of {len(pairs)} pairs differ in more than the quoted text, first {found[0][0]!r} and "
            f"{found[0][1]!r}: their scores are of word and scene together; give both prompts one sentence"
        )


def with_words(template: str, *words: str) -> str:
    """A template with the words, joined by blanks, between its empty quotes: 'a sign "" here' -> 'a sign "A B" here'.

    Raises PromptError unless the template has one pair of double quotes, empty, and the words have none.
    """
    if not _is_template(template):
        raise PromptError(
            f'{template!r} is no template; write "" once, where the text goes, and no other quotes'
        )
    if not words or any(not word.strip() or '"' in word for word in words):
        raise PromptError(
            f"{words!r} cannot stand between quotes; give words, none empty and none with a quote"
        )
    return template.replace('""', f'"{" ".join(words)}"')


def bare(prompt: str) -> str:
    """The template of a prompt: the same with nothing between its quotes.  Raises PromptError as `quoted` does."""
    quoted(prompt)
    before, _, after = prompt.split('"')
    return f'{before}""{after}'


def mix(pair: Pair) -> dict[tuple[str, str], str]:
    """The four prompts of (whose template, whose text), each "source" or "target".

    ("source", "target") asks for the source's picture with the target's text.  Raises PromptError as `quoted` does.
    """
    sides = {SOURCE: pair.source, TARGET: pair.target}
    return {(t, w): with_words(bare(sides[t]), quoted(sides[w])) for t in sides for w in sides}


def _pairs(
    words: Sequence[str], templates: Sequence[str], different: bool, k: int, seed: str
) -> list[Pair]:
    if not 1 <= k <= len(words) // 2:
        raise PromptError(
            f"asked for texts of {k} words; {len(words)} words make texts of 1 to {len(words) // 2}"
        )
    rng = random.Random(seed)
    ring = 2 * rng.sample(words, len(words))
    texts = [ring[i : i + 2 * k] for i in range(len(words))]
    drawn = [rng.sample(templates, 2) if different else 2 * [rng.choice(templates)] for _ in texts]
    return [
        Pair(with_words(a, *text[:k]), with_words(b, *text[k:]))
        for text, (a, b) in zip(texts, drawn)
    ]


def _buckets(folder: Path) -> dict[str, list[str]]:
    """The words of every bucket.  No word is in two, nor twice in one, or the splits would not be apart."""
    buckets: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for name in (name for names in SPLITS.values() for name in names):
        path = folder / RAW / "SimpleBench" / f"{name}.txt"
        buckets[name] = []
        for place, word in _lines(path, LAYOUT):
            if len(word.split()) != 1 or '"' in word:
                raise PromptError(f"{place}: expected one word without quotes, found {word!r}")
            first = places.setdefault(word.casefold(), place)
            if first != place:
                raise PromptError(
                    f"{place}: expected a new word, found {word!r}, which is in {first} too"
                )
            buckets[name].append(word)
    return buckets


def _templates(folder: Path) -> list[str]:
    """The different sentences; the published file holds one of them twice."""
    lines = _lines(folder / TEMPLATES, LAYOUT)
    for place, line in lines:
        if not _is_template(line):
            raise PromptError(
                f'{place}: expected a sentence with "" once, where the text goes, found {line!r}'
            )
    templates = list(dict.fromkeys(line for _, line in lines))
    if len(templates) < 2:
        raise PromptError(
            f"{folder / TEMPLATES}: expected at least two different sentences, found {len(templates)}"
        )
    return templates


def _is_template(line: str) -> bool:
    return line.count('"') == 2 and '""' in line


def _lines(path: Path, expected: str) -> list[tuple[str, str]]:
    """(file and line number, text) of every line that is not blank."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise PromptError(
            f"cannot read prompts from {path}: {error}; expected {expected}"
        ) from None
    return [(f"{path}, line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
