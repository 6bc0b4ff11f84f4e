"""Which site carries the word: swap the text K and V of one site at a time and read the pictures.

    score(site) = OCR F1 of the pictures of  source <- target at that site,  towards the target's word

(ICLR 2025, sec. 4.2.)  All sites of one prompt pair run in lock-step in one batch: L + 2 pictures per pair
and seed, no cache, no second run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Sequence

import numpy as np
from tqdm import tqdm

from textpatch import metrics
from textpatch.errors import PatchError, PromptError
from textpatch.plan import Plan, Row, Swap
from textpatch.sampling import sample
from textpatch.sites import find_sites, select_sites

SCHEMA_VERSION = 1
SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Pair:
    """Two prompts, each with one word in double quotes; raises PromptError where there is none."""

    source: str
    target: str

    @property
    def words(self) -> tuple[str, str]:
        return quoted(self.source), quoted(self.target)


def quoted(prompt: str) -> str:
    """What stands between the double quotes of a prompt.  Raises PromptError unless it is one stretch of text."""
    parts = prompt.split('"')
    if len(parts) != 3 or not parts[1].strip():
        raise PromptError(
            f'no quoted word in {prompt!r}; write the word to render in double quotes: a sign that says "WORD"'
        )
    return parts[1].strip()


@dataclass(frozen=True)
class Localization:
    """result: the scores as plain data, the content of results.json.  records: one dict per pair and seed;
    their pictures are PIL images, or paths in the run folder if there was one."""

    result: dict
    records: list[dict]

    @property
    def ranked(self) -> list[tuple[int, ...]]:
        """The groups of sites, best first."""
        groups = {entry["site"]: tuple(entry["group"]) for entry in self.result["sites"]}
        return [groups[site] for site in self.result["ranked"]]


def localize(pipeline, pairs: Sequence, *, sites="all", groups: Sequence[Sequence[int]] | None = None,
             seeds: Sequence[int] = (0,), steps: int | None = None, guidance: float | None = None, start: int = 0,
             branch: str = "both", ocr=None, run=None, micro_batch: int = 64) -> Localization:  # fmt: skip
    """Score every site alone, on every prompt pair and seed.

    pairs   (source, target) prompts, each with one quoted word
    sites   which to try, each alone; groups, sets of site indices tried together, replaces it when given
    start   first patched step, 0 = noisiest; branch "both" guidance branches (official) or "cond"
    ocr     a reader with `read(images, box=)` and `describe()`; tesseract when None, self-tested first
    run     a store.Run: finished pairs are kept there and are not run again
    Scores are means over pairs and seeds with 95 % intervals bootstrapped over pairs.
    Raises PatchError for unknown sites or a start outside the run, OCRError if no text can be read.
    """
    steps = pipeline.defaults.steps if steps is None else steps
    guidance = pipeline.defaults.guidance if guidance is None else guidance
    pairs, groups = check(pipeline, pairs, sites=sites, groups=groups, seeds=seeds, steps=steps, start=start)
    ocr = ocr or metrics.Tesseract()
    ocr.self_test()
    done = {} if run is None else {record["id"]: record for record in run.records()}
    records = []
    units = list(itertools.product(range(len(pairs)), seeds))
    for index, seed in tqdm(units, desc="localize", unit="pair", disable=None):
        record = done.get(f"{index}-{seed}")
        if record is None:
            rows, plan = rows_and_plan(pairs[index], seed, groups, steps, start, branch)
            samples = sample(pipeline, rows, plan, steps=steps, guidance=guidance, micro_batch=micro_batch)
            record = _record(pipeline, samples, pairs[index], ocr, run)
            record |= {"id": f"{index}-{seed}", "pair": index, "seed": seed, "plan_sha256": plan.sha256}
            if run is not None:
                run.append(record)
        records.append(record)
    facts = dict(model=pipeline.name, pairs=len(pairs), seeds=list(seeds), steps=steps, guidance=guidance,
                 start=start, branch=branch, ocr=ocr.describe())  # fmt: skip
    return Localization(summarise(pipeline, pairs, groups, records, facts), records)


def check(
    pipeline,
    pairs: Sequence,
    *,
    sites="all",
    groups=None,
    seeds: Sequence[int] = (0,),
    steps: int,
    start: int = 0,
):
    """The pairs and the groups of sites of a request, once all that can be wrong with it is known to be right.

    Nothing is generated.  Raises as `localize` does.
    """
    pairs = [pair if isinstance(pair, Pair) else Pair(*pair) for pair in pairs]
    groups = _groups(pipeline, sites, groups)
    if not pairs or not seeds or not 0 <= start < steps:
        raise PatchError(f"{len(pairs)} pairs, {len(seeds)} seeds, start {start} of {steps} steps; "
                         "needs at least one pair and seed, and a start within the run")  # fmt: skip
    if len(set(groups)) != len(groups):
        raise PatchError(
            f"the same set of sites is asked for twice among {', '.join(map(_name, groups))}; name it once"
        )
    for pair in pairs:
        pair.words  # noqa: B018  a prompt without a word is refused before anything runs
    pipeline.check(
        [prompt for pair in pairs for prompt in (pair.source, pair.target)], seeds=seeds, steps=steps
    )
    return pairs, groups


def _groups(pipeline, sites, groups) -> list[tuple[int, ...]]:
    known = find_sites(pipeline.denoiser)
    if groups is None:
        return [(site.index,) for site in select_sites(known, sites)]
    return [tuple(site.index for site in select_sites(known, list(group))) for group in groups]


def rows_and_plan(
    pair: Pair, seed: int, groups, steps: int, start: int, branch: str
) -> tuple[list[Row], Plan]:
    """Source, target and one patched row per group of sites, all from the same noise; and who reads whom.

    The patched rows keep the source's pooled vector, as the official code does.
    """
    patched = [Row(_name(group), pair.source, seed) for group in groups]
    window = tuple(range(start, steps))
    swaps = [
        Swap(group, row.name, TARGET, steps=window, branch=branch) for group, row in zip(groups, patched)
    ]
    return [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed), *patched], Plan(swaps)


def _name(group: tuple[int, ...]) -> str:
    return "site-" + "+".join(map(str, group))


def _record(pipeline, samples, pair: Pair, ocr, run) -> dict:
    """Pictures, readings and scores of one pair and seed, by row name."""
    names, box = list(samples.images), pipeline.defaults.text_box
    readings = ocr.read([samples.images[name] for name in names], box=box)
    source = samples.images[SOURCE]
    pictures = {}
    for name, read in zip(names, readings):
        image = samples.images[name]
        pictures[name] = {
            "image": image if run is None else run.image(image),
            "read": read,
            **word_scores(read, pair.words),
            **picture_scores(image, source, box),
        }
    return {"pictures": pictures}


def word_scores(read: str, words: tuple[str, str]) -> dict[str, float]:
    """How a reading agrees with the source's and the target's word."""
    scores = {}
    for side, word in zip((SOURCE, TARGET), words):
        match = metrics.characters(read, word)
        scores |= {
            f"precision_{side}": match.precision,
            f"recall_{side}": match.recall,
            f"exact_{side}": float(metrics.exact(read, word)),
            f"edit_{side}": metrics.edit_distance(read, word),
        }
    return scores


def picture_scores(image, source, box) -> dict[str, float]:
    """Distance from the source's picture: outside the lettering, and the official wrap-around of the whole.

    Both pictures' text boxes are blackened first: masking alone would let SSIM's 11 px windows see letters.
    """
    background, kept = _blackened(image, box), _blackened(source, box)
    inside = 0 if box is None else (box[2] - box[0]) * (box[3] - box[1])
    area = image.width * image.height
    return {
        "ssim": metrics.ssim(background, kept),
        "mse": metrics.mse(background, kept) * area / (area - inside),
        "mse_uint8_wrapped": metrics.mse_uint8_wrapped(image, source),
        "psnr_uint8_wrapped": metrics.psnr_uint8_wrapped(image, source),
    }


def _blackened(image, box):
    image = image.copy()
    if box is not None:
        image.paste((0, 0, 0), tuple(box))
    return image


MEANS = (
    "exact_target exact_source edit_target edit_source ssim mse mse_uint8_wrapped psnr_uint8_wrapped"
).split()


def summarise(pipeline, pairs, groups, records: list[dict], facts: dict) -> dict:
    """Means and intervals of all records, the sites ranked by F1 towards the target."""
    known = find_sites(pipeline.denoiser)
    entries = []
    alone = all(len(group) == 1 for group in groups)
    for group in groups:
        sites = [known[index] for index in group]
        entry = {"site": group[0] if alone else "+".join(map(str, group)), "group": list(group),
                 "name": " + ".join(site.name for site in sites), "kind": sites[0].kind}  # fmt: skip
        entries.append(entry | scores(records, _name(group)))
    key = lambda entry: (-entry["f1_target"]["value"], -entry["exact_target"]["value"], entry["group"])  # noqa: E731
    words = [dict(zip(("word", "target_word"), pair.words)) for pair in pairs]
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "baselines": {side: scores(records, side) for side in (SOURCE, TARGET)},
        "sites": entries,
        "ranked": [entry["site"] for entry in sorted(entries, key=key)],
        "pairs_list": [{"source": p.source, "target": p.target, **w} for p, w in zip(pairs, words)],
    }


def scores(records: list[dict], name: str) -> dict:
    """Every score of one row name over all records, with its 95 % interval over prompt pairs."""
    table: dict[int, list[dict]] = {}
    for record in records:
        table.setdefault(record["pair"], []).append(record["pictures"][name])
    column = lambda key: np.array([np.mean([cell[key] for cell in cells]) for cells in table.values()])  # noqa: E731
    out = {key: _score(column(key)) for key in MEANS}
    for side in (SOURCE, TARGET):
        columns = np.stack([column(f"precision_{side}"), column(f"recall_{side}")], axis=1)
        out[f"f1_{side}"] = _score(columns, metrics.f1_of_means)
    return out | {"psnr": _decibels(out["mse"]), "n": len(records)}


def _score(values: np.ndarray, statistic=np.mean) -> dict:
    columns = np.atleast_2d(values.T)
    low, high = metrics.bootstrap(values, statistic)
    return {"value": float(statistic(*columns, axis=-1)), "low": low, "high": high}


def _decibels(mse: dict) -> dict:
    """PSNR of the mean squared error and of its interval; None where it is infinite."""
    turn = lambda x: None if x == 0 else float(10 * np.log10(255**2 / x))  # noqa: E731
    return {"value": turn(mse["value"]), "low": turn(mse["high"]), "high": turn(mse["low"])}
