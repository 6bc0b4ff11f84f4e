"""Measure what a site carries besides the word.

    python benchmarks/carries.py [MODEL ...]

The pairs of prompts differ in one attribute alone.  The target's text is swapped in at each site, at all,
and at all but each.  Attributes are read from the pictures by the nearest drawing.  The tables:

reading, how often each attribute is read right in clean drawings and in the model's plain pictures of
test words.  One that is read right in less than 0.9 of the plain pictures is not looked at further.

sites
  target, source  how often the attribute reads as the target's and as the source's.  Of the word it is
                  the F1 of its letters, and `exact` has whole words
  gain            of `target` over no swap, with its interval of 95 in 100 over pairs
  share           of the gain of all sites together
  loss            of `target` against all sites, if all but this one are swapped, with its interval
  others          share of the other attributes that read as the source's

sets
  half            how many sites have a share of at least one half alone
  set             the responsible set.  It is grown from the best site, or where none alone is a clear
                  gain from those without which all clearly lose.  None if not even all are a gain
  needed          the sites without which the loss is clear
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import textpatch
from measure import Table, arguments, environment, parsed
from textpatch.groups import group_name, row_name
from textpatch.localization.modes import FIRST
from textpatch.localization.scores import column
from textpatch.localization.search import grow, responsible
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means, wilson
from textpatch.metrics.intervals import gain, interval, ranking
from textpatch.pictures import opened
from textpatch.ports.shipped import find_sites
from textpatch.prompts.pairs import SOURCE, TARGET
from textpatch.report.contact_sheet import draw_contact_sheet
from textpatch.runs.folder import Run
from textpatch.weights.fingerprint import model_sha256
from textpatch.weights.signs.drawing import SignFormat
from textpatch.weights.signs.evaluation import clean_pictures, generated_pictures, held_out_signs
from textpatch.weights.signs.pairs import ATTRIBUTES, attribute_pairs
from textpatch.weights.signs.reader import SignReader

LEAST_READ = 0.9
READING = ["pictures", "attribute", "right", "low", "high", "signs"]
SITES = [
    "model",
    "attribute",
    "sites",
    "name",
    "target",
    "source",
    "exact",
    "gain",
    "gain_low",
    "gain_high",
    "share",
    "loss",
    "loss_low",
    "loss_high",
    "others",
    "pairs",
]
SETS = [
    "model",
    "attribute",
    "pairs",
    "all_sites",
    "half",
    "of",
    "best",
    "best_share",
    "set",
    "set_share",
    "needed",
    "needed_share",
]


def readable(pipeline, signs: int, guidance: float, table: Table) -> list[str]:
    """The attributes that can be read in the model's own pictures.  Every accuracy becomes a row."""
    fmt = SignFormat()
    reader = SignReader()
    shown = held_out_signs(signs, fmt)
    drawn = {
        "clean drawings": clean_pictures(shown, fmt),
        pipeline.name: generated_pictures(pipeline, shown, guidance=guidance),
    }
    right = {}
    for name, pictures in drawn.items():
        seen = reader.read(pictures)
        for attribute in ATTRIBUTES:
            hits = np.array(
                [
                    float(read[attribute] == getattr(sign, attribute))
                    for read, sign in zip(seen, shown, strict=True)
                ]
            )
            low, high = wilson(hits.mean(), len(hits))
            right[attribute] = hits.mean()
            table.add(
                pictures=name,
                attribute=attribute,
                right=right[attribute],
                low=low,
                high=high,
                signs=signs,
            )
    return [attribute for attribute in ATTRIBUTES if right[attribute] >= LEAST_READ]


class Carriers:
    """The effect of every site of a model on one attribute, alone and left out, and sets of sites."""

    def __init__(self, pipeline, attribute: str, pairs: int, guidance: float, run: Run | None):
        self.attribute = attribute
        self.sites = find_sites(pipeline.denoiser)
        self.trials = Trials(
            pipeline,
            attribute_pairs(attribute, pairs, split="test"),
            guidance=guidance,
            ocr=SignReader(),
            run=run,
        )
        self.every = tuple(site.index for site in self.sites)
        self.alone = [(site,) for site in self.every]
        rest = {one: tuple(site for site in self.every if site not in one) for one in self.alone}
        self.trials.measure([*self.alone, self.every, *rest.values()], own=True)
        scored = self.trials.score(self.alone, pairs)
        ranked = [self.alone[i][0] for i in ranking(scored, f1_of_means)]
        self.set = responsible(grow(self.trials.score, ranked, pairs, f1_of_means, first=FIRST))
        self.losses = {one: self.gain(self.every, rest[one]) for one in self.alone}
        self.needed = tuple(one[0] for one, loss in self.losses.items() if loss["low"] > 0)
        groups = dict.fromkeys([*self.alone, self.every, self.set, self.needed])
        self.gains = {group: self.gain(group, ()) for group in groups if group}

    def gain(self, more: tuple, less: tuple) -> dict[str, float]:
        return gain(*self.trials.score([more, less], len(self.trials.pairs)), f1_of_means)

    def share(self, group: tuple) -> float | None:
        """The share of the gain of all sites together.  None where that is nothing."""
        whole = self.gains[self.every]["value"]
        return self.gains[group]["value"] / whole if group and whole > 0 else None

    def rows(self):
        """The columns SITES of source and target run, of every site, and of sets of them."""
        yield self.row(SOURCE, SOURCE, "no swap")
        for group in self.gains:
            ends = {**_ends("gain", self.gains[group]), **_ends("loss", self.losses.get(group))}
            name = self.sites[group[0]].name if len(group) == 1 else f"{len(group)} sites"
            yield (
                self.row(row_name(group), group_name(group), name)
                | ends
                | {"share": self.share(group)}
            )
        yield self.row(TARGET, TARGET, "whole target run")

    def row(self, row: str, sites: str, name: str) -> dict:
        records = self.trials.records
        f1 = {
            side: f1_of_means(
                *(column(records, row, f"{part}_{side}") for part in ("precision", "recall"))
            )
            for side in (SOURCE, TARGET)
        }
        means = {
            name: interval(column(records, row, key))["value"]
            for name, key in (("exact", "exact_target"), ("others", "others"))
        }
        known = dict(
            model=self.trials.pipeline.name, attribute=self.attribute, sites=sites, name=name
        )
        return (
            known
            | {side: float(score) for side, score in f1.items()}
            | means
            | {"pairs": len(self.trials.pairs)}
        )

    def summary(self) -> dict:
        """The columns SETS."""
        shares = {one: self.share(one) or 0.0 for one in self.alone}
        best = max(shares, key=shares.get)
        return dict(
            model=self.trials.pipeline.name,
            attribute=self.attribute,
            pairs=len(self.trials.pairs),
            all_sites=self.gains[self.every]["value"],
            half=sum(share >= 0.5 for share in shares.values()),
            of=len(shares),
            best=group_name(best),
            best_share=shares[best],
            set=group_name(self.set) or "none",
            set_share=self.share(self.set),
            needed=group_name(self.needed) or "none",
            needed_share=self.share(self.needed),
        )

    def line(self) -> list[tuple]:
        """The first pair's pictures of the source, of every site alone, of all sites, and of the target."""
        record = self.trials.records[0]
        names = [SOURCE, *map(row_name, [*self.alone, self.every]), TARGET]
        cells = [record["pictures"][name] for name in names]
        return [(opened(cell["image"], self.trials.run), cell["read"]) for cell in cells]


def _ends(name: str, found: dict[str, float] | None) -> dict:
    if found is None:
        return {}
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def stored(folder: Path | None, model: str, **request) -> Run | None:
    """The run folder of one model and attribute, with which a stopped benchmark goes on."""
    if folder is None:
        return None
    request |= {"model": model, "weights": model_sha256(model), "reader": SignReader().describe()}
    return Run.open(folder / f"carries-{model}-{request['attribute']}", {"request": request})


def sheet(found: list[Carriers]):
    """A contact sheet with the first pair of each attribute as a line."""
    names = ["source", *(f"site {site.index}" for site in found[0].sites), "all sites", "target"]
    words = [
        (f"{one.attribute} {a}", f"{one.attribute} {b}")
        for one in found
        for a, b in [one.trials.pairs[0].words]
    ]
    cells = [[(image, f"{one.attribute} {read}") for image, read in one.line()] for one in found]
    return draw_contact_sheet(cells, captions=names, words=words, scale=1.4).quantize(256)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="shipped models (tiny-mmdit tiny-sdxl)"
    )
    parser.add_argument("--pairs", type=int, default=24, help="test pairs for each attribute (24)")
    parser.add_argument("--signs", type=int, default=96, help="test words for the reading (96)")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance (1)")
    parser.add_argument(
        "--attributes", nargs="+", choices=ATTRIBUTES, default=ATTRIBUTES, help="which (all)"
    )
    parser.add_argument(
        "--runs", type=Path, help="folder that keeps what is made, to go on with after a stop"
    )
    options = parsed(parser, argv)
    where = environment(options.device)
    path = options.csv
    tables = [
        Table(columns, where, path and path.with_name(f"{path.stem}-{name}.csv"), options.append)
        for name, columns in (("reading", READING), ("sites", SITES), ("sets", SETS))
    ]
    for model in options.models or ["tiny-mmdit", "tiny-sdxl"]:
        pipeline = textpatch.load(model, device=options.device, dtype=options.dtype)
        found = []
        for attribute in readable(pipeline, options.signs, options.guidance, tables[0]):
            if attribute in options.attributes:
                run = stored(
                    options.runs,
                    model,
                    attribute=attribute,
                    pairs=options.pairs,
                    guidance=options.guidance,
                )
                found.append(Carriers(pipeline, attribute, options.pairs, options.guidance, run))
                for row in found[-1].rows():
                    tables[1].add(**row)
                tables[2].add(**found[-1].summary())
        if path and found:
            sheet(found).save(path.with_name(f"{path.stem}-{model}.png"), optimize=True)


if __name__ == "__main__":
    main()
