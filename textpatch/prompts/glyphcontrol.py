"""Prompt pairs from files, from lists of one's own and from GlyphControl's benchmarks.

GlyphControl (NeurIPS 2023, arXiv 2305.18259) publishes a folder with these files.

    text_prompts/raw/SimpleBench    four files of words by frequency, one word a line
    text_prompts/raw/CreativeBench  one file of sentences, each with "" where the text goes

They are split as in "Precise Parameter Localization for Textual Generation in Diffusion Models" (ICLR 2025).
Layers and start steps are chosen on the most frequent words (validation) and reported on the others (test).
"""

from __future__ import annotations

import csv
import itertools
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
    """Prompt pairs of one benchmark and split, the same for the same files and arguments.

    folder  a copy of the repository GlyphControl-release
    bench   "simple"    one sentence for all prompts
            "creative"  a random sentence for both prompts of a pair
            "mixed"     two different random sentences for the prompts of a pair
    split   "validation" or "test"
    seed    of the random draws
    limit   how many pairs to return, the first of all.  The files of a split take turns
    words   how many words each text has, joined by blanks
    The words of each file are laid in a random ring.  Every run of k words is the text of a source, and the
    next k words are the text of its target.  So no word is on both sides of a pair, and each word is equally
    often on either side.
    Raises PromptError for files that are not as above, naming file and line, and for requests that the files
    cannot meet.
    """
    for name, known in ((bench, BENCHES), (split, SPLITS)):
        if name not in known:
            raise PromptError(f"GlyphControl's lists have no {name!r}{closest(name, known)}")
    buckets = _buckets(Path(folder))
    templates = [SIMPLE]
    if bench != "simple":
        templates = _templates(Path(folder))
    columns = [
        _pairs(buckets[name], templates, bench == "mixed", words, f"{seed}/{name}")
        for name in SPLITS[split]
    ]
    turns = _in_turns(columns)
    if limit is not None and not 1 <= limit <= len(turns):
        raise PromptError(f"asked for {limit} pairs; the {split} words make 1 to {len(turns)}")
    return turns[:limit]


def _in_turns(columns: Sequence[Sequence[Pair]]) -> list[Pair]:
    """Pairs of all columns, first the first of each, then the second of each, and so on."""
    turns = []
    for i in range(max(map(len, columns))):
        turns += [column[i] for column in columns if i < len(column)]
    return turns


def read_pairs(path) -> list[tuple[str, str]]:
    """Prompt pairs in a file of lines `source<TAB>target`, where blank lines do not count.

    A field may stand in quotes as spreadsheets write it, with the quotes inside doubled, such as
    "the word ""WORD"" here".
    Raises PromptError, naming file and line, for each of these.

    - a line that is no pair
    - a field whose quotes can be read in two ways
    - a file without a pair, or one that is no text
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
    """The prompt in a field, without the quotes around the field as a whole if there are such."""
    try:
        ((prompt,),) = csv.reader([field.strip()], delimiter="\t", strict=True)
    except csv.Error:  # the quotes are not around the whole field, such as in "OPEN" on a red sign
        _require_inner_quotes(field, place)
        return field
    if '"' in field and '"' not in prompt:
        raise PromptError(
            f"{place}: the only quotes of {field!r} are those around the field, so no word is quoted; "
            'quote the word too, and double its quotes: "the word ""WORD"" here"'
        )
    if field.strip().startswith('"'):
        return prompt
    return field


def _require_inner_quotes(field: str, place: str) -> None:
    """Raise PromptError if a field may be quoted as a whole around quotes that are not doubled.

    "a sign "WORD" here" is such a field.
    """
    field = field.strip()
    texts = field.split('"')[1::2]
    if field.endswith('"') and any(text != text.strip() for text in texts):
        raise PromptError(
            f"{place}: the quotes of {field!r} may be those around the field or those around words; "
            'leave out the outer ones, or double the inner ones: "the word ""WORD"" here"'
        )


def differing(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs whose prompts differ in more than the texts between their quotes, and in more than blanks."""

    def scene(prompt: str) -> str:
        return " ".join(_QUOTED.sub('""', prompt).split())

    return [(source, target) for source, target in pairs if scene(source) != scene(target)]


def require_one_scene(pairs: Sequence[tuple[str, str]]) -> None:
    """Raise PromptError if the prompts of a pair differ in more than the quoted text.

    A swap between them would move more than a word.
    """
    found = differing(pairs)
    if found:
        raise PromptError(
            f"{len(found)} of {len(pairs)} pairs differ in more than the quoted text, first "
            f"{found[0][0]!r} and {found[0][1]!r}: their scores are of word and scene together; "
            "give both prompts one sentence"
        )


def with_words(template: str, *words: str) -> str:
    """A template with some words, joined by blanks, between its empty quotes.

    'a sign "" here' with A and B gives 'a sign "A B" here'.
    Raises PromptError unless the template has one pair of double quotes, with nothing between them, and the
    words have no quotes.
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
    """The template of a prompt, which has nothing between its quotes.

    Raises PromptError as `quoted` does.
    """
    quoted(prompt)
    before, _, after = prompt.split('"')
    return f'{before}""{after}'


def mix(pair: Pair) -> dict[tuple[str, str], str]:
    """The four prompts that a pair's templates and texts make, by (whose template, whose text).

    Both are "source" or "target".  ("source", "target") asks for the source's picture with the target's text.
    Raises PromptError as `quoted` does.
    """
    sides = {SOURCE: pair.source, TARGET: pair.target}
    mixed = {}
    for template, text in itertools.product(sides, repeat=2):
        mixed[template, text] = with_words(bare(sides[template]), quoted(sides[text]))
    return mixed


def _pairs(
    words: Sequence[str], templates: Sequence[str], different: bool, k: int, seed: str
) -> list[Pair]:
    """Pairs from the words of one file, with k words in each text.

    different  True for another template in the target than in the source
    """
    if not 1 <= k <= len(words) // 2:
        raise PromptError(
            f"asked for texts of {k} words; {len(words)} words make texts of 1 to {len(words) // 2}"
        )
    rng = random.Random(seed)
    ring = 2 * rng.sample(words, len(words))
    pairs = []
    for first in range(len(words)):
        text = ring[first : first + 2 * k]
        if different:
            source, target = rng.sample(templates, 2)
        else:
            source = target = rng.choice(templates)
        pairs.append(Pair(with_words(source, *text[:k]), with_words(target, *text[k:])))
    return pairs


def _buckets(folder: Path) -> dict[str, list[str]]:
    """Words of every file of words, by the file's name.

    Raises PromptError for a word that is in two files or twice in one, as the splits would not be apart.
    """
    buckets: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for name in itertools.chain(*SPLITS.values()):
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
    """All different sentences.  The published file holds one of them twice."""
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
    """True for a sentence with one pair of double quotes and nothing between them."""
    return line.count('"') == 2 and '""' in line


def _lines(path: Path, expected: str) -> list[tuple[str, str]]:
    """Place and text of every line that is not blank, where a place is the file and the line's number.

    expected  what the file should be, as an error message says it
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise PromptError(
            f"cannot read prompts from {path}: {error}; expected {expected}"
        ) from None
    return [(f"{path}, line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
