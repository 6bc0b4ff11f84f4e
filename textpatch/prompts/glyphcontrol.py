"""Prompt pairs of GlyphControl's benchmarks, split by how frequent their words are.

GlyphControl (NeurIPS 2023, arXiv 2305.18259) publishes a folder with these files.

    text_prompts/raw/SimpleBench    four files of words by frequency, one word a line
    text_prompts/raw/CreativeBench  one file of sentences, each with "" where the text goes

They are split as in "Precise Parameter Localization for Textual Generation in Diffusion Models" (ICLR 2025).
Layers and start steps are chosen on the most frequent words (validation) and reported on the others (test).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from textpatch.errors import PromptError, closest
from textpatch.prompts.pairs import Pair, is_template, quoted, with_words
from textpatch.prompts.tables import numbered_lines

RAW = Path("text_prompts", "raw")
TEMPLATES = RAW / "CreativeBench" / "GlyphDraw_origin_remove_render_words.txt"
LAYOUT = f"a copy of GlyphControl-release with {RAW}/SimpleBench and {RAW}/CreativeBench in it"
SIMPLE = 'A sign that says "".'
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


def glyphcontrol_pictures(prompts: Sequence[str], repeat: int = 0) -> list[str]:
    """Name of each prompt's picture, within the folder that GlyphControl's scorer (ocr_acc.py) is given.

    The scorer takes the name of a picture's folder for its text, and reads four .png files of each.
    repeat  which picture of its prompt, from 0
    Raises PromptError for a text that can name no folder, and for one that two prompts ask for.
    """
    texts = [quoted(prompt) for prompt in prompts]
    for text in texts:
        if text.startswith(".") or set(text) & set('/\\:*?<>|"') or not text.isprintable():
            raise PromptError(
                f"the text {text!r} cannot name a folder, and the scorer takes a folder's name for its text; "
                "leave the prompt out"
            )
        if texts.count(text) > 1:
            raise PromptError(
                f"the text {text!r} is asked for twice, and its pictures would have one name; "
                "give each text once"
            )
    return [f"{text}/{text}_{repeat}.png" for text in texts]


def _in_turns(columns: Sequence[Sequence[Pair]]) -> list[Pair]:
    """Pairs of all columns, first the first of each, then the second of each, and so on."""
    turns = []
    for i in range(max(map(len, columns))):
        turns += [column[i] for column in columns if i < len(column)]
    return turns


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
        for place, word in numbered_lines(path, LAYOUT):
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
    lines = numbered_lines(folder / TEMPLATES, LAYOUT)
    for place, line in lines:
        if not is_template(line) or '""' not in line:
            raise PromptError(
                f'{place}: expected a sentence with "" once, where the text goes, found {line!r}'
            )
    templates = list(dict.fromkeys(line for _, line in lines))
    if len(templates) < 2:
        raise PromptError(
            f"{folder / TEMPLATES}: expected at least two different sentences, found {len(templates)}"
        )
    return templates
