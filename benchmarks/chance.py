"""Compute the chance level of every F1 on the pages, and of the other scores of words.

    python benchmarks/chance.py --csv benchmarks/results/chance.csv [--glyphcontrol FOLDER]

A chance level is the score of readings that are each another pair's word.  It depends on the words alone,
and nothing is generated.  FOLDER is a copy of GlyphControl's lists.  Without one the rows of SimpleBench are
left out, on whose test words the paper's F1 was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from measure import Table, arguments, environment, parsed
from other_prompts import phrases
from textpatch import metrics
from textpatch.prompts.glyphcontrol import glyphcontrol_pairs
from textpatch.prompts.pairs import Pair
from textpatch.weights.signs.pairs import attribute_pairs, sign_pairs

COLUMNS = ["words", "score", "source", "target", "pairs"]
SCORES: dict[str, Callable[[Sequence[str]], float]] = {"f1": metrics.chance_f1} | {
    score.__name__: (lambda words, score=score: metrics.chance_level(words, score))
    for score in (metrics.sample_f1, metrics.one_minus_ned, metrics.cer, metrics.word_accuracy)
}


def shipped() -> dict[str, list[Pair]]:
    """Pairs of the pages' tables, by what the rows are called."""
    return {
        "48 signs": [Pair(*pair) for pair in sign_pairs(48, split="test")],
        "24 signs": [Pair(*pair) for pair in sign_pairs(24, split="test")],
        "12 signs": attribute_pairs("word", 12, split="test"),
        **phrases(7),
    }


def levels(pairs: Sequence[Pair], score: str) -> dict[str, float]:
    """Chance levels of a score towards both sides' words, without blanks, as tesseract reads them."""
    source, target = (["".join(pair.words[i].split()) for pair in pairs] for i in (0, 1))
    return {"source": SCORES[score](source), "target": SCORES[score](target)}


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--glyphcontrol", help="a copy of the repository GlyphControl-release")
    options = parsed(parser, argv)
    sets = shipped()
    every_score = ["48 signs"]
    if options.glyphcontrol:
        sets["SimpleBench"] = glyphcontrol_pairs(options.glyphcontrol, "simple", "test")
        every_score.append("SimpleBench")
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for words, pairs in sets.items():
        for score in SCORES:
            if score == "f1" or words in every_score:
                table.add(words=words, score=score, **levels(pairs, score), pairs=len(pairs))


if __name__ == "__main__":
    main()
