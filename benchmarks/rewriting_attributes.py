"""Rewrite a word, a colour or a shape at the sites found for words, at all, at all others, and by lot.

    python benchmarks/rewriting_attributes.py [MODEL ...] --csv benchmarks/results/rewriting_attributes.csv

Each edit lets a prompt be read as one that differs in the attribute alone.  The arms are those of
`rewriting.py`, without preserved prompts.  Under the edit three prompts are drawn and read as the nearest
drawing: the prompt itself, its paraphrase, which "reads" instead of "says", and a neighbour, the prompt of
another sign whose value is neither the old nor the new one.

  written      edits after which the prompt draws the new value, of n
  paraphrase   edits after which the paraphrase draws it
  neighbour    edits after which the neighbour draws its own value
  low, high    of each share, 95 %
  others       share of the other attributes of the prompt's picture that are as before the edit in the prompt
"""

from __future__ import annotations

import statistics

from measure import Table, arguments, environment, parsed
from rewriting import CAPTURED, MODELS, arms, shares_of
from textpatch import load, rewrite
from textpatch.weights.signs.drawing import Sign
from textpatch.weights.signs.pairs import ATTRIBUTES, SignPair, attribute_pairs
from textpatch.weights.signs.reader import read_sign

EDITED = "word", "colour", "shape"
READER = "nearest drawing"
SHARES = "written", "paraphrase", "neighbour"
COLUMNS = [
    *("model", "reader", "attribute", "arm", "sites", "n", "steps", "ridge"),
    *(f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")),
    "others",
]


def neighbour_of(pair: SignPair, pairs: list[SignPair]) -> Sign:
    """First source of some pairs whose value is neither of the pair's."""
    for other in pairs:
        if other.words[0] not in pair.words:
            return other.signs[0]
    raise ValueError(f"{len(pairs)} pairs have no neighbour of {pair.words}; ask for more")


def signs_drawn(pipeline, pair: SignPair, neighbour: Sign, sites: list[int], options) -> list[Sign]:
    """What is read in the pictures of prompt, paraphrase and neighbour, under the edit at some sites."""
    prompts = [pair.source, pair.signs[0].prompt("that reads"), neighbour.prompt()]
    asked = dict(seeds=0, steps=options.steps, guidance=1.0)
    if not sites:
        return [read_sign(picture) for picture in pipeline.generate(prompts, **asked)]
    runs = {}
    if not all(site.text_is_static for site in pipeline.denoiser.sites):
        runs = {"seeds": CAPTURED, "steps": options.steps}
    edits = [(pair.source, pair.target)]
    adapter = rewrite(pipeline, edits, sites=sites, ridge=options.ridge, **runs)
    with adapter.applied(pipeline):
        return [read_sign(picture) for picture in pipeline.generate(prompts, **asked)]


def row(pipeline, pairs: list[SignPair], sites: list[int], options) -> dict:
    """Shares of an arm."""
    right: dict[str, list[bool]] = {name: [] for name in SHARES}
    others = []
    for pair in pairs:
        neighbour = neighbour_of(pair, pairs)
        edited, paraphrase, beside = signs_drawn(pipeline, pair, neighbour, sites, options)
        old, new = pair.signs
        for name, made, wanted in (
            ("written", edited, new),
            ("paraphrase", paraphrase, new),
            ("neighbour", beside, neighbour),
        ):
            right[name].append(getattr(made, pair.attribute) == getattr(wanted, pair.attribute))
        names = [name for name in ATTRIBUTES if name != pair.attribute]
        others.append(
            statistics.mean(getattr(edited, name) == getattr(old, name) for name in names)
        )
    return {**shares_of(right), "others": statistics.mean(others)}


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"shipped models {MODELS}")
    parser.add_argument("--pairs", type=int, default=16, help="edits of each attribute (16)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (4)")
    parser.add_argument("--ridge", type=float, default=0.1, help="lambda (0.1)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    asked = dict(reader=READER, n=options.pairs, steps=options.steps, ridge=options.ridge)
    for name in options.models or MODELS:
        pipeline = load(name, device=options.device, dtype=options.dtype)
        for attribute in EDITED:
            pairs = attribute_pairs(attribute, options.pairs)
            for arm, (sites, preserved) in arms(pipeline).items():
                if not preserved:
                    shares = row(pipeline, pairs, sites, options)
                    told = dict(model=name, attribute=attribute, arm=arm, sites=len(sites))
                    table.add(**told, **asked, **shares)


if __name__ == "__main__":
    main()
