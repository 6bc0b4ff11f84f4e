"""Exchange one to four words on signs of two lines, and each of two words alone, site by site.

    python benchmarks/words.py [--runs FOLDER] [--csv benchmarks/results/words.csv]

Test words of a model that writes on two lines, in one scene.  With --csv each table has a file
of its own, and with --runs the same command goes on where it stopped.

edited   pictures with the target's text at some sites, by the number of words: exact and F1 with its chance
         level, 1-NED, SSIM and PSNR of the background
sites    what each line reads when one word is exchanged alone, the two with each other, or one repeated
places   lines that keep the source's word at each site alone, when the new word is as long, and when not
parts    the same exchange of one word by one head of the sites found, and by these sites from a step on
limits   texts that the card says are drawn, and others, read by the nearest drawing
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

import textpatch
from measure import Table, arguments, environment, parsed, reader_option, without_card
from textpatch.groups import row_name
from textpatch.localization.scores import all_scores, chance_levels
from textpatch.localization.start_step import start_curve
from textpatch.localization.trials import Trials
from textpatch.localization.word_by_word import drawn_donors, each_word
from textpatch.metrics import one_minus_ned, wilson
from textpatch.ports.shipped import pipeline_sites
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.report.word_by_word import meaning
from textpatch.runs.folder import Run
from textpatch.weights.signs.drawing import random_sign, random_word
from textpatch.weights.signs.evaluation import generated_pictures
from textpatch.weights.signs.pairs import WORDS_OF_LINES, line_pairs
from textpatch.weights.signs.reader import read_text
from textpatch.weights.signs.two_lines import TWO_LINES

SHARED = "model reader n".split()
ENDS = ("", "_low", "_high")
KEPT = "as_long", "other_length", "behind_as_long", "behind_other_length", "exchanged"
COLUMNS = {
    "edited": [
        *"words edited exact exact_low exact_high f1 f1_low f1_high chance one_minus_ned".split(),
        *"ssim psnr".split(),
    ],
    "sites": "donor tokens sites line changes exact exact_low exact_high same near".split(),
    "places": ["site", *(f"{name}{end}" for name in KEPT for end in ENDS), "carries"],
    "parts": "word part line changes exact exact_low exact_high old".split(),
    "limits": "texts example drawn right right_low right_high".split(),
}
NEAREST = "nearest drawing"


def pairs_of(n: int, words: int) -> list[Pair]:
    """Test pairs of so many words on either side, in the same scenes."""
    pairs = line_pairs(n, split="test", same_scene=True, words=words)
    return [Pair(*pair) for pair in pairs]


def trials_of(pipeline, pairs: list[Pair], options, name: str) -> Trials:
    """Trials of some pairs, kept in a folder of that name where --runs asks for it."""
    run = None
    if options.runs is not None:
        run = Run.open(options.runs / name, {"request": {"words": name, "pairs": len(pairs)}})
    return Trials(pipeline, pairs, ocr=options.reader, run=run)


def ends(score: dict, name: str) -> dict:
    """Cells of a score and its interval."""
    return {
        f"{name}{end}": score.get(key)
        for end, key in zip(ENDS, ("value", "low", "high"), strict=True)
    }


def edited(pipeline, options) -> list[dict]:
    """Rows by the number of words, for no swap, the sites found, all sites, and the target's own prompt."""
    found = tuple(pipeline.defaults.localized)
    everything = tuple(range(len(pipeline_sites(pipeline))))
    names = {
        "no swap": SOURCE,
        "sites found": row_name(found),
        "all sites": row_name(everything),
        "the target's prompt": TARGET,
    }
    rows = []
    for words in WORDS_OF_LINES:
        trials = trials_of(pipeline, pairs_of(options.signs, words), options, f"edited-{words}")
        trials.measure([found, everything], own=True)
        chance = chance_levels(trials.pairs)["f1_target"]
        for what, name in names.items():
            scores = all_scores(trials.records, name)
            near = [
                one_minus_ned(
                    record["pictures"][name]["read"], trials.pairs[record["pair"]].words[1]
                )
                for record in trials.records
            ]
            rows.append(
                {
                    **{"words": words, "edited": what, "n": scores["n"], "chance": chance},
                    **ends(scores["exact_target"], "exact"),
                    **ends(scores["f1_target"], "f1"),
                    "one_minus_ned": float(np.mean(near)),
                    "ssim": scores["ssim"]["value"],
                    "psnr": (scores["psnr"] or {}).get("value"),
                }
            )
    return rows


def sites(pipeline, options) -> dict[str, list[dict]]:
    """Rows of each word alone at every site, at those found and at all, and of the words that are kept."""
    count = len(pipeline_sites(pipeline))
    groups = [*((site,) for site in range(count)), tuple(pipeline.defaults.localized)]
    trials = trials_of(pipeline, pairs_of(options.pairs, 2), options, "sites")
    found = each_word(trials, groups)
    rows = []
    for swap in [{**donor, "tokens": "", "group": ""} for donor in found["donors"]] + found[
        "swaps"
    ]:
        for number, line in enumerate(swap["lines"], 1):
            rows.append(
                {
                    **{name: swap[name] for name in ("donor", "tokens", "n")},
                    **{"sites": swap["group"], "line": number},
                    "changes": "yes" if number in swap["lines_changed"] else "no",
                    **ends(line["exact_target"], "exact"),
                    **{name: swap[name]["value"] for name in ("same", "near")},
                }
            )
    places = []
    for place in found["places"][:count]:
        kept = [cells for name in KEPT for cells in ends(place.get(name, {}), name).items()]
        places.append(
            {
                "site": place["group"],
                "n": options.pairs,
                **dict(kept),
                "carries": meaning(place, found),
            }
        )
    return {"sites": rows, "places": places}


def parts(pipeline, options) -> list[dict]:
    """Rows of one word exchanged by single heads of the sites found, and by these sites from a step on."""
    found = tuple(pipeline.defaults.localized)
    heads = [
        ((site.index, head),)
        for site in pipeline_sites(pipeline)
        if site.index in found
        for head in range(site.text_heads)
    ]
    rows = []
    for word in (1, 2):
        donors = [
            Pair(pair.source, donor.prompt)
            for pair in pairs_of(options.pairs, 2)
            for donor in drawn_donors(pipeline, pair)
            if donor.word == word
        ]
        trials = trials_of(pipeline, donors, options, f"parts-{word}")
        trials.measure(heads, own=True)
        scored = {
            f"head {head[0][0]}.{head[0][1]}": all_scores(trials.records, row_name(head))
            for head in heads
        }
        curve = start_curve(trials, found)["curve"]
        scored |= {f"from step {point['start']}": point for point in curve}
        for part, scores in scored.items():
            for number, line in enumerate(scores["texts"], 1):
                rows.append(
                    {
                        **{"word": word, "part": part, "line": number, "n": line["n"]},
                        "changes": "yes" if number == word else "no",
                        **ends(line["exact_target"], "exact"),
                        "old": line["exact_source"]["value"],
                    }
                )
    return rows


def kinds(rng: random.Random) -> dict[str, str]:
    """One random text of every kind, its lines separated by newlines."""

    def word(letters: int) -> str:
        return random_word(rng, letters)

    made = {f"{n} letter{'s' * (n > 1)}": f"{word(n)}\n{word(n)}" for n in range(1, 9)}
    made["one line"] = word(rng.randint(3, 5))
    made["the same twice"] = "\n".join([word(rng.randint(3, 5))] * 2)
    made["three words"] = f"{word(3)} {word(4)}\n{word(4)}"
    made["four words"] = f"{word(3)} {word(4)}\n{word(3)} {word(3)}"
    made["16 letters and blanks"] = f"{word(3)} {word(4)}\n{word(4)} {word(3)}"
    made["small letters"] = f"{word(4)}\n{word(5)}".lower()
    return made


def limits(pipeline, options) -> list[dict]:
    """Rows of texts of every kind, drawn without the card that refuses some."""
    draws = pipeline.defaults.draws
    free = without_card(pipeline)
    rng = random.Random("limits")
    some = [kinds(rng) for _ in range(options.limits)]
    rows = []
    for kind in some[0]:
        signs = [random_sign(rng, TWO_LINES, each[kind]) for each in some]
        pictures = generated_pictures(free, signs)
        right = [
            read_text(picture, sign, TWO_LINES) == sign.word
            for picture, sign in zip(pictures, signs, strict=True)
        ]
        share = float(np.mean(right))
        row = {"texts": kind, "n": len(signs), "right": share, "reader": NEAREST}
        low, high = wilson(share, len(right))
        drawn = "yes" if draws.admits(signs[0].prompt()) else "no"
        rows.append(
            {
                **row,
                "right_low": low,
                "right_high": high,
                "drawn": drawn,
                "example": signs[0].prompt(),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--model", default="tiny-words", help="a model of two lines (tiny-words)")
    parser.add_argument("--signs", type=int, default=40, help="pairs of edited (40)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of the other tables (24)")
    parser.add_argument("--limits", type=int, default=24, help="signs of each kind of limits (24)")
    parser.add_argument(
        "--tables", nargs="+", choices=list(COLUMNS), default=list(COLUMNS), help="which (all)"
    )
    parser.add_argument("--runs", type=Path, help="folder that keeps the pictures")
    reader_option(parser)
    options = parsed(parser, argv)
    pipeline = textpatch.load(options.model, device=options.device, dtype=options.dtype)
    where = environment(options.device)
    made = {}
    if "edited" in options.tables:
        made["edited"] = edited(pipeline, options)
    if {"sites", "places"} & {*options.tables}:
        made |= sites(pipeline, options)
    if "parts" in options.tables:
        made["parts"] = parts(pipeline, options)
    if "limits" in options.tables:
        made["limits"] = limits(pipeline, options)
    for name, rows in made.items():
        path = options.csv
        if path is not None and name != "edited":
            path = path.with_name(f"{path.stem}-{name}.csv")
        table = Table([*SHARED, *COLUMNS[name]], where, path, options.append)
        for row in rows:
            table.add(**{"model": pipeline.name, "reader": options.reader, **row})


if __name__ == "__main__":
    main()
