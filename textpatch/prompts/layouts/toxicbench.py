"""Prompt pairs of ToxicBench, from a harmful word to a benign one.

ToxicBench (arXiv 2502.05066) publishes lists of words, one a line, and the sentences of CreativeBench, each
with "" where the word goes, which its script joins in the same order for the harmful and for the benign list.
So the words of a line belong together.  Its example asks for these files.

    data/SPLIT/toxic_words.txt      harmful words
    data/SPLIT/test_non_tox.txt     benign words
    data/CreativeBench.txt          sentences

It keeps pictures by their number, at intervened_model/toxic/17.png, and of the model before the intervention
at reference_model/toxic/17.png, and scores them in memory.

Seen in the published scripts (data/preprocess.py, example_sd3.py).  Not at hand were the files themselves,
their names in the training split among them, so the names can be given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from textpatch.errors import PromptError
from textpatch.prompts.layouts.asked import Asked, require_first
from textpatch.prompts.pairs import Pair, is_template, with_words
from textpatch.prompts.tables import numbered_lines
from textpatch.quotes import STRAIGHT

HARMFUL = "toxic_words.txt"
BENIGN = "test_non_tox.txt"
SENTENCES = "CreativeBench.txt"
WORDS = "a list of ToxicBench, one word or more a line"


def toxicbench_pairs(
    folder,
    split: str = "test",
    *,
    harmful: str = HARMFUL,
    benign: str = BENIGN,
    template: str | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> list[Pair]:
    """Prompt pairs of one split, the same for the same files and arguments.

    folder    a copy of ToxicBench's repository, or its folder `data`
    split     the folder of the lists in `data`
    harmful   the list of words for sources
    benign    the list of words for targets, line by line
    template  one sentence for all pairs, with "" where the word goes; a random one of CreativeBench for each
              pair when None
    seed      of the random draws
    limit     how many pairs to return, the first of all
    Raises PromptError for files that are not as above, naming file and line and no word, and for requests
    that the files cannot meet.
    """
    data = Path(folder)
    if (data / "data").is_dir():
        data = data / "data"
    sources = _words(data / split / harmful)
    targets = _words(data / split / benign)
    if len(sources) != len(targets):
        raise PromptError(
            f"{data / split}: {len(sources)} words in {harmful} and {len(targets)} in {benign}; "
            "expected as many, the words of a line belonging together"
        )
    if limit is not None and not 1 <= limit <= len(sources):
        raise PromptError(f"asked for {limit} pairs; the {split} words make 1 to {len(sources)}")
    if template is None:
        sentences = _sentences(data / SENTENCES)
    else:
        _require_sentence(template, "template")
        sentences = [template]
    rng = random.Random(seed)
    pairs = []
    for source, target in zip(sources, targets, strict=True):
        sentence = rng.choice(sentences)
        pairs.append(Pair(with_words(sentence, source), with_words(sentence, target)))
    return pairs[:limit]


def toxicbench_pictures(
    asked: Sequence[Asked], repeat: int = 0, *, toxic: bool = True, intervened: bool = False
) -> list[str]:
    """Name of each entry's picture, within the folder of outputs.

    toxic       whether the entries ask for the harmful words
    intervened  whether something was done against these
    Raises PromptError for a second picture of a prompt.
    """
    require_first(repeat, "ToxicBench")
    model = "reference_model"
    if intervened:
        model = "intervened_model"
    kind = "non-toxic"
    if toxic:
        kind = "toxic"
    return [f"{model}/{kind}/{one.place}.png" for one in asked]


def _words(path: Path) -> list[str]:
    """Words of a list.  No error quotes them."""
    lines = numbered_lines(path, WORDS)
    if not lines:
        raise PromptError(f"{path}: expected {WORDS}, found none")
    for place, word in lines:
        if STRAIGHT in word:
            raise PromptError(f"{place}: expected words without quotes, found a quote")
    return [word for _, word in lines]


def _sentences(path: Path) -> list[str]:
    """All different sentences."""
    lines = numbered_lines(path, 'CreativeBench, a sentence with "" a line')
    for place, line in lines:
        _require_sentence(line, place)
    if not lines:
        raise PromptError(f'{path}: expected sentences with "", found none')
    return list(dict.fromkeys(line for _, line in lines))


def _require_sentence(line: str, place: str) -> None:
    """Raise PromptError for a sentence that is no template in straight double quotes."""
    if not is_template(line) or '""' not in line:
        raise PromptError(
            f'{place}: expected a sentence with "" once, where the word goes, found {line!r}'
        )
